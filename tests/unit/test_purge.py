"""Purge: records leave the pool, used ones as tombstones, and the provider is never asked."""

from __future__ import annotations

import pytest

from broker_common.core.errors import InvalidInput
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import ItemFailed
from tests.fakes import BY, START, Fault, make_sandbox
from tests.world import World, flaky_world

DAY = 24 * 3600


def test_what_was_stale_for_the_grace_is_removed_and_nothing_younger(plain: World) -> None:
    plain.memory.seed(
        make_sandbox("old", status=Status.STALE, status_order=START),
        make_sandbox("young", status=Status.STALE, status_order=START + 1),
        make_sandbox("free"),
        make_sandbox("failed", status=Status.DELETION_FAILED),
    )
    plain.clock.advance(DAY)
    result = plain.purger.run(by=BY)
    assert (result.removed, result.failed, result.message) == (1, 0, "Removed 1 stale sandboxes")
    assert set(plain.memory.dump()[0]) == {"young", "free", "failed"}


def test_a_sandbox_that_was_seen_again_meanwhile_is_left() -> None:
    world, store = flaky_world()
    world.pool(1)
    world.memory.seed(make_sandbox("sbx-0", status=Status.STALE))
    world.clock.advance(DAY)
    other = World(clock=world.clock, memory=world.memory, provider=world.provider)
    store.just_before("remove", lambda: other.syncer.run(by=BY))
    assert world.purger.run(by=BY).removed == 0
    assert world.record("sbx-0").status is Status.AVAILABLE


def test_a_record_that_became_stale_again_meanwhile_has_a_grace_of_its_own() -> None:
    world, store = flaky_world()
    world.memory.seed(make_sandbox("old", status=Status.STALE))
    world.clock.advance(DAY)
    again = make_sandbox("old", status=Status.STALE, version=3, status_order=world.clock.now())
    store.just_before("get", lambda: world.memory.seed(again))
    assert world.purger.run(by=BY).removed == 0


def test_every_removal_happens_however_many_races_are_lost(world: World) -> None:
    world.memory.seed(
        make_sandbox("clean", status=Status.STALE),
        make_sandbox("used", status=Status.STALE, dirty=True),
    )
    world.clock.advance(DAY)
    world.purger.run(by=BY)
    world.clock.advance(3)
    world.purger.run(by=BY)
    records, _ = world.memory.dump()
    assert {key: record.status for key, record in records.items()} == {"used": Status.DELETED}


def test_one_that_fails_does_not_stop_the_run() -> None:
    world, store = flaky_world()
    world.memory.seed(*[make_sandbox(f"old-{number}", status=Status.STALE) for number in range(3)])
    world.clock.advance(DAY)
    store.fail("remove", Fault.REFUSED)
    result = world.purger.run(by=BY)
    assert (result.removed, result.failed) == (2, 1)
    assert len(world.recorder.of(ItemFailed)) == 1


@pytest.mark.parametrize("status", [Status.STALE, Status.DELETION_FAILED])
def test_a_bulk_delete_removes_all_of_its_status_of_any_age(plain: World, status: Status) -> None:
    plain.memory.seed(*[make_sandbox(f"{each}-{number}", status=each) for each in Status for number in range(3)])
    others = {key: record for key, record in plain.memory.dump()[0].items() if record.status is not status}
    assert plain.purger.bulk_delete(status, by=BY).removed == 3
    assert plain.memory.dump()[0] == others
    assert plain.provider.deletes == []


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.ALLOCATED, Status.PENDING_DELETION, Status.DELETED])
def test_a_bulk_delete_of_any_other_status_is_refused(plain: World, status: Status) -> None:
    plain.memory.seed(make_sandbox(status=status))
    with pytest.raises(InvalidInput, match="status"):
        plain.purger.bulk_delete(status, by=BY)
    assert len(plain.memory.dump()[0]) == 1
