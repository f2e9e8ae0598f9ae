"""For whoever writes a repository: the contract as a pytest class, and small makers of records.

    from acp_store.testing import RepositoryContract

    class TestMyRepository(RepositoryContract):
        @pytest.fixture
        def repository(self):
            with MyRepository() as repository:
                yield repository

That is all: the fixture yields an empty repository for each test, and every clause runs on it.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"acp_store.testing.{module}"
        for module in (
            "phrases",
            "contract",
            "contract_audit",
            "contract_events",
            "contract_guards",
            "contract_input",
            "contract_lists",
            "contract_owners",
            "contract_records",
            "contract_units",
            "contract_values",
            "contract_watching",
            "contract_writers",
        )
    )
)

from acp_store.testing.contract import RepositoryContract  # noqa: E402
from acp_store.testing.factories import (  # noqa: E402
    BAD_IDS,
    ODD_IDS,
    ODD_JSON,
    at,
    generic_event,
    message,
    nested,
    part_event,
    run,
    session,
)
from acp_store.testing.phrases import needs  # noqa: E402

__all__ = [
    "BAD_IDS",
    "ODD_IDS",
    "ODD_JSON",
    "RepositoryContract",
    "at",
    "generic_event",
    "message",
    "needs",
    "nested",
    "part_event",
    "run",
    "session",
]
