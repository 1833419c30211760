"""The pauses: obeyed within seconds, cheap to ask for, and known while the store is away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import StoreUnavailable
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.pauses import MAX_AGE_SEC, PauseCache
from broker_common.core.principals import Actor
from broker_common.core.store import Pause, Pauses
from tests.fakes import BY, START, FakeClock, Fault, FlakyStore, MemoryStore

OTHER = Actor(principal="another", request_id="request-2")
PAUSED = Pause(by=BY.principal, since=START)


class Bench:
    """A board over a store that can fail."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.store = FlakyStore(self.memory)
        self.board = PauseCache(self.store, self.clock, Random(1))


def test_nothing_is_paused_at_first() -> None:
    assert Bench().board.current() == Pauses()


def test_the_store_is_asked_once_an_age() -> None:
    bench = Bench()
    for _ in range(20):
        bench.board.current()
    assert bench.store.calls["read_pauses"] == 1
    bench.clock.advance(MAX_AGE_SEC)
    bench.board.current()
    assert bench.store.calls["read_pauses"] == 2


def test_a_pause_set_by_another_process_is_known_within_five_seconds() -> None:
    bench = Bench()
    bench.board.current()
    PauseCache(bench.memory, bench.clock, Random(2)).set({"sync": True}, by=BY)
    bench.clock.advance(MAX_AGE_SEC)
    assert bench.board.current() == Pauses(sync=PAUSED)
    assert MAX_AGE_SEC < 5


def test_a_pause_that_this_process_sets_is_known_at_once_and_leaves_the_others() -> None:
    bench = Bench()
    earlier = Pause(by="another", since=START - 60)
    bench.memory.set_pauses(Pauses(), Pauses(expire=earlier))
    bench.board.current()
    both = Pauses(allocate=PAUSED, expire=earlier)
    assert bench.board.set({"allocate": True}, by=BY) == both
    assert bench.board.current() == both
    assert bench.memory.read_pauses() == both


def test_a_pause_says_by_whom_it_was_made_and_since_when_and_resuming_forgets_both() -> None:
    bench = Bench()
    bench.clock.advance(90)
    assert bench.board.set({"sync": True}, by=OTHER).sync == Pause(by="another", since=START + 90)
    assert bench.board.set({"sync": False}, by=BY).sync is None


def test_what_is_paused_already_stays_as_it_was_paused_first_and_has_no_second_fact() -> None:
    bench = Bench()
    bench.board.set({"sync": True, "allocate": False}, by=BY)
    bench.clock.advance(60)
    assert bench.board.set({"sync": True, "allocate": False, "expire": True}, by=OTHER) == Pauses(
        sync=PAUSED, expire=Pause(by="another", since=START + 60)
    )
    assert [(fact.principal, fact.details) for fact in bench.memory.facts] == [
        ("somebody", {"operation": "sync"}),
        ("another", {"operation": "expire"}),
    ]


def test_what_this_process_has_just_set_is_not_asked_for_again_before_it_is_of_age() -> None:
    bench = Bench()
    bench.board.current()
    bench.clock.advance(MAX_AGE_SEC - 1)
    bench.board.set({"sync": True}, by=BY)
    bench.store.calls.clear()
    bench.clock.advance(MAX_AGE_SEC - 1)
    assert bench.board.current().sync is not None
    assert bench.store.calls["read_pauses"] == 0


def test_setting_what_is_so_already_writes_nothing() -> None:
    bench = Bench()
    assert bench.board.set({"sync": False}, by=BY) == bench.board.set({}, by=BY) == Pauses()
    assert bench.store.calls["set_pauses"] == 0


def test_each_pause_and_each_resumption_is_a_fact_of_its_own() -> None:
    bench = Bench()
    bench.board.set({"allocate": True, "cleanup": True}, by=BY)
    bench.clock.advance(30)
    bench.board.set({"allocate": False}, by=OTHER)
    facts = [fact for fact in bench.memory.facts if isinstance(fact, PoolFact)]
    assert [(fact.kind, fact.at, fact.principal, fact.request_id, fact.details["operation"]) for fact in facts] == [
        (PoolFactKind.PAUSED, START, "somebody", "request-1", "allocate"),
        (PoolFactKind.PAUSED, START, "somebody", "request-1", "cleanup"),
        (PoolFactKind.RESUMED, START + 30, "another", "request-2", "allocate"),
    ]
    assert len({fact.fact_id for fact in facts}) == 3


def test_of_two_operators_who_pause_the_same_at_once_the_first_is_named_and_the_second_is_told() -> None:
    bench = Bench()
    _meanwhile(bench, {"sync": True})
    expected = Pauses(sync=Pause(by="another", since=START))
    assert bench.board.set({"sync": True}, by=BY) == expected
    assert bench.board.current() == bench.memory.read_pauses() == expected
    assert [(fact.kind, fact.principal) for fact in bench.memory.facts] == [(PoolFactKind.PAUSED, "another")]


def test_of_two_operators_who_pause_different_things_at_once_both_succeed() -> None:
    bench = Bench()
    _meanwhile(bench, {"expire": True})
    assert bench.board.set({"sync": True}, by=BY) == Pauses(sync=PAUSED, expire=Pause(by="another", since=START))
    assert len(bench.memory.facts) == 2


def test_an_operator_who_resumes_what_another_has_just_resumed_succeeds_without_a_second_fact() -> None:
    bench = Bench()
    bench.board.set({"sync": True}, by=BY)
    _meanwhile(bench, {"sync": False})
    assert bench.board.set({"sync": False}, by=BY) == Pauses()
    kinds = [fact.kind for fact in bench.memory.facts]
    assert kinds == [PoolFactKind.PAUSED, PoolFactKind.RESUMED]


def _meanwhile(bench: Bench, wanted: dict[str, bool]) -> None:
    """Have another operator set pauses just before the next write of this process."""
    other = PauseCache(bench.memory, bench.clock, Random(2))
    bench.store.just_before("set_pauses", lambda: other.set(wanted, by=OTHER))


def test_what_was_known_last_holds_while_the_store_is_away_and_it_is_asked_once_an_age() -> None:
    bench = Bench()
    bench.board.set({"cleanup": True}, by=BY)
    bench.clock.advance(MAX_AGE_SEC)
    bench.store.calls.clear()
    bench.store.fail("read_pauses", Fault.REFUSED, Fault.REFUSED)
    for _ in range(10):
        assert bench.board.current() == Pauses(cleanup=PAUSED)
    assert bench.store.calls["read_pauses"] == 1


def test_without_any_knowledge_a_store_that_is_away_is_an_error_until_it_is_back() -> None:
    bench = Bench()
    bench.store.fail("read_pauses", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        bench.board.current()
    assert bench.board.current() == Pauses()


def test_while_one_thread_reads_the_others_use_what_is_known() -> None:
    bench = Bench()
    bench.board.current()
    bench.clock.advance(MAX_AGE_SEC)
    reading, go_on = bench.store.hold_up()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(bench.board.current)
        assert reading.wait(30)
        assert bench.board.current() == Pauses()
        go_on.set()
        assert slow.result(30) == Pauses()
    assert bench.store.calls["read_pauses"] == 2


def test_a_request_that_waited_for_the_first_read_uses_what_it_found() -> None:
    bench = Bench()
    reading, go_on = bench.store.hold_up()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.board.current)
        assert reading.wait(30)
        looks = bench.clock.count_looks()
        second = pool.submit(bench.board.current)
        assert looks.acquire(timeout=30)  # for its deadline; now it waits
        go_on.set()
        assert first.result(30) == second.result(30) == Pauses()
    assert bench.store.calls["read_pauses"] == 1


def test_a_request_that_cannot_wait_for_the_first_read_is_told_so() -> None:
    bench = Bench()
    reading, go_on = bench.store.hold_up()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.board.current)
        assert reading.wait(30)
        with deadline_in(0, bench.clock), pytest.raises(StoreUnavailable, match="not known yet"):
            bench.board.current()
        go_on.set()
        assert first.result(30) == Pauses()


def test_many_requests_at_the_start_cost_one_read() -> None:
    bench = Bench()
    begun = threading.Barrier(10)

    def ask(_: int) -> Pauses:
        begun.wait()
        return bench.board.current()

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(ask, range(10))) == [Pauses()] * 10
    assert bench.memory.calls["read_pauses"] == 1
