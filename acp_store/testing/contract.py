"""The contract of `acp_store.repository` as tests: whoever passes them is a repository.

Inherit `RepositoryContract`, give it a fixture `repository`, and pytest runs every clause on it. A
clause that needs a `Capability` is skipped where the repository does not declare it, and only then; and
clauses that give names of owners are skipped for a repository that is one owner's already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from acp_store.testing.contract_audit import AuditClauses
from acp_store.testing.contract_events import EventClauses
from acp_store.testing.contract_guards import GuardClauses
from acp_store.testing.contract_input import InputClauses
from acp_store.testing.contract_lists import ListClauses
from acp_store.testing.contract_owners import OwnerClauses
from acp_store.testing.contract_records import RecordClauses
from acp_store.testing.contract_units import UnitClauses
from acp_store.testing.contract_values import ValueClauses
from acp_store.testing.contract_watching import WatchClauses
from acp_store.testing.contract_writers import WriterClauses

if TYPE_CHECKING:
    from acp_store.repository import Capability, Repository

__all__ = ["RepositoryContract"]


class RepositoryContract(
    RecordClauses,
    EventClauses,
    WriterClauses,
    GuardClauses,
    ValueClauses,
    ListClauses,
    InputClauses,
    UnitClauses,
    WatchClauses,
    AuditClauses,
    OwnerClauses,
):
    """What every repository promises, one property a test.

    A subclass named ``Test...`` defines a fixture `repository` that yields an empty
    `acp_store.Repository`; nothing else is needed.
    """

    @pytest.fixture(autouse=True)
    def _only_what_is_declared(self, request: pytest.FixtureRequest, repository: Repository) -> None:
        needed: frozenset[Capability] = getattr(request.function, "needed_capabilities", frozenset())
        missing = needed - repository.capabilities
        if missing:
            pytest.skip(f"{type(repository).__name__} does not declare {', '.join(sorted(missing))}")
