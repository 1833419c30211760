"""The in-memory test double keeps the stores' contract, so what passes on it may be believed."""

from __future__ import annotations

from random import Random

import pytest

from broker_common.core.pool import mark_stale
from tests.contract.facts import FactContract
from tests.contract.line import ConcurrentLineContract
from tests.contract.suite import ConcurrentStoreContract
from tests.contract.usage import ConcurrentUsageContract
from tests.fakes import (
    BY,
    START,
    FakeClock,
    FlakyStore,
    LaggingStore,
    LosingStore,
    MemoryStore,
    StoreWrapper,
    make_sandbox,
)


class TestMemoryStore(ConcurrentStoreContract, FactContract, ConcurrentLineContract, ConcurrentUsageContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(FakeClock())


class TestMemoryStoreWithOneSegment(
    ConcurrentStoreContract, FactContract, ConcurrentLineContract, ConcurrentUsageContract
):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore(shards=1)


class TestLaggingStoreWithoutLag(
    ConcurrentStoreContract, FactContract, ConcurrentLineContract, ConcurrentUsageContract
):
    @pytest.fixture
    def store(self) -> LaggingStore:
        return LaggingStore(FakeClock(), Random(1), lag=0)


class TestFlakyStoreThatIsLeftAlone(
    ConcurrentStoreContract, FactContract, ConcurrentLineContract, ConcurrentUsageContract
):
    @pytest.fixture
    def store(self) -> StoreWrapper:
        return FlakyStore(LosingStore(MemoryStore()).inner)


def test_a_lagging_index_may_miss_what_has_just_moved_and_only_a_cheap_read_shows_what_was() -> None:
    clock = FakeClock()
    store = LaggingStore(clock, Random(1))
    moving = make_sandbox("moving")
    store.seed(moving, make_sandbox("at rest"))
    stale = mark_stale(moving, by=BY, now=START, last_seen=None)
    store.commit(stale)
    seen = [{each.sandbox_id: each for each in store.read_all(consistent=True).sandboxes} for _ in range(100)]
    assert {len(each) for each in seen} == {1, 2}
    assert all(each.get("moving", stale.after) == stale.after for each in seen)
    cheap = [{each.sandbox_id: each for each in store.read_all().sandboxes} for _ in range(100)]
    assert any(each.get("moving") == moving for each in cheap)
    clock.advance(3)
    assert all(len(store.read_all().sandboxes) == 2 for _ in range(100))
