"""Allocates against each other: several tracks for the last sandboxes, and copies of one request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.allocation import Allocation
from broker_common.core.candidate_cache import CandidateCache
from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.lease import begin
from broker_common.core.sandbox import Status
from broker_common.core.store import Allocated, CandidateGone, ClaimHeld
from tests.fakes import BY, Crashed, Fault, MemoryStore, changed, make_sandbox
from tests.interleavings.stage import Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Candidate, Claim
    from broker_common.core.store import AllocateAnswer
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

TRACKS = ("ann", "bob", "cho")
KILLED = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
LOST = (Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)


def granted(results: dict[str, Any]) -> list[Allocation]:
    """Return what was allocated; every other answer was a refusal."""
    found = [each for each in results.values() if isinstance(each, Allocation)]
    refused = [each for each in results.values() if isinstance(each, NoSandboxesAvailable)]
    assert len(found) + len(refused) == len(results)
    return found


def set_up(schedule: Schedule, *, free: int, processes: int, memory: str) -> Stage:
    """Make processes that know nothing yet, or whether anything is paused, or also some candidates."""
    stage = Stage(schedule, processes=processes)
    stage.pool(free)
    for world in stage.worlds:
        if memory == "cold":
            world.start()
        if memory == "warm":
            stage.look_ahead(world)
    return stage


def several_tracks(schedule: Schedule, *, tracks: int, free: int, processes: int, memory: str = "usual") -> None:
    stage = set_up(schedule, free=free, processes=processes, memory=memory)
    for number, name in enumerate(TRACKS[:tracks]):
        stage.allocate(name, stage.worlds[number % processes], arrives=processes < tracks)
    found = granted(stage.run())
    assert len({each.claim.sandbox_id for each in found}) == len(found) == min(tracks, free)


TWO = [(2, free, processes, memory) for free in (1, 2) for processes in (1, 2) for memory in ("cold", "usual", "warm")]
"""How many ask, for how many free sandboxes, at how many processes, that know how much already."""
THREE = [(3, 1, 3, "usual"), (3, 2, 1, "usual"), (3, 2, 3, "usual")] + [
    (3, free, processes, "warm") for free in (1, 2) for processes in (1, 2, 3)
]


@pytest.mark.parametrize(("tracks", "free", "processes", "memory"), TWO + THREE)
def test_each_sandbox_goes_to_one_track_and_nobody_is_refused_while_one_is_left(
    every_order: Search, tracks: int, free: int, processes: int, memory: str
) -> None:
    every_order(lambda schedule: several_tracks(schedule, tracks=tracks, free=free, processes=processes, memory=memory))


def several_copies(schedule: Schedule, *, copies: int, free: int, processes: int, memory: str = "usual") -> None:
    stage = set_up(schedule, free=free, processes=processes, memory=memory)
    for number in range(copies):
        stage.allocate(f"copy {number}", stage.worlds[number % processes], "ann", arrives=processes < copies)
    found = granted(stage.run())
    assert len(found) == copies
    assert len({each.claim.lease.lease_id for each in found}) == 1
    assert [each.replayed for each in found].count(False) == 1


@pytest.mark.parametrize(("copies", "free", "processes", "memory"), TWO + THREE)
def test_all_copies_of_a_request_get_one_sandbox_under_one_lease(
    every_order: Search, copies: int, free: int, processes: int, memory: str
) -> None:
    every_order(lambda schedule: several_copies(schedule, copies=copies, free=free, processes=processes, memory=memory))


@pytest.mark.parametrize("free", [1, 2])
def test_tracks_are_served_so_also_where_one_process_changes_between_them_at_each_of_its_locks(
    every_order: Search, free: int
) -> None:
    every_order(
        lambda schedule: several_tracks(schedule, tracks=2, free=free, processes=1, memory="warm"), at_locks=True
    )


@pytest.mark.parametrize("free", [1, 2])
def test_copies_are_served_so_also_where_one_process_changes_between_them_at_each_of_its_locks(
    every_order: Search, free: int
) -> None:
    every_order(
        lambda schedule: several_copies(schedule, copies=2, free=free, processes=1, memory="warm"), at_locks=True
    )


def test_tracks_are_served_so_also_on_a_ring_of_several_shards(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, shards=2)
        stage.pool(1)
        for name, world in zip(TRACKS, stage.worlds, strict=False):
            stage.allocate(name, world)
        assert len(granted(stage.run())) == 1

    every_order(case)


# -- what goes wrong on the way


def repeated_if_killed(world: World, track_id: str) -> Callable[[], Allocation]:
    """Make an allocate that its track sends again when the process is killed."""

    def operation() -> Allocation:
        try:
            return world.allocate(track_id)
        except Crashed:
            world.start()
            return world.allocate(track_id)

    return operation


@pytest.mark.parametrize("free", [1, 2])
@pytest.mark.parametrize("other", ["ann", "bob"])
def test_a_track_whose_process_is_killed_gets_what_it_was_given_when_it_asks_again(
    every_order: Search, other: str, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = set_up(schedule, free=free, processes=2, memory="usual")
        first, second = stage.worlds
        stage.may_fail(first, *KILLED)
        stage.allocate("killed", first, "ann", work=repeated_if_killed(first, "ann"))
        stage.allocate("other", second, other)
        found = granted(stage.run())
        assert len(found) == (2 if other == "ann" else min(2, free))
        assert len({each.claim.lease.lease_id for each in found}) == (1 if other == "ann" else len(found))

    every_order(case)


@pytest.mark.parametrize("free", [1, 2])
@pytest.mark.parametrize("other", ["ann", "bob"])
@pytest.mark.parametrize("processes", [1, 2])
def test_two_requests_are_answered_truly_although_the_answer_to_a_write_got_lost(
    every_order: Search, processes: int, other: str, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = set_up(schedule, free=free, processes=processes, memory="usual")
        stage.may_fail(stage.worlds[0], *LOST)
        stage.allocate("lossy", stage.worlds[0], "ann", arrives=processes == 1)
        stage.allocate("other", stage.worlds[-1], other, arrives=processes == 1)
        found = granted(stage.run())
        assert len(found) == (2 if other == "ann" else min(2, free))
        assert len({each.claim.lease.lease_id for each in found}) == (1 if other == "ann" else len(found))
        assert len(stage.claims()) == len({each.claim.lease.lease_id for each in found})

    every_order(case)


# -- against an operator, and the track itself


@pytest.mark.parametrize(("tracks", "free"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_sandbox_is_set_aside_at_once_or_its_track_keeps_it_until_it_is_wiped(
    every_order: Search, tracks: int, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pool(free)
        *apis, operator = stage.worlds
        for name, world in zip(TRACKS[:tracks], apis, strict=False):
            stage.allocate(name, world)
        stage.play("quarantine", lambda: operator.operations.quarantine("sbx-0", by=BY, reason="odd"))
        results = stage.run()
        is_held = results.pop("quarantine").status is Status.ALLOCATED
        record = stage.records()["sbx-0"]
        assert (record.status, record.quarantine) == (
            (Status.ALLOCATED, "odd") if is_held else (Status.DELETION_FAILED, None)
        )
        assert len(granted(results)) == min(tracks, free if is_held else free - 1)

    every_order(case, once=tracks > 1)


@pytest.mark.parametrize("free", [0, 1])
def test_a_track_that_gives_back_while_a_copy_of_its_allocate_runs_keeps_what_it_gets_again(
    every_order: Search, free: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        old = stage.held()
        if free:
            stage.memory.seed(make_sandbox("sbx-1"))
        first, second = stage.worlds
        stage.allocate("copy", first, "ann")
        stage.play(
            "mark",
            lambda: second.mark("sbx-0", "ann", lease_id=old.lease.lease_id),
        )
        results = stage.run()
        assert not results["mark"].repeated
        answer = results["copy"]
        new = isinstance(answer, Allocation) and answer.claim != old
        assert list(stage.claims().values()) == ([answer.claim] if new else [])

    every_order(case)


# -- planted bugs


def allocate_without(*left_out: str) -> Callable[..., AllocateAnswer]:
    """Make a store's allocate that does not look at the claim, the sandbox's status or its version."""

    def allocate(
        memory: MemoryStore, candidate: Candidate, new: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        with memory._called("allocate"):
            held = memory._claims.get((new.lease.track_id, new.lease.idempotency_key))
            if held is not None and "claim" not in left_out:
                return ClaimHeld(held)
            current = memory._records[candidate.sandbox_id]
            if current.status is not Status.AVAILABLE and "status" not in left_out:
                return CandidateGone(current)
            if current.version != candidate.version and "version" not in left_out:
                return CandidateGone(current)
            free = changed(current, status=Status.AVAILABLE, dirty=False)
            memory._put(candidate.sandbox_id, begin(free, new.lease, by=by).result)
            memory._claims[new.lease.track_id, new.lease.idempotency_key] = new
            return Allocated()

    return allocate


def test_the_search_finds_an_allocate_that_does_not_check_that_its_sandbox_is_still_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryStore, "allocate", allocate_without("status", "version"))
    with pytest.raises(Violation, match="no such transition"):
        explore(lambda schedule: several_tracks(schedule, tracks=2, free=1, processes=2))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_search_finds_an_allocate_that_does_not_check_the_claim(
    monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(MemoryStore, "allocate", allocate_without("claim"))
    with pytest.raises(Violation, match="claims"):
        explore(lambda schedule: several_copies(schedule, copies=2, free=2, processes=processes))


def test_the_search_finds_a_refusal_while_another_request_of_the_process_only_tries_the_last_sandbox(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CandidateCache, "share", lambda _candidates, _candidate: False)
    with pytest.raises(Violation, match="was refused, although there was always"):
        explore(lambda schedule: several_tracks(schedule, tracks=2, free=1, processes=1))


def test_the_search_finds_that_a_killed_request_is_sent_again_to_a_store_that_does_not_check_the_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryStore, "allocate", allocate_without("claim"))

    def case(schedule: Schedule) -> None:
        stage = set_up(schedule, free=2, processes=1, memory="usual")
        (world,) = stage.worlds
        stage.may_fail(world, *KILLED)
        stage.allocate("ann", world, work=repeated_if_killed(world, "ann"))
        stage.run()

    with pytest.raises(Violation, match="claims") as found:
        explore(case)
    assert "fault: crash after" in found.value.__notes__[0]
