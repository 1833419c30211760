"""A value of the store that many threads share: as new as each asks for, read by one thread at a time, and not too often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import StoreUnavailable
from broker_common.core.shared_read import SharedRead
from tests.fakes import FakeClock

SPACING = 1.5


class Bench:
    """A shared read of a number that grows with each read."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.reads = 0
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.shared = SharedRead(self._read, self.clock, spacing=lambda _: SPACING)

    def _read(self) -> int:
        self.reading.set()
        assert self.go_on.wait(30)
        self.reads += 1
        return self.reads


def test_a_value_that_is_new_enough_is_not_read_again() -> None:
    bench = Bench()
    first = bench.shared.get(not_before=0)
    bench.clock.advance(60)
    assert bench.shared.get(not_before=0) == first == (0, 1)


def test_two_reads_are_as_far_apart_as_they_must_be() -> None:
    bench = Bench()
    bench.shared.get(not_before=0)
    bench.clock.advance(0.5)
    assert bench.shared.get(not_before=0.5) == (SPACING, 2)


def test_a_read_for_which_the_deadline_leaves_no_time_is_not_waited_for() -> None:
    bench = Bench()
    bench.shared.get(not_before=0)
    bench.clock.advance(0.5)
    with deadline_in(SPACING - 0.6, bench.clock), pytest.raises(StoreUnavailable, match="too near"):
        bench.shared.get(not_before=0.5)
    assert bench.clock.monotonic() == 0.5
    assert bench.shared.get(not_before=0.5) == (SPACING, 2)


def test_a_thread_that_waited_for_the_read_of_another_uses_what_it_found() -> None:
    bench = Bench()
    bench.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bench.shared.get, not_before=0)
        assert bench.reading.wait(30)
        looks = bench.clock.count_looks()
        second = pool.submit(bench.shared.get, not_before=0)
        assert looks.acquire(timeout=30)  # for its deadline; now it waits
        bench.go_on.set()
        assert first.result(30) == second.result(30) == (0, 1)


def test_a_thread_that_cannot_wait_for_the_read_of_another_is_told_so() -> None:
    bench = Bench()
    bench.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(bench.shared.get, not_before=0)
        assert bench.reading.wait(30)
        with deadline_in(0, bench.clock), pytest.raises(StoreUnavailable, match="too long"):
            bench.shared.get(not_before=0)
        bench.go_on.set()
        assert first.result(30) == (0, 1)
