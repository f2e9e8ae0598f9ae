"""Gathering: calls that come while others are under way are made together, in one go.

Nothing here knows SQL: how one call is made, and how several are, is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from threading import TIMEOUT_MAX, Lock
from time import monotonic
from typing import Final, Generic, Protocol, TypeVar, cast

from acp_store.errors import AcpStoreError, BackendUnavailableError, OutcomeUnknownError

__all__ = ["Gatherable", "Gathering"]

MOST_CALLS: Final = 100
MOST_SIZE: Final = 1_000_000
"""How much is made together at most."""
PATIENCE_SECONDS: Final = 0.005
"""How long a work has its slot: what waits for a lock, or for a server far away, holds up nobody longer."""


class Gatherable(Protocol):
    """A call."""

    @property
    def run_id(self) -> str:
        """The run that it writes to."""

    @property
    def size(self) -> int:
        """About how many bytes it sends."""


C = TypeVar("C", bound=Gatherable)
R = TypeVar("R")


class Gathering(Generic[C, R]):
    """Makes calls of several threads, each at once or together with others.

    A call is made at once, by its own thread and alone, where fewer than `slots` works are under way and
    none is on its run. Else it waits in line. When a slot gets free, the first call in line whose run is
    free makes it, in its own thread, together with all other such calls; one that `together` leaves out is
    made alone, by its own thread. There is no pause in which to gather: what is gathered is what came
    while others were under way.

    A call returns or raises when its own outcome is known:

    * After an error of `together` that promises that nothing was written each call is made alone, so that
      what is wrong with one fails only that one. Only a call that has taken longer than `seconds` by then
      gets a `BackendUnavailableError` at once.
    * An `OutcomeUnknownError` of `together` is every call's. Where it is interrupted, or fails in a way that
      promises nothing, the one that made it gets that, and the others an `OutcomeUnknownError`.

    Args:
        slots: How many works may be under way at once.
        seconds: Longest wait in line.
    """

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots = slots
        self._seconds = seconds
        self._lock = Lock()
        # Those that have a slot, and since when; by the run of a call that is made at once, else by who makes it.
        self._works: dict[str | _Ticket[C, R], float] = {}
        self._busy: dict[str, int] = {}  # how many calls are being made, by run
        self._line: deque[_Ticket[C, R]] = deque()
        self._closed = False

    def do(self, call: C, alone: Callable[[C], R], together: Callable[[Sequence[C]], Sequence[R | None]]) -> R:
        """Make a call, alone or with others.

        Args:
            call: What to do.
            alone: Makes one call.
            together: Makes several, and returns the result of each; None for one that it left out.

        Raises:
            BackendUnavailableError: It stood in line for too long; it was not made.
            OutcomeUnknownError: Nobody knows whether it was made.
        """
        run_id = call.run_id
        ticket: _Ticket[C, R] | None = None
        at_once = False
        try:
            with self._lock:
                now = monotonic()
                if self._closed or (run_id not in self._busy and self._has_slot(now)):
                    at_once = True
                    self._works[run_id] = now
                    self._take(run_id)
                else:
                    ticket = _Ticket(call, now)
                    self._stand_in_line(ticket)
            return alone(call) if ticket is None else self._do_in_line(ticket, alone, together)
        finally:
            if at_once:
                try:
                    self._leave_at_once(run_id)
                except BaseException:
                    self._leave_at_once(run_id)
                    raise
            elif ticket is not None and ticket.state is not _State.DONE:
                _surely(partial(self._leave, ticket))

    def _do_in_line(
        self, ticket: _Ticket[C, R], alone: Callable[[C], R], together: Callable[[Sequence[C]], Sequence[R | None]]
    ) -> R:
        self._wait(ticket)
        if ticket.state is _State.LEADING:
            self._lead(ticket, together)
        return alone(ticket.call) if ticket.state is _State.ALONE else ticket.outcome()

    def close(self) -> None:
        """Have every call that waits, or comes, be made at once and alone."""
        with self._lock:
            self._closed = True
            self._let_all_go()

    # ── with the lock held ───────────────────────────────────────────────────────────────────────

    def _stand_in_line(self, ticket: _Ticket[C, R]) -> None:
        ticket.bell.acquire()
        # The first takes along those who come after it: one that looks soon is enough.
        ticket.patience = PATIENCE_SECONDS if not self._line else 4 * PATIENCE_SECONDS
        self._line.append(ticket)

    def _has_slot(self, now: float) -> bool:
        if len(self._works) >= self._slots:
            for work in [work for work, since in self._works.items() if now - since >= PATIENCE_SECONDS]:
                del self._works[work]
        return len(self._works) < self._slots

    def _take(self, run_id: str) -> None:
        self._busy[run_id] = self._busy.get(run_id, 0) + 1

    def _free(self, run_id: str) -> None:
        count = self._busy.pop(run_id, 1)
        if count > 1:
            self._busy[run_id] = count - 1

    def _make(self, ticket: _Ticket[C, R], state: _State) -> None:
        ticket.state = state
        self._take(ticket.call.run_id)

    def _end(self, ticket: _Ticket[C, R]) -> None:
        self._free(ticket.call.run_id)
        ticket.state = _State.DONE

    def _appoint(self) -> None:
        """Have the first in line whose run is free lead, for each slot that is free."""
        if self._closed:
            self._let_all_go()
        now = monotonic()
        for ticket in self._line:
            if not self._has_slot(now):
                return
            if ticket.state is _State.IN_LINE and ticket.call.run_id not in self._busy:
                self._works[ticket] = now
                self._make(ticket, _State.LEADING)
                ticket.ring()

    def _gather(self, leader: _Ticket[C, R]) -> None:
        """Give a leader its batch: itself, and whoever in line can be taken along."""
        batch, size = leader.batch, leader.call.size
        batch.append(leader)
        free = {leader.call.run_id}
        left: deque[_Ticket[C, R]] = deque()
        for ticket in self._line:
            run_id = ticket.call.run_id
            if (
                ticket.state is _State.IN_LINE
                and (run_id in free or run_id not in self._busy)
                and len(batch) < MOST_CALLS
                and size + ticket.call.size <= MOST_SIZE
            ):
                batch.append(ticket)
                size += ticket.call.size
                free.add(run_id)
                self._make(ticket, _State.FOLLOWING)
            elif ticket is not leader:
                left.append(ticket)
        self._line = left

    def _let_all_go(self) -> None:
        for ticket in self._line:
            if ticket.state is _State.IN_LINE:
                self._make(ticket, _State.ALONE)
                ticket.ring()
        self._line = deque(ticket for ticket in self._line if ticket.state is _State.LEADING)

    def _leave_line(self, ticket: _Ticket[C, R]) -> None:
        """Take out a call that was interrupted before it was made; those it would have taken along wait again."""
        with suppress(ValueError):
            self._line.remove(ticket)
        for other in reversed(ticket.batch[1:]):
            gone = other.state is _State.GONE
            self._end(other)
            if not gone:
                other.state = _State.IN_LINE
                if other not in self._line:
                    self._line.appendleft(other)

    # ── steps that take the lock; each may be taken again where an interrupt ended it ────────────

    def _wait(self, ticket: _Ticket[C, R]) -> None:
        try:
            while not ticket.bell.acquire(timeout=ticket.patience):
                with self._lock:
                    if ticket.state is _State.IN_LINE:
                        self._look(ticket)
                    elif ticket.state is not _State.FOLLOWING:
                        return  # whoever should have rung was interrupted
                ticket.patience = min(2 * ticket.patience, TIMEOUT_MAX)
        finally:
            _surely(partial(self._pass_on, ticket))

    def _look(self, ticket: _Ticket[C, R]) -> None:
        if monotonic() - ticket.since > self._seconds:
            raise BackendUnavailableError(
                f"run {ticket.call.run_id!r}: others kept this call waiting for {self._seconds:g} s; it wrote nothing"
            )
        self._appoint()

    def _lead(self, leader: _Ticket[C, R], together: Callable[[Sequence[C]], Sequence[R | None]]) -> None:
        with self._lock:
            self._gather(leader)
        batch = leader.batch
        if len(batch) == 1:
            leader.state = _State.ALONE
            return
        rows: Sequence[R | None] = [None] * len(batch)
        error: AcpStoreError | None = OutcomeUnknownError(
            "this was written together with other calls, of which one was interrupted; it may be committed or not: "
            "repeat it only with a key"
        )
        try:
            rows, error = together([ticket.call for ticket in batch]), None
        except AcpStoreError as caught:
            error = caught
        finally:
            _surely(partial(self._settle, batch, rows, error))

    def _settle(self, batch: list[_Ticket[C, R]], rows: Sequence[R | None], error: AcpStoreError | None) -> None:
        with self._lock:
            now = monotonic()
            for ticket, row in zip(batch, rows, strict=True):
                if ticket.state in {_State.DONE, _State.ALONE}:
                    continue
                late = isinstance(error, BackendUnavailableError) and now - ticket.since > self._seconds
                if late or isinstance(error, OutcomeUnknownError):
                    ticket.error = error
                elif ticket.state is _State.GONE:
                    self._end(ticket)
                    ticket.state = _State.GONE
                    continue
                elif row is None:
                    ticket.state = _State.ALONE
                    continue
                ticket.row = row
                self._end(ticket)
            self._appoint()
            # One wakes the next: woken all at once they would fight for the interpreter. The last frees the
            # slot: those before it are in line again by then, where they write on, and so the next work is of many.
            heir: _Ticket[C, R] | None = None
            for ticket in reversed([ticket for ticket in batch if ticket.state is not _State.GONE]):
                ticket.heir = heir
                ticket.work = None if heir else batch[0]
                heir = ticket
        self._pass_on(batch[0])

    def _pass_on(self, ticket: _Ticket[C, R]) -> None:
        if ticket.heir is not None:
            ticket.heir.ring()
            ticket.heir = None
        elif ticket.work is not None:
            with self._lock:
                if self._works.pop(ticket.work, None) is not None:
                    self._appoint()
            ticket.work = None

    def _leave_at_once(self, run_id: str) -> None:
        with self._lock:
            self._works.pop(run_id, None)
            self._free(run_id)
            if self._line:
                self._appoint()

    def _leave(self, ticket: _Ticket[C, R]) -> None:
        with self._lock:
            if ticket.state is _State.FOLLOWING:
                ticket.state = _State.GONE
                return
            if ticket.state is not _State.ALONE:
                self._leave_line(ticket)
            if ticket.state in {_State.ALONE, _State.LEADING}:
                self._end(ticket)
            self._works.pop(ticket, None)
            self._appoint()
        self._pass_on(ticket)


class _State(Enum):
    IN_LINE = auto()
    LEADING = auto()
    """Makes a batch."""
    FOLLOWING = auto()
    """Is in a batch that another makes."""
    GONE = auto()
    """As FOLLOWING, and nobody waits for it any more."""
    ALONE = auto()
    """Is made by itself."""
    DONE = auto()


class _Ticket(Generic[C, R]):
    """A call, and what becomes of it."""

    __slots__ = ("batch", "bell", "call", "error", "heir", "patience", "row", "since", "state", "work")

    def __init__(self, call: C, since: float) -> None:
        self.call = call
        self.since = since
        self.state = _State.IN_LINE
        self.bell = Lock()
        self.patience = 0.0
        self.batch: list[_Ticket[C, R]] = []
        self.row: R | None = None
        self.error: AcpStoreError | None = None
        self.heir: _Ticket[C, R] | None = None  # whom it wakes
        self.work: _Ticket[C, R] | None = None  # whose slot it frees

    def ring(self) -> None:
        if self.bell.locked():
            self.bell.release()

    def outcome(self) -> R:
        if self.error is not None:
            # An error of its own: the traceback of one that is raised grows in each thread.
            raise type(self.error)(*self.error.args) from self.error.__cause__
        return cast(R, self.row)


def _surely(step: Callable[[], None]) -> None:
    try:
        step()
    except BaseException:
        step()
        raise
