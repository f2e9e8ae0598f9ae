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

    def asked(
        run_id: str,
        agent_name: str,
        question: str | None,
        at: str,
        session_id: str | None = None,
        *,
        events: bool = True,
    ) -> dict[str, Any]:
        run = {
            "run_id": run_id,
            "agent_name": agent_name,
            "session_id": session_id,
            "status": "created",
            "created_at": f"{at}Z",
            "input": [] if question is None else [text("user", question)],
            "output": [],
        }
        story.save(run, at=at)
        if events:
            story.tell(run_id, {"type": "run.created", "run": run}, at=at)
        return run

    def moved(run: dict[str, Any], status: str, at: str, *, force: bool = False, **fields: Any) -> None:
        over = status in {"completed", "failed", "cancelled"}
        run |= {"status": status, "finished_at": f"{at}Z" if over else None, **fields}
        story.save(run, at=at, force=force)
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
        # A tool that is given nothing, told of in the same instant as the last word.
        story.tell("refund-1", call("clock", None, "14:10"), at="2026-03-02 14:10:02")
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
    # Tried again in the instant in which it failed, and once more.
    with actor("bob", reason="ticket 4714"):
        run = asked("order-3b", "shop", "Cancel order 4712", "2026-03-09 09:00:31", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 09:00:31.100")
        # Two URLs that only look alike.
        story.tell("order-3b", call("http_get", {"url": f"{API}/47120"}, {"state": "lost"}), at="2026-03-09 09:00:32")
        other = f"{API}/4712".replace("orders", "ORDERS")
        story.tell("order-3b", call("http_get", {"url": other}, {"state": "lost"}), at="2026-03-09 09:00:33")
        moved(run, "failed", "2026-03-09 09:01:31", error={**error, "message": "tool timeout after 60 s"})
    with actor("bob", reason="ticket 4714"):
        run = asked("order-4", "shop", "Cancel order 4712", "2026-03-09 09:02:00", "ben")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 09:02:00.100")
        # Told of when it is made, and again with what it gave back.
        story.tell("order-4", call("http_get", {"url": f"{API}/4712"}), at="2026-03-09 09:02:00.500")
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

    # Over at 13:10, opened again at 15:00: not running in between. Nobody said why.
    with actor("alice", reason="ticket 4718"):
        run = asked("report-1", "reporter", None, "2026-03-09 13:00:00")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 13:00:00.100")
        moved(run, "completed", "2026-03-09 13:10:00", **answer(run, "12 orders."))
    with actor("alice"):
        moved(run, "in-progress", "2026-03-09 15:00:00", force=True)
    with actor("worker"):
        moved(run, "completed", "2026-03-09 15:05:00")
    # Created at 14:05 to the microsecond; told to stop by alice, and stopped by the worker.
    with actor("alice", reason="ticket 4719"):
        run = asked("report-2", "reporter", None, "2026-03-09 14:05:00")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-09 14:05:00.100")
    with actor("alice", reason="wrong report"):
        moved(run, "cancelling", "2026-03-09 14:07:00")
    with actor("worker"):
        moved(run, "cancelled", "2026-03-09 14:07:01")
    # No events. Over at once, and then over in another way: that is not opened again.
    with actor("alice", reason="ticket 4719"):
        run = asked("report-3", "reporter", None, "2026-03-04 16:00:00", events=False)
        run |= {"status": "completed", "finished_at": "2026-03-04 16:00:01Z", **answer(run, "12 orders.")}
        story.save(run, at="2026-03-04 16:00:01")
        run |= {"status": "failed", "finished_at": "2026-03-04 16:30:00Z"}
        story.save(run, at="2026-03-04 16:30:00", force=True)

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

    # Waits three times: for five minutes and no longer, for longer, and still.
    with actor("alice", reason="ticket 4717"):
        run = asked("refund-3", "refunds", "Refund order 4730.", "2026-03-16 10:05:00", "anna")
    with actor("worker"):
        story.tell("refund-3", part("That is 30 EUR. Go ahead?"), at="2026-03-16 10:05:00.700")
        moved(run, "awaiting", "2026-03-16 10:05:00.800")
    with actor("alice", reason="approved"):
        moved(run, "in-progress", "2026-03-16 10:10:00.800")
    with actor("worker"):
        story.tell("refund-3", part("The card is refused. "), at="2026-03-16 10:10:02")
        picture = {"content_type": "image/png", "content_encoding": "base64", "content": "aGVsbG8="}
        story.tell("refund-3", {"type": "message.part", "part": picture}, at="2026-03-16 10:10:03")
        story.tell("refund-3", part("Another one?"), at="2026-03-16 10:10:04")
        moved(run, "awaiting", "2026-03-16 10:10:05")
    with actor("alice", reason="approved"):
        moved(run, "in-progress", "2026-03-16 10:20:00")
    with actor("worker"):
        story.tell("refund-3", call("pay", {"amount": 29.5, "order": "4730"}, {"ok": False}), at="2026-03-16 10:20:01")
        story.tell("refund-3", part("Refused too. Pay cash?"), at="2026-03-16 10:20:02")
        moved(run, "awaiting", "2026-03-16 10:20:03")

    # At noon one is stuck that is over by now, and one is at work that was asked long before.
    with actor("alice", reason="ticket 4721"):
        run = asked("mail-3", "mailer", "Write to all late payers.", "2026-03-16 10:30:00")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-16 10:30:00.100")
        moved(run, "completed", "2026-03-16 13:00:00", **answer(run, "Sent 7 letters."))
    # Bob changes the output; alice then saves the same output, and is not to blame.
    with actor("bob", reason="typo"):
        run |= answer(run, "Sent 8 letters.")
        story.save(run, at="2026-03-16 14:00:00")
    with actor("alice", reason="labels"):
        story.save(run | {"labels": ["late"]}, at="2026-03-16 15:00:00")
    with actor("alice", reason="ticket 4722"):
        run = asked("mail-4", "mailer", "Write to all late payers.", "2026-03-16 10:31:00")
    with actor("worker"):
        moved(run, "in-progress", "2026-03-16 10:31:00.100")
        story.tell("mail-4", part("Letter 1 of 2 is sent. "), at="2026-03-16 11:50:00")
        story.tell("mail-4", part("Letter 2 of 2 is sent."), at="2026-03-16 12:10:00")
        moved(run, "completed", "2026-03-16 12:10:01", **answer(run, "Letter 1 of 2 is sent. Letter 2 of 2 is sent."))
    with actor("bob", reason="typo"):
        story.save(run | answer(run, "2 of 2 letters are sent."), at="2026-03-16 14:30:00")

    # A session that is deleted while one of its two runs stays.
    with actor("alice"):
        for run_id, at in (("dora-1", "2026-03-05 10:00:00"), ("dora-2", "2026-03-05 10:01:00")):
            run = asked(run_id, "shop", "Forget me.", at, "dora")
            moved(run, "completed", at.removesuffix("00") + "07", **answer(run, "I will."))
    story.say("dora", [text("user", "Forget me."), text("agent/shop", "I will.")], at="2026-03-05 10:01:07")
    with actor("carol", reason="article 17, request 11"):
        repository.delete_run("dora-1")
        repository.delete_session("dora")
        # It came back, and was deleted once more.
        repository.append_messages("dora", [text("user", "Still there?")])
        repository.delete_session("dora")
    for number in range(3):
        story.times.append(
            f"UPDATE acp_tombstones SET deleted_at = '2026-03-19 09:00:0{number}.000000' WHERE digest ="
            f" (SELECT digest FROM acp_tombstones ORDER BY kind, message_count DESC LIMIT 1 OFFSET {number})"
        )

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
            [
                text("user", "Cancel order 4712"),
                text("agent/shop", "Order 4712 is cancelled."),
                # Other numbers, in which the first one is.
                text("user", "And 47110, and 14711?"),
            ],
            at="2026-03-09 09:02:04",
        )
    # Somebody else's events, of a run that nobody has saved.
    with actor("probe"):
        story.tell("no-such-run", {"type": "note", "text": "hello"}, at="2026-03-10 08:00:00")
        story.tell("no-such-run", call("ping", {"host": "db"}), at="2026-03-10 08:00:01")
    story.tell("no-such-run", {"type": "note", "text": "me too"}, at="2026-03-10 08:00:02")
