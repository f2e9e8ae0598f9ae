"""The contract certifies custom backends, and finds what is wrong with broken ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from acp_store.repository import Capability
from acp_store.testing import RepositoryContract
from tests.contract.broken_stores import Passing, clauses
from tests.contract.dict_backend import CompleteDictRepository, DictRepository

if TYPE_CHECKING:
    from acp_store.repository import Repository

STORES = Path(__file__).with_name("broken_stores.py")


class TestDictRepository(RepositoryContract):
    """The least that is a repository."""

    @pytest.fixture
    def repository(self) -> Repository:
        return DictRepository()


class TestCompleteDictRepository(RepositoryContract):
    """Every capability, behind the decorator that all broken stores are made of."""

    @pytest.fixture
    def repository(self) -> Repository:
        return Passing(CompleteDictRepository())


def test_the_least_repository_declares_nothing() -> None:
    """The seed interface promises no capability but the one that the law gives to all."""
    assert DictRepository().capabilities == {Capability.CONCURRENT_WRITERS}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each clause ended that was run on a broken store."""
    directory = tmp_path_factory.mktemp("broken")
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "--tb=no", "-p", "no:cacheprovider"]
    names = [f"{STORES}::{name}" for name in clauses()]
    reports, processes = [], []
    # Mostly they wait for a broken store to do what it never does; so two at once.
    for number in range(2):
        reports.append(directory / f"{number}.xml")
        arguments = [f"--junitxml={reports[number]}", *names[number::2]]
        processes.append(subprocess.Popen([*command, *arguments], cwd=STORES.parents[2], stdout=subprocess.DEVNULL))
    for process in processes:
        process.wait()
    return {
        f"{case.attrib['classname'].rpartition('.')[2]}::{case.attrib['name']}": case[0].tag if len(case) else "passed"
        for report in reports
        for case in ET.parse(report).iter("testcase")
    }


@pytest.mark.parametrize("clause", clauses())
def test_a_broken_store_is_found(outcomes: dict[str, str], clause: str) -> None:
    """The clause that a store breaks fails on it."""
    assert outcomes[clause] == "failure"
