"""The pauses: obeyed within seconds, cheap to ask for, and known while the store is away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import StoreUnavailable
from broker_common.core.pauses import MAX_AGE_SEC, PauseBoard
from broker_common.core.store import Pauses
from tests.fakes import FakeClock, Fault, FlakyStore, MemoryStore


class Bench:
    """A board over a store that can fail."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.store = FlakyStore(self.memory)
        self.board = PauseBoard(self.store, self.clock)


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
    PauseBoard(bench.memory, bench.clock).set({"sync": True})
    bench.clock.advance(MAX_AGE_SEC)
    assert bench.board.current() == Pauses(sync=True)
    assert MAX_AGE_SEC < 5


def test_a_pause_that_this_process_sets_is_known_at_once_and_leaves_the_others() -> None:
    bench = Bench()
    bench.memory.set_pauses({"expire": True})
    bench.board.current()
    assert bench.board.set({"allocate": True}) == Pauses(allocate=True, expire=True)
    assert bench.board.current() == Pauses(allocate=True, expire=True)
    assert bench.memory.read_pauses() == Pauses(allocate=True, expire=True)


def test_what_was_known_last_holds_while_the_store_is_away_and_it_is_asked_once_an_age() -> None:
    bench = Bench()
    bench.board.set({"cleanup": True})
    bench.clock.advance(MAX_AGE_SEC)
    bench.store.fail("read_pauses", Fault.REFUSED, Fault.REFUSED)
    for _ in range(10):
        assert bench.board.current() == Pauses(cleanup=True)
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
    clock = FakeClock()
    store = MemoryStore(clock)
    board = PauseBoard(store, clock, Random(1))
    begun = threading.Barrier(10)

    def ask() -> None:
        begun.wait()
        board.current()

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.calls["read_pauses"] == 1
