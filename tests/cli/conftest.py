from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

from acp_store.cli.__main__ import main
from acp_store.migrate import upgrade
from tests.cli.program import RECORDINGS, Done

if TYPE_CHECKING:
    from pathlib import Path


class Invoke(Protocol):
    """Runs the program in this process, where a process of its own would show nothing more."""

    def __call__(self, *arguments: str) -> Done: ...


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """The program in this process: faster, and all but how a process begins and ends is the same."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def imported_url(file_url: str, invoke: Invoke) -> str:
    """A database of each kind with the recorded traffic in it."""
    assert invoke("import", str(RECORDINGS), "--url", file_url).code == 0
    return file_url


@pytest.fixture
def other_url(tmp_path: Path) -> str:
    """A second migrated database."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    upgrade(url)
    return url
