"""Records that cannot be read, as a hand or a later release leaves them: out of service, and in nobody else's way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import NoSandboxesAvailable, UnreadableRecord
from broker_common.core.pauses import MAX_AGE_SEC
from broker_common.core.sandbox import Status
from broker_common.core.store import CandidateGone, Pause, Unreadable
from broker_common.core.telemetry import DeleteOutcome, ItemFailed
from tests.fakes import BY, SPOILED, StoreWrapper, make_sandbox
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Candidate, Claim
    from broker_common.core.store import AllocateAnswer


DAMAGED = UnreadableRecord("the record of what is paused", "sync is not true or false")


def test_the_next_candidate_is_tried_and_a_bad_one_only_once(plain: World) -> None:
    plain.pool(6)
    for number in range(3):
        plain.memory.spoil(f"sbx-{number}")
    got = {plain.allocate(f"track-{number}").claim.sandbox_id for number in range(3)}
    assert got == {"sbx-3", "sbx-4", "sbx-5"}
    for number in range(3, 9):
        with pytest.raises(NoSandboxesAvailable):
            plain.allocate(f"track-{number}")
        plain.clock.advance(2)
    assert plain.memory.calls["allocate"] == 6


class Unchanged(StoreWrapper):
    """A store that refuses a candidate, and shows its record as the candidate has it."""

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        return CandidateGone(self.inner.get(candidate.sandbox_id))


def test_a_candidate_that_is_refused_as_it_is_is_not_tried_for_ever() -> None:
    world = World(wrap=Unchanged)
    world.pool(2)
    with pytest.raises(NoSandboxesAvailable):
        world.allocate()


def test_a_track_whose_claim_cannot_be_read_uses_no_candidate_up(plain: World) -> None:
    plain.pool(2)
    plain.allocate("track-1")
    plain.memory.spoil_claim("track-1", "track-1")
    for _ in range(3):
        with pytest.raises(UnreadableRecord):
            plain.allocate("track-1")
    assert plain.memory.calls["read_candidates"] <= 4
    assert not plain.allocate("track-2").replayed
    with pytest.raises(UnreadableRecord):
        plain.allocate("track-1")


def test_an_overdue_allocation_that_cannot_be_read_keeps_its_track_waiting_and_no_other(plain: World) -> None:
    plain.pool(2)
    held = plain.allocate("track-1").claim.sandbox_id
    plain.memory.spoil(held)
    plain.clock.advance(24 * 3600)
    with pytest.raises(UnreadableRecord):
        plain.allocate("track-1")
    assert plain.allocate("track-2").claim.sandbox_id != held
    assert plain.expirer.run(by=BY).failed == 1


def test_jobs_and_bulk_operations_leave_it_and_do_the_rest(plain: World) -> None:
    for status in (Status.STALE, Status.DELETION_FAILED, Status.PENDING_DELETION):
        plain.memory.seed(*(make_sandbox(f"{status}-{which}", status=status, dirty=True) for which in ("bad", "good")))
        plain.memory.spoil(f"{status}-bad")
    assert plain.operations.bulk_retry(by=BY) == 1
    due = list(plain.cleaner.find_due())
    outcomes = {each: plain.cleaner.delete_sandbox(each, by=BY).outcome for each in due}
    assert outcomes.pop("pending_deletion-bad") is DeleteOutcome.POSTPONED
    assert set(outcomes.values()) == {DeleteOutcome.DELETED}
    plain.clock.advance(48 * 3600)
    purged = plain.purger.run(by=BY)
    assert (purged.removed, purged.failed) == (1, 1)


def test_a_sync_does_not_add_it_again_and_does_not_miss_it(plain: World) -> None:
    plain.pool(3)
    plain.memory.spoil("sbx-0")
    assert plain.sync().failed == 1
    (failed,) = plain.recorder.of(ItemFailed)
    assert (failed.sandbox_id, "cannot be read" in failed.error) == ("sbx-0", True)
    assert plain.sync(plain.accounts(3)[1:]).missing == 0


def test_what_a_track_holds_is_listed_with_what_cannot_be_read_of_it(plain: World) -> None:
    plain.pool(4)
    held = sorted(plain.allocate("track-1", f"key-{number}").claim.sandbox_id for number in range(3))
    plain.memory.spoil(held[1])
    ended = plain.record(held[2])
    plain.memory.seed(make_sandbox(held[2], version=ended.version + 1))
    page = plain.inventory.list_of_track("track-1", None, limit=5, cursor=None)
    assert [each.sandbox_id for each in page.sandboxes] == [held[0]]
    assert page.unreadable == (Unreadable(held[1], SPOILED),)


def test_pauses_that_cannot_be_read_are_as_they_were_known_last() -> None:
    world, store = flaky_world()
    store.fail("read_pauses", DAMAGED, None, DAMAGED)
    with pytest.raises(UnreadableRecord):
        world.pauses.current()
    paused = world.pauses.set({"sync": True}, by=BY)
    assert paused.sync == Pause(by=BY.principal, since=world.clock.now())
    store.calls.clear()
    world.clock.advance(MAX_AGE_SEC)
    assert world.pauses.current() == paused
    assert store.calls["read_pauses"] == 1


def test_a_damaged_pause_is_set_right_by_setting_it_and_what_stays_damaged_is_told() -> None:
    world, store = flaky_world()
    store.fail("read_pauses", *[DAMAGED] * 9)
    assert world.pauses.set({"sync": True}, by=BY).sync == Pause(by=BY.principal, since=world.clock.now())
    world.clock.advance(1)
    with pytest.raises(UnreadableRecord):
        world.pauses.set({"sync": True}, by=BY)
