"""Reading what is held, and ending it: marked by its track, released by an operator, expired."""

from __future__ import annotations

import pytest

from broker_common.core.errors import LeaseMismatch, NotSandboxOwner, SandboxNotFound, StoreUnavailable
from broker_common.core.leases import expire
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import AllocationExpired, AllocationReleased, MarkEnded, MarkOutcome
from tests.fakes import BY, Fault, flat, make_sandbox
from tests.world import World, flaky_world

HOUR = 3600


def test_a_holder_reads_its_sandbox(world: World) -> None:
    world.pool(3)
    claim = world.allocate().claim
    sandbox = world.leases.read(track_id="track-1", sandbox_id=claim.sandbox_id)
    assert (sandbox.status, flat(sandbox).lease_id) == (Status.ALLOCATED, claim.lease.lease_id)


def test_nobody_else_reads_a_sandbox_held_or_not(world: World) -> None:
    world.pool(3)
    world.allocate()
    for number in range(3):
        with pytest.raises(NotSandboxOwner):
            world.leases.read(track_id="track-2", sandbox_id=f"sbx-{number}")


def test_an_unknown_sandbox_is_not_found(world: World) -> None:
    with pytest.raises(SandboxNotFound):
        world.leases.read(track_id="track-1", sandbox_id="nobody")
    with pytest.raises(SandboxNotFound):
        world.mark("nobody")
    with pytest.raises(SandboxNotFound):
        world.leases.release(by=BY, sandbox_id="nobody", lease_id="lease")


def test_the_last_holder_reads_until_the_sandbox_is_allocated_again(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    plain.mark()
    assert plain.leases.read(track_id="track-1", sandbox_id="sbx-0").status is Status.PENDING_DELETION
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    assert plain.leases.read(track_id="track-1", sandbox_id="sbx-0").status is Status.AVAILABLE
    plain.clock.advance(2)
    plain.allocate("track-2")
    with pytest.raises(NotSandboxOwner):
        plain.leases.read(track_id="track-1", sandbox_id="sbx-0")


def test_an_allocation_past_its_expiry_is_still_read_and_ended_by_its_holder(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    plain.clock.advance(5 * HOUR)
    assert plain.leases.read(track_id="track-1", sandbox_id="sbx-0").status is Status.ALLOCATED
    assert not plain.mark().repeated


def test_a_tombstone_is_not_found_except_that_its_last_holder_may_repeat_the_mark(plain: World) -> None:
    tombstone = make_sandbox(status=Status.DELETED, last_track_id="track-1", last_lease_id="lease-1")
    plain.memory.seed(tombstone)
    with pytest.raises(SandboxNotFound):
        plain.leases.read(track_id="track-1", sandbox_id=tombstone.sandbox_id)
    with pytest.raises(SandboxNotFound):
        plain.mark(tombstone.sandbox_id, "track-2")
    ending = plain.mark(tombstone.sandbox_id, "track-1")
    assert (ending.sandbox, ending.repeated) == (tombstone, True)


def test_a_track_lists_all_that_it_holds_and_nothing_else(world: World) -> None:
    world.pool(10)
    held = {world.allocate("a", key).claim.sandbox_id for key in ("x", "y", "z")}
    world.allocate("b")
    gone = min(held)
    world.mark(gone, "a")
    assert {each.sandbox_id for each in world.leases.list_held(track_id="a")} == held - {gone}
    assert world.leases.list_held(track_id="nobody") == []


def test_a_sandbox_that_is_given_back_while_its_track_lists_is_left_out() -> None:
    world, store = flaky_world()
    world.pool(1)
    world.allocate()
    other = World(clock=world.clock, memory=world.memory)
    store.just_before("get", other.mark)
    assert world.leases.list_held(track_id="track-1") == []


def test_a_mark_takes_the_sandbox_back_and_frees_the_claim(world: World) -> None:
    world.pool(3)
    claim = world.allocate().claim
    world.clock.advance(60)
    ending = world.mark(claim.sandbox_id)
    assert ending.sandbox == world.record(claim.sandbox_id)
    assert ending.sandbox.status is Status.PENDING_DELETION
    assert ending.sandbox.dirty
    assert flat(ending.sandbox).last_lease_id == claim.lease.lease_id
    assert world.memory.read_claims("track-1") == []


def test_a_repeated_mark_is_answered_with_the_present_status(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    first = plain.mark()
    plain.clock.advance(60)
    second = plain.mark()
    assert (first.repeated, second.repeated) == (False, True)
    assert second.sandbox == first.sandbox
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    third = plain.mark()
    assert (third.sandbox.status, third.repeated) == (Status.AVAILABLE, True)


def test_a_mark_after_expiry_came_first_is_a_repetition(plain: World) -> None:
    plain.pool(1)
    lease_id = plain.allocate().claim.lease.lease_id
    plain.clock.advance(5 * HOUR)
    plain.expirer.run(by=BY)
    for named in (None, lease_id):
        ending = plain.mark(lease_id=named)
        assert ending.repeated
        assert flat(ending.sandbox).deletion_reason is DeletionReason.EXPIRED


def test_a_mark_by_another_track_changes_nothing_and_says_nothing_of_the_lease(world: World) -> None:
    world.pool(1)
    plain_record = world.memory.dump()
    for lease_id in (None, "any"):
        with pytest.raises(NotSandboxOwner):
            world.mark(track_id="track-2", lease_id=lease_id)
    assert world.memory.dump() == plain_record


def test_a_late_mark_never_ends_the_same_tracks_next_lease(plain: World) -> None:
    plain.pool(1)
    old = plain.use_and_wipe().claim
    new = plain.allocate().claim
    with pytest.raises(LeaseMismatch):
        plain.mark(lease_id=old.lease.lease_id)
    assert flat(plain.record("sbx-0")).lease_id == new.lease.lease_id


def test_a_mark_is_bound_to_the_lease_that_it_read_first() -> None:
    world = World()
    world.pool(1)
    late, store = flaky_world(clock=world.clock, memory=world.memory)
    first = world.allocate().claim

    def go_round_to_the_same_track() -> None:
        world.mark()
        world.cleaner.delete_sandbox("sbx-0", by=BY)
        world.clock.advance(2)
        world.allocate()

    store.just_before("end_allocation", go_round_to_the_same_track)
    with pytest.raises(LeaseMismatch):
        late.mark()
    record = world.record("sbx-0")
    assert record.status is Status.ALLOCATED
    assert flat(record).lease_id != first.lease.lease_id


def test_a_mark_whose_sandbox_vanishes_meanwhile_is_not_found() -> None:
    world, store = flaky_world()
    world.pool(1)
    world.allocate()
    store.fail("end_allocation", Conflict("gone", current=None))
    with pytest.raises(SandboxNotFound):
        world.mark()


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_a_mark_whose_answer_was_lost_is_carried_out_by_repeating_it(fault: Fault) -> None:
    world, store = flaky_world()
    world.pool(1)
    world.allocate()
    store.fail("end_allocation", fault)
    with pytest.raises(StoreUnavailable):
        world.mark()
    ending = world.mark()
    assert ending.sandbox.status is Status.PENDING_DELETION
    outcomes = [event.outcome for event in world.recorder.of(MarkEnded)]
    again = MarkOutcome.REPEATED if fault is Fault.LOST_AFTER else MarkOutcome.SUCCESS
    assert outcomes == [MarkOutcome.ERROR, again]


def test_each_mark_is_recorded_with_its_outcome(plain: World) -> None:
    plain.pool(1)
    lease_id = plain.allocate().claim.lease.lease_id
    plain.mark()
    plain.mark()
    with pytest.raises(NotSandboxOwner):
        plain.mark(track_id="track-2")
    with pytest.raises(SandboxNotFound):
        plain.mark("nobody")
    with pytest.raises(LeaseMismatch):
        plain.mark(lease_id="x")
    events = plain.recorder.of(MarkEnded)
    assert [event.outcome for event in events] == [
        MarkOutcome.SUCCESS,
        MarkOutcome.REPEATED,
        MarkOutcome.NOT_OWNER,
        MarkOutcome.NOT_FOUND,
        MarkOutcome.ERROR,
    ]
    assert (events[0].track_id, events[0].sandbox_id, events[0].lease_id) == ("track-1", "sbx-0", lease_id)
    assert events[0].error is None
    assert all(event.error for event in events[2:])


def test_an_operator_releases_an_allocation_for_its_track(world: World) -> None:
    world.pool(3)
    claim = world.allocate().claim
    ending = world.leases.release(by=BY, sandbox_id=claim.sandbox_id, lease_id=claim.lease.lease_id)
    assert ending.sandbox.status is Status.PENDING_DELETION
    assert flat(ending.sandbox).deletion_reason is DeletionReason.RELEASED
    assert world.memory.read_claims("track-1") == []


def test_a_release_is_recorded_once_however_often_it_is_repeated(plain: World) -> None:
    plain.pool(1)
    lease_id = plain.allocate().claim.lease.lease_id
    for repeated in (False, True, True):
        assert plain.leases.release(by=BY, sandbox_id="sbx-0", lease_id=lease_id).repeated == repeated
    assert plain.recorder.of(AllocationReleased) == [
        AllocationReleased(sandbox_id="sbx-0", lease_id=lease_id, track_id="track-1")
    ]


def test_a_release_of_an_earlier_lease_changes_nothing(plain: World) -> None:
    plain.pool(1)
    old = plain.use_and_wipe().claim
    plain.allocate("track-2")
    before = plain.memory.dump()
    with pytest.raises(LeaseMismatch):
        plain.leases.release(by=BY, sandbox_id="sbx-0", lease_id=old.lease.lease_id)
    assert plain.memory.dump() == before


def test_a_release_of_what_nobody_holds_is_refused(plain: World) -> None:
    plain.pool(1)
    with pytest.raises(LeaseMismatch):
        plain.leases.release(by=BY, sandbox_id="sbx-0", lease_id="any")


def expire_in(world: World, sandbox_id: str) -> bool:
    return expire(
        sandbox_id,
        by=BY,
        store=world.store,
        guard=world.guard,
        recorder=world.recorder,
        clock=world.clock,
        policy=world.policy,
    )


def test_expiring_what_is_not_overdue_does_nothing(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    for sandbox_id in ("sbx-0", "nobody"):
        assert not expire_in(plain, sandbox_id)
    assert plain.record("sbx-0").status is Status.ALLOCATED


def test_expiring_loses_to_a_mark_that_came_first() -> None:
    world = World()
    world.pool(1)
    world.allocate()
    world.clock.advance(5 * HOUR)
    late, store = flaky_world(clock=world.clock, memory=world.memory)
    store.just_before("end_allocation", world.mark)
    assert not expire_in(late, "sbx-0")
    assert flat(world.record("sbx-0")).deletion_reason is DeletionReason.MARKED
    assert late.recorder.of(AllocationExpired) == []
