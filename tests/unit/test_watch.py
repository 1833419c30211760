"""The job `watch`: a sample a minute, one warning for each end of a lease, and one fact for each change of the level."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.counts import Counts
from broker_common.core.errors import AllocationEnded, ClockWrong, InvalidTransition, StoreUnavailable, TableChanged
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.guard import Guard
from broker_common.core.job_names import Job
from broker_common.core.lease import warn
from broker_common.core.samples import PoolLevel, Sample, minute_of
from broker_common.core.sandbox import Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import ItemFailed
from broker_common.core.watch import Watcher, in_service, judge
from tests.fakes import (
    BY,
    START,
    FakeClock,
    FakeTableMemory,
    Fault,
    LaggingStore,
    MemoryStore,
    StoreWrapper,
    flat,
    make_sandbox,
)
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.watch import WatchResult

HOUR = 3600
SOON = 4 * HOUR - 15 * 60
"""From the begin of a usual lease to the first moment at which it ends soon."""


@pytest.fixture
def world() -> World:
    return World()


def run(world: World) -> WatchResult:
    return world.watcher.run(by=BY)


def warnings(world: World) -> list[Fact]:
    return [each for each in world.memory.facts if isinstance(each, Fact) and each.kind is FactKind.EXPIRING]


def levels(world: World) -> list[PoolFact]:
    kinds = {PoolFactKind.LOW, PoolFactKind.RECOVERED}
    return [each for each in world.memory.facts if isinstance(each, PoolFact) and each.kind in kinds]


def make_low(world: World, *, free: int, used: int) -> None:
    """Have this many sandboxes available, and as many others stale as were so before."""
    ids = [f"sbx-{number}" for number in range(free + used)]
    world.memory.seed(
        *(make_sandbox(each, status=Status.AVAILABLE) for each in ids[:free]),
        *(make_sandbox(each, status=Status.PENDING_DELETION, dirty=True) for each in ids[free:]),
    )
    world.clock.advance(60)


# -- the sample


def test_a_run_writes_the_counts_and_the_line_of_its_minute(world: World) -> None:
    world.pool(2)
    world.allocate("a")
    world.allocate("b")
    world.wait("c")
    world.clock.advance(90)
    result = run(world)
    at = minute_of(world.clock.now())
    (sample,) = world.memory.samples.values()
    assert sample == Sample(at=at, by_status=sample.by_status, waiting=1)
    assert sample.by_status is not None
    assert (sample.by_status[Status.ALLOCATED], sample.by_status[Status.AVAILABLE]) == (2, 0)
    assert (result.available, result.waiting) == (0, 1)
    assert result.message == "Sampled the pool: 0 available. Told that 0 leases end soon"


def test_a_run_uses_the_count_that_another_process_has_just_made_and_else_counts_and_gives_the_right_back(
    world: World,
) -> None:
    world.pool(3)
    other = Counts(world.memory, world.clock, Random(9), max_age=2.0, policy=world.policy)
    other.latest()
    world.memory.calls.clear()
    run(world)
    assert world.memory.calls["count"] == 0
    other.give_back()
    for _ in range(2):
        world.clock.advance(60)
        run(world)
    assert world.memory.calls["count"] == 2
    world.memory.calls.clear()
    other.latest()  # at once, because nobody has the right
    assert world.memory.calls["count"] == 1


def test_leases_are_told_even_if_the_pool_cannot_be_counted_and_the_run_fails() -> None:
    world, store = flaky_world()
    world.pool(20)
    world.allocate()
    world.clock.advance(SOON)
    store.fail("count", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        run(world)
    assert len(warnings(world)) == 1
    assert world.memory.samples == {}


# -- leases that end soon


def test_a_lease_is_told_once_from_its_warning_time_on_and_not_before(world: World) -> None:
    world.pool(20)
    claim = world.allocate(track_name="intro").claim
    world.clock.advance(SOON - 1)
    assert run(world).expiring == 0
    world.clock.advance(1)
    assert run(world).expiring == 1
    for _ in range(3):
        world.clock.advance(600)
        assert run(world).expiring == 0
    (fact,) = warnings(world)
    assert fact == Fact(
        kind=FactKind.EXPIRING,
        sandbox_id=claim.sandbox_id,
        version=world.record(claim.sandbox_id).version,
        at=START + SOON,
        principal=BY.principal,
        request_id=BY.request_id,
        track_id="track-1",
        lease_id=claim.lease.lease_id,
        status=Status.ALLOCATED,
        status_before=Status.ALLOCATED,
        details={
            "expires_at": claim.lease.expires_at,
            "latest_expires_at": claim.lease.allocated_at + 8 * HOUR,
            "track_name": "intro",
        },
    )


def test_the_warning_of_a_lease_that_an_operator_extended_beyond_the_tracks_limit_names_no_earlier_time(
    world: World,
) -> None:
    world.pool(20)
    claim = world.allocate().claim
    until = START + 20 * HOUR
    world.leases.extend_for_operator(sandbox_id=claim.sandbox_id, expires_at=until, by=BY)
    world.clock.advance(20 * HOUR - 60)
    run(world)
    assert warnings(world)[0].details["latest_expires_at"] == until


def test_a_lease_that_is_extended_is_told_again_before_its_new_end(world: World) -> None:
    world.pool(20)
    claim = world.allocate().claim
    world.clock.advance(SOON)
    run(world)
    world.extend(claim.lease.expires_at + HOUR, claim.sandbox_id)
    assert run(world).expiring == 0
    world.clock.advance(HOUR)
    assert run(world).expiring == 1
    assert [fact.details["expires_at"] for fact in warnings(world)] == [
        claim.lease.expires_at,
        claim.lease.expires_at + HOUR,
    ]


def test_a_lease_that_is_shorter_than_the_warning_time_is_told_at_the_next_run(world: World) -> None:
    world.pool(20)
    world.allocate(duration_sec=300)
    assert run(world).expiring == 1
    assert run(world).expiring == 0


def test_a_lease_that_nobody_told_in_time_is_told_until_it_ends(world: World) -> None:
    world.pool(20)
    world.allocate()
    world.clock.advance(4 * HOUR + 60)
    assert run(world).expiring == 1


def test_the_next_lease_of_a_sandbox_is_told_even_if_it_ends_at_the_same_moment(world: World) -> None:
    world.pool(1)
    world.allocate("a", duration_sec=600)
    run(world)
    world.mark("sbx-0", "a")
    world.cleaner.delete_sandbox("sbx-0", by=BY)
    world.clock.advance(300)
    world.allocate("b", duration_sec=300)
    assert run(world).expiring == 1
    told = [(fact.track_id, fact.details["expires_at"]) for fact in warnings(world)]
    assert told == [("a", START + 600), ("b", START + 600)]


def test_nothing_is_told_while_the_warning_time_is_0(world: World) -> None:
    world.set_policy(expiry_warning_sec=0)
    world.pool(20)
    world.allocate()
    world.clock.advance(5 * HOUR)
    assert run(world).expiring == 0
    assert world.memory.calls["read_ending"] == 0


def test_a_record_that_is_known_to_be_told_is_not_read_again_but_by_another_process(world: World) -> None:
    world.pool(60)
    for number in range(50):
        world.allocate(f"track-{number}")
    world.clock.advance(SOON)
    world.memory.calls.clear()
    assert run(world).expiring == 50
    assert (world.memory.calls["get"], world.memory.calls["update"]) == (50, 50)
    world.memory.calls.clear()
    run(world)
    assert (world.memory.calls["read_ending"], world.memory.calls["get"]) == (1, 0)
    world.start()
    assert run(world).expiring == 0
    assert (world.memory.calls["get"], world.memory.calls["update"]) == (50, 0)
    run(world)
    assert world.memory.calls["get"] == 50


def test_a_told_record_that_changes_is_looked_at_again(world: World) -> None:
    world.pool(20)
    claim = world.allocate().claim
    world.clock.advance(SOON)
    run(world)
    world.operations.quarantine(claim.sandbox_id, reason="smells", by=BY)
    world.memory.calls.clear()
    assert run(world).expiring == 0
    assert world.memory.calls["get"] == 1


def test_a_lagging_index_tells_no_lease_twice_and_none_too_early() -> None:
    clock = FakeClock()
    memory = LaggingStore(clock, Random(3))
    world = World(clock=clock, memory=memory)
    world.pool(5)
    claim = world.allocate().claim
    world.clock.advance(SOON)
    for _ in range(20):
        run(world)
        clock.advance(0.5)
    world.extend(claim.lease.expires_at + HOUR, claim.sandbox_id)
    for _ in range(20):
        run(world)
        clock.advance(0.5)
    world.mark(claim.sandbox_id)
    for _ in range(20):
        run(world)
        clock.advance(0.5)
    assert len(warnings(world)) == 1


class Meddling(StoreWrapper):
    """Lets somebody act, once, just before a warning is written."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.act: Callable[[], object] = lambda: None

    def commit(self, *changes: Change) -> None:
        if changes[0].fact is not None and changes[0].fact.kind is FactKind.EXPIRING:
            act, self.act = self.act, lambda: None
            act()
        super().commit(*changes)


def meddled() -> tuple[World, Meddling]:
    world = World(wrap=Meddling)
    assert isinstance(world.store, Meddling)
    world.pool(20)
    world.allocate()
    world.clock.advance(SOON)
    return world, world.store


def held_by(world: World) -> str:
    (claim,) = world.memory.read_claims("track-1")
    return claim.sandbox_id


def test_a_lease_that_is_extended_during_the_run_is_not_told() -> None:
    world, store = meddled()
    sandbox_id = held_by(world)
    store.act = lambda: world.extend(START + 6 * HOUR, sandbox_id)
    assert run(world).expiring == 0
    assert warnings(world) == []


def test_a_lease_that_ends_during_the_run_is_not_told() -> None:
    world, store = meddled()
    sandbox_id = held_by(world)
    store.act = lambda: world.mark(sandbox_id)
    assert run(world).expiring == 0
    assert warnings(world) == []


def test_a_lease_that_another_run_tells_meanwhile_is_told_once() -> None:
    world, store = meddled()
    sandbox_id = held_by(world)

    def tell() -> None:
        world.clock.advance(1)
        world.memory.commit(warn(world.record(sandbox_id), by=BY, now=world.clock.now(), policy=world.policy))

    store.act = tell
    assert run(world).expiring == 0
    assert len(warnings(world)) == 1


def test_a_record_that_changes_otherwise_is_told_in_the_same_run() -> None:
    world, store = meddled()
    sandbox_id = held_by(world)
    store.act = lambda: world.operations.quarantine(sandbox_id, reason="smells", by=BY)
    assert run(world).expiring == 1
    assert flat(world.record(sandbox_id)).quarantine_reason == "smells"


def test_a_record_that_is_removed_by_hand_is_passed_over() -> None:
    world, store = meddled()
    sandbox_id = held_by(world)
    store.act = lambda: world.memory._place(sandbox_id, None)
    result = run(world)
    assert (result.expiring, result.failed) == (0, 0)


@pytest.mark.parametrize(("fault", "told"), [(Fault.LOST_AFTER, 1), (Fault.LOST_BEFORE, 0), (Fault.REFUSED, 0)])
def test_a_warning_whose_answer_is_lost_is_reported_and_told_once(fault: Fault, told: int) -> None:
    world, store = flaky_world()
    world.pool(20)
    sandbox_id = world.allocate().claim.sandbox_id
    world.clock.advance(SOON)
    store.fail("update", fault)
    assert run(world).failed == 1
    assert len(warnings(world)) == told
    (event,) = world.recorder.of(ItemFailed)
    assert (event.job, event.sandbox_id) == (Job.WATCH, sandbox_id)
    result = run(world)
    assert (result.failed, result.expiring) == (0, 1 - told)
    assert len(warnings(world)) == 1


def test_a_record_that_cannot_be_read_is_reported_and_the_others_are_told(world: World) -> None:
    world.pool(20)
    spoiled = world.allocate("a").claim.sandbox_id
    world.allocate("b")
    world.memory.spoil(spoiled)
    world.clock.advance(SOON)
    result = run(world)
    assert (result.expiring, result.failed) == (1, 1)


def test_nothing_is_told_by_a_clock_that_is_wrong(world: World) -> None:
    world.pool(20)
    world.allocate()
    ahead = FakeClock(START + SOON)
    guard = Guard(store=world.memory, memory=FakeTableMemory(), recorder=world.recorder, clock=ahead, rng=Random(1))
    watcher = Watcher(
        store=world.memory,
        counts=Counts(world.memory, ahead, Random(1), max_age=2.0, policy=world.policy),
        guard=guard,
        recorder=world.recorder,
        clock=ahead,
        rng=Random(1),
        policy=world.policy,
        threads=2,
    )
    with pytest.raises(ClockWrong):
        watcher.run(by=BY)
    assert warnings(world) == []


def test_a_table_that_is_restored_during_a_run_ends_it() -> None:
    world, store = flaky_world()
    world.pool(20)
    world.allocate()
    world.clock.advance(SOON)

    def restore() -> None:
        world.clock.advance(10)
        world.memory.is_restored = True

    store.just_before("get", restore)
    with pytest.raises(TableChanged):
        run(world)
    assert warnings(world) == []


def test_a_holder_reads_extends_and_marks_as_if_nothing_was_told(world: World) -> None:
    world.pool(20)
    claim = world.allocate().claim
    before = world.leases.read(track_id="track-1", sandbox_id=claim.sandbox_id)
    world.clock.advance(SOON)
    run(world)
    after = world.leases.read(track_id="track-1", sandbox_id=claim.sandbox_id)
    assert before.lease is not None
    assert after.lease == replace(before.lease, warned_for=claim.lease.expires_at)
    assert world.allocate().claim == claim
    assert not world.extend(claim.lease.expires_at + HOUR, claim.sandbox_id).unchanged
    assert not world.mark(claim.sandbox_id, lease_id=claim.lease.lease_id).repeated
    with pytest.raises(AllocationEnded):
        world.extend(claim.lease.expires_at + 2 * HOUR, claim.sandbox_id)


# -- the level of the pool


def counts(available: int = 0, **others: int) -> dict[Status, int]:
    return {**dict.fromkeys(Status, 0), Status.AVAILABLE: available, **{Status(k): v for k, v in others.items()}}


@pytest.mark.parametrize(
    ("by_status", "was_low", "is_low"),
    [
        (counts(), False, False),
        (counts(), True, True),
        (counts(deleted=5), False, False),
        (counts(stale=5), False, True),
        (counts(allocated=1), False, True),
        (counts(10, allocated=90), False, False),
        (counts(9, allocated=91), False, True),
        (counts(10, allocated=90), True, True),
        (counts(14, allocated=40, reserved=40, pending_deletion=6), True, True),
        (counts(15, allocated=40, reserved=40, pending_deletion=5), True, False),
        (counts(10, allocated=90, stale=500, deletion_failed=500), False, False),
        (counts(1), False, False),
        (counts(1), True, False),
    ],
)
def test_the_pool_is_low_below_a_share_of_what_is_in_service_and_recovers_at_one_and_a_half_times_it(
    by_status: dict[Status, int], was_low: bool, is_low: bool
) -> None:
    assert judge(by_status, was_low=was_low, percent=10) is is_low


def test_what_is_stale_failed_or_removed_is_not_in_service() -> None:
    assert in_service(dict.fromkeys(Status, 1)) == 4


@pytest.mark.parametrize("percent", range(1, 67))
def test_a_pool_that_is_all_available_has_recovered_at_every_setting(percent: int) -> None:
    assert not judge(counts(1000), was_low=True, percent=percent)


def test_a_low_pool_and_its_recovery_are_told_once_each(world: World) -> None:
    make_low(world, free=20, used=80)
    run(world)
    assert levels(world) == []
    for free in (9, 5, 12, 14):
        make_low(world, free=free, used=100 - free)
        run(world)
    (low,) = levels(world)
    assert (low.kind, low.principal, low.request_id) == (PoolFactKind.LOW, BY.principal, BY.request_id)
    assert low.details == {
        "available": 9,
        "reserved": 0,
        "allocated": 0,
        "pending_deletion": 91,
        "in_service": 100,
        "waiting": 0,
        "low_percent": 10,
    }
    for free in (15, 12, 10, 50):
        make_low(world, free=free, used=100 - free)
        run(world)
    assert [fact.kind for fact in levels(world)] == [PoolFactKind.LOW, PoolFactKind.RECOVERED]
    make_low(world, free=0, used=100)
    run(world)
    assert [fact.kind for fact in levels(world)][2:] == [PoolFactKind.LOW]


def test_a_process_that_starts_later_knows_what_was_told(world: World) -> None:
    make_low(world, free=1, used=99)
    run(world)
    world.start()
    world.clock.advance(60)
    run(world)
    assert len(levels(world)) == 1


def test_an_empty_pool_tells_nothing(world: World) -> None:
    run(world)
    assert levels(world) == []


def test_the_level_is_not_looked_at_while_its_share_is_0(world: World) -> None:
    world.set_policy(pool_low_percent=0)
    make_low(world, free=0, used=10)
    run(world)
    assert levels(world) == []
    assert world.memory.calls["read_level"] == 0


def test_an_older_count_does_not_undo_what_a_newer_one_told(world: World) -> None:
    make_low(world, free=50, used=50)
    newer = PoolLevel(is_low=True, counted_at=world.clock.now() + 5)
    told = PoolFact(kind=PoolFactKind.LOW, fact_id="f", at=1, principal="job:watch")
    world.memory.write_level(PoolLevel(), newer, told)
    run(world)
    assert world.memory.read_level() == newer
    world.clock.advance(60)
    run(world)
    assert not world.memory.read_level().is_low


def test_of_two_runs_that_find_the_pool_low_one_tells_it() -> None:
    world, store = flaky_world()
    make_low(world, free=1, used=99)
    store.fail("write_level", Conflict("another run", current=None))
    run(world)
    assert levels(world) == []
    world.clock.advance(60)
    run(world)
    assert len(levels(world)) == 1


def test_only_a_lease_can_be_told_to_end_soon() -> None:
    with pytest.raises(InvalidTransition):
        warn(make_sandbox(), by=BY, now=START, policy=World().policy)
