"""The candidates that a process keeps ready: spread, given to one request at a time, and never empty while one is left."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.candidate_cache import (
    CANDIDATE_AGE_SEC,
    LOOK_AHEAD,
    RINGS,
    USED_KEPT,
    CandidateCache,
    CandidateSearch,
)
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import StoreUnavailable
from broker_common.core.lease import candidate_of
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Status
from tests.fakes import FakeClock, Fault, FlakyStore, MemoryStore, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.store import CandidatePage, Position


class Bench:
    """A candidate_cache over a store, and the clock of both."""

    def __init__(self, free: int, *, size: int = 5, seed: int = 1) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.store = FlakyStore(self.memory)
        self.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(free)])
        self.candidate_cache = CandidateCache(self.store, self.clock, Random(seed), size=size)

    def next(self, prefix: str = "") -> Candidate | None:
        return self.candidate_cache.search(prefix).next()

    def first(self) -> tuple[CandidateSearch, Candidate]:
        """Return a search, and the candidate that it has found."""
        search = self.candidate_cache.search("")
        candidate = search.next()
        assert candidate
        return search, candidate

    def reads(self) -> int:
        return self.memory.calls["read_candidates"]

    def take_away(self, sandbox_id: str) -> None:
        record = self.memory.get(sandbox_id)
        assert record
        self.memory.seed(replace(record, status=Status.STALE, version=record.version + 1))


def test_each_candidate_is_handed_to_one_request_at_a_time() -> None:
    bench = Bench(12)
    found = [bench.next() for _ in range(12)]
    assert len({each.sandbox_id for each in found if each}) == 12


def test_one_small_query_serves_several_requests() -> None:
    bench = Bench(500, size=15)
    for _ in range(15):
        assert bench.next()
    assert bench.reads() <= 2


def test_processes_begin_at_different_places_of_the_ring() -> None:
    first = [Bench(200, seed=seed).next() for seed in range(10)]
    assert len({each.sandbox_id for each in first if each}) >= 8


def test_a_candidate_that_was_given_back_is_given_next_without_a_read() -> None:
    bench = Bench(20)
    search, candidate = bench.first()
    search.give_back(candidate)
    reads = bench.reads()
    assert bench.next() == candidate
    assert bench.reads() == reads


def test_a_candidate_that_was_used_up_is_not_given_again_while_the_index_still_shows_it() -> None:
    bench = Bench(1)
    search, candidate = bench.first()
    search.mark_used(candidate)
    assert search.next() is None
    bench.clock.advance(2)
    assert bench.next() is None


def test_a_loss_sends_the_next_query_to_another_part_of_the_ring() -> None:
    store = EvenRing(100)
    search = CandidateCache(store, FakeClock(), Random(1), size=1).search("")
    for end in (search.mark_used, search.mark_lost, search.mark_used):
        candidate = search.next()
        assert candidate
        end(candidate)
    assert store.began[1] == store.pages[0].next
    assert store.began[2] != store.pages[1].next


class EvenRing(MemoryStore):
    """A ring of one segment with sandboxes at equal distances; keeps where each query began, and its page."""

    def __init__(self, free: int) -> None:
        super().__init__(shards=1)
        self.began: list[Position] = []
        self.pages: list[CandidatePage] = []
        self.on_read: Callable[[], object] = lambda: None
        """Called while a page is on its way."""
        self.seed(*[make_sandbox(f"sbx-{n:04}", status_order=n * (ORDER_LIMIT // free)) for n in range(free)])

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        page = super().read_candidates(position, limit=limit, prefix=prefix, reservation_id=reservation_id)
        self.on_read()
        self.began.append(position)
        self.pages.append(page)
        return page

    def take_away(self, first: int, count: int) -> None:
        """Let another process have `count` sandboxes from number `first` on."""
        gone = [f"sbx-{(first + n) % len(self.dump()[0]):04}" for n in range(count)]
        self.seed(*[replace(self.dump()[0][each], status=Status.STALE, version=2) for each in gone])


def take_and_use(candidate_cache: CandidateCache, count: int) -> list[int]:
    """Take `count` candidates, and return their numbers."""
    search = candidate_cache.search("")
    taken = []
    for _ in range(count):
        candidate = search.next()
        assert candidate
        search.mark_used(candidate)
        taken.append(int(candidate.sandbox_id.removeprefix("sbx-")))
    return taken


def test_the_start_of_a_new_place_is_left_to_the_process_that_may_hold_it() -> None:
    store = EvenRing(2000)
    taken = take_and_use(CandidateCache(store, FakeClock(), Random(1), size=15), 15)
    (page,) = store.pages
    assert len(page.candidates) == 15 * LOOK_AHEAD
    assert sorted(taken) == [int(each.sandbox_id.removeprefix("sbx-")) for each in page.candidates[-15:]]


def test_what_lies_beyond_an_eaten_stretch_is_left_to_the_process_that_ate_it() -> None:
    for seed in range(10):
        store = EvenRing(2000)
        candidate_cache = CandidateCache(store, FakeClock(), Random(seed), size=15)
        end = max(take_and_use(candidate_cache, 15)) + 1
        store.take_away(end, 60)
        beyond = {(end + 60 + n) % 2000 for n in range(15)}
        assert not beyond & set(take_and_use(candidate_cache, 15))


def test_a_pool_that_has_become_thin_everywhere_is_walked_on_after_a_while() -> None:
    store = EvenRing(3000)
    candidate_cache = CandidateCache(store, FakeClock(), Random(1), size=15)
    take_and_use(candidate_cache, 60)
    for number in range(0, 3000, 10):
        store.take_away(number, 9)
    take_and_use(candidate_cache, 60)
    reads = len(store.pages)
    take_and_use(candidate_cache, 60)
    assert len(store.pages) - reads <= 5


def test_a_page_that_was_on_its_way_when_a_loss_was_told_is_left_to_the_winner() -> None:
    store = EvenRing(2000)
    candidate_cache = CandidateCache(store, FakeClock(), Random(1), size=15)
    search = candidate_cache.search("")
    first, *_ = [search.next() for _ in range(15)]

    def lose() -> None:
        store.on_read = lambda: None
        assert first
        search.mark_lost(first)

    store.on_read = lose
    taken = take_and_use(candidate_cache, 15)
    on_its_way = {int(each.sandbox_id.removeprefix("sbx-")) for each in store.pages[1].candidates}
    assert not on_its_way & set(taken)


def test_the_last_sandbox_is_found_by_a_process_that_has_seen_the_pool_full() -> None:
    for seed in range(10):
        store = EvenRing(1000)
        candidate_cache = CandidateCache(store, FakeClock(), Random(seed), size=15)
        end = max(take_and_use(candidate_cache, 15)) + 1
        store.take_away(end, 500)
        store.take_away(end + 501, 499)
        assert take_and_use(candidate_cache, 1) == [(end + 500) % 1000]


@pytest.mark.parametrize("lost", [0, 1, 7])
def test_what_was_left_to_others_is_found_before_the_pool_is_called_empty(lost: int) -> None:
    store = EvenRing(150)
    search = CandidateCache(store, FakeClock(), Random(1), size=15).search("")
    found = []
    while candidate := search.next():
        found.append(candidate.sandbox_id)
        if lost and len(found) % lost == 0:
            search.mark_lost(candidate)
        else:
            search.mark_used(candidate)
    assert len(found) == len(set(found)) == 150


def test_a_walk_past_what_others_hold_takes_large_steps() -> None:
    bench = Bench(300, size=5)
    for _ in range(300):
        assert bench.next()
    reads = bench.reads()
    assert bench.next()
    assert bench.reads() - reads <= 6


def test_a_used_up_sandbox_is_a_candidate_again_at_a_later_version() -> None:
    bench = Bench(1)
    search, candidate = bench.first()
    search.mark_lost(candidate)
    bench.memory.seed(make_sandbox("sbx-0", version=9))
    bench.clock.advance(2)
    assert bench.next() == replace(candidate, version=9)


def test_what_was_used_up_is_forgotten_after_thousands_more() -> None:
    bench = Bench(1)
    search, candidate = bench.first()
    search.mark_used(candidate)
    for number in range(USED_KEPT):
        search.mark_used(replace(candidate, sandbox_id=f"another-{number}"))
    assert search.next() == candidate


def test_a_candidate_of_which_nothing_is_known_comes_back_from_the_index_only() -> None:
    bench = Bench(1)
    search, candidate = bench.first()
    search.discard(candidate)
    reads = bench.reads()
    assert bench.next() == candidate
    assert bench.reads() > reads


def test_a_candidate_that_nobody_needed_for_long_is_read_again() -> None:
    bench = Bench(3, size=10)
    assert bench.next()
    for number in range(3):
        bench.take_away(f"sbx-{number}")
    bench.memory.seed(make_sandbox("fresh"))
    bench.clock.advance(CANDIDATE_AGE_SEC + 1)
    found = bench.next()
    assert found
    assert found.sandbox_id == "fresh"


def test_a_walk_that_finds_nothing_is_remembered_for_a_second() -> None:
    bench = Bench(0)
    assert bench.next() is None
    reads = bench.reads()
    bench.clock.advance(1.0)
    assert bench.next() is None
    assert bench.reads() == reads
    bench.clock.advance(0.1)
    assert bench.next() is None
    assert bench.reads() > reads


def test_a_request_that_came_long_before_the_walk_may_use_its_finding() -> None:
    bench = Bench(0)
    early = bench.candidate_cache.search("")
    bench.clock.advance(10)
    assert bench.next() is None
    reads = bench.reads()
    assert early.next() is None
    assert bench.reads() == reads


def test_a_walk_that_fails_is_no_finding() -> None:
    bench = Bench(0)
    bench.store.fail("read_candidates", None, Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        bench.next()
    bench.memory.seed(make_sandbox("fresh"))
    assert bench.next()


def test_a_candidate_handed_back_clears_every_memory_of_emptiness() -> None:
    bench = Bench(1)
    search, candidate = bench.first()
    bench.take_away("sbx-0")
    assert bench.next() is None
    assert bench.next("lab-") is None
    bench.memory.seed(make_sandbox("sbx-0", version=candidate.version))
    search.give_back(candidate)
    assert bench.next("lab-") == candidate


def test_what_others_hold_is_shared_before_the_pool_is_called_empty() -> None:
    bench = Bench(2)
    holder = bench.candidate_cache.search("")
    held = [holder.next(), holder.next()]
    late = bench.candidate_cache.search("")
    shared = [late.next(), late.next()]
    assert sorted(str(each) for each in shared) == sorted(str(each) for each in held)
    for each in shared:
        assert each
        late.discard(each)
    assert late.next() is None


def test_what_others_hold_is_no_finding_of_emptiness() -> None:
    bench = Bench(1)
    _, candidate = bench.first()
    first = bench.candidate_cache.search("")
    assert first.next() == candidate
    first.discard(candidate)
    assert first.next() is None
    assert bench.next() == candidate


def test_what_a_request_gave_back_is_shared_with_it_once_more_while_another_still_holds_it() -> None:
    """Its own overdue allocation came first: the candidate was not at fault, and may be the last one there is."""
    bench = Bench(1)
    _, candidate = bench.first()
    late = bench.candidate_cache.search("")
    assert late.next() == candidate
    late.give_back(candidate)
    assert late.next() == candidate


def test_what_another_request_has_used_up_meanwhile_is_not_shared() -> None:
    bench = Bench(2)
    holder = bench.candidate_cache.search("")
    held = [holder.next(), holder.next()]
    late = bench.candidate_cache.search("")
    first = late.next()
    (other,) = [each for each in held if each and first and each.sandbox_id != first.sandbox_id]
    holder.mark_used(other)
    assert first
    late.discard(first)
    bench.take_away(other.sandbox_id)
    assert late.next() is None


def test_of_chosen_candidates_those_that_another_request_holds_come_last() -> None:
    bench = Bench(3)
    _, held = bench.first()
    others = [candidate_of(each) for each in bench.memory.dump()[0].values() if each.sandbox_id != held.sandbox_id]
    choice = bench.candidate_cache.choose([held, *others], "")
    assert [choice.next() for _ in range(4)] == [*others, held, None]


def test_of_chosen_candidates_those_that_are_used_up_are_not_tried() -> None:
    bench = Bench(2)
    search, used = bench.first()
    search.mark_used(used)
    (left,) = [candidate_of(each) for each in bench.memory.dump()[0].values() if each.sandbox_id != used.sandbox_id]
    choice = bench.candidate_cache.choose([used, left], "")
    assert [choice.next(), choice.next()] == [left, None]


def test_a_prefix_walks_past_pages_without_a_match() -> None:
    bench = Bench(60, size=3)
    bench.memory.seed(make_sandbox("gpu-0", name="gpu-0"))
    found = bench.next("gpu-")
    assert found
    assert found.sandbox_id == "gpu-0"


def test_prefixes_beyond_the_limit_are_forgotten_and_work_again() -> None:
    bench = Bench(3)
    first = bench.candidate_cache.search("lab-")
    candidate = first.next()
    for number in range(RINGS + 5):
        assert bench.next(f"nothing-{number}") is None
    assert candidate
    first.give_back(candidate)
    assert bench.next("lab-")


def test_past_the_deadline_a_walk_is_given_up() -> None:
    bench = Bench(0)
    bench.store.before_call = lambda _: bench.clock.advance(1)
    with deadline_in(1.5, bench.clock), pytest.raises(StoreUnavailable):
        bench.next()
    assert bench.reads() == 2


def test_a_storm_of_requests_on_an_empty_pool_walks_once() -> None:
    bench = Bench(0)
    barrier = threading.Barrier(16)

    def ask(_: int) -> Candidate | None:
        search = bench.candidate_cache.search("")
        barrier.wait(30)
        return search.next()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(16))) == [None] * 16
    assert bench.reads() <= 5


def test_a_request_that_waited_for_another_ones_walk_uses_what_it_found() -> None:
    bench = Bench(500)
    walking, go_on = bench.store.hold_up()
    with ThreadPoolExecutor(2) as pool:
        walker = pool.submit(bench.next)
        assert walking.wait(30)
        looks = bench.clock.count_looks()
        waiting = pool.submit(bench.next)
        for _ in ("as it arrives", "as it looks at what is ready", "for its deadline; now it waits"):
            assert looks.acquire(timeout=30)
        go_on.set()
        found = {walker.result(30), waiting.result(30)}
    assert len(found - {None}) == 2
    assert bench.reads() == 1


def test_a_request_that_cannot_wait_for_another_ones_walk_is_told_so() -> None:
    bench = Bench(0)
    walking, go_on = bench.store.hold_up()
    with ThreadPoolExecutor(1) as pool:
        walker = pool.submit(bench.next)
        assert walking.wait(30)
        with deadline_in(0, bench.clock), pytest.raises(StoreUnavailable, match="too long"):
            bench.next()
        go_on.set()
        assert walker.result(30) is None
