"""The pool is counted by one process at a time, which all others read; a process that stops is replaced."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.counts import COUNT_LIMIT_SEC, Counts
from broker_common.core.deadline import time_left
from broker_common.core.errors import DeadlineExceeded, StoreUnavailable, UnreadableRecord
from broker_common.core.line import LATE_SEC
from broker_common.core.policy import Policy
from broker_common.core.sandbox import Status
from broker_common.core.store import CountRecord
from tests.contract.line import make_place, wait
from tests.fakes import START, FakeClock, Fault, FlakyStore, MemoryStore, StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock
    from broker_common.core.store import SandboxStore
    from tests.fakes import Answer

MAX_AGE = 2
RIGHT_SEC = 7
"""How long the right to count lasts at most, for this age: a count may take three seconds, and be two seconds late."""


class SkewedClock(FakeClock):
    """The clock of another machine: the same time passes, and its wall clock differs."""

    def __init__(self, clock: FakeClock, ahead: int) -> None:
        super().__init__()
        self._clock = clock
        self._ahead = ahead

    def now(self) -> int:
        return self._clock.now() + self._ahead

    def monotonic(self) -> float:
        return self._clock.monotonic() + 1000 * self._ahead

    def advance(self, seconds: float) -> None:
        self._clock.advance(seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    store = MemoryStore(clock)
    store.seed(make_sandbox("1"), make_sandbox("2"))
    return store


def process(store: SandboxStore, clock: Clock, seed: int = 1) -> Counts:
    return Counts(store, clock, Random(seed), max_age=MAX_AGE, policy=Policy())


def available(counts: Counts) -> int:
    _, count = counts.latest()
    return count.by_status[Status.AVAILABLE]


def counted_while(memory: MemoryStore, act: Callable[[], object]) -> int:
    """Return how often the pool is counted while `act` runs."""
    before = memory.calls["count"]
    act()
    return memory.calls["count"] - before


def test_a_count_has_every_status_the_oldest_deletion_and_when_it_began(memory: MemoryStore, clock: FakeClock) -> None:
    waits = make_sandbox("waits", status=Status.PENDING_DELETION, deletion_requested_at=START - 90, dirty=True)
    memory.seed(waits)
    since, count = process(memory, clock).latest()
    assert count.by_status == dict.fromkeys(Status, 0) | {Status.AVAILABLE: 2, Status.PENDING_DELETION: 1}
    assert (count.oldest_pending_deletion, count.began_at, since) == (START - 90, START, 0)
    stored = memory.read_counts()
    assert stored.count == count
    assert (stored.counter, stored.counting_until) == (count.counted_by, START + RIGHT_SEC)


def test_one_process_counts_and_all_others_read_its_count(memory: MemoryStore, clock: FakeClock) -> None:
    processes = [process(memory, clock, seed) for seed in range(20)]
    for _ in range(10):
        assert {available(each) for each in processes} == {2}
        clock.advance(MAX_AGE)
    assert memory.calls["count"] == memory.calls["oldest_pending_deletion"] == 10
    assert memory.calls["read_counts"] == 20 * 10
    assert memory.calls["write_counts"] == 1 + 10, "one to get the right, and one for each count"


def test_others_follow_with_the_next_count(memory: MemoryStore, clock: FakeClock) -> None:
    counter, reader = process(memory, clock, 1), process(memory, clock, 2)
    assert (available(counter), available(reader)) == (2, 2)
    memory.seed(make_sandbox("3"))
    clock.advance(MAX_AGE)
    assert available(reader) == 2
    assert (available(counter), available(reader)) == (3, 3)


def test_a_reader_can_tell_when_a_count_was_stored_if_it_looked_shortly_before(
    memory: MemoryStore, clock: FakeClock
) -> None:
    counter, reader = process(memory, clock, 1), process(memory, clock, 2)
    assert (counter.latest()[0], reader.latest()[0]) == (0, -math.inf)
    clock.advance(MAX_AGE)
    assert counter.latest()[0] == MAX_AGE
    assert reader.latest()[0] == pytest.approx(MAX_AGE - 0.1)
    clock.advance(0.5)
    assert reader.latest()[0] == pytest.approx(MAX_AGE - 0.1), "it is still the same count"
    clock.advance(60)
    assert counter.latest()[0] == pytest.approx(MAX_AGE + 60.5)
    assert reader.latest()[0] == -math.inf


def test_a_process_that_stopped_is_replaced_once_its_right_has_ended(memory: MemoryStore, clock: FakeClock) -> None:
    first, second, third = (process(memory, clock, seed) for seed in range(3))
    assert [available(each) for each in (first, second, third)] == [2, 2, 2]
    memory.seed(make_sandbox("3"))
    clock.advance(RIGHT_SEC - 1)
    assert (available(second), available(third)) == (2, 2)
    clock.advance(1)
    assert (available(second), available(third)) == (3, 3)
    assert memory.calls["count"] == 2
    clock.advance(MAX_AGE)
    assert counted_while(memory, lambda: (available(third), available(second), available(first))) == 1


def test_a_process_that_died_while_it_counted_is_replaced_once_its_right_has_ended(
    memory: MemoryStore, clock: FakeClock
) -> None:
    class Killed(BaseException):
        pass

    store = FlakyStore(memory)
    store.fail("count", Killed())
    with pytest.raises(Killed):
        process(store, clock, 1).latest()
    other = process(memory, clock, 2)
    with pytest.raises(StoreUnavailable, match="another process is counting"):
        other.latest()
    assert clock.monotonic() <= COUNT_LIMIT_SEC
    assert memory.calls["count"] == 0
    clock.advance(RIGHT_SEC - clock.monotonic())
    assert available(other) == 2


def test_a_process_waits_for_the_first_count_of_another(memory: MemoryStore, clock: FakeClock) -> None:
    process(memory, clock, 1).latest()
    counted = memory.read_counts()
    memory.write_counts(replace(counted, count=None, turn="counting"), instead_of=counted.turn)
    store = FlakyStore(memory)

    def finish_after_a_second(_: str) -> None:
        if clock.monotonic() >= 1 and memory.read_counts().turn == "counting":
            memory.write_counts(counted, instead_of="counting")

    store.before_call = finish_after_a_second
    assert available(process(store, clock, 2)) == 2
    assert 1 <= clock.monotonic() < 1.5
    assert memory.calls["count"] == 1


def test_a_count_that_comes_too_late_does_not_replace_a_newer_one(memory: MemoryStore, clock: FakeClock) -> None:
    store = FlakyStore(memory)
    slow, other = process(store, clock, 1), process(memory, clock, 2)
    assert (available(slow), available(other)) == (2, 2)

    def sleep_and_let_the_other_count() -> None:
        clock.advance(RIGHT_SEC)
        memory.seed(make_sandbox("3"))
        assert available(other) == 3

    clock.advance(MAX_AGE)
    # The count itself is done by then: only its result comes too late.
    store.just_before("oldest_pending_deletion", sleep_and_let_the_other_count)
    assert available(slow) == 2
    stored = memory.read_counts()
    assert stored.count is not None
    assert stored.count.by_status[Status.AVAILABLE] == 3
    assert counted_while(memory, lambda: available(slow)) == 0, "it has lost its right"
    assert available(slow) == 3


def test_of_two_processes_that_want_the_right_at_once_one_counts(memory: MemoryStore, clock: FakeClock) -> None:
    store = FlakyStore(memory)
    loser, winner = process(store, clock, 1), process(memory, clock, 2)
    store.just_before("write_counts", lambda: available(winner))
    assert available(loser) == 2
    assert memory.calls["count"] == 1


@pytest.mark.parametrize("ahead", [-60, -5, 5, 60, 3600])
def test_clocks_that_differ_cost_at_most_one_count_and_never_stop_counting(
    memory: MemoryStore, clock: FakeClock, ahead: int
) -> None:
    here, there = process(memory, clock, 1), process(memory, SkewedClock(clock, ahead), 2)
    _, first = here.latest()
    for _ in range(10):
        assert (available(here), available(there)) == (2, 2)
        clock.advance(MAX_AGE)
    assert memory.calls["count"] <= 1 + 10 + 1
    # The process that counts stops. The other one replaces it in the usual time.
    other = there if memory.read_counts().counter == first.counted_by else here
    memory.seed(make_sandbox("3"))
    available(other)
    clock.advance(RIGHT_SEC)
    assert available(other) == 3


def test_a_record_of_long_ago_is_not_shown_and_the_pool_counted_at_once(memory: MemoryStore, clock: FakeClock) -> None:
    assert available(process(memory, clock, 1)) == 2
    memory.seed(make_sandbox("3"))
    clock.advance(24 * 3600)
    assert available(process(memory, clock, 2)) == 3


def test_an_old_count_is_not_shown_while_those_that_may_count_fail(memory: MemoryStore, clock: FakeClock) -> None:
    failing = FlakyStore(memory)
    reader, other = process(memory, clock, 1), process(failing, clock, 2)
    assert (available(other), available(reader)) == (2, 2)
    for seed in (3, 4):  # each takes the right, and fails
        clock.advance(RIGHT_SEC)
        failing.fail("count", Fault.REFUSED)
        with pytest.raises(StoreUnavailable, match="the store refused"):
            process(failing, clock, seed).latest()
        assert available(reader) == 2, "for now"
    clock.advance(1)
    with pytest.raises(StoreUnavailable, match="another process is counting"):
        reader.latest()


def test_a_record_that_cannot_be_read_is_replaced_by_the_next_count(memory: MemoryStore, clock: FakeClock) -> None:
    counter, reader = process(memory, clock, 1), process(memory, clock, 2)
    assert (available(counter), available(reader)) == (2, 2)
    memory.write_counts(CountRecord(turn="odd"), instead_of=memory.read_counts().turn)
    assert (available(reader), available(counter)) == (2, 2)
    assert memory.calls["count"] == 2


def test_each_process_counts_for_itself_while_a_record_of_a_later_release_is_in_place(
    memory: MemoryStore, clock: FakeClock
) -> None:
    store = FlakyStore(memory)
    processes = [process(store, clock, seed) for seed in (1, 2)]
    for _ in range(3):
        store.fail("read_counts", *[UnreadableRecord("the record of counts", "schema is 3")] * 2)
        assert [available(each) for each in processes] == [2, 2]
        clock.advance(MAX_AGE)
    assert store.calls == {
        "read_counts": 6,
        "count": 6,
        "oldest_pending_deletion": 6,
        "read_line": 2,
        "read_next_due": 4,
    }


@pytest.mark.parametrize("fault", [None, Fault.REFUSED])
def test_a_process_that_gives_its_right_back_is_replaced_at_once_or_else_in_the_usual_time(
    memory: MemoryStore, clock: FakeClock, fault: Fault | None
) -> None:
    store = FlakyStore(memory)
    counter, reader = process(store, clock, 1), process(memory, clock, 2)
    assert (available(counter), available(reader)) == (2, 2)
    reader.give_back()  # has none
    assert counted_while(memory, lambda: (available(reader), available(process(memory, clock, 3)))) == 0
    store.fail("write_counts", fault)
    counter.give_back()
    memory.seed(make_sandbox("3"))
    assert (available(reader), available(process(memory, clock, 3))) == ((2, 2) if fault else (3, 3))
    clock.advance(RIGHT_SEC)
    assert (available(reader), available(counter)) == (3, 3)


def test_a_process_that_gave_its_right_back_may_count_again(memory: MemoryStore, clock: FakeClock) -> None:
    counter, reader = process(memory, clock, 1), process(memory, clock, 2)
    assert available(counter) == 2
    counter.give_back()
    memory.seed(make_sandbox("3"))
    assert counted_while(memory, lambda: (available(counter), available(reader))) == 1
    assert available(reader) == 3


class SlowStore(StoreWrapper):
    """A count takes 2.9 s. No call begins with less than a second left, as on DynamoDB."""

    def __init__(self, inner: SandboxStore, clock: FakeClock) -> None:
        super().__init__(inner)
        self._clock = clock

    def _call(self, method: str, call: Callable[[], Answer]) -> Answer:
        if time_left(self._clock) < 1:
            raise DeadlineExceeded("the store did not answer in time")
        self._clock.advance({"count": 2.0, "oldest_pending_deletion": 0.9}.get(method, 0))
        return call()


def test_a_count_that_takes_almost_all_of_its_time_is_stored(memory: MemoryStore, clock: FakeClock) -> None:
    counter, readers = process(SlowStore(memory, clock), clock), [process(memory, clock, seed) for seed in (2, 3)]
    for _ in range(4):
        began = clock.monotonic()
        assert available(counter) == 2
        assert {available(each) for each in readers} == {2}
        clock.advance(began + MAX_AGE + 1 - clock.monotonic())
    assert memory.calls["count"] == 4


def test_a_process_that_had_no_time_to_take_the_right_does_not_count(memory: MemoryStore, clock: FakeClock) -> None:
    store = FlakyStore(memory)
    store.fail("write_counts", DeadlineExceeded("the store did not answer in time"))
    counts = process(store, clock)
    with pytest.raises(DeadlineExceeded):
        counts.latest()
    assert memory.calls["count"] == 0
    assert available(counts) == 2


def test_each_process_counts_for_itself_while_the_the_store_takes_no_writes(
    memory: MemoryStore, clock: FakeClock
) -> None:
    store = FlakyStore(memory)
    store.fail_writes(*[Fault.REFUSED] * 4)
    assert [available(process(store, clock, seed)) for seed in (1, 2)] == [2, 2]
    assert memory.calls["count"] == 2
    assert memory.read_counts() == CountRecord()


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_a_lost_answer_to_a_write_costs_no_second_counter(memory: MemoryStore, clock: FakeClock, fault: Fault) -> None:
    store = FlakyStore(memory)
    store.fail("write_counts", fault)
    counter, reader = process(store, clock, 1), process(memory, clock, 2)
    assert available(counter) == 2
    for _ in range(2):
        clock.advance(MAX_AGE)
        assert (available(counter), available(reader)) == (2, 2)
    assert memory.calls["count"] == 3


def test_no_count_is_known_while_the_store_is_away(memory: MemoryStore, clock: FakeClock) -> None:
    store = FlakyStore(memory)
    counts = process(store, clock)
    assert available(counts) == 2
    clock.advance(15)
    for method in ("read_counts", "read_line", "read_next_due", "count", "oldest_pending_deletion"):
        store.fail(method, Fault.REFUSED)
        with pytest.raises(StoreUnavailable):
            counts.latest()


# -- the line, and the next returns


def test_a_count_has_the_places_that_are_kept_and_since_when_one_waits_whose_track_is_not_late(
    memory: MemoryStore, clock: FakeClock
) -> None:
    grace = Policy().line_grace_sec
    wait(
        memory,
        make_place("over", joined_at=START - 5000, back_by=START - grace - 1),
        make_place("late", joined_at=START - 900, back_by=START - LATE_SEC - 1),
        make_place("longest", joined_at=START - 600, back_by=START - LATE_SEC),
        make_place("new", joined_at=START, back_by=START + 3),
    )
    _, count = process(memory, clock).latest()
    assert (count.waiting, count.longest_waiting_since) == (3, START - 600)


def test_a_count_tells_when_the_first_sandboxes_are_expected_back(memory: MemoryStore, clock: FakeClock) -> None:
    policy = Policy(expiry_buffer_sec=100, cool_down_sec=10)
    pending = [START - 5, START + 30]
    held = [START + 60 + number for number in range(19)]
    memory.seed(
        *(make_sandbox(f"p-{at}", status=Status.PENDING_DELETION, status_order=at) for at in pending),
        *(make_sandbox(f"h-{at}", status=Status.ALLOCATED, status_order=at) for at in held),
        make_sandbox("failed", status=Status.DELETION_FAILED, status_order=START),
    )
    counts = Counts(memory, clock, Random(1), max_age=MAX_AGE, policy=policy)
    back = pending + [at + 110 for at in held]
    assert counts.latest()[1].returns == tuple(back[rank - 1] for rank in (1, 2, 5, 10, 20))


def test_the_line_and_the_returns_are_read_again_after_a_quarter_of_a_minute(
    memory: MemoryStore, clock: FakeClock
) -> None:
    counts = process(memory, clock)
    seen = []
    for number in range(9):
        seen.append(counts.latest()[1].waiting)
        wait(memory, make_place(f"track-{number}", joined_at=START + 60))
        clock.advance(MAX_AGE)
    assert seen == [0] * 8 + [8]
    assert (memory.calls["read_line"], memory.calls["read_next_due"], memory.calls["count"]) == (2, 4, 9)
