"""What holds connections, locks or threads is told of a fork: a child inherits none of them in working order."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["Forked", "tell_of_forks"]


class Forked(Protocol):
    """What wants to know."""

    def before_fork(self) -> None:
        """Put away, in the parent, what a child must not find open."""

    def after_fork(self) -> None:
        """Begin anew, in the child, without touching what belongs to the parent."""


_told: WeakSet[Forked] = WeakSet()


def tell_of_forks(one: Forked) -> None:
    """Tell one object of every fork of this process, as long as it lives."""
    _told.add(one)


def _before() -> None:
    for one in list(_told):
        one.before_fork()


def _after() -> None:
    for one in list(_told):
        one.after_fork()


os.register_at_fork(before=_before, after_in_child=_after)
