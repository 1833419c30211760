"""COOL_DOWN_SEC: a wiped sandbox rests before it is available again."""

from __future__ import annotations

import pytest

from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.facts import Fact, FactKind
from broker_common.core.guard import MAX_AGE_SEC
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.ports import WipeAnswer
from broker_common.core.sandbox import Sandbox, Status
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome
from tests.fakes import BY, Fault, flat
from tests.world import World, flaky_world

REST = 600


@pytest.fixture
def cool() -> World:
    """Give a world where a wiped sandbox rests for ten minutes, and one that its track has just given back."""
    world = World(policy=Policy(cool_down_sec=REST))
    world.pending()
    return world


def clean(world: World) -> list[DeleteEnded]:
    """Run a cleanup over all that is due."""
    return [world.cleaner.delete_sandbox(each, by=BY) for each in list(world.cleaner.find_due())]


def told(world: World) -> list[FactKind]:
    return [fact.kind for fact in world.memory.facts if isinstance(fact, Fact)]


def test_a_wiped_sandbox_waits_clean_and_says_until_when(cool: World) -> None:
    assert [ended.outcome for ended in clean(cool)] == [DeleteOutcome.DELETED]
    record = cool.record("sbx-0")
    assert (record.status, record.dirty) == (Status.PENDING_DELETION, False)
    assert flat(record).ready_at == cool.clock.now() + REST
    assert told(cool) == [FactKind.WIPED]
    with pytest.raises(NoSandboxesAvailable):
        cool.allocate("track-2")


def test_it_does_not_count_as_waiting_to_be_wiped(cool: World) -> None:
    asked = flat(cool.record("sbx-0")).deletion_requested_at
    assert cool.memory.oldest_pending_deletion() == asked
    clean(cool)
    assert cool.memory.oldest_pending_deletion() is None
    cool.pending("sbx-1")
    assert cool.memory.oldest_pending_deletion() == asked


def test_a_cleanup_makes_it_available_at_its_time_and_not_before_without_another_call(cool: World) -> None:
    clean(cool)
    cool.clock.advance(REST - 1)
    assert clean(cool) == []
    assert cool.cleaner.delete_sandbox("sbx-0", by=BY).outcome is DeleteOutcome.NOT_DUE
    cool.clock.advance(1)
    (ended,) = clean(cool)
    assert (ended.outcome, ended.error) == (DeleteOutcome.RESTED, None)
    assert len(cool.provider.deletes) == 1
    record = cool.record("sbx-0")
    assert (record.status, flat(record).ready_at) == (Status.AVAILABLE, None)
    assert told(cool) == [FactKind.WIPED, FactKind.AVAILABLE]
    assert cool.allocate("track-2").claim.sandbox_id == "sbx-0"


def test_it_needs_no_call_slot(cool: World) -> None:
    clean(cool)
    cool.clock.advance(REST)
    cool.provider.admit_error = AssertionError("no slot is asked for")
    assert [ended.outcome for ended in clean(cool)] == [DeleteOutcome.RESTED]


def test_rested_sandboxes_are_spread_over_the_ring() -> None:
    world = World(policy=Policy(cool_down_sec=REST))
    for number in range(20):
        world.pending(f"sbx-{number}")
    clean(world)
    world.clock.advance(REST)
    clean(world)
    assert len({each.status_order for each in world.memory.dump()[0].values()}) == 20


def test_of_two_cleanups_that_end_the_rest_at_once_one_does_it(cool: World) -> None:
    clean(cool)
    cool.clock.advance(REST)
    rival = World(clock=cool.clock, memory=cool.memory, seed=2)
    late, store = flaky_world(clock=cool.clock, memory=cool.memory)
    store.just_before("update", lambda: rival.cleaner.delete_sandbox("sbx-0", by=BY))
    assert late.cleaner.delete_sandbox("sbx-0", by=BY).outcome is DeleteOutcome.NOT_DUE
    assert told(cool) == [FactKind.WIPED, FactKind.AVAILABLE]


def test_a_rest_whose_end_could_not_be_written_is_ended_by_the_next_cleanup() -> None:
    world, store = flaky_world(policy=Policy(cool_down_sec=REST))
    world.pending()
    clean(world)
    world.clock.advance(REST)
    store.fail("update", Fault.REFUSED)
    assert [ended.outcome for ended in clean(world)] == [DeleteOutcome.POSTPONED]
    assert [ended.outcome for ended in clean(world)] == [DeleteOutcome.RESTED]


def test_a_paused_cleanup_leaves_what_rests_alone(cool: World) -> None:
    clean(cool)
    cool.clock.advance(REST)
    cool.pauses.set({"cleanup": True}, by=BY)
    assert [ended.outcome for ended in clean(cool)] == [DeleteOutcome.POSTPONED]
    assert cool.record("sbx-0").is_cooling


def test_a_sync_leaves_what_rests_alone(cool: World) -> None:
    clean(cool)
    before = cool.record("sbx-0")
    cool.sync(World.accounts(1))
    cool.sync(World.accounts(2)[1:])
    assert cool.record("sbx-0") == before


def test_a_track_may_repeat_its_mark_while_its_sandbox_rests(cool: World) -> None:
    clean(cool)
    ending = cool.mark()
    assert (ending.repeated, ending.sandbox) == (True, cool.record("sbx-0"))


@pytest.mark.parametrize("recycle", [RecyclePolicy.CONFIRM, RecyclePolicy.RETIRE])
def test_what_does_not_become_available_does_not_rest(recycle: RecyclePolicy) -> None:
    world = World(policy=Policy(cool_down_sec=REST, recycle=recycle))
    world.pending()
    clean(world)
    assert world.record("sbx-0").status in {Status.STALE, Status.DELETED}


@pytest.mark.parametrize("answer", [WipeAnswer.ACCEPTED, WipeAnswer.GONE])
def test_a_doubt_waits_for_a_sync_and_does_not_rest(cool: World, answer: WipeAnswer) -> None:
    cool.provider.answers.append(answer)
    clean(cool)
    record = cool.record("sbx-0")
    assert (record.status, flat(record).ready_at) == (Status.STALE, None)


def test_nothing_rests_while_a_release_that_would_wipe_it_again_may_run(cool: World) -> None:
    cool.memory.upgraded = 0
    clean(cool)
    assert cool.record("sbx-0").status is Status.AVAILABLE
    assert told(cool) == [FactKind.WIPED]
    cool.memory.finish_upgrade()
    cool.clock.advance(MAX_AGE_SEC)
    cool.pending("sbx-1")
    clean(cool)
    assert cool.record("sbx-1").is_cooling


def test_a_rest_ends_also_where_the_setting_was_taken_back(cool: World) -> None:
    clean(cool)
    cool.set_policy(cool_down_sec=0)
    cool.clock.advance(REST)
    clean(cool)
    assert cool.record("sbx-0").status is Status.AVAILABLE


# -- set aside while it rests


def rest_and_quarantine(world: World) -> Sandbox:
    clean(world)
    return world.operations.quarantine("sbx-0", reason="smells", by=BY)


def test_a_sandbox_that_is_quarantined_while_it_rests_goes_to_a_person_at_its_time(cool: World) -> None:
    assert rest_and_quarantine(cool).is_cooling
    cool.clock.advance(REST)
    clean(cool)
    record = cool.record("sbx-0")
    assert (record.status, record.dirty, flat(record).deletion_last_error) == (Status.DELETION_FAILED, False, "smells")
    assert len(cool.provider.deletes) == 1
    assert told(cool) == [FactKind.WIPED, FactKind.QUARANTINED, FactKind.NEEDS_ATTENTION]


def test_a_quarantine_that_is_lifted_while_it_rests_changes_nothing(cool: World) -> None:
    rest_and_quarantine(cool)
    cool.operations.lift_quarantine("sbx-0", by=BY)
    cool.clock.advance(REST)
    clean(cool)
    assert cool.record("sbx-0").status is Status.AVAILABLE
