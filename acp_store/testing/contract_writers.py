"""The clauses on several threads at once."""

from __future__ import annotations

from threading import Event as Flag
from typing import TYPE_CHECKING

from acp_store.errors import ConflictError
from acp_store.repository import Capability, Repository
from acp_store.testing import factories as make
from acp_store.testing.phrases import (
    RACES,
    ROUNDS,
    TERMINAL,
    WRITERS,
    at_once,
    history,
    ids,
    needs,
    payloads,
    run_of,
    session_of,
    status_of,
    text,
)

if TYPE_CHECKING:
    from acp_store.records import (
        Event,
    )

__all__ = ["WriterClauses"]


class WriterClauses:
    """Writers at the same time lose nothing."""

    @needs(Capability.CONCURRENT_WRITERS)
    def test_concurrent_appends_are_all_kept(self, repository: Repository) -> None:
        """Of threads that append to one run none loses an event; numbers are gapless, each thread's order is kept."""

        def append(writer: int) -> list[int | None]:
            return [repository.add_event("run-1", make.generic_event([writer, n])).seq for n in range(ROUNDS)]

        numbers = at_once(append)
        events = repository.get_events("run-1", limit=1000)
        found = payloads(events)
        assert sorted(found) == [[writer, n] for writer in range(WRITERS) for n in range(ROUNDS)]
        assert [event.seq for event in events] == list(range(1, WRITERS * ROUNDS + 1))
        for writer in range(WRITERS):
            assert [n for other, n in found if other == writer] == list(range(ROUNDS))
            assert [found.index([writer, n]) + 1 for n in range(ROUNDS)] == numbers[writer]

    @needs(Capability.CONCURRENT_WRITERS)
    def test_appends_at_the_same_moment_are_all_kept(self, repository: Repository) -> None:
        """Appends that begin at the same moment get different numbers and are all there, round after round."""
        for n in range(RACES):
            numbers = at_once(
                lambda writer, n=n: repository.add_event("run-1", make.generic_event([n, writer])).seq  # type: ignore[misc]
            )
            assert sorted(number or 0 for number in numbers) == list(range(n * WRITERS + 1, (n + 1) * WRITERS + 1))
        found = payloads(repository.get_events("run-1"))
        assert sorted(found) == [[n, writer] for n in range(RACES) for writer in range(WRITERS)]
        assert [n for n, _ in found] == sorted(n for n, _ in found)

    @needs(Capability.CONCURRENT_WRITERS)
    def test_concurrent_appends_to_several_runs_are_all_kept(self, repository: Repository) -> None:
        """Threads that append to runs of their own, and to runs of others, lose nothing."""

        def append(writer: int) -> None:
            for n in range(ROUNDS):
                repository.add_event(f"run-{(writer + n) % 3}", make.generic_event([writer, n]))

        at_once(append)
        everything = []
        for number in range(3):
            events = repository.get_events(f"run-{number}", limit=1000)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            everything += payloads(events)
        assert sorted(everything) == [[writer, n] for writer in range(WRITERS) for n in range(ROUNDS)]

    @needs(Capability.CONCURRENT_WRITERS)
    def test_a_reader_misses_nothing_beside_writers(self, repository: Repository) -> None:
        """Who reads on from the last number seen, while others append, sees every event once and in order."""
        done = [Flag() for _ in range(WRITERS - 1)]

        def work(number: int) -> list[Event]:
            if number < len(done):
                try:
                    for n in range(ROUNDS):
                        repository.add_event("run-1", make.generic_event([number, n]))
                finally:
                    done[number].set()
                return []
            seen: list[Event] = []
            while True:
                last = all(flag.is_set() for flag in done)
                page = repository.get_events("run-1", limit=7, offset=len(seen))
                seen += page
                if last and not page:
                    return seen

        seen = at_once(work)[-1]
        assert [event.seq for event in seen] == list(range(1, len(done) * ROUNDS + 1))
        assert payloads(seen) == payloads(repository.get_events("run-1", limit=1000))

    @needs(Capability.CONCURRENT_WRITERS)
    def test_concurrent_saves_of_different_runs_are_all_kept(self, repository: Repository) -> None:
        """Threads that save runs and sessions of their own lose none."""

        def save(writer: int) -> None:
            for n in range(5):
                repository.save_run(make.run(f"run-{writer}-{n}", agent_name=f"agent {writer}"))
                repository.save_session(make.session(f"session-{writer}-{n}", state=[writer, n]))

        at_once(save)
        page = repository.list_runs(limit=1000)
        names = {f"{writer}-{n}" for writer in range(WRITERS) for n in range(5)}
        assert page.total == len(page.runs) == len(names)
        assert set(ids(page)) == {f"run-{name}" for name in names}
        for name in names:
            session = session_of(repository, f"session-{name}")
            assert session.state == [int(part) for part in name.split("-")]

    @needs(Capability.CONCURRENT_WRITERS)
    def test_concurrent_saves_of_one_run_leave_one_of_them(self, repository: Repository) -> None:
        """Threads that save one run without a version leave the whole of one save, never a mixture."""

        def save(writer: int) -> None:
            for n in range(5):
                mark = [writer, n]
                repository.save_run(make.run(agent_name=text(mark), metadata=mark, output=[make.message(text(mark))]))

        at_once(save)
        page = repository.list_runs()
        assert page.total == 1
        [run] = page.runs
        assert run.agent_name == text(run.metadata) == str(run.output[0])
        assert run.metadata[1] == 4

    @needs(Capability.CONCURRENT_WRITERS, Capability.VERSIONS)
    def test_of_concurrent_saves_of_a_version_one_wins(self, repository: Repository) -> None:
        """Of threads that save over the same version exactly one wins, and it is what is stored."""
        for version in range(RACES):

            def save(writer: int, version: int = version) -> int | None:
                try:
                    repository.save_run(make.run(metadata=[writer, version]), expected_version=version)
                except ConflictError:
                    return None
                return writer

            winners = [writer for writer in at_once(save) if writer is not None]
            run = run_of(repository)
            assert len(winners) == 1, f"{len(winners)} writers saved over version {version}"
            assert (run.metadata, run.version) == ([winners[0], version], version + 1)

    @needs(Capability.CONCURRENT_WRITERS, Capability.VERSIONS)
    def test_concurrent_saves_are_all_counted(self, repository: Repository) -> None:
        """Threads that save one run without a version each get a version of their own."""
        versions = at_once(lambda writer: [repository.save_run(make.run(metadata=writer)).version for _ in range(5)])
        assert sorted(version or 0 for each in versions for version in each) == list(range(1, WRITERS * 5 + 1))

    @needs(Capability.CONCURRENT_WRITERS, Capability.TERMINAL_GUARD)
    def test_of_concurrent_endings_one_wins(self, repository: Repository) -> None:
        """Of threads that end one run in different ways only those of one way succeed, and it stays."""
        for n in range(RACES):
            run_id = f"run-{n}"
            repository.save_run(make.run(run_id, status="in-progress"))

            def end(writer: int, run_id: str = run_id) -> str | None:
                status = TERMINAL[writer % len(TERMINAL)].value
                try:
                    repository.save_run(make.run(run_id, status=status))
                except ConflictError:
                    return None
                return status

            endings = {status for status in at_once(end) if status}
            assert endings == {status_of(repository, run_id)}

    @needs(Capability.CONCURRENT_WRITERS, Capability.KEYS)
    def test_concurrent_adds_with_one_key_store_one_event(self, repository: Repository) -> None:
        """Of threads that add the same event with the same key all get the one event that is stored."""
        for n in range(RACES):
            added = at_once(
                lambda _, n=n: repository.add_event("run-1", make.generic_event(n), key=f"key {n}")  # type: ignore[misc]
            )
            assert {(event.seq, event.recorded_at) for event in added} == {(n + 1, added[0].recorded_at)}
        assert payloads(repository.get_events("run-1")) == list(range(RACES))

    @needs(Capability.CONCURRENT_WRITERS, Capability.ATOMIC_BATCHES)
    def test_concurrent_batches_stay_together(self, repository: Repository) -> None:
        """Batches of several threads are all there, each with consecutive numbers."""

        def append(writer: int) -> list[list[int | None]]:
            return [
                [event.seq for event in repository.add_events("run-1", [make.generic_event([writer, n])] * 4)]
                for n in range(5)
            ]

        for batches in at_once(append):
            for batch in batches:
                first = batch[0]
                assert first is not None
                assert batch == list(range(first, first + 4))
        found = payloads(repository.get_events("run-1", limit=1000))
        assert sorted(found) == [[writer, n] for writer in range(WRITERS) for n in range(5) for _ in range(4)]
        assert all(found[place : place + 4] == [found[place]] * 4 for place in range(0, len(found), 4))

    @needs(Capability.CONCURRENT_WRITERS, Capability.ATOMIC_BATCHES)
    def test_concurrent_appends_to_a_history_are_all_kept(self, repository: Repository) -> None:
        """Threads that append messages to one session lose none, and each one's stand together and in its order."""

        def append(writer: int) -> None:
            for n in range(5):
                repository.append_messages("session-1", [make.message(f"{writer} {n} {part}") for part in "ab"])

        at_once(append)
        found = history(repository)
        assert sorted(found) == sorted(f"{w} {n} {part}" for w in range(WRITERS) for n in range(5) for part in "ab")
        assert all(found[place + 1] == found[place][:-1] + "b" for place in range(0, len(found), 2))
        for writer in range(WRITERS):
            mine = [item for item in found if item.startswith(f"{writer} ")]
            assert mine == [f"{writer} {n} {part}" for n in range(5) for part in "ab"]
