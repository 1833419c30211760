"""Reading what is held, extending it, and ending it: marked by its track, released by an operator, expired."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest

from broker_common.core.allocation import AllocateRequest
from broker_common.core.errors import (
    AllocationEnded,
    BrokerError,
    DurationLimit,
    LeaseMismatch,
    NotSandboxOwner,
    SandboxNotFound,
    StoreUnavailable,
)
from broker_common.core.facts import Fact, FactKind
from broker_common.core.leases import expire
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import (
    AllocationExpired,
    AllocationReleased,
    ExtendOutcome,
    ExtensionEnded,
    MarkEnded,
    MarkOutcome,
)
from tests.fakes import BY, START, Fault, flat, make_sandbox
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

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


# -- extending


def extensions_of(world: World) -> list[Fact]:
    return [fact for fact in world.memory.facts if isinstance(fact, Fact) and fact.kind is FactKind.EXTENDED]


def test_a_holder_extends_its_lease_and_its_replay_answers_the_new_end(world: World) -> None:
    world.pool(3)
    claim = world.allocate().claim
    world.clock.advance(60)
    until = claim.lease.expires_at + HOUR
    extension = world.extend(until, claim.sandbox_id, lease_id=claim.lease.lease_id)
    longer = replace(claim.lease, expires_at=until)
    assert (extension.lease, extension.unchanged) == (longer, False)
    assert world.record(claim.sandbox_id).lease == longer
    again = world.allocate()
    assert (again.claim, again.replayed) == (replace(claim, lease=longer), True)


def test_an_earlier_end_answers_the_present_one_and_writes_nothing(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    before = plain.memory.dump()
    for earlier in (0, START, lease.expires_at - 1, lease.expires_at):
        extension = plain.extend(earlier)
        assert (extension.lease, extension.unchanged) == (lease, True)
    assert (plain.memory.dump(), extensions_of(plain)) == (before, [])


def test_an_extension_is_told_once_however_often_it_is_repeated(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    until = lease.expires_at + HOUR
    assert [plain.extend(until).unchanged for _ in range(3)] == [False, True, True]
    assert [fact.details for fact in extensions_of(plain)] == [
        {"expires_at": until, "expires_at_before": lease.expires_at}
    ]


def test_a_lease_may_be_extended_until_its_limit_and_no_further(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    limit = lease.allocated_at + plain.policy.max_lab_duration_sec
    for beyond in (limit + 1, 2**60):
        with pytest.raises(DurationLimit) as refused:
            plain.extend(beyond)
        assert refused.value.details == {"latest_expires_at": limit}
        assert f"until {datetime.fromtimestamp(limit, UTC):%Y-%m-%d %H:%M:%S} UTC at most" in refused.value.message
    assert plain.record("sbx-0").lease == lease
    assert plain.extend(limit).lease.expires_at == limit


def test_an_operator_extends_a_lease_to_thirty_days_and_its_track_never_shortens_that(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    limit = lease.allocated_at + 30 * 24 * HOUR
    with pytest.raises(DurationLimit) as refused:
        plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=limit + 1, by=BY)
    assert refused.value.details == {"latest_expires_at": limit}
    extension = plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=limit, by=BY, lease_id=lease.lease_id)
    assert extension.lease.expires_at == limit
    assert plain.extend(lease.expires_at + HOUR).lease.expires_at == limit
    with pytest.raises(DurationLimit) as refused:
        plain.extend(limit + 1)
    assert refused.value.details == {"latest_expires_at": limit}


def test_the_limit_of_tracks_is_an_operators_too_where_it_is_longer(plain: World) -> None:
    plain.set_policy(max_lab_duration_sec=60 * 24 * HOUR)
    plain.pool(1)
    lease = plain.allocate().claim.lease
    until = lease.allocated_at + 60 * 24 * HOUR
    assert plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=until, by=BY).lease.expires_at == until


def test_a_lease_of_more_than_its_limit_of_today_is_not_shortened(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    plain.set_policy(max_lab_duration_sec=HOUR)
    assert plain.extend(lease.allocated_at + HOUR).lease == lease
    with pytest.raises(DurationLimit) as refused:
        plain.extend(lease.expires_at + 1)
    assert refused.value.details == {"latest_expires_at": lease.expires_at}


@pytest.mark.parametrize("late", [4 * HOUR + 60, 6 * HOUR])
def test_a_lease_that_nobody_has_ended_yet_is_extended_after_its_end_and_then_it_is_not_overdue(
    plain: World, late: int
) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    plain.clock.advance(late)
    plain.extend(lease.allocated_at + 8 * HOUR)
    plain.expirer.run(by=BY)
    assert plain.record("sbx-0").status is Status.ALLOCATED
    assert plain.allocate().replayed
    plain.clock.advance(8 * HOUR + plain.policy.expiry_buffer_sec - late)
    plain.expirer.run(by=BY)
    assert plain.record("sbx-0").status is Status.PENDING_DELETION


@pytest.mark.parametrize("free", [0, 1])
def test_an_allocate_that_read_an_overdue_claim_does_not_end_the_lease_that_is_extended_meanwhile(free: int) -> None:
    world, store = flaky_world()
    world.pool(1)
    claim = world.allocate().claim
    world.memory.seed(*[make_sandbox(f"free-{number}") for number in range(free)])
    world.clock.advance(5 * HOUR)
    other = World(clock=world.clock, memory=world.memory)
    until = claim.lease.allocated_at + 8 * HOUR
    store.just_before("get", partial(other.extend, until))
    again = world.allocate()
    assert (again.claim, again.replayed) == (replace(claim, lease=replace(claim.lease, expires_at=until)), True)
    assert world.record("sbx-0").status is Status.ALLOCATED


def test_another_track_is_refused_before_anything_else(plain: World) -> None:
    plain.pool(2)
    claim = plain.allocate().claim
    before = plain.memory.dump()
    for sandbox_id in ("sbx-0", "sbx-1"):
        for lease_id in (None, claim.lease.lease_id, "any"):
            with pytest.raises(NotSandboxOwner):
                plain.extend(2**60, sandbox_id, "track-2", lease_id)
    assert plain.memory.dump() == before


def test_an_unknown_sandbox_or_a_tombstone_cannot_be_extended(plain: World) -> None:
    tombstone = make_sandbox(status=Status.DELETED, last_track_id="track-1", last_lease_id="lease-1")
    plain.memory.seed(tombstone)
    for sandbox_id in ("nobody", tombstone.sandbox_id):
        with pytest.raises(SandboxNotFound):
            plain.extend(START, sandbox_id)
    with pytest.raises(SandboxNotFound):
        plain.leases.extend_for_operator(sandbox_id="nobody", expires_at=START, by=BY)


def test_a_lease_that_has_ended_is_not_extended(plain: World) -> None:
    plain.pool(1)
    lease_id = plain.allocate().claim.lease.lease_id
    plain.mark()
    before = plain.memory.dump()
    for named in (None, lease_id):
        with pytest.raises(AllocationEnded):
            plain.extend(START + HOUR, lease_id=named)
        with pytest.raises(AllocationEnded):
            plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=START + HOUR, by=BY, lease_id=named)
    assert plain.memory.dump() == before


def test_a_sandbox_that_nobody_ever_held_has_no_lease_to_extend(plain: World) -> None:
    plain.pool(1)
    with pytest.raises(AllocationEnded):
        plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=START, by=BY)
    with pytest.raises(LeaseMismatch):
        plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=START, by=BY, lease_id="any")


def test_an_extension_of_an_earlier_lease_changes_nothing(plain: World) -> None:
    plain.pool(1)
    old = plain.use_and_wipe().claim.lease
    new = plain.allocate().claim.lease
    for lease_id in (old.lease_id, "any"):
        with pytest.raises(LeaseMismatch):
            plain.extend(new.expires_at + HOUR, lease_id=lease_id)
    assert plain.record("sbx-0").lease == new


@pytest.mark.parametrize("next_track", ["track-1", "track-2"])
def test_an_extension_is_bound_to_the_lease_that_it_read_first(next_track: str) -> None:
    world = World()
    world.pool(1)
    late, store = flaky_world(clock=world.clock, memory=world.memory)
    old = world.allocate().claim.lease

    def go_round() -> None:
        world.use_and_wipe()
        world.allocate(next_track)

    store.just_before("update", go_round)
    with pytest.raises(LeaseMismatch):
        late.extend(old.expires_at + HOUR)
    assert flat(world.record("sbx-0")).allocated_to_track == next_track
    assert extensions_of(world) == []


def test_an_extension_whose_sandbox_vanishes_meanwhile_is_not_found() -> None:
    world, store = flaky_world()
    world.pool(1)
    lease = world.allocate().claim.lease
    store.fail("update", Conflict("gone", current=None))
    with pytest.raises(SandboxNotFound):
        world.extend(lease.expires_at + HOUR)


@pytest.mark.parametrize("change", ["quarantine", "lift_quarantine"])
def test_an_extension_tries_again_on_a_record_that_has_changed(change: str) -> None:
    world, store = flaky_world()
    world.pool(1)
    lease = world.allocate().claim.lease
    operator = World(clock=world.clock, memory=world.memory)
    operator.operations.quarantine("sbx-0", reason="smells", by=BY)
    if change == "lift_quarantine":
        store.just_before("update", lambda: operator.operations.lift_quarantine("sbx-0", by=BY))
    world.extend(lease.expires_at + HOUR)
    record = world.record("sbx-0")
    assert (flat(record).expires_at, record.quarantine is None) == (
        lease.expires_at + HOUR,
        change == "lift_quarantine",
    )


def test_of_two_extensions_the_later_end_holds_in_either_order() -> None:
    for ends in ((1, 2), (2, 1)):
        world, store = flaky_world()
        world.pool(1)
        lease = world.allocate().claim.lease
        other = World(clock=world.clock, memory=world.memory)
        first, second = (lease.expires_at + each * HOUR for each in ends)
        store.just_before("update", partial(other.extend, second))
        answered = world.extend(first).lease.expires_at
        assert answered == flat(world.record("sbx-0")).expires_at == lease.expires_at + 2 * HOUR


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_an_extension_whose_answer_was_lost_is_carried_out_by_repeating_it(fault: Fault) -> None:
    world, store = flaky_world()
    world.pool(1)
    lease = world.allocate().claim.lease
    store.fail("update", fault)
    with pytest.raises(StoreUnavailable):
        world.extend(lease.expires_at + HOUR)
    assert world.extend(lease.expires_at + HOUR).lease.expires_at == lease.expires_at + HOUR
    assert len(extensions_of(world)) == 1
    outcomes = [event.outcome for event in world.recorder.of(ExtensionEnded)]
    again = ExtendOutcome.UNCHANGED if fault is Fault.LOST_AFTER else ExtendOutcome.SUCCESS
    assert outcomes == [ExtendOutcome.ERROR, again]


def test_each_extension_is_recorded_with_its_outcome(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    plain.extend(lease.expires_at + 1)
    plain.extend(lease.expires_at + 1)
    plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=lease.expires_at + 2, by=BY)
    refused: list[tuple[type[BrokerError], Callable[[], object]]] = [
        (DurationLimit, lambda: plain.extend(2**60)),
        (NotSandboxOwner, lambda: plain.extend(START, track_id="track-2")),
        (SandboxNotFound, lambda: plain.extend(START, "nobody")),
        (LeaseMismatch, lambda: plain.extend(START, lease_id="x")),
    ]
    for error, act in refused:
        with pytest.raises(error):
            act()
    plain.mark()
    with pytest.raises(AllocationEnded):
        plain.extend(START)
    events = plain.recorder.of(ExtensionEnded)
    assert [event.outcome for event in events] == [
        ExtendOutcome.SUCCESS,
        ExtendOutcome.UNCHANGED,
        ExtendOutcome.SUCCESS,
        ExtendOutcome.LIMIT,
        ExtendOutcome.NOT_OWNER,
        ExtendOutcome.NOT_FOUND,
        ExtendOutcome.ENDED,
        ExtendOutcome.ENDED,
    ]
    assert {(event.track_id, event.lease_id) for event in events[:3]} == {("track-1", lease.lease_id)}
    assert [event.error is None for event in events] == [True] * 3 + [False] * 5


def test_an_allocation_lasts_as_long_as_its_track_asks_for(plain: World) -> None:
    plain.pool(2)
    asked = AllocateRequest(track_id="track-1", idempotency_key="k", duration_sec=600)
    lease = plain.ask(asked).claim.lease
    assert lease.expires_at == lease.allocated_at + 600
    replay = plain.ask(replace(asked, duration_sec=7200))
    assert (replay.claim.lease, replay.replayed) == (lease, True)
