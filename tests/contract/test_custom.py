"""The contract kit certifies custom backends."""
from __future__ import annotations
import pytest
from acp_store.testing import RepositoryContract
from tests.contract.dict_backend import CompleteDictRepository, DictRepository

class TestDictRepository(RepositoryContract):
    @pytest.fixture
    def repository(self) -> DictRepository:
        return DictRepository()

class TestCompleteDictRepository(RepositoryContract):
    @pytest.fixture
    def repository(self) -> CompleteDictRepository:
        return CompleteDictRepository()
