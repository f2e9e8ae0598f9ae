"""Repositories that stand still where a test wants them to."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from acp_store.repository import EventLike, Limits, Repository
from tests.contract.dict_backend import CompleteDictRepository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from acp_store import Event

__all__ = ["Gate", "GatedRepository"]

PATIENCE = 60.0


class Gate:
    """Where threads stop until it is open; it begins open."""

    def __init__(self) -> None:
        self.reached = 0
        self._open = threading.Event()
        self._open.set()

    def shut(self) -> None:
        """Stop whoever comes from now on."""
        self.reached = 0
        self._open.clear()

    def open(self) -> None:
        """Let everyone through."""
        self._open.set()

    def pass_(self) -> None:
        """Go through, when it is open."""
        self.reached += 1
        assert self._open.wait(PATIENCE), "nobody opened the gate"


class GatedRepository(CompleteDictRepository):
    """Dicts behind gates: before each `add_event`, on entering and on leaving a transaction, and in `close`.

    It remembers which threads worked for it, and how its transactions ended.
    """

    def __init__(self, *, calls: int = 4, seconds: float = PATIENCE) -> None:
        super().__init__()
        self._limits = Limits(calls, seconds)
        self.adding, self.entering, self.leaving, self.closing = Gate(), Gate(), Gate(), Gate()
        self.threads: list[int] = []
        self.endings: list[BaseException | None] = []
        self.closed = 0

    @property
    def limits(self) -> Limits:
        return self._limits

    def add_event(self, run_id: str, event: EventLike, *, key: str | None = None) -> Event:
        self.threads.append(threading.get_ident())
        self.adding.pass_()
        return super().add_event(run_id, event, key=key)

    @contextmanager
    def transaction(self) -> Iterator[Repository]:
        self.threads.append(threading.get_ident())
        self.entering.pass_()
        with super().transaction():
            try:
                yield self
            except BaseException as error:
                self._leave(error)
                raise
            self._leave(None)

    def _leave(self, error: BaseException | None) -> None:
        self.threads.append(threading.get_ident())
        self.leaving.pass_()
        self.endings.append(error)

    def close(self) -> None:
        self.closing.pass_()
        self.closed += 1
