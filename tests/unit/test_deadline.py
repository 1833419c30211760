"""The deadline of a request, and pauses between tries that respect it."""

from __future__ import annotations

import math
import threading
import time
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.deadline import Backoff, deadline_in, time_left
from broker_common.core.errors import StoreUnavailable
from broker_common.core.parallel import for_each
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSED = StoreUnavailable("refused")


def test_without_a_deadline_there_is_no_end_to_the_time_left() -> None:
    assert time_left(FakeClock()) == math.inf


def test_the_time_left_runs_out() -> None:
    clock = FakeClock()
    with deadline_in(3, clock):
        assert time_left(clock) == 3
        clock.advance(2)
        assert time_left(clock) == 1
        clock.advance(2)
        assert time_left(clock) == -1
    assert time_left(clock) == math.inf


def test_the_nearer_of_two_deadlines_holds() -> None:
    clock = FakeClock()
    with deadline_in(3, clock):
        with deadline_in(10, clock):
            assert time_left(clock) == 3
        with deadline_in(1, clock):
            assert time_left(clock) == 1
        assert time_left(clock) == 3


def test_a_deadline_ends_with_its_context_also_on_an_error() -> None:
    clock = FakeClock()
    with pytest.raises(StoreUnavailable), deadline_in(3, clock):
        raise REFUSED
    assert time_left(clock) == math.inf


@pytest.mark.parametrize("threads", [1, 4])
def test_work_in_threads_sees_the_callers_deadline(threads: int) -> None:
    clock = FakeClock()
    with deadline_in(3, clock):
        assert for_each(lambda _: time_left(clock), range(8), threads=threads) == [3] * 8


@pytest.mark.parametrize("threads", [1, 4])
def test_outcomes_come_in_the_order_of_the_items(threads: int) -> None:
    assert for_each(lambda number: number * 2, range(50), threads=threads) == list(range(0, 100, 2))


def test_the_first_error_of_parallel_work_is_raised_after_all_others_have_run() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 0:
            raise REFUSED
        done.append(number)

    with pytest.raises(StoreUnavailable):
        for_each(work, range(10), threads=3)
    assert sorted(done) == list(range(1, 10))


def test_parallel_work_whose_caller_is_interrupted_finishes_only_what_has_begun() -> None:
    interrupted = threading.Event()
    begun: list[int] = []

    def items() -> Iterator[int]:
        yield from range(1000)
        interrupted.set()
        raise InterruptedError

    def work(number: int) -> None:
        begun.append(number)
        interrupted.wait(10)
        time.sleep(0.01)  # as long as work takes

    with pytest.raises(InterruptedError):
        for_each(work, items(), threads=2)
    assert len(begun) < 1000


def test_pauses_grow_up_to_their_limit_with_jitter() -> None:
    longest = [0.0] * 12
    for seed in range(200):
        clock = FakeClock()
        backoff = Backoff(clock, Random(seed), base=0.01, limit=0.1, tries=13)
        for number in range(12):
            before = clock.monotonic()
            backoff.pause(REFUSED)
            longest[number] = max(longest[number], clock.monotonic() - before)
    for number, pause in enumerate(longest):
        bound = min(0.1, 0.01 * 2**number)
        assert bound * 0.8 < pause <= bound + 1e-9


def test_after_the_last_try_the_error_is_raised() -> None:
    backoff = Backoff(FakeClock(), Random(1), tries=3)
    backoff.pause(REFUSED)
    backoff.pause(REFUSED)
    with pytest.raises(StoreUnavailable) as raised:
        backoff.pause(REFUSED)
    assert raised.value is REFUSED


def test_no_pause_outlasts_the_deadline() -> None:
    clock = FakeClock()
    with deadline_in(0.05, clock):
        backoff = Backoff(clock, Random(1), base=0.04, tries=1000)
        with pytest.raises(StoreUnavailable):
            for_each(lambda _: backoff.pause(REFUSED), range(1000), threads=1)
        assert time_left(clock) >= 0


def test_no_pause_is_made_that_leaves_less_than_the_next_try_needs() -> None:
    clock = FakeClock()
    with deadline_in(1, clock):
        backoff = Backoff(clock, Random(1), base=0.001)
        backoff.pause(REFUSED, need=0.9)
        with pytest.raises(StoreUnavailable):
            backoff.pause(REFUSED, need=1.0)
