"""The line: waiting tracks and newcomers at the same time, copies of one request, and places that are given up."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.allocation import Allocation
from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.sandbox import Status
from broker_common.core.store import Joined, PlaceHeld
from broker_common.core.waiting import Waiting, WaitingLine
from tests.fakes import BY, Crashed, Fault, MemoryStore, make_sandbox
from tests.interleavings.stage import Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.line import Place
    from broker_common.core.store import JoinAnswer
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

KILLED = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
LOST = (Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)


def served(results: dict[str, Any]) -> set[str]:
    """Return the names of the operations that got a sandbox; every other one waits or was refused."""
    found = {name for name, each in results.items() if isinstance(each, Allocation)}
    others = [each for name, each in results.items() if name not in found]
    assert all(isinstance(each, Waiting | NoSandboxesAvailable | bool) for each in others), results
    return found


def tracks_in(stage: Stage) -> list[str]:
    return [each.track_id for each in stage.moments()[-1].places]


# -- whose turn it is


def two_wait(schedule: Schedule, *, free: int, processes: int = 2) -> None:
    stage = Stage(schedule, processes=processes, has_line=True)
    stage.waits("ann", "bob")
    stage.pool(free)
    for number, name in enumerate(("bob", "ann")):
        stage.wait(name, stage.worlds[number % processes], arrives=processes < 2)
    assert served(stage.run()) == ({"ann"} if free == 1 else {"ann", "bob"})
    assert tracks_in(stage) == ([] if free == 2 else ["bob"])


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("free", [1, 2])
def test_of_two_that_wait_the_first_gets_the_only_sandbox_and_both_get_two(
    every_order: Search, free: int, processes: int
) -> None:
    every_order(lambda schedule: two_wait(schedule, free=free, processes=processes))


def waiting_and_newcomer(schedule: Schedule, *, newcomer_waits: bool, prefix: str = "", free: int = 1) -> None:
    stage = Stage(schedule, has_line=True)
    stage.waits("ann", prefix=prefix)
    stage.pool(free)
    first, second = stage.worlds
    stage.wait("ann", first, prefix=prefix)
    (stage.wait if newcomer_waits else stage.allocate)("new", second)
    everybody = free == 2 or not "lab-".startswith(prefix)
    who = ({"new"} if prefix == "gpu-" else {"ann"}) | ({"new"} if everybody else set())
    assert served(stage.run()) == who


@pytest.mark.parametrize("free", [1, 2])
@pytest.mark.parametrize("newcomer_waits", [True, False])
@pytest.mark.parametrize("prefix", ["", "gpu-"])
def test_a_newcomer_gets_nothing_that_is_due_to_a_place_and_all_that_is_not(
    every_order: Search, *, newcomer_waits: bool, prefix: str, free: int
) -> None:
    every_order(
        lambda schedule: waiting_and_newcomer(schedule, newcomer_waits=newcomer_waits, prefix=prefix, free=free)
    )


@pytest.mark.parametrize("late_by", [5, 6])
def test_a_dead_place_holds_a_newcomer_up_for_five_seconds_and_no_longer(every_order: Search, late_by: int) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        stage.waits("dead", late_by=late_by)
        stage.pool(1)
        for name, world in zip(("one", "two"), stage.worlds, strict=True):
            stage.allocate(name, world)
        assert len(served(stage.run())) == (0 if late_by == 5 else 1)

    every_order(case)


def test_a_sandbox_that_is_freed_meanwhile_goes_to_the_first_that_waits(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3, has_line=True)
        stage.waits("ann", "bob")
        first, second, third = stage.worlds
        stage.memory.seed(make_sandbox("sbx-0", status=Status.STALE, stale_since=stage.clock.now()))
        stage.wait("bob", first)
        stage.wait("ann", second)
        stage.play("freed", lambda: third.sync(third.accounts(1)))
        results = stage.run()
        results.pop("freed")
        assert served(results) <= {"ann"}

    every_order(case, once=True)


# -- giving up


@pytest.mark.parametrize("processes", [1, 2])
def test_a_place_that_is_given_up_while_its_turn_comes_is_gone_and_takes_at_most_one_sandbox(
    every_order: Search, processes: int
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=processes, has_line=True)
        (place,) = stage.waits("ann")
        stage.pool(2)
        stage.wait("ann", stage.worlds[0], arrives=processes == 1)
        stage.play("gives up", lambda: stage.worlds[-1].line.leave(place), arrives=processes == 1)
        assert served(stage.run()) == {"ann"}
        assert tracks_in(stage) == []

    every_order(case)


def test_a_place_that_is_given_up_while_it_is_renewed_is_gone_or_a_new_one(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        (place,) = stage.waits("ann")
        stage.wait("ann", stage.worlds[0])
        stage.play("gives up", lambda: stage.worlds[1].line.leave(place))
        results = stage.run()
        assert served(results) == set()
        assert results["gives up"]
        new = [each.place_id for each in stage.moments()[-1].places]
        assert new in ([], [results["ann"].place.place_id])
        assert place.place_id not in new

    every_order(case)


def test_the_next_in_line_gets_the_sandbox_of_a_track_that_gives_up_or_is_not_back(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        place, _ = stage.waits("ann", "bob")
        stage.pool(1)
        stage.wait("bob", stage.worlds[0])
        stage.play("gives up", lambda: stage.worlds[1].line.leave(place))
        assert served(stage.run()) <= {"bob"}
        assert served({"bob": stage.worlds[1].wait("bob"), "": stage.worlds[0].wait("x")}) == {"bob"}

    every_order(case)


# -- a claim and a place never coexist


def copies(schedule: Schedule, *, free: int, waits: bool, kinds: tuple[str, str], processes: int = 2) -> None:
    """Play two copies of a track's request: each waits, or does not wish to."""
    stage = Stage(schedule, processes=processes, has_line=True)
    if waits:
        stage.waits("ann")
    stage.pool(free)
    for number, kind in enumerate(kinds):
        world = stage.worlds[number % processes]
        play = stage.wait if kind == "waits" else stage.allocate
        play(f"copy {number}", world, "ann", arrives=processes == 1)
    results = stage.run()
    if free:
        assert len(served(results)) == 2
        assert len({each.claim.lease.lease_id for each in results.values()}) == 1
    else:
        told = {each.place.place_id for each in results.values() if isinstance(each, Waiting)}
        assert len(told) == 1
        assert [each.place_id for each in stage.moments()[-1].places] == list(told)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("free", [0, 1, 2])
@pytest.mark.parametrize("other", ["waits", "does not"])
def test_copies_of_a_waiting_request_have_one_place_or_one_sandbox(
    every_order: Search, free: int, *, waits: bool, other: str, processes: int
) -> None:
    every_order(lambda schedule: copies(schedule, free=free, waits=waits, kinds=("waits", other), processes=processes))


@pytest.mark.parametrize("waits", [True, False])
def test_a_track_that_joins_while_a_copy_gets_what_was_just_freed_has_a_claim_or_a_place(
    every_order: Search, *, waits: bool
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3, has_line=True)
        if waits:
            stage.waits("ann")
        first, second, third = stage.worlds
        stage.memory.seed(make_sandbox("sbx-0", status=Status.STALE, stale_since=stage.clock.now()))
        stage.wait("joins", first, "ann")
        stage.allocate("takes", second, "ann")
        stage.play("freed", lambda: third.sync(third.accounts(1)))
        stage.run()

    every_order(case, once=True)


def asked_again(world: World, track_id: str) -> Callable[[], Allocation | Waiting]:
    """Make a request that its track sends again when the process is killed."""

    def operation() -> Allocation | Waiting:
        try:
            return world.wait(track_id)
        except Crashed:
            world.start()
            return world.wait(track_id)

    return operation


@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("faults", [KILLED, LOST])
def test_a_waiting_track_whose_process_is_killed_or_answer_lost_has_one_place_or_one_sandbox(
    every_order: Search, free: int, *, waits: bool, faults: tuple[Fault, ...]
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        if waits:
            stage.waits("ann")
        stage.pool(free)
        first, second = stage.worlds
        stage.may_fail(first, *faults)
        stage.allocate("ann", first, work=asked_again(first, "ann"))
        stage.wait("copy", second, "ann")
        stage.run()
        assert len(stage.claims()) + len(tracks_in(stage)) == 1

    every_order(case, once=True)


def test_a_place_whose_time_is_over_is_swept_or_renewed_but_a_track_that_is_back_never_loses_it(
    every_order: Search,
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        grace = stage.worlds[0].policy.line_grace_sec
        (place,) = stage.waits("ann", late_by=grace + 61)
        renewed = replace(place, back_by=stage.clock.now() + 3)
        stage.play("back elsewhere", lambda: stage.memory.renew(renewed), arrives=True)
        stage.wait("bob", stage.worlds[0])
        was_back = stage.run()["back elsewhere"]
        assert ("ann" in tracks_in(stage)) == was_back

    every_order(case)


# -- planted bugs


def join_without_claim(memory: MemoryStore, place: Place) -> JoinAnswer:
    with memory._called("join"):
        waiting = memory._waiting(place.track_id, place.idempotency_key)
        if waiting is not None:
            return PlaceHeld(waiting.place_id)
        memory._line[place.place_id] = place
        return Joined()


def test_the_search_finds_a_join_that_does_not_look_at_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "join", join_without_claim)

    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        claim = stage.held("bob")
        stage.wait("joins", stage.worlds[0], "ann")
        stage.play("freed and taken", lambda: free_and_take(stage, claim.lease.lease_id))
        stage.run()

    def free_and_take(stage: Stage, lease_id: str) -> None:
        stage.worlds[1].leases.release(by=BY, sandbox_id="sbx-0", lease_id=lease_id)
        with suppress(NoSandboxesAvailable):
            stage.worlds[1].cleaner.delete_sandbox("sbx-0", by=BY)
            stage.worlds[1].allocate("ann")

    with pytest.raises(Violation, match="while there are the places"):
        explore(case)


def test_the_search_finds_an_allocate_that_leaves_its_place_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    allocate = MemoryStore.allocate

    def forgetful(memory: MemoryStore, *given: Any, place_id: str | None = None, **named: Any) -> Any:
        kept = dict(memory._line)
        answer = allocate(memory, *given, place_id=place_id, **named)
        memory._line |= kept
        return answer

    monkeypatch.setattr(MemoryStore, "allocate", forgetful)
    with pytest.raises(Violation, match="while there are the places"):
        explore(lambda schedule: two_wait(schedule, free=1))


def test_the_search_finds_a_process_that_ignores_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WaitingLine, "is_clear_for", lambda *_: True)
    with pytest.raises(Violation, match="which was due to"):
        explore(lambda schedule: waiting_and_newcomer(schedule, newcomer_waits=False))


def test_the_search_finds_a_dead_place_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_common.core.line.LATE_SEC", 600)

    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, has_line=True)
        stage.waits("dead", late_by=6)
        stage.pool(1)
        stage.allocate("new", stage.worlds[0])
        stage.run()

    with pytest.raises(Violation, match="was refused, although there was always"):
        explore(case)


def test_the_search_finds_a_renewal_that_does_not_notice_that_the_place_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryStore, "renew", lambda _memory, _place: True)
    with pytest.raises(AssertionError):
        explore(lambda schedule: copies(schedule, free=1, waits=True, kinds=("waits", "does not")))
