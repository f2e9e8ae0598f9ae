# make demo   a first look: SQLite, real traffic, one audit query
# make test   the whole suite, real servers included; nothing needs to be installed by hand
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Processes of the tests start twice as fast where compiled modules are kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint lock clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[cli,redis,audit]' --group dev
	touch $@

demo: $(VENV)/.installed
	$(BIN)/alembic upgrade head
	$(BIN)/python -m acp_store.cli import tests/data/acp-recordings.jsonl
	$(BIN)/python docs/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lock:
	$(BIN)/uv pip compile --quiet --universal --no-header --all-extras --group dev pyproject.toml --output-file constraints.txt

clean:
	rm -rf $(VENV) acp.db acp.db-wal acp.db-shm
