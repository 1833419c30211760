"""Expiry: what tracks forgot is taken back, once its buffer has passed, and nothing else is read."""

from __future__ import annotations

import pytest

from broker_common.core.errors import StoreUnavailable
from broker_common.core.job_names import Job
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.telemetry import AllocationExpired, ItemFailed
from tests.fakes import BY, Fault, flat
from tests.world import World, flaky_world

HOUR = 3600
OVERDUE = 4 * HOUR + HOUR // 2


def test_an_allocation_is_expired_when_its_buffer_has_passed_and_not_before(world: World) -> None:
    world.pool(3)
    claim = world.allocate().claim
    world.clock.advance(OVERDUE - 1)
    world.expirer.run(by=BY)
    assert world.record(claim.sandbox_id).status is Status.ALLOCATED
    world.clock.advance(1)
    world.expirer.run(by=BY)
    record = world.record(claim.sandbox_id)
    assert (record.status, flat(record).last_lease_id) == (Status.PENDING_DELETION, claim.lease.lease_id)
    assert world.memory.read_claims("track-1") == []


def test_an_expiry_is_counted_recorded_and_gives_its_reason(plain: World) -> None:
    plain.pool(1)
    claim = plain.allocate().claim
    plain.clock.advance(OVERDUE)
    result = plain.expirer.run(by=BY)
    assert (result.expired, result.failed) == (1, 0)
    assert result.message == "Marked 1 sandboxes for auto-expiry"
    assert flat(plain.record("sbx-0")).deletion_reason is DeletionReason.EXPIRED
    assert plain.recorder.of(AllocationExpired) == [
        AllocationExpired(sandbox_id="sbx-0", lease_id=claim.lease.lease_id, track_id="track-1")
    ]
    assert plain.expirer.run(by=BY).expired == 0


def test_only_what_is_due_is_read(plain: World) -> None:
    plain.pool(60)
    for number in range(2):
        plain.allocate(f"old-{number}")
    plain.clock.advance(60)
    for number in range(50):
        plain.allocate(f"within-its-buffer-{number}")
    plain.clock.advance(OVERDUE - 60)
    plain.memory.calls.clear()
    assert plain.expirer.run(by=BY).expired == 2
    assert plain.memory.calls == {"ping": 1, "read_due": 1, "get": 2, "end_allocation": 2}


def test_a_run_without_anything_due_reads_no_sandbox(plain: World) -> None:
    plain.pool(5)
    plain.allocate()
    plain.memory.calls.clear()
    plain.expirer.run(by=BY)
    assert plain.memory.calls == {"read_due": 1}


def test_one_that_fails_does_not_stop_the_run_and_is_expired_by_the_next() -> None:
    world, store = flaky_world()
    world.pool(4)
    for number in range(4):
        world.allocate(f"track-{number}")
    world.clock.advance(OVERDUE)
    store.fail("end_allocation", None, Fault.REFUSED, Fault.LOST_BEFORE)
    result = world.expirer.run(by=BY)
    assert (result.expired, result.failed) == (2, 2)
    assert [(event.job, bool(event.error)) for event in world.recorder.of(ItemFailed)] == [(Job.EXPIRE, True)] * 2
    assert world.expirer.run(by=BY).expired == 2


def test_an_index_that_cannot_be_read_fails_the_run() -> None:
    world, store = flaky_world()
    store.fail("read_due", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        world.expirer.run(by=BY)


def test_a_run_over_several_threads_expires_all() -> None:
    world = World()
    world.pool(20)
    for number in range(20):
        world.allocate(f"track-{number}")
    world.clock.advance(OVERDUE)
    world.expirer._threads = 8
    assert world.expirer.run(by=BY).expired == 20
