"""The cookbook: every question is answered as the page shows, on both databases, from the views alone."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from psycopg import sql

from acp_store.models import VIEWS
from tests.audit.databases import Database, open_database
from tests.audit.story import write_story
from tests.docs.pages import PAGES, blocks_of
from tests.servers import new_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.servers import GivenPostgres, Postgres

PAGE: Final = PAGES["docs/howto/audit-sql.md"]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the page.

    Attributes:
        heading: The question.
        statements: The SQL for each kind of database.
        answer: The lines of the answer, the names of the columns first.
    """

    heading: str
    statements: dict[str, str]
    answer: list[list[str]]


def questions() -> list[Question]:
    """The questions of the page, in order."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found: dict[str, Question] = {}
    for block in blocks_of(PAGE):
        assert block.kind == "sql", f"line {block.line}: this page has nothing but questions"
        audit, _, kind = block.mark.partition(" ")
        assert audit == "audit", f"line {block.line}: test_examples would run this on other data"
        heading = next(line for line in reversed(lines[: block.line]) if line.startswith("#")).lstrip("# ")
        question = found.setdefault(heading, Question(heading, {}, []))
        for each in [kind] if kind else ["postgresql", "sqlite"]:
            assert each not in question.statements, f"line {block.line}: two statements for {each}"
            question.statements[each] = block.text
        question.answer.extend(cells(line) for line in (block.output or "").splitlines())
    return list(found.values())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(" | ")]


def answer_of(names: list[str], rows: list[tuple[Any, ...]]) -> list[str]:
    """An answer as the page shows it."""
    shown = [names, *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in shown) for index in range(len(names))]
    return [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]


QUESTIONS: Final = questions()


@pytest.fixture(scope="module")
def postgres_auditor(
    postgres: Postgres | GivenPostgres, postgres_template: str, recorded_lines: list[dict[str, Any]]
) -> Iterator[Database]:
    """The story on PostgreSQL, in the eyes of a role that may read the views and nothing else."""
    with (
        new_database(postgres, "story", template=postgres_template) as name,
        open_database(postgres.url_for(name)) as database,
    ):
        write_story(postgres.url_for(name), recorded_lines)
        role = sql.Identifier(f"auditor_{name}")
        run = database.connection.execute
        run(sql.SQL("CREATE ROLE {}").format(role))
        try:
            run(sql.SQL("GRANT SELECT ON {} TO {}").format(sql.SQL(", ").join(map(sql.Identifier, VIEWS)), role))
            run(sql.SQL("SET ROLE {}").format(role))
            run("SET timezone = 'UTC'")
            yield database
        finally:
            run("RESET ROLE")
            run(sql.SQL("DROP OWNED BY {0}").format(role))
            run(sql.SQL("DROP ROLE {}").format(role))


@pytest.fixture(scope="module")
def sqlite_auditor(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, recorded_lines: list[dict[str, Any]]
) -> Iterator[Database]:
    """The story on SQLite, on a connection that reads the tables through the views only."""

    def authorize(action: int, first: str | None, _second: str | None, _place: str | None, view: str | None) -> int:
        direct = action == sqlite3.SQLITE_READ and (first or "").startswith("acp_") and view is None
        return sqlite3.SQLITE_DENY if direct else sqlite3.SQLITE_OK

    path = tmp_path_factory.mktemp("story") / "acp.db"
    path.write_bytes(sqlite_template.read_bytes())
    write_story(f"sqlite:///{path}", recorded_lines)
    with open_database(f"sqlite:///{path}") as database:
        database.connection.set_authorizer(authorize)
        yield database


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.heading)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_answer_is_as_shown(kind: str, question: Question, request: pytest.FixtureRequest) -> None:
    """The statement for this database answers what the page shows, line by line."""
    database: Database = request.getfixturevalue({"sqlite": "sqlite_auditor", "postgresql": "postgres_auditor"}[kind])
    answer = answer_of(*database.query(question.statements[kind]))
    assert question.answer == [cells(line) for line in answer], "\n".join(["", *answer])


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.heading)
def test_the_statement_asks_the_views(question: Question) -> None:
    """A statement names no table of ours: only views are promised."""
    for statement in question.statements.values():
        assert not re.search(r"\bacp_", statement)
        assert set(re.findall(r"\baudit_\w+", statement)) <= set(VIEWS)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.heading)
def test_the_times_are_whole(question: Question) -> None:
    """A time has all of its characters, because SQLite compares it as text; only a day is a date."""
    for statement in question.statements.values():
        for before, time in re.findall(r"(\w+)\)? *(?:[<>]=?|=|BETWEEN|AND) *'([0-9]{4}-[^']*)'", statement):
            shape = r"[-0-9]{10}" if before == "day" else r"[-0-9]{10} [:0-9]{8}\.[0-9]{6}"
            assert re.fullmatch(shape, time), time
        assert len(re.findall(r"'[0-9]{4}-", statement)) == len(
            re.findall(r"(?:[<>]=?|=|BETWEEN|AND) *'[0-9]{4}-", statement)
        )


def test_there_is_an_answer_to_much() -> None:
    """The page has at least 28 questions, uses every view, and hardly any answer is empty."""
    assert len(QUESTIONS) >= 28
    text = PAGE.read_text(encoding="utf-8")
    assert [view for view in VIEWS if f"FROM {view}" not in text] == []
    assert sum(len(question.answer) == 1 for question in QUESTIONS) <= 2


def test_the_auditor_reads_no_table(sqlite_auditor: Database, postgres_auditor: Database) -> None:
    """The connections of these tests can read the views and not the tables."""
    for database in (sqlite_auditor, postgres_auditor):
        with pytest.raises(Exception, match=r"permission denied|prohibited"):
            database.rows("SELECT run_id FROM acp_runs")
