"""What the cookbook is asked about: the recorded traffic, and some days in a shop, at times that are fixed.

Everything is written through the repository, by named actors, as a server does. The times that the
store gives (when a status changed, when an event came) are set afterwards by the owner of the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from acp_store import Repository, actor, open_repository
from tests.audit.databases import open_database, plain

__all__ = ["write_story"]

API = "https://api.example.org/orders"


def write_story(url: str, recordings: Sequence[Mapping[str, Any]]) -> None:
    """Fill a migrated database."""
    with open_repository(url) as repository:
        story = Story(repository)
        for number, line in enumerate(recordings, 1):
            recorded(story, line, f"trace-{number}")
        shop(story)
    with open_database(url) as database:
        if database.kind == "postgresql":
            database.execute("SET timezone = 'UTC'")
        for statement in story.times:
            database.execute(statement)


class Story:
    """Writes runs and events, and keeps the times at which that happened."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.times: list[str] = []

    def save(self, run: Mapping[str, Any], *, at: str | datetime, force: bool = False) -> None:
        """Save a run at a time."""
        saved = self.repository.save_run(run, force=force)
        time = moment(at)
        where = f"run_id = '{run['run_id']}'"
        self.times.append(f"UPDATE acp_runs SET updated_at = '{time}' WHERE {where}")
        self.times.append(
            f"UPDATE acp_run_status_history SET changed_at = '{time}' WHERE {where} AND version = {saved.version}"
        )

    def tell(self, run_id: str, event: Mapping[str, Any], *, at: str | datetime) -> None:
        """Add an event at a time."""
        added = self.repository.add_event(run_id, event)
        self.times.append(
            f"UPDATE acp_events SET recorded_at = '{moment(at)}' WHERE run_id = '{run_id}' AND seq = {added.seq}"
        )

    def say(self, session_id: str, history: Sequence[Any], *, at: str) -> None:
        """Append to a session's history at a time."""
        self.repository.append_messages(session_id, history)
        self.put(session_id, at=moment(at))

    def put(self, session_id: str, *, at: str) -> None:
        """Put a session and its history at a time."""
        where = f"session_id = '{session_id}'"
        self.times.append(f"UPDATE acp_sessions SET created_at = '{at}', updated_at = '{at}' WHERE {where}")
        self.times.append(f"UPDATE acp_session_messages SET recorded_at = '{at}' WHERE {where}")


def moment(at: str | datetime) -> str:
    """Return a time in UTC, as both databases read it."""
    time = datetime.fromisoformat(f"{at}Z") if isinstance(at, str) else at
    return str(plain(time))


def recorded(story: Story, line: Mapping[str, Any], trace_id: str) -> None:
    """Replay one line of the recordings: the run is saved in each state in which an event shows it."""
    run_id = line["run"]["run_id"]
    start = datetime.fromisoformat(line["run"]["created_at"])
    for number, event in enumerate(line["events"]):
        time = start + timedelta(milliseconds=number)
        state = event.get("run")
        before_last = line["events"][number - 1]["type"]
        name, reason = "worker", None
        if event["type"] in {"run.created", "run.in-progress"} and before_last != "run.created":
            name = "gateway"
        if event["type"] == "run.cancelled":
            name, reason = "operator", "client went away"
        with actor(name, reason=reason, trace_id=trace_id):
            if state:
                if state["finished_at"]:
                    time = datetime.fromisoformat(state["finished_at"])
                story.save({**state, "input": line["input"], "mode": line["mode"]}, at=time)
            story.tell(run_id, event, at=time)
    with actor("gateway"):
        story.repository.save_session(line["session"])
    story.put(line["session"]["id"], at=moment(start))


def text(role: str, content: str) -> dict[str, Any]:
    """A message of one part of plain text."""
    return {"role": role, "parts": [{"content_type": "text/plain", "content": content}]}


def part(content: str) -> dict[str, Any]:
    """An event: a part of plain text."""
    return {"type": "message.part", "part": {"content_type": "text/plain", "content": content}}


def call(tool_name: str, tool_input: Any, tool_output: Any = None) -> dict[str, Any]:
    """An event: a tool call."""
    metadata = {"kind": "trajectory", "tool_name": tool_name, "tool_input": tool_input, "tool_output": tool_output}
    return {"type": "message.part", "part": {"content_type": "text/plain", "content": None, "metadata": metadata}}


def shop(story: Story) -> None:
    """Some days in March in which a shop's agents answer, wait, fail, and are tidied up after."""
    repository = story.repository

    def asked(run_id: str, agent_name: str, question: str, at: str, session_id: str | None = None) -> dict[str, Any]:
        run = {
            "run_id": run_id,
            "agent_name": agent_name,
            "session_id": session_id,
            "status": "created",
            "created_at": f"{at}Z",
            "input": [text("user", question)],
            "output": [],
        }
        story.save(run, at=at)
        story.tell(run_id, {"type": "run.created", "run": run}, at=at)
        return run

    def moved(run: dict[str, Any], status: str, at: str, **fields: Any) -> None:
        run |= {"status": status, **fields}
        if status in {"completed", "failed", "cancelled"}:
            run["finished_at"] = f"{at}Z"
        story.save(run, at=at)
        story.tell(run["run_id"], {"type": f"run.{status}", "run": run}, at=at)

    def answer(run: dict[str, Any], content: str) -> dict[str, Any]:
        return {"output": [text(f"agent/{run['agent_name']}", content)]}

    with actor("alice", reason="ticket 4711", trace_id="trace-a"):
        run = asked("order-1", "shop", "Where is order 4711?", "2026-03-02 09:15:00", "anna")
    with actor("worker", trace_id="trace-a"):
        moved(run, "in-progress", "2026-03-02 09:15:00.100")
        output = {"state": "shipped", "when": "Friday"}
        story.tell("order-1", call("http_get", {"url": f"{API}/4711"}, output), at="2026-03-02 09:15:01.500")
        story.tell("order-1", part("Order 4711 was shipped "), at="2026-03-02 09:15:03")
        story.tell("order-1", part("on Friday."), at="2026-03-02 09:15:03.200")
        moved(run, "completed", "2026-03-02 09:15:04.250", **answer(run, "Order 4711 was shipped on Friday."))

    with actor("alice", reason="ticket 4712"):
        run = asked("refund-1", "refunds", "Refund order 4711.", "2026-03-02 14:00:00", "anna")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-02 14:00:00.100")
        story.tell("refund-1", part("That is 20 EUR. Go ahead?"), at="2026-03-02 14:00:02")
        moved(run, "awaiting", "2026-03-02 14:00:02.400")
    with actor("alice", reason="approved"):
        moved(run, "in-progress", "2026-03-02 14:10:00")
    with actor("worker"):
        story.tell("refund-1", call("pay", {"amount": 20, "order": "4711"}, {"ok": True}), at="2026-03-02 14:10:01")
        story.tell("refund-1", part("Done: 20 EUR for order 4711."), at="2026-03-02 14:10:02")
        moved(run, "completed", "2026-03-02 14:10:03", **answer(run, "Done: 20 EUR for order 4711."))

    with actor("bob", reason="ticket 4713"):
        run = asked("order-2", "shop", "Where is order 4711?", "2026-03-03 08:30:00", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-03 08:30:00.100")
        moved(run, "completed", "2026-03-03 08:30:02", **answer(run, "I do not know."))

    with actor("bob", reason="ticket 4714"):
        run = asked("order-3", "shop", "Cancel order 4712", "2026-03-09 09:00:00", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 09:00:00.100")
        story.tell("order-3", call("http_get", {"url": f"{API}/4712"}), at="2026-03-09 09:00:01")
        error = {"code": "server_error", "message": "tool timeout after 30 s"}
        moved(run, "failed", "2026-03-09 09:00:31", error=error)
    with actor("bob", reason="ticket 4714"):
        run = asked("order-4", "shop", "Cancel order 4712", "2026-03-09 09:02:00", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 09:02:00.100")
        story.tell("order-4", call("http_get", {"url": f"{API}/4712"}, {"state": "open"}), at="2026-03-09 09:02:01")
        story.tell("order-4", part("Order 4712 is cancelled."), at="2026-03-09 09:02:02")
        moved(run, "completed", "2026-03-09 09:02:03", **answer(run, "Order 4712 is cancelled."))

    with actor("bob", reason="ticket 4715"):
        run = asked("order-5", "shop", "Which orders are late?", "2026-03-09 11:30:00", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 11:30:00.100")
        story.tell("order-5", call("http_get", {"url": f"{API}?late=1"}), at="2026-03-09 11:31:00")

    with actor("alice", reason="ticket 4716"):
        run = asked("refund-2", "refunds", "Refund order 4720.", "2026-03-09 14:00:00", "anna")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 14:00:00.100")
        moved(run, "awaiting", "2026-03-09 14:00:01")
    with actor("bob", reason="customer called"):
        moved(run, "cancelled", "2026-03-09 14:06:00")

    run = asked("mail-1", "mailer", "Tell all customers of the sale.", "2026-03-14 23:30:00")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-14 23:30:00.100")
        moved(run, "completed", "2026-03-14 23:30:09", **answer(run, "Sent 1200 letters."))
    with actor("mallory", reason="typo"):
        story.save(run | answer(run, "Sent 1199 letters."), at="2026-03-15 07:00:00")

    with actor("alice"):
        run = asked("mail-2", "mailer", "Write to anna@example.org", "2026-03-16 10:00:00", "anna")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-16 10:00:00.100")
        story.tell("mail-2", part("Dear Anna, ..."), at="2026-03-16 10:00:03")
        moved(run, "completed", "2026-03-16 10:00:04", **answer(run, "Sent."))
    with actor("carol", reason="article 17, request 12"):
        repository.erase_event("mail-2", 3)
    story.times.append("UPDATE acp_erasures SET erased_at = '2026-03-20 12:00:00.000000'")
    with actor("bob", reason="ticket 4720"):
        story.save(run | {"status": "in-progress", "finished_at": None}, at="2026-03-16 11:00:00", force=True)
        story.save(run, at="2026-03-16 11:00:05")

    with actor("alice", reason="ticket 4717"):
        run = asked("refund-3", "refunds", "Refund order 4730.", "2026-03-16 10:05:00", "anna")
    with actor("worker"):
        moved(run, "awaiting", "2026-03-16 10:05:01")

    # A session that is deleted while one of its two runs stays.
    with actor("alice"):
        for run_id, at in (("dora-1", "2026-03-05 10:00:00"), ("dora-2", "2026-03-05 10:01:00")):
            run = asked(run_id, "shop", "Forget me.", at, "dora")
            moved(run, "completed", at.removesuffix("00") + "07", **answer(run, "I will."))
    story.say("dora", [text("user", "Forget me."), text("agent/shop", "I will.")], at="2026-03-05 10:01:07")
    with actor("carol", reason="article 17, request 11"):
        repository.delete_run("dora-1")
        repository.delete_session("dora")
    story.times.append("UPDATE acp_tombstones SET deleted_at = '2026-03-19 09:00:00.000000' WHERE kind = 'run'")
    story.times.append("UPDATE acp_tombstones SET deleted_at = '2026-03-19 09:00:01.000000' WHERE kind = 'session'")

    with actor("gateway"):
        story.say(
            "anna",
            [
                text("user", "Where is order 4711?"),
                text("agent/shop", "Order 4711 was shipped on Friday."),
                text("user", "Refund order 4711."),
                text("agent/refunds", "Done: 20 EUR for order 4711."),
                "https://api.example.org/files/5",
            ],
            at="2026-03-02 14:10:04",
        )
        story.say(
            "ben",
            [text("user", "Cancel order 4712"), text("agent/shop", "Order 4712 is cancelled.")],
            at="2026-03-09 09:02:04",
        )
    # Somebody else's events, of a run that nobody has saved.
    with actor("probe"):
        story.tell("no-such-run", {"type": "note", "text": "hello"}, at="2026-03-10 08:00:00")
