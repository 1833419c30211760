"""Quarantine of a sandbox that is in use: its track keeps it, it is wiped, and then it goes to a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import (
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
    UpgradeUnfinished,
)
from broker_common.core.facts import Fact, FactKind
from broker_common.core.guard import MAX_AGE_SEC
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.ports import WipeAnswer
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome
from tests.fakes import BY, Crashed, flat
from tests.lifecycle import check_histories, check_usage
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3600
FAILING = ProviderFailing("500", outcome_unknown=False)
TIMED_OUT = ProviderFailing("no answer", outcome_unknown=True)


def held(**policy: object) -> World:
    """Make a world whose only sandbox track-1 holds, and an operator wants set aside."""
    world = World()
    world.set_policy(**policy)
    world.pool(1)
    world.allocate()
    world.operations.quarantine("sbx-0", reason="smells", by=BY)
    return world


def give_back_and_wipe(world: World, *answers: WipeAnswer | Exception) -> Sandbox:
    """Give the sandbox back, and have it wiped with these answers, one by one; returns its record."""
    world.mark()
    for answer in answers:
        world.provider.answers.append(answer)
        world.cleaner.delete_sandbox("sbx-0", by=BY)
        world.clock.advance(HOUR)
    return world.record("sbx-0")


def told(world: World) -> list[FactKind]:
    check_histories(world.memory.facts, world.memory.dump()[0])
    check_usage(world.memory.facts, world.memory.usage.values())
    return [fact.kind for fact in world.memory.facts if isinstance(fact, Fact)]


def test_its_track_keeps_it_and_gives_it_back_as_ever() -> None:
    world = held()
    record = world.record("sbx-0")
    assert (record.status, record.quarantine) == (Status.ALLOCATED, "smells")
    assert world.allocate().replayed
    assert world.leases.read(track_id="track-1", sandbox_id="sbx-0") == record
    assert world.leases.list_held(track_id="track-1") == [record]
    ended = world.mark().sandbox
    assert (ended.status, ended.quarantine) == (Status.PENDING_DELETION, "smells")


def release(world: World) -> None:
    world.leases.release(sandbox_id="sbx-0", lease_id=world.allocate().claim.lease.lease_id, by=BY)


def expire(world: World) -> None:
    world.clock.advance(5 * HOUR)
    assert world.expirer.run(by=BY).expired == 1


@pytest.mark.parametrize("end", [World.mark, release, expire])
def test_however_its_lease_ends_it_is_wiped_and_goes_to_a_person(end: Callable[[World], object]) -> None:
    world = held()
    end(world)
    world.cleaner.delete_sandbox("sbx-0", by=BY)
    record = world.record("sbx-0")
    assert (record.status, record.dirty, flat(record).deletion_last_error) == (Status.DELETION_FAILED, False, "smells")


@pytest.mark.parametrize("cool_down_sec", [0, 600])
@pytest.mark.parametrize("recycle", RecyclePolicy)
@pytest.mark.parametrize(
    ("answers", "dirty", "doubt"),
    [
        ([WipeAnswer.WIPED], False, False),
        ([WipeAnswer.ACCEPTED], False, True),
        ([TIMED_OUT, WipeAnswer.WIPED], False, True),
        ([FAILING, WipeAnswer.WIPED], False, False),
        ([WipeAnswer.GONE], True, False),
        ([TIMED_OUT, WipeAnswer.GONE], True, True),
    ],
)
def test_although_recycle_policy_doubt_or_a_404_would_say_otherwise_it_goes_to_a_person_with_the_reason(
    answers: list[WipeAnswer | Exception], dirty: bool, doubt: bool, recycle: RecyclePolicy, cool_down_sec: int
) -> None:
    world = held(recycle=recycle, cool_down_sec=cool_down_sec)
    record = flat(give_back_and_wipe(world, *answers))
    assert (record.status, record.dirty, record.quarantine_reason) == (Status.DELETION_FAILED, dirty, None)
    assert (record.deletion_reason, record.deletion_last_error) == (DeletionReason.QUARANTINED, "smells")
    assert (record.attempt_id, record.next_attempt_at, record.ready_at) == (None, None, None)
    assert record.outcome_unknown == doubt
    assert told(world)[:3] == [FactKind.ALLOCATED, FactKind.QUARANTINED, FactKind.MARKED]
    assert told(world)[-1] == (FactKind.NEEDS_ATTENTION if dirty else FactKind.WIPED)


@pytest.mark.parametrize("answers", [[ProviderRejected("422")], [FAILING] * 2, [TIMED_OUT] * 2])
def test_a_wipe_that_failed_goes_to_a_person_with_both_reasons(answers: list[WipeAnswer | Exception]) -> None:
    world = held(deletion_max_attempts=2)
    record = give_back_and_wipe(world, *answers)
    assert (record.status, record.dirty) == (Status.DELETION_FAILED, True)
    assert (flat(record).deletion_last_error, record.quarantine) == (str(answers[0]), "smells")


def test_a_wipe_that_was_not_made_leaves_the_flag(plain: World) -> None:
    plain.pending()
    plain.operations.quarantine("sbx-0", reason="smells", by=BY)
    plain.provider.answers.append(ProviderMisconfigured("401", outcome_unknown=False))
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    assert (plain.record("sbx-0").status, plain.record("sbx-0").quarantine) == (Status.PENDING_DELETION, "smells")


def while_called(world: World, act: Callable[[], object], answer: WipeAnswer | Exception) -> DeleteEnded:
    """Make one delete attempt, during whose call an operator acts."""

    def during(_: str) -> None:
        act()

    world.provider.during_delete = during
    world.provider.answers.append(answer)
    return world.cleaner.delete_sandbox("sbx-0", by=BY)


@pytest.mark.parametrize(
    ("answer", "status", "dirty", "reason"),
    [
        (WipeAnswer.WIPED, Status.DELETION_FAILED, False, "smells"),
        (WipeAnswer.ACCEPTED, Status.DELETION_FAILED, False, "smells"),
        (WipeAnswer.GONE, Status.DELETION_FAILED, True, "smells"),
        (FAILING, Status.PENDING_DELETION, True, "500"),
        (ProviderRejected("422"), Status.DELETION_FAILED, True, "422"),
        (ProviderMisconfigured("401", outcome_unknown=False), Status.PENDING_DELETION, True, "401"),
    ],
)
def test_a_quarantine_during_the_call_is_heeded_and_the_outcome_of_the_call_is_kept(
    plain: World, answer: WipeAnswer | Exception, status: Status, dirty: bool, reason: str
) -> None:
    plain.pending()
    ended = while_called(plain, lambda: plain.operations.quarantine("sbx-0", reason="smells", by=BY), answer)
    record = flat(plain.record("sbx-0"))
    assert ended.outcome is not DeleteOutcome.NOT_DUE
    assert (record.status, record.dirty, record.deletion_last_error, record.attempt_id) == (status, dirty, reason, None)
    assert record.outcome_unknown == (answer is WipeAnswer.ACCEPTED)
    assert len(plain.provider.deletes) == 1


def test_a_quarantine_that_is_lifted_during_the_call_lets_the_sandbox_go_the_usual_way(plain: World) -> None:
    plain.pending(quarantine_reason="smells")
    ended = while_called(plain, lambda: plain.operations.lift_quarantine("sbx-0", by=BY), WipeAnswer.WIPED)
    assert ended.outcome is DeleteOutcome.DELETED
    assert plain.record("sbx-0").status is Status.AVAILABLE
    assert told(plain) == [FactKind.UPDATED, FactKind.WIPED]


def test_the_outcome_of_an_attempt_is_not_written_on_the_next_one(plain: World) -> None:
    plain.pending()

    def overtake() -> None:
        plain.provider.during_delete = lambda _: None
        plain.clock.advance(plain.policy.attempt_window_sec)
        plain.provider.answers.appendleft(ProviderFailing("503", outcome_unknown=False))
        plain.cleaner.delete_sandbox("sbx-0", by=BY)
        plain.operations.quarantine("sbx-0", reason="smells", by=BY)

    assert while_called(plain, overtake, WipeAnswer.WIPED).outcome is DeleteOutcome.NOT_DUE
    record = plain.record("sbx-0")
    assert (record.status, record.dirty, record.quarantine) == (Status.PENDING_DELETION, True, "smells")


def test_the_outcome_of_an_attempt_is_not_written_on_the_next_one_while_that_is_open(plain: World) -> None:
    plain.pending()

    def crash(_: str) -> None:
        raise Crashed

    def overtake() -> None:
        plain.provider.during_delete = crash
        plain.clock.advance(plain.policy.attempt_window_sec)
        with pytest.raises(Crashed):
            plain.cleaner.delete_sandbox("sbx-0", by=BY)

    assert while_called(plain, overtake, WipeAnswer.WIPED).outcome is DeleteOutcome.NOT_DUE
    record = flat(plain.record("sbx-0"))
    assert (record.status, record.dirty, record.attempt_id is not None) == (Status.PENDING_DELETION, True, True)


def test_it_is_not_allocated_again_until_a_person_has_had_it_wiped_again() -> None:
    world = held()
    give_back_and_wipe(world, WipeAnswer.WIPED)
    world.sync()
    assert world.record("sbx-0").status is Status.DELETION_FAILED
    world.operations.retry_deletion("sbx-0", by=BY)
    world.cleaner.delete_sandbox("sbx-0", by=BY)
    assert world.allocate("track-2").claim.sandbox_id == "sbx-0"
    assert world.record("sbx-0").quarantine is None


@pytest.mark.parametrize("is_held", [True, False])
def test_a_lifted_quarantine_lets_it_go_the_usual_way(is_held: bool) -> None:
    world = held()
    if not is_held:
        world.mark()
    assert world.operations.lift_quarantine("sbx-0", by=BY).quarantine is None
    assert give_back_and_wipe(world, WipeAnswer.WIPED).status is Status.AVAILABLE


def test_lifting_may_be_repeated_and_tells_once() -> None:
    world = held()
    first = world.operations.lift_quarantine("sbx-0", by=BY)
    assert world.operations.lift_quarantine("sbx-0", by=BY) == first == world.record("sbx-0")
    assert told(world) == [FactKind.ALLOCATED, FactKind.QUARANTINED, FactKind.UPDATED]


def test_a_repeated_quarantine_keeps_the_last_reason_and_reports_each(world: World) -> None:
    world.pool(5)
    sandbox_id = world.allocate().claim.sandbox_id
    world.operations.quarantine(sandbox_id, reason="smells", by=BY)
    world.operations.quarantine(sandbox_id, reason="leaks", by=BY)
    assert world.record(sandbox_id).quarantine == "leaks"
    reasons = [fact.details for fact in world.memory.facts if fact.kind == FactKind.QUARANTINED]
    assert reasons == [{"reason": "smells"}, {"reason": "leaks"}]


@pytest.mark.parametrize("is_held", [True, False])
def test_what_is_in_use_cannot_be_set_aside_while_a_release_that_would_not_heed_it_may_run(
    plain: World, is_held: bool
) -> None:
    plain.pool(1)
    plain.allocate()
    if not is_held:
        plain.mark()
    plain.memory.upgraded = 0
    plain.start()
    before = plain.record("sbx-0")
    with pytest.raises(UpgradeUnfinished, match="broker upgrade finish"):
        plain.operations.quarantine("sbx-0", reason="smells", by=BY)
    assert plain.record("sbx-0") == before
    plain.memory.finish_upgrade()
    plain.clock.advance(MAX_AGE_SEC)
    assert plain.operations.quarantine("sbx-0", reason="smells", by=BY).quarantine == "smells"


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.STALE])
def test_what_nobody_uses_can_be_set_aside_also_during_an_upgrade(plain: World, status: Status) -> None:
    plain.memory.upgraded = 0
    plain.pending(status=status, dirty=False)
    assert plain.operations.quarantine("sbx-0", reason="odd", by=BY).status is Status.DELETION_FAILED


def test_a_flag_that_is_set_is_heeded_and_can_be_lifted_also_during_an_upgrade() -> None:
    for lifted in (True, False):
        world = held()
        world.memory.upgraded = 0
        world.start()
        if lifted:
            world.operations.lift_quarantine("sbx-0", by=BY)
        status = give_back_and_wipe(world, WipeAnswer.WIPED).status
        assert status is (Status.AVAILABLE if lifted else Status.DELETION_FAILED)


def test_an_attempt_that_was_lost_does_not_lose_the_flag() -> None:
    world = World(policy=Policy(deletion_max_attempts=2))
    world.pending(attempt_id="lost", quarantine_reason="smells")
    world.cleaner.delete_sandbox("sbx-0", by=BY)
    record = world.record("sbx-0")
    assert (record.status, flat(record).deletion_last_error) == (Status.DELETION_FAILED, "smells")
