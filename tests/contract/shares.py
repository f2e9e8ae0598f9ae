"""Which clauses of the contract run where.

All of them run over each backend, and over each way to open one that has a connection with settings of its own: a
value is bent, and bad input let through, by the records, by the driver, or by what is set on its connection. Where a
repository differs from one of those by the names in its statements, by a condition in them, by the thread that runs
them, or by what a decorator that keeps values itself is around, the clauses on values and input would go the very same
way again: `leaving_out` names them, and all others run.

A way that ends in the very object that another one takes runs what a unit of work does on it: `only`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from acp_store.testing import RepositoryContract
from acp_store.testing.contract_events import EventClauses
from acp_store.testing.contract_input import InputClauses
from acp_store.testing.contract_records import RecordClauses
from acp_store.testing.contract_units import UnitClauses
from acp_store.testing.contract_values import ValueClauses
from acp_store.testing.contract_watching import WatchClauses

__all__ = ["UNITS", "VALUES", "leaving_out", "only"]

VALUES = (ValueClauses, InputClauses)
"""What goes in and comes out, whatever the statement around it says."""
UNITS = (RecordClauses, EventClauses, UnitClauses, WatchClauses)
"""Writing and reading of each kind, transactions, and what goes on beside them."""

Contract = TypeVar("Contract", bound=RepositoryContract)


def leaving_out(*groups: type) -> Callable[[type[Contract]], type[Contract]]:
    """Do not run the clauses of these groups."""

    def leave_out(contract: type[Contract]) -> type[Contract]:
        for group in groups:
            for name in vars(group):
                if name.startswith("test_"):
                    setattr(contract, name, None)
        return contract

    return leave_out


def only(*groups: type) -> Callable[[type[Contract]], type[Contract]]:
    """Run the clauses of these groups."""
    return leaving_out(*(group for group in RepositoryContract.__bases__ if group not in groups))
