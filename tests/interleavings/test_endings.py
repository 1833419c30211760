"""The endings of an allocation against each other, and late ones against the next allocation of the same sandbox."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.allocation import Allocation
from broker_common.core.candidate_cache import CandidateSearch
from broker_common.core.errors import LeaseMismatch, NoSandboxesAvailable, NotSandboxOwner, StoreUnavailable
from broker_common.core.leases import LeaseEnd
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import AllocationExpired
from tests.fakes import BY, Crashed, Fault, MemoryStore, flat, kind_of, make_sandbox
from tests.interleavings.stage import Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.sandbox import Candidate, Claim
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

REASONS = {
    "mark": DeletionReason.MARKED,
    "release": DeletionReason.RELEASED,
    "expire": DeletionReason.EXPIRED,
}


def ending(name: str, world: World, claim: Claim) -> Callable[[], object]:
    """Make the operation of this name end an allocation; it returns whether it was it that did."""

    def mark() -> bool:
        return not world.mark(claim.sandbox_id, claim.lease.track_id).repeated

    def release() -> bool:
        return not world.leases.release(by=BY, sandbox_id=claim.sandbox_id, lease_id=claim.lease.lease_id).repeated

    def expire() -> bool:
        return world.expirer.run(by=BY).expired == 1

    return {"mark": mark, "release": release, "expire": expire}[name]


def repeated_if_killed(world: World, work: Callable[[], object]) -> Callable[[], object]:
    """Make work that a new process begins again when its own is killed."""

    def operation() -> object:
        try:
            return work()
        except Crashed:
            world.start()
            return work()

    return operation


def assert_wiped_once_more(stage: Stage, sandbox_id: str = "sbx-0") -> None:
    assert stage.settle()[sandbox_id].status is Status.AVAILABLE
    assert [record.sandbox_id for record in stage.deletes] == [sandbox_id]


def test_of_a_mark_a_release_and_an_expiry_one_ends_the_allocation_and_all_succeed(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        claim = stage.held(overdue=True)
        for name, world in zip(REASONS, stage.worlds, strict=True):
            stage.play(name, ending(name, world, claim))
        results = stage.run()
        (first,) = (name for name, ended in results.items() if ended)
        assert not any(isinstance(result, Exception) for result in results.values())
        record = stage.records()["sbx-0"]
        assert (flat(record).deletion_reason, flat(record).last_lease_id) == (REASONS[first], claim.lease.lease_id)
        assert_wiped_once_more(stage)

    every_order(case)


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("other", REASONS)
def test_an_ending_that_is_killed_at_any_of_its_calls_and_repeated_is_carried_out(
    every_order: Search, name: str, other: str
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held(overdue=True)
        first, second = stage.worlds
        stage.may_fail(first, Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
        stage.play("killed", repeated_if_killed(first, ending(name, first, claim)))
        stage.play("other", ending(other, second, claim))
        results = stage.run()
        assert not any(isinstance(result, Exception) for result in results.values())
        # Two of a kind within one second write the same record: the store takes the second for the first one repeated.
        assert [*results.values()].count(True) <= (1 if name != other else 2)
        assert_wiped_once_more(stage)

    every_order(case)


@pytest.mark.parametrize("name", ["mark", "release"])
def test_an_ending_whose_answer_gets_lost_is_carried_out_once_it_is_repeated(every_order: Search, name: str) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held(overdue=True)
        first, second = stage.worlds
        stage.may_fail(first, Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)
        stage.play("first", ending(name, first, claim))
        stage.play("expire", partial(second.expirer.run, by=BY))
        results = stage.run()
        assert isinstance(results["first"], (bool, StoreUnavailable))
        assert not isinstance(ending(name, first, claim)(), Exception)
        assert_wiped_once_more(stage)

    every_order(case)


# -- the next allocation


def next_life(stage: Stage, world: World, claim: Claim, track_id: str) -> Callable[[], object]:
    """Make an operation that gives a sandbox back for its track, has it wiped, and allocates it again."""

    def operation() -> object:
        world.mark(claim.sandbox_id, claim.lease.track_id, lease_id=claim.lease.lease_id)
        world.cleaner.delete_sandbox(claim.sandbox_id, by=BY)
        return world.allocate(track_id)

    return operation


def late_against_the_next_life(
    schedule: Schedule, late: Callable[[World, Claim], object], *, track_id: str, overdue: bool = False
) -> tuple[object, Stage]:
    """Play something late against the sandbox's next life, whose allocation must stand; returns what was answered."""
    stage = Stage(schedule)
    claim = stage.held(overdue=overdue)
    first, second = stage.worlds
    stage.play("late", lambda: late(first, claim))
    stage.allocate("next", second, track_id, work=next_life(stage, second, claim, track_id))
    results = stage.run()
    allocation = results["next"]
    assert isinstance(allocation, Allocation)
    assert list(stage.claims().values()) == [allocation.claim]
    assert allocation.claim.lease.lease_id != claim.lease.lease_id
    return results["late"], stage


def mark_the_old_lease(world: World, claim: Claim) -> object:
    return world.mark(claim.sandbox_id, claim.lease.track_id, lease_id=claim.lease.lease_id)


def mark_the_current_lease(world: World, claim: Claim) -> object:
    return world.mark(claim.sandbox_id, claim.lease.track_id)


def release_the_old_lease(world: World, claim: Claim) -> object:
    return world.leases.release(by=BY, sandbox_id=claim.sandbox_id, lease_id=claim.lease.lease_id)


def expire(world: World, _: Claim) -> object:
    return world.expirer.run(by=BY)


@pytest.mark.parametrize("mark", [mark_the_old_lease, mark_the_current_lease])
def test_a_late_mark_never_ends_the_allocation_of_another_track(every_order: Search, mark: Any) -> None:
    def case(schedule: Schedule) -> None:
        answer, _ = late_against_the_next_life(schedule, mark, track_id="bob")
        # Not its owner any more, or, if it had read the sandbox before, not under the lease it read.
        assert isinstance(answer, (LeaseEnd, NotSandboxOwner, LeaseMismatch))

    every_order(case)


def test_a_late_mark_of_the_old_lease_never_ends_the_same_track_s_next_allocation(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        answer, _ = late_against_the_next_life(schedule, mark_the_old_lease, track_id="ann")
        assert isinstance(answer, (LeaseEnd, LeaseMismatch))

    every_order(case)


def test_a_mark_without_a_lease_ends_the_allocation_that_it_reads_first_and_no_other(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held()
        first, second = stage.worlds
        stage.play("late", lambda: mark_the_current_lease(first, claim))
        stage.allocate("next", second, "ann", work=next_life(stage, second, claim, "ann"))
        results = stage.run()
        new = results["next"].claim
        steps = schedule.steps
        read_the_new = steps.index(("late", "get")) > max(
            place for place, step in enumerate(steps) if step == ("next", "allocate")
        )
        ended_the_new = (
            isinstance(results["late"], LeaseEnd) and flat(results["late"].sandbox).last_lease_id == new.lease.lease_id
        )
        assert ended_the_new == read_the_new
        assert (list(stage.claims().values()) == [new]) != ended_the_new

    every_order(case)


@pytest.mark.parametrize("track_id", ["ann", "bob"])
def test_a_late_release_ends_only_the_allocation_that_it_names(every_order: Search, track_id: str) -> None:
    def case(schedule: Schedule) -> None:
        answer, _ = late_against_the_next_life(schedule, release_the_old_lease, track_id=track_id)
        assert isinstance(answer, (LeaseEnd, LeaseMismatch))

    every_order(case)


@pytest.mark.parametrize("track_id", ["ann", "bob"])
def test_an_expiry_that_read_the_old_allocation_does_not_touch_the_next(every_order: Search, track_id: str) -> None:
    def case(schedule: Schedule) -> None:
        result, _ = late_against_the_next_life(schedule, expire, track_id=track_id, overdue=True)
        assert result.failed == 0  # type: ignore[attr-defined] # an ExpiryResult

    every_order(case)


@pytest.mark.parametrize("free", [0, 1])
def test_a_track_s_own_next_allocate_and_the_expiry_job_end_its_overdue_allocation_once(
    every_order: Search, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        old = stage.held(overdue=True)
        if free:
            stage.memory.seed(make_sandbox("sbx-1"))
        api, worker, cleaner = stage.worlds
        stage.allocate("ann", api)
        stage.play("expire", partial(worker.expirer.run, by=BY))
        stage.play("delete", lambda: cleaner.cleaner.delete_sandbox("sbx-0", by=BY))
        answer = stage.run()["ann"]
        if free or isinstance(answer, Allocation):
            assert answer.claim.lease.lease_id != old.lease.lease_id
        else:
            assert isinstance(answer, NoSandboxesAvailable)
        events = [event for world in stage.worlds for event in world.recorder.of(AllocationExpired)]
        # Both write the same record within one second, and the store takes the second for the first one repeated.
        assert {event.lease_id for event in events} == {old.lease.lease_id}
        assert stage.settle()["sbx-0"].status is not Status.PENDING_DELETION
        assert len(stage.deletes) == 1

    every_order(case, once=True)


def overdue_copies(schedule: Schedule, *, processes: int, free: int) -> None:
    stage = Stage(schedule, processes=processes)
    old = stage.held(overdue=True)
    stage.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(1, 1 + free)])
    for number in range(2):
        stage.allocate(f"copy {number}", stage.worlds[number % processes], "ann", arrives=processes == 1)
    results = stage.run().values()
    if free == 0:
        assert all(isinstance(each, NoSandboxesAvailable) for each in results)
    else:
        assert len({each.claim.lease.lease_id for each in results} - {old.lease.lease_id}) == 1
        assert [each.replayed for each in results].count(False) == 1
    assert stage.statuses().count(Status.ALLOCATED) == min(free, 1)
    assert stage.statuses()[0] is Status.PENDING_DELETION


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_copies_of_a_request_whose_allocation_is_overdue_all_get_one_new_sandbox(
    every_order: Search, processes: int, free: int
) -> None:
    every_order(lambda schedule: overdue_copies(schedule, processes=processes, free=free))


@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_track_whose_allocation_is_overdue_and_another_one_are_both_served_while_there_is_a_sandbox(
    every_order: Search, processes: int, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=processes)
        stage.held(overdue=True)
        stage.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(1, 1 + free)])
        stage.allocate("ann", stage.worlds[0], arrives=processes == 1)
        stage.allocate("bob", stage.worlds[-1], arrives=processes == 1)
        results = stage.run().values()
        assert [type(each) for each in results].count(Allocation) == free
        assert [type(each) for each in results].count(NoSandboxesAvailable) == 2 - free
        assert stage.statuses()[0] is Status.PENDING_DELETION

    every_order(case)


# -- planted bugs


def test_the_search_finds_a_request_that_does_not_try_again_what_it_gave_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug that this search found in the broker: a copy was refused the one sandbox that was left."""

    def forget_nothing(search: CandidateSearch, candidate: Candidate) -> None:
        search._candidates.give_back(search._ring, candidate)

    monkeypatch.setattr(CandidateSearch, "give_back", forget_nothing)
    with pytest.raises(Violation, match="was refused, although there was always"):
        explore(lambda schedule: overdue_copies(schedule, processes=1, free=1))


_sound_commit = MemoryStore.commit


def end_any_allocation(memory: MemoryStore, *changes: Change) -> None:
    if kind_of(*changes) != "end_allocation":
        _sound_commit(memory, *changes)
        return
    current = memory._records[changes[0].sandbox_id]
    if current.lease is None:
        raise Conflict("not allocated", current=current)
    memory._put(current.sandbox_id, changes[0].after)
    memory._claims.pop((current.lease.track_id, current.lease.idempotency_key), None)


@pytest.mark.parametrize(("late", "overdue"), [(mark_the_old_lease, False), (expire, True)])
def test_the_search_finds_an_ending_that_ignores_the_lease(
    monkeypatch: pytest.MonkeyPatch, late: Any, *, overdue: bool
) -> None:
    monkeypatch.setattr(MemoryStore, "commit", end_any_allocation)
    with pytest.raises(Violation, match="version"):
        explore(lambda schedule: late_against_the_next_life(schedule, late, track_id="bob", overdue=overdue))


@pytest.mark.parametrize("late", [mark_the_old_lease, expire], ids=["mark", "expire"])
def test_a_quarantine_of_a_sandbox_whose_lease_ends_meanwhile_is_kept_until_it_is_wiped(
    every_order: Search, late: Any
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=2)
        claim = stage.held("ann", overdue=True)
        first, operator = stage.worlds
        stage.play("late", lambda: late(first, claim))
        stage.play("quarantine", lambda: operator.operations.quarantine("sbx-0", by=BY, reason="odd"))
        stage.play("lift", lambda: operator.operations.lift_quarantine("sbx-0", by=BY))
        stage.run()
        record = stage.records()["sbx-0"]
        assert record.status is Status.PENDING_DELETION
        flagged = record.quarantine is not None
        assert stage.settle()["sbx-0"].status is (Status.DELETION_FAILED if flagged else Status.AVAILABLE)

    every_order(case)
