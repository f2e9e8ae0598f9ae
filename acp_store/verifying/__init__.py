"""Whether what is stored is what was recorded: checks rows against their digests, and reads nothing itself."""

from acp_store.verifying.check import Check
from acp_store.verifying.facts import (
    BrokenFact,
    ErasureFact,
    ErasureMark,
    EventFact,
    EventMark,
    Fact,
    HeadFact,
    Mark,
    RunFact,
    StatusFact,
    StatusMark,
    TombstoneFact,
    TombstoneMark,
    is_sound,
    place_of,
)
from acp_store.verifying.merge import check_all

__all__ = [
    "BrokenFact",
    "Check",
    "ErasureFact",
    "ErasureMark",
    "EventFact",
    "EventMark",
    "Fact",
    "HeadFact",
    "Mark",
    "RunFact",
    "StatusFact",
    "StatusMark",
    "TombstoneFact",
    "TombstoneMark",
    "check_all",
    "is_sound",
    "place_of",
]
