"""Each process of the API adds its allocates of a minute to the sample of that minute, once the minute is over."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.minute_counts import MinuteCounts
from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable
from broker_common.core.samples import minute_of
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome, WaitEnded, WaitOutcome
from tests.fakes import START, FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping

THIS = minute_of(START)


def ended(outcome: AllocateOutcome = AllocateOutcome.SUCCESS) -> AllocateEnded:
    return AllocateEnded(outcome=outcome, seconds=0.1, conflicts=0, track_id="track-1")


class Written:
    """Keeps what was written, and raises the next error, if there is one."""

    def __init__(self, clock: FakeClock) -> None:
        self.minutes: list[tuple[int, dict[AllocateOutcome, int]]] = []
        self.errors: list[Exception] = []
        self.limits: list[float] = []
        self.come = threading.Semaphore(0)
        self._clock = clock

    def __call__(self, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
        self.limits.append(time_left(self._clock))
        self.come.release()
        if self.errors:
            raise self.errors.pop()
        self.minutes.append((minute, dict(allocates)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(THIS + 5)


@pytest.fixture
def written(clock: FakeClock) -> Written:
    return Written(clock)


@pytest.fixture
def counts(clock: FakeClock, written: Written) -> MinuteCounts:
    return MinuteCounts(written, clock, delay_sec=7)


def threads() -> int:
    return sum(each.name == "minute-counts" for each in threading.enumerate())


def test_the_allocates_of_a_minute_are_written_in_one_call_some_seconds_after_its_end(
    counts: MinuteCounts, clock: FakeClock, written: Written
) -> None:
    for outcome in (AllocateOutcome.SUCCESS, AllocateOutcome.WAITING, AllocateOutcome.SUCCESS):
        counts.record(ended(outcome))
    clock.advance(61)  # into the next minute, but the delay is not over
    counts.record(ended(AllocateOutcome.ERROR))
    assert written.minutes == []
    clock.advance(7)
    assert written.come.acquire(timeout=30)
    assert written.minutes == [(THIS, {AllocateOutcome.SUCCESS: 2, AllocateOutcome.WAITING: 1})]
    clock.advance(60)
    assert written.come.acquire(timeout=30)
    assert written.minutes[1:] == [(THIS + 60, {AllocateOutcome.ERROR: 1})]
    assert 0 < written.limits[0] <= 3


def test_what_is_counted_of_the_current_minute_is_written_when_the_process_ends(
    counts: MinuteCounts, written: Written
) -> None:
    counts.record(ended())
    counts.close()
    assert written.minutes == [(THIS, {AllocateOutcome.SUCCESS: 1})]
    assert threads() == 0
    counts.close()
    assert len(written.minutes) == 1


def test_a_process_that_counted_nothing_starts_no_thread_and_writes_nothing(
    counts: MinuteCounts, written: Written
) -> None:
    counts.record(WaitEnded(outcome=WaitOutcome.SERVED, seconds=1, track_id="track-1"))
    assert threads() == 0
    counts.close()
    assert written.minutes == []


@pytest.mark.parametrize("error", [StoreUnavailable("away"), ValueError("a bug")])
def test_a_minute_that_cannot_be_written_is_lost_and_the_next_one_is_written(
    counts: MinuteCounts, clock: FakeClock, written: Written, caplog: Any, error: Exception
) -> None:
    written.errors.append(error)
    counts.record(ended())
    clock.advance(70)
    assert written.come.acquire(timeout=30)
    counts.record(ended())
    clock.advance(70)
    assert written.come.acquire(timeout=30)
    counts.close()
    assert written.minutes == [(THIS + 60, {AllocateOutcome.SUCCESS: 1})]
    assert ("could not be added" in caplog.text) is isinstance(error, ValueError)


def test_many_threads_count_at_once_and_nothing_is_lost(counts: MinuteCounts, written: Written) -> None:
    def count() -> None:
        for _ in range(500):
            counts.record(ended())

    callers = [threading.Thread(target=count) for _ in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    counts.close()
    assert written.minutes == [(THIS, {AllocateOutcome.SUCCESS: 4000})]


def test_counts_are_written_although_a_thread_could_not_be_started_at_first(
    counts: MinuteCounts, clock: FakeClock, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            counts.record(ended())
    counts.record(ended())
    clock.advance(70)
    assert written.come.acquire(timeout=5)
    assert written.minutes == [(THIS, {AllocateOutcome.SUCCESS: 2})]
