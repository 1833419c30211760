"""The in-memory test double keeps the stores' contract, so what passes on it may be believed."""

from __future__ import annotations

from random import Random

import pytest

from tests.contract.facts import FactContract
from tests.contract.suite import ConcurrentStoreContract
from tests.fakes import FakeClock, FlakyStore, LaggingStore, LosingStore, MemoryStore, StoreWrapper


class TestMemoryStore(ConcurrentStoreContract, FactContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(FakeClock())


class TestMemoryStoreWithOneSegment(ConcurrentStoreContract, FactContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(shards=1)


class TestLaggingStoreWithoutLag(ConcurrentStoreContract, FactContract):
    @pytest.fixture
    def store(self) -> LaggingStore:
        return LaggingStore(FakeClock(), Random(1), lag=0)


class TestFlakyStoreThatIsLeftAlone(ConcurrentStoreContract, FactContract):
    @pytest.fixture
    def store(self) -> StoreWrapper:
        return FlakyStore(LosingStore(MemoryStore()).inner)
