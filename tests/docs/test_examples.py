"""Every fenced example of the documentation runs, page by page, from top to bottom, and shows what it says.

A page is read in a fresh copy of what a checkout has at its top, with the project's environment:

* ``python`` runs in one namespace a page, ``console`` in a shell for each ``$``, `export` lasts;
* a block under ``<!-- file: name -->`` is written to that file;
* ``sql`` runs on the recorded traffic, on SQLite and PostgreSQL, or on the one an HTML comment above names:
  ``<!-- postgresql -->``, or ``<!-- postgresql fails -->`` where the error is shown;
* a ``text`` block is the output of the block before it. ``...`` stands for anything.

``postgresql://postgres@localhost/acp`` is a PostgreSQL database without tables, and
``redis://localhost:6379/0`` an empty database of a Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pytest
from psycopg.types.json import set_json_loads
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError

from acp_store import AsyncRepository, Repository, open_repository
from tests.docs.pages import OTHER_ENVIRONMENT, PAGES, ROOT, SERVE, SERVED, Block, blocks_of
from tests.nursery import Forked
from tests.servers import empty_redis_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IN_A_CHECKOUT: Final = ("Makefile", "README.md", "LICENSE", "alembic.ini", "constraints.txt", "pyproject.toml")
_SHOWN_URL: Final = re.compile(r"(postgresql(?:\+psycopg)?)://postgres(:[^@\s'\"]*)?@localhost/acp\b")
_SHOWN_REDIS: Final = "redis://localhost:6379/0"
# What a page tells people to run and a test of it cannot: the suite would run itself, a server does
# not end. `test_sse` runs that one.
_INSTEAD: Final = {
    "make test": "make test ARGS=--version",
    "make lint": "make lint --dry-run",
    SERVE: f"{SERVE} --help && python -c 'import sse'",
}
_PROGRAMS: Final = {"acp-store": "acp_store.cli", "alembic": "alembic"}
"""Programs that need not be started by a shell, and the modules that are them."""
_SHELL: Final = re.compile(r"[|&;<>()$`*?#~\n]")
_FLAGS: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

WITH_EXAMPLES: Final = [
    name for name, path in PAGES.items() if blocks_of(path) and name not in OTHER_ENVIRONMENT | SERVED
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory as a fresh clone has it, with the environment of the tests as its own."""
    top = tmp_path / "acp_store"
    for directory in ("migrations", "docs", "tests/data"):
        shutil.copytree(ROOT / directory, top / directory, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _IN_A_CHECKOUT:
        shutil.copy(ROOT / name, top)
    environment = top / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".installed":
            (environment / entry.name).symlink_to(entry)
    (environment / ".installed").touch()
    return top


@pytest.fixture
def shown_redis(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database of one Redis: a page is about the package, and every other test runs on two servers."""
    name = "given_redis" if os.environ.get("ACP_TEST_REDIS_URL") else "redis"
    with empty_redis_database(request.getfixturevalue(name)) as url:
        yield url


@pytest.fixture
def recorded(recordings: list[dict[str, Any]]) -> Callable[[str], str]:
    """A function that loads the recorded traffic into a migrated database and returns its URL."""

    def load(url: str) -> str:
        with open_repository(url) as repository:
            for line in recordings:
                repository.save_session(line["session"])
                repository.save_run({**line["run"], "input": line["input"], "mode": line["mode"]})
                repository.add_events(line["run"]["run_id"], line["events"])
        return url

    return load


class Reader:
    """Somebody who does what a page says."""

    def __init__(
        self,
        page: str,
        checkout: Path,
        postgres_url: str,
        redis_url: str,
        sql_urls: dict[str, str],
        *,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self._page = page
        self._checkout = checkout
        self._monkeypatch = monkeypatch
        self._postgres_url = postgres_url
        self._redis_url = redis_url
        self._sql_urls = sql_urls
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(checkout),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
        }

    def do(self, block: Block) -> None:
        if block.mark.startswith("file: "):
            path = self._checkout / block.mark.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._here(block.text), encoding="utf-8")
        elif block.kind == "python":
            self._compare(block, block.text, block.output, self._python(block))
        elif block.kind == "console":
            assert block.output is None, "a console block shows its own output"
            for command, output in _commands(block.text):
                self._compare(block, command, output, self._console(command))
        elif block.kind == "sql":
            for name, url in self._sql_urls.items():
                if block.mark in ("", name, f"{name} fails"):
                    got = _sql(url, block.text, fails=block.mark.endswith("fails"))
                    self._compare(block, f"{name}: {block.text}", block.output, got)
        else:
            pytest.fail(f"{self._page}:{block.line}: nobody runs a block of {block.kind or 'no language'}")

    def leave(self) -> None:
        """Close what examples leave open, as the end of their process would."""
        for value in self._names.values():
            if isinstance(value, Engine):
                value.dispose()
            elif isinstance(value, Repository):
                value.close()
            elif isinstance(value, AsyncRepository):
                asyncio.run(value.aclose())

    def _python(self, block: Block) -> str:
        # Empty lines in front, so that a traceback names the page's own lines.
        source = "\n" * (block.line - 1) + self._here(block.text)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, self._page, "exec", dont_inherit=True), self._names)
        return printed.getvalue()

    def _console(self, command: str) -> str:
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self._environment[name] = self._here(value).strip("'\"")
            self._monkeypatch.setenv(name, self._environment[name])
            return ""
        program, *arguments = shlex.split(self._here(command))
        if program in _PROGRAMS and not _SHELL.search(command):
            script = str(Path(sys.executable).with_name(program))
            process = Forked(
                _PROGRAMS[program], [script, *arguments], environment=self._environment, directory=self._checkout
            )
            code, out, err = process.output()
            assert code == 0, f"{self._page}: $ {command}\n{out}{err}"
            return out + err
        done = subprocess.run(
            ["bash", "-c", self._here(_INSTEAD.get(command, command))],
            cwd=self._checkout,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{self._page}: $ {command}\n{done.stdout}"
        return done.stdout

    def _here(self, text: str) -> str:
        """Return the text with the URLs of this run's servers in the place of those shown."""
        url = make_url(self._postgres_url)

        def replace(found: re.Match[str]) -> str:
            password = unquote(found[2][1:]) if found[2] else None
            shown = url.set(drivername=found[1], password=url.password or password)
            return shown.render_as_string(hide_password=False)

        return _SHOWN_URL.sub(replace, text).replace(_SHOWN_REDIS, self._redis_url)

    def _compare(self, block: Block, what: str, shown: str | None, got: str) -> None:
        if shown is not None and not doctest.OutputChecker().check_output(self._here(shown), got, _FLAGS):
            pytest.fail(f"{self._page}:{block.line}: {what}\nshown:\n{shown}\ngot:\n{got}", pytrace=False)


def _commands(text: str) -> list[tuple[str, str | None]]:
    """Return each command of a console block with the output shown for it."""
    found: list[tuple[str, str | None]] = []
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE):
        lines = part.splitlines(keepends=True)
        end = next((index for index, line in enumerate(lines) if not line.endswith("\\\n")), 0) + 1
        command, output = "".join(lines[:end]).strip(), "".join(lines[end:])
        if command:
            found.append((command, output or None))
    return found


def _sql(url: str, text: str, *, fails: bool) -> str:
    """Return the result as lines, the last one where there are several statements; or the error's first line."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    output = ""
    try:
        with engine.begin() as db:
            if engine.dialect.name == "postgresql":
                # As psql shows it: the driver would parse it.
                set_json_loads(_as_text, db.connection.driver_connection)
            for statement in filter(str.strip, re.split(r";\s*\n", text)):
                result = db.exec_driver_sql(statement)
                rows = [result.keys(), *result] if result.returns_rows else []
                output = "\n".join(" | ".join("" if cell is None else str(cell) for cell in row) for row in rows)
    except DBAPIError as error:
        if not fails:
            raise
        return str(error.orig).partition("\n")[0]
    finally:
        engine.dispose()
    assert not fails, f"this does not fail: {text}"
    return output


def _as_text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode()


@pytest.mark.timeout(300)  # a page may start twenty processes
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    checkout: Path,
    recorded: Callable[[str], str],
) -> None:
    """What the page shows is what happens."""
    blocks = blocks_of(PAGES[name])
    wanted = {"sqlite": "sqlite_url", "postgresql": "postgres_url"} if any(b.kind == "sql" for b in blocks) else {}
    sql_urls = {kind: recorded(request.getfixturevalue(fixture)) for kind, fixture in wanted.items()}
    with_server = any(_SHOWN_URL.search(block.text) for block in blocks)
    server = request.getfixturevalue("empty_postgres_url") if with_server else "postgresql://"
    with_redis = any(_SHOWN_REDIS in block.text for block in blocks)
    redis_url = request.getfixturevalue("shown_redis") if with_redis else _SHOWN_REDIS
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(checkout)
    reader = Reader(name, checkout, server, redis_url, sql_urls, monkeypatch=monkeypatch)
    try:
        for block in blocks:
            reader.do(block)
    finally:
        reader.leave()


@pytest.mark.parametrize(
    "page",
    [
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nraise ValueError\n```\n",
        "```console\n$ echo 1\n2\n```\n",
        "```console\n$ false\n```\n",
        "```ruby\nputs 1\n```\n",
        "```text\n1\n```\n",
        "```python\nprint(1)\n",
    ],
)
def test_a_wrong_page_is_noticed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example that fails, shows something else, or would not be run, fails the page."""
    path = tmp_path / "page.md"
    path.write_text(page)
    reader = Reader("page.md", tmp_path, "postgresql://", _SHOWN_REDIS, {}, monkeypatch=monkeypatch)
    with pytest.raises((pytest.fail.Exception, AssertionError, ValueError)):
        for block in blocks_of(path):
            reader.do(block)
