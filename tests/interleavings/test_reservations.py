"""Reservations: fills, draws, ends and bookings against each other, and against allocate and sync."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.allocation import Allocation
from broker_common.core.bookings import Booked, Wanted
from broker_common.core.errors import CapacityNotAvailable, NoSandboxesAvailable
from broker_common.core.facts import PoolFact
from broker_common.core.sandbox import Status
from tests.fakes import BY, START, Fault, MemoryStore, make_account, make_reservation
from tests.interleavings.stage import Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World


def draw(stage: Stage, name: str, world: World) -> None:
    stage.allocate(name, world, work=lambda: world.allocate(name, track_name="lab-1"))


def fill(world: World) -> object:
    return world.reserver.run(by=BY)


def cancel(world: World) -> object:
    return world.bookings.cancel("res-1", by=BY)


def end(world: World) -> object:
    """Let the reservation's time pass, and end it."""
    world.clock.advance(2)
    return fill(world)


def reservation_of(result: object) -> str | None:
    assert isinstance(result, Allocation)
    return result.claim.lease.reservation_id


@pytest.mark.parametrize("ending", [cancel, end])
def test_a_draw_and_the_end_of_its_reservation_leave_true_counters_and_nothing_reserved(
    every_order: Search, ending: Callable[[World], object]
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pool(1)
        stage.reserve(make_reservation(count=1, starts_at=START, ends_at=START + 1), set_aside=1)
        first, second = stage.worlds
        draw(stage, "ann", first)
        stage.play("end", partial(ending, second))
        results = stage.run()
        assert not isinstance(results["end"], Exception)
        stage.clock.advance(10)
        fill(second)
        over = stage.memory.read_reservation("res-1")
        assert over is not None
        assert stage.memory.reservations == {}
        is_drawn = isinstance(results["ann"], Allocation) and reservation_of(results["ann"]) == "res-1"
        assert (over.set_aside, over.drawn) == (0, int(is_drawn))
        assert isinstance(results["ann"], (Allocation, NoSandboxesAvailable))
        assert stage.statuses() == [Status.ALLOCATED if isinstance(results["ann"], Allocation) else Status.AVAILABLE]

    every_order(case, once=True)


def fill_against_allocate(schedule: Schedule) -> None:
    stage = Stage(schedule)
    stage.pool(1)
    stage.reserve(make_reservation(count=1))
    first, second = stage.worlds
    stage.allocate("ann", first)
    stage.play("fill", partial(fill, second))
    results = stage.run()
    is_allocated = isinstance(results["ann"], Allocation)
    assert is_allocated or isinstance(results["ann"], NoSandboxesAvailable)
    assert results["fill"].set_aside == (0 if is_allocated else 1)
    assert stage.statuses() == [Status.ALLOCATED if is_allocated else Status.RESERVED]


def test_a_sandbox_that_a_fill_and_a_track_want_goes_to_one_of_them(every_order: Search) -> None:
    every_order(fill_against_allocate, once=True)


def test_a_sandbox_that_is_not_listed_is_stale_whether_or_not_it_is_set_aside_meanwhile(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pool(1)
        stage.reserve(make_reservation(count=1))
        first, second = stage.worlds
        first.provider.accounts = [make_account("elsewhere", name="other")]
        stage.play("sync", lambda: first.syncer.run(by=BY, force=True))
        stage.play("fill", partial(fill, second))
        results = stage.run()
        assert not isinstance(results["fill"], Exception)
        first.syncer.run(by=BY, force=True)
        stage._watch()
        assert stage.records()["sbx-0"].status is Status.STALE

    every_order(case, once=True)


def test_two_runs_at_once_fill_a_reservation_once_and_tell_its_start_once(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pool(2)
        stage.reserve(make_reservation(count=1, starts_at=START))
        for name, world in zip(("one", "two"), stage.worlds, strict=True):
            stage.play(name, partial(fill, world))
        results = stage.run()
        assert sum(each.set_aside for each in results.values()) == 1
        assert sum(each.opened for each in results.values()) == 1
        assert [each.kind for each in stage.memory.facts if isinstance(each, PoolFact)] in (
            ["reservation.open"],
            ["reservation.short"],  # one has told the start before the other has set aside
        )

    every_order(case, once=True)


def two_bookings(schedule: Schedule) -> None:
    stage = Stage(schedule)
    stage.pool(5)
    wanted = Wanted(name="Class", count=3, starts_at=START + 3600, ends_at=START + 7200)
    for name, world in zip(("one", "two"), stage.worlds, strict=True):
        stage.play(name, partial(world.bookings.book, wanted, by=BY))
    results = stage.run()
    assert {type(each) for each in results.values()} == {Booked, CapacityNotAvailable}
    assert len(stage.memory.reservations) == 1


def test_of_two_bookings_that_do_not_fit_together_one_is_booked(every_order: Search) -> None:
    every_order(two_bookings, once=True)


def test_two_draws_and_a_fill_on_the_same_counters_are_each_counted_once(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pool(3)
        stage.reserve(make_reservation(count=3), set_aside=2)
        for world in stage.worlds[:2]:
            stage.look_ahead(world, "res-1")
        stage.may_fail(stage.worlds[0], Fault.CONTENDED)
        free = stage.records()["sbx-2"]
        for name, world in zip(("ann", "bob"), stage.worlds[:2], strict=True):
            draw(stage, name, world)
        filler = stage.worlds[2]
        stage.play("fill", lambda: filler.reserver._set_aside_one(stage.memory.reservations["res-1"], BY, free))  # type: ignore[arg-type] # it has all of a candidate
        results = stage.run()
        assert [reservation_of(results[name]) for name in ("ann", "bob")] == ["res-1", "res-1"]
        reservation = stage.memory.reservations["res-1"]
        assert (results["fill"], reservation.set_aside, reservation.drawn) == (True, 1, 2)

    every_order(case, once=True)


# -- planted bugs


def finds(case: Callable[[Schedule], None]) -> None:
    with pytest.raises((Violation, AssertionError)):
        explore(case)


def test_the_search_finds_a_fill_that_does_not_check_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pool(2)
        stage.reserve(make_reservation(count=1))
        known = stage.memory.reservations["res-1"]
        for number, world in enumerate(stage.worlds):
            free: Any = stage.records()[f"sbx-{number}"]
            stage.play(f"fill {number}", partial(world.reserver._set_aside_one, known, BY, free))
        stage.run()

    explore(case)
    monkeypatch.setattr(MemoryStore, "_check_reservation", lambda _self, _change: None)
    finds(case)


def test_the_search_finds_a_booking_without_its_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    write = MemoryStore.write_reservation

    def unversioned(memory: MemoryStore, before: Any, after: Any, *, version: int, fact: Any = None) -> None:
        assert version <= memory.bookings_version
        write(memory, before, after, version=memory.bookings_version, fact=fact)

    monkeypatch.setattr(MemoryStore, "write_reservation", unversioned)
    finds(two_bookings)
