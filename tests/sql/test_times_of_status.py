"""`Run.status_at` beside what processes and rows of the version before revision 0005 know of it: nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from acp_store import Run, open_repository
from acp_store.backends.redis.keys import stamp_of
from acp_store.backends.redis.mapping import run_from_fields, values_of_run
from acp_store.codec import settled
from acp_store.decorators.values import run_of, text_of

ODD = ["whenever", {}, {"a": "\0"}, 5, 1e30, "2026-01-01T00:00:00", "2026-01-01T00:00:00Z", None, [], "5"]
TIME = datetime(2020, 1, 1, tzinfo=UTC)


def _make_old(engine: Engine, run_id: str, value: object, **others: object) -> None:
    """Have a run's row say what an older process wrote for a run with an unknown field `status_at`."""
    stored = json.dumps({"x": 1, "status_at": value, **others}, ensure_ascii=False).replace("\\u0000", "\u24000")
    with engine.begin() as connection:
        connection.execute(
            text("update acp_runs set extra = :extra, status_at = null where run_id = :run"),
            {"extra": stored, "run": run_id},
        )


def _extra(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.execute(text("select cast(extra as text) from acp_runs")).scalar_one()


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_an_unknown_field_of_before_stays_one(value: object, file_url: str, engine: Engine) -> None:
    """Whatever an older process kept under that name reads back as that, also in lists, and is saved so again."""
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        _make_old(engine, "r", value, y={"status_at": 1})
        stored = _extra(engine)
        for _ in range(2):
            run = repository.get_run("r")
            assert run is not None
            assert (run.status_at, run.model_extra) == (None, {"x": 1, "status_at": value, "y": {"status_at": 1}})
            assert list(run.model_extra or ()) == ["x", "status_at", "y"]
            assert json.loads(run.model_dump_json())["status_at"] == value
            for order in ("created", "status"):
                assert repository.list_runs(order=order).runs == [run]
            assert repository.save_run(run).model_extra == run.model_extra
        assert json.loads(_extra(engine)) == json.loads(stored)


def test_a_time_of_our_own_takes_the_place_of_it(file_url: str, engine: Engine) -> None:
    """A row with both reads as it is; a run that is saved with a time has one field of that name from then on."""
    with open_repository(file_url) as repository:
        repository.save_run(Run(run_id="r", agent_name="a"))
        _make_old(engine, "r", "whenever")
        run = repository.get_run("r")
        assert run is not None
        run.status_at = TIME
        assert repository.save_run(run).model_extra == {"x": 1}
        found = repository.get_run("r")
        assert found is not None
        assert (found.status_at, found.model_extra) == (TIME, {"x": 1})
        with engine.begin() as connection:
            connection.execute(text("""update acp_runs set extra = '{"status_at": "2001-01-01T00:00:00Z"}'"""))
        found = repository.get_run("r")
        assert found is not None
        assert (found.status_at, found.model_extra) == (TIME, {"status_at": "2001-01-01T00:00:00Z"})


def test_a_list_in_the_order_of_statuses_ends(file_url: str, engine: Engine) -> None:
    """A cursor is made of what the rows are sorted by, whatever an older process kept as an unknown field."""
    with open_repository(file_url) as repository:
        for number in range(4):
            repository.save_run(Run(run_id=f"old-{number}", agent_name="a"))
            _make_old(engine, f"old-{number}", f"2026-01-0{number + 1}T00:00:00Z")
        for number in range(3):
            repository.save_run(Run(run_id=f"new-{number}", agent_name="a", status_at=TIME.replace(day=number + 1)))
        seen: list[str] = []
        cursor = None
        for _ in range(4):
            page = repository.list_runs(order="status", limit=2, cursor=cursor)
            seen += [run.run_id for run in page.runs]
            cursor = page.next_cursor
    assert cursor is None
    assert seen == ["new-2", "new-1", "new-0", "old-3", "old-2", "old-1", "old-0"]


def test_wire_fields_do_not_name_it(file_url: str, engine: Engine) -> None:
    """The names of a run's fields, which older processes read too, are those that they know."""
    runs = [
        Run(run_id="usual", agent_name="a", mode="sync", status_at=TIME),
        Run.model_validate({"status_at": TIME, "agent_name": "a", "run_id": "odd", "mode": "sync"}),
        Run.model_validate({"run_id": "short", "agent_name": "a", "status_at": TIME}),
    ]
    with open_repository(file_url) as repository:
        for run in runs:
            repository.save_run(run)
        with engine.connect() as connection:
            stored = connection.execute(text("select run_id, wire_fields from acp_runs")).all()
        assert dict(map(tuple, stored)) == {
            "usual": None,
            "odd": "agent_name,run_id,mode",
            "short": "run_id,agent_name",
        }
        for run in runs:
            found = repository.get_run(run.run_id)
            assert found is not None
            assert found.status_at == TIME
            assert found.model_dump() == run.model_dump()


def test_wire_fields_that_have_no_value_are_passed_over(file_url: str, engine: Engine) -> None:
    """A name without a value, or that no version knows, fails no read."""
    with open_repository(file_url) as repository:
        repository.save_run({"run_id": "r", "agent_name": "a"})
        for names in ("run_id,agent_name,status_at", "run_id,status_at,agent_name,mode,input,later"):
            with engine.begin() as connection:
                connection.execute(text("update acp_runs set wire_fields = :names"), {"names": names})
            run = repository.get_run("r")
            assert run is not None
            assert run.model_dump() == {"run_id": "r", "agent_name": "a"}
            assert repository.list_runs(order="status").runs == [run]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_text_of_before_fails_no_read(value: object) -> None:
    """What Redis and the cache have, written by an older process, is read: as a time of ours where it is one."""
    fields = {"agent_name": "a", "run_id": "r", "status_at": value, "z": 1}
    stored = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).replace("\\u0000", "\u24000")
    kept = [stored.encode(), b"1", b"0", stamp_of(TIME).encode()]
    first = run_from_fields([(b"{ " + kept[0][1:]), *kept[1:]])
    second = run_of(f"1 - 2026-01-01T00:00:00+00:00 - {{ {stored[1:]}".encode(), "r")
    for run in (first, second):
        assert run is not None
        assert json.loads(run.model_dump_json()) == fields
        assert (run.status_at is not None) == (value == "2026-01-01T00:00:00Z")
        assert list(run.model_dump())[:2] == ["agent_name", "run_id"]


def test_what_is_written_as_text_has_one_of_them() -> None:
    """The text of a run with a time of its own is that of the time."""
    run = Run(run_id="r", agent_name="a", status_at=TIME, version=1)
    assert settled(run) is run
    run.__pydantic_extra__ = {"status_at": "whenever", "z": 1}
    text_ = values_of_run(settled(run))[1][0]
    assert text_.count("status_at") == 1
    assert json.loads(text_)["status_at"] == "2020-01-01T00:00:00Z"
    found = run_of(text_of(settled(run)), "r")
    assert (found.status_at, found.model_extra) == (TIME, {"z": 1})
