"""The extension of a lease against everything that ends it, against the next lease, and against another extension."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.allocation import Allocation
from broker_common.core.errors import (
    AllocationEnded,
    LeaseMismatch,
    NoSandboxesAvailable,
    NotSandboxOwner,
    StoreUnavailable,
)
from broker_common.core.facts import FactKind
from broker_common.core.lease import end
from broker_common.core.leases import Extension
from broker_common.core.sandbox import DeletionReason, Status
from tests.fakes import BY, Fault, MemoryStore, flat, make_sandbox
from tests.interleavings.stage import Stage
from tests.interleavings.test_endings import ending, late_against_the_next_life, repeated_if_killed
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from broker_common.core.facts import Change, Fact
    from broker_common.core.sandbox import Claim
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

HOUR = 3600


def extend(world: World, claim: Claim, hours: int = 3) -> Extension:
    """Extend a lease by so many hours beyond the end that its track was first told."""
    until = claim.lease.expires_at + hours * HOUR
    return world.extend(until, claim.sandbox_id, claim.lease.track_id, claim.lease.lease_id)


def extensions_of(stage: Stage) -> list[Fact]:
    return [fact for fact in stage.memory.facts if fact.kind is FactKind.EXTENDED]


def against_an_ending(schedule: Schedule, name: str) -> None:
    stage = Stage(schedule)
    claim = stage.held(overdue=True)
    api, other = stage.worlds
    stage.play("extend", partial(extend, api, claim))
    stage.play(name, ending(name, other, claim))
    results = stage.run()
    record, until = stage.records()["sbx-0"], claim.lease.expires_at + 3 * HOUR
    if isinstance(results["extend"], AllocationEnded):
        assert results[name] is True
        assert extensions_of(stage) == []
    else:
        assert results["extend"].lease == replace(claim.lease, expires_at=until)
        assert flat(record).expires_at == until
        assert results[name] is (name != "expire")
    assert (record.status is Status.ALLOCATED) == (results[name] is False)


@pytest.mark.parametrize("name", ["expire", "mark", "release"])
def test_an_extension_that_is_answered_holds_against_expiry_and_its_track_may_still_end_the_lease(
    every_order: Search, name: str
) -> None:
    every_order(lambda schedule: against_an_ending(schedule, name))


def against_the_tracks_own_allocate(schedule: Schedule, *, free: int) -> None:
    stage = Stage(schedule)
    claim = stage.held(overdue=True)
    stage.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(1, 1 + free)])
    first, second = stage.worlds
    stage.play("extend", partial(extend, first, claim))
    stage.allocate("ann", second)
    results = stage.run()
    answer = results["ann"]
    if isinstance(results["extend"], Extension):
        assert isinstance(answer, Allocation)
        assert (answer.claim, answer.replayed) == (replace(claim, lease=results["extend"].lease), True)
        assert stage.claims() == {("ann", "ann"): answer.claim}
    else:
        assert isinstance(results["extend"], AllocationEnded)
        assert isinstance(answer, Allocation if free else NoSandboxesAvailable)
        assert stage.records()["sbx-0"].status is Status.PENDING_DELETION


@pytest.mark.parametrize("free", [0, 1])
def test_a_track_that_extends_and_allocates_at_once_keeps_the_old_lease_or_ends_it_and_never_both(
    every_order: Search, free: int
) -> None:
    every_order(lambda schedule: against_the_tracks_own_allocate(schedule, free=free))


def test_of_two_extensions_both_are_carried_out_and_the_later_end_holds(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        claim = stage.held()
        asked = {"short": 1, "long": 2, "short too": 1}
        for (name, hours), world in zip(asked.items(), stage.worlds, strict=True):
            stage.play(name, partial(extend, world, claim, hours))
        results = stage.run()
        latest = claim.lease.expires_at + 2 * HOUR
        for name, hours in asked.items():
            assert claim.lease.expires_at + hours * HOUR <= results[name].lease.expires_at <= latest
        assert flat(stage.records()["sbx-0"]).expires_at == latest
        assert 1 <= len(extensions_of(stage)) <= 2

    every_order(case)


@pytest.mark.parametrize("name", ["quarantine", "lift_quarantine"])
def test_an_extension_and_a_change_of_its_quarantine_are_both_carried_out(every_order: Search, name: str) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held()
        api, operator = stage.worlds
        if name == "lift_quarantine":
            operator.operations.quarantine("sbx-0", reason="odd", by=BY)
        reason = {"reason": "odd"} if name == "quarantine" else {}
        stage.play("extend", partial(extend, api, claim))
        stage.play(name, lambda: getattr(operator.operations, name)("sbx-0", by=BY, **reason))
        results = stage.run()
        assert isinstance(results["extend"], Extension)
        record = stage.records()["sbx-0"]
        assert record.lease == results["extend"].lease
        assert record.quarantine == reason.get("reason")

    every_order(case)


@pytest.mark.parametrize("name", ["mark", "expire"])
def test_an_extension_that_is_killed_at_any_of_its_calls_and_repeated_is_carried_out_once_or_came_too_late(
    every_order: Search, name: str
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held(overdue=True)
        first, second = stage.worlds
        stage.may_fail(first, Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
        stage.play("killed", repeated_if_killed(first, partial(extend, first, claim)))
        stage.play("other", ending(name, second, claim))
        results = stage.run()
        assert isinstance(results["killed"], (Extension, AllocationEnded))
        assert len(extensions_of(stage)) <= 1
        if name == "expire":
            assert (stage.records()["sbx-0"].status is Status.ALLOCATED) == isinstance(results["killed"], Extension)

    every_order(case)


def test_an_extension_whose_answer_gets_lost_is_carried_out_once_it_is_repeated(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        claim = stage.held()
        first, second = stage.worlds
        stage.may_fail(first, Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)
        stage.play("first", partial(extend, first, claim))
        stage.play("second", partial(extend, second, claim, 1))
        results = stage.run()
        assert isinstance(results["first"], (Extension, StoreUnavailable))
        assert extend(first, claim).lease.expires_at == claim.lease.expires_at + 3 * HOUR
        assert len(extensions_of(stage)) <= 2

    every_order(case)


def extend_the_old_lease(world: World, claim: Claim) -> object:
    return extend(world, claim)


def extend_the_current_lease(world: World, claim: Claim) -> object:
    return world.extend(claim.lease.expires_at + HOUR, claim.sandbox_id, claim.lease.track_id)


@pytest.mark.parametrize("late", [extend_the_old_lease, extend_the_current_lease])
def test_a_late_extension_never_changes_the_lease_of_another_track(every_order: Search, late: Any) -> None:
    def case(schedule: Schedule) -> None:
        answer, _ = late_against_the_next_life(schedule, late, track_id="bob")
        assert isinstance(answer, (Extension, AllocationEnded, NotSandboxOwner, LeaseMismatch))

    every_order(case)


def test_a_late_extension_of_the_old_lease_never_changes_the_same_tracks_next_one(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        answer, _ = late_against_the_next_life(schedule, extend_the_old_lease, track_id="ann")
        assert isinstance(answer, (Extension, AllocationEnded, LeaseMismatch))

    every_order(case)


# -- planted bugs

_sound_commit = MemoryStore.commit


def extend_any_version(memory: MemoryStore, *changes: Change) -> None:
    (change,) = changes
    if change.fact is None or change.fact.kind is not FactKind.EXTENDED:
        _sound_commit(memory, *changes)
        return
    memory._put(change.sandbox_id, change.after)
    memory.facts.append(change.fact)


@pytest.mark.parametrize("name", ["expire", "mark"])
def test_the_search_finds_an_extension_that_does_not_look_at_the_version(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(MemoryStore, "commit", extend_any_version)
    with pytest.raises(Violation, match=r"no such transition|version|claims"):
        explore(lambda schedule: against_an_ending(schedule, name))


def leave_the_claim(memory: MemoryStore, *changes: Change) -> None:
    claims = dict(memory._claims)
    _sound_commit(memory, *changes)
    if changes[0].fact is not None and changes[0].fact.kind is FactKind.EXTENDED:
        memory._claims.update(claims)


def test_the_search_finds_an_extension_that_leaves_the_claim_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "commit", leave_the_claim)
    with pytest.raises(Violation, match="claims"):
        explore(lambda schedule: against_an_ending(schedule, "expire"))


def expire_by_the_claim(sandbox_id: str, **work: Any) -> bool:
    """End a lease because its claim was overdue, as `expire` would without a look at the sandbox's own end."""
    sandbox = work["store"].get(sandbox_id)
    work["store"].commit(end(sandbox, reason=DeletionReason.EXPIRED, by=work["by"], now=work["clock"].now()))
    return True


def test_the_search_finds_an_expiry_that_judges_by_the_claims_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_common.core.allocation.expire", expire_by_the_claim)
    with pytest.raises(AssertionError):
        explore(lambda schedule: against_the_tracks_own_allocate(schedule, free=0))
