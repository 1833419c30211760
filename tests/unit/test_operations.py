"""What an operator does with single sandboxes: set aside, send back to be wiped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import SandboxNotFound
from broker_common.core.sandbox import DeletionReason, Status
from tests.fakes import BY, flat, make_sandbox, removal_of
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable


def test_what_has_no_record_is_not_found(plain: World) -> None:
    calls: list[Callable[[str], object]] = [
        lambda each: plain.operations.retry_deletion(each, by=BY),
        lambda each: plain.operations.quarantine(each, by=BY, reason="odd"),
        lambda each: plain.operations.lift_quarantine(each, by=BY),
    ]
    for call in calls:
        with pytest.raises(SandboxNotFound):
            call("nobody")


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.STALE])
def test_an_unused_sandbox_is_set_aside_with_the_reason_kept(world: World, status: Status) -> None:
    world.memory.seed(make_sandbox(status=status))
    after = world.operations.quarantine("2009521", by=BY, reason="smells")
    assert after == world.record("2009521")
    assert (after.status, flat(after).deletion_last_error) == (Status.DELETION_FAILED, "smells")
    assert flat(after).deletion_reason is DeletionReason.QUARANTINED


def test_a_quarantine_that_loses_to_an_allocate_leaves_the_sandbox_to_its_track_until_it_is_wiped() -> None:
    world, store = flaky_world()
    world.pool(1)
    rival = World(clock=world.clock, memory=world.memory)
    store.just_before("update", rival.allocate)
    after = world.operations.quarantine("sbx-0", by=BY, reason="odd")
    assert (after.status, after.quarantine) == (Status.ALLOCATED, "odd")
    assert after == world.record("sbx-0")
    assert rival.allocate().replayed


def test_a_failed_deletion_is_sent_back_to_be_wiped_with_a_fresh_count(world: World) -> None:
    world.memory.seed(make_sandbox("sbx-0", status=Status.DELETION_FAILED, dirty=True, deletion_retry_count=8))
    after = world.operations.retry_deletion("sbx-0", by=BY)
    assert (after.status, flat(after).deletion_retry_count, after.dirty) == (Status.PENDING_DELETION, 0, True)
    world.clock.advance(3)
    assert list(world.cleaner.find_due()) == ["sbx-0"]


def test_all_failed_deletions_are_sent_back_and_counted(world: World) -> None:
    world.memory.seed(*[make_sandbox(f"{status}-{number}", status=status) for status in Status for number in range(3)])
    others = {key: each for key, each in world.memory.dump()[0].items() if each.status is not Status.DELETION_FAILED}
    assert world.operations.bulk_retry(by=BY) == 3
    records, _ = world.memory.dump()
    assert records.items() >= others.items()
    assert {records[f"deletion_failed-{number}"].status for number in range(3)} == {Status.PENDING_DELETION}


def test_a_failed_deletion_that_is_removed_meanwhile_is_not_counted() -> None:
    world, store = flaky_world()
    sandbox = make_sandbox(status=Status.DELETION_FAILED)
    world.memory.seed(sandbox)
    store.just_before("update", lambda: world.memory.commit(removal_of(sandbox)))
    assert world.operations.bulk_retry(by=BY) == 0
