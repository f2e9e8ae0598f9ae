# make demo   a first look: SQLite, real traffic, one audit query
# make test   the whole suite, real servers included; nothing needs to be installed by hand
# make bench  what it costs beside the driver, in half an hour (benchmarks/README.md)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SDK    := .venv-acp-sdk
COMPILE := $(BIN)/uv pip compile --quiet --universal --no-header pyproject.toml

# Processes of the tests start twice as fast where compiled modules are kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-acp-sdk bench lint lock clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[a2a,audit,cli,openai-agents,redis]' --group dev
	touch $@

demo: $(VENV)/.installed
	$(BIN)/alembic upgrade head
	$(BIN)/python -m acp_store.cli import tests/data/acp-recordings.jsonl
	$(BIN)/python docs/demo.py

# acp-sdk works only with old versions of what the other tests have.
$(SDK)/.installed: pyproject.toml constraints-acp-sdk.txt $(VENV)/.installed
	$(PYTHON) -m venv --without-pip $(SDK)
	$(BIN)/uv pip install --quiet --python $(SDK)/bin/python --constraint constraints-acp-sdk.txt --editable '.[acp-sdk,redis]' --group acp-sdk
	touch $@

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(ARGS)
	$(if $(ARGS),,$(MAKE) test-acp-sdk)

test-acp-sdk: $(SDK)/.installed
	$(SDK)/bin/python -m pytest tests/integrations/acp_sdk

$(VENV)/.bench: benchmarks/requirements.txt $(VENV)/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --requirement $<
	touch $@

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lock:
	$(COMPILE) --extra a2a --extra audit --extra cli --extra openai-agents --extra redis --group dev --output-file constraints.txt
	$(COMPILE) --extra acp-sdk --extra redis --group acp-sdk --output-file constraints-acp-sdk.txt

clean:
	rm -rf $(VENV) $(SDK) acp.db acp.db-wal acp.db-shm
