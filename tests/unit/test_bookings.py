"""What may be booked, and when; changes, cancellations, lists, and the curve of what can be reserved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.bookings import MAX_RESERVATIONS, Wanted
from broker_common.core.errors import (
    CapacityNotAvailable,
    IdempotencyMismatch,
    InvalidInput,
    ReservationNotFound,
    ReservationNotOpen,
    StoreUnavailable,
    UpgradeUnfinished,
    VersionMismatch,
)
from broker_common.core.facts import PoolFact
from broker_common.core.principals import Actor
from broker_common.core.reservation import Reservation, ReservationStage, ReservationState
from broker_common.core.sandbox import Status
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict, Position
from tests.fakes import BY, START, FakeClock, MemoryStore, StoreWrapper, make_reservation, make_sandbox
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = 24 * 3600
HOUR = 3600
SOON = START + 2000


def wanted(count: int = 1, *, at: int = SOON, hours: float = 1, **changes: Any) -> Wanted:
    values: dict[str, Any] = {"name": "Class", "count": count, "starts_at": at, "ends_at": at + round(hours * HOUR)}
    return Wanted(**{**values, **changes})


def a_world(free: int = 10) -> World:
    world = World()
    world.pool(free)
    return world


def could_have(world: World, request: Wanted) -> int:
    """Return how many could be booked, by the check and by a booking of one more."""
    could = world.bookings.check(request).could_have
    with pytest.raises(CapacityNotAvailable) as refused:
        world.bookings.book(replace(request, count=could + 1), by=BY)
    assert refused.value.details == {"could_have": could}
    return could


# -- to book


def test_a_booking_is_stored_as_it_was_asked_for() -> None:
    world = a_world()
    request = wanted(2, prefix="lab-", track_names=("a",), customer="acme", hold_sec=60, lead_sec=700, note="hi")
    booked = world.bookings.book(request, by=BY)
    stored = world.bookings.get(booked.reservation.reservation_id)
    assert (booked.replayed, booked.reservation) == (False, stored)
    for name in ("name", "count", "starts_at", "ends_at", "prefix", "track_names", "customer", "hold_sec", "lead_sec"):
        assert getattr(stored, name) == getattr(request, name)
    assert (stored.created_at, stored.created_by, stored.version) == (START, "somebody", 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"count": 0}, "count"),
        ({"count": -1}, "count"),
        ({"count": 1_000_001}, "count"),
        ({"starts_at": START - 61}, "starts_at"),
        ({"ends_at": SOON}, "ends_at"),
        ({"ends_at": SOON - 1}, "ends_at"),
        ({"ends_at": 2**60}, "ends_at"),
        ({"lead_sec": 599}, "lead_sec"),
        ({"lead_sec": DAY + 1}, "lead_sec"),
        ({"hold_sec": -1}, "hold_sec"),
        ({"prefix": "x" * 129}, "prefix"),
        ({"customer": "x" * 129}, "customer"),
        ({"track_names": ("",)}, "track_names"),
        ({"track_names": ("x" * 129,)}, "track_names"),
        ({"track_names": ("x",) * 21}, "track_names"),
        ({"note": "x" * 1001}, "note"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_field_s_name(changes: dict[str, Any], field: str) -> None:
    world = a_world()
    for call in (
        lambda: world.bookings.book(wanted(**changes), by=BY),
        lambda: world.bookings.check(wanted(**changes)),
    ):
        with pytest.raises(InvalidInput, match=f"^{field}:"):
            call()
    assert world.memory.reservations == {}


@pytest.mark.parametrize("upgraded", [0, Upgrade.FACTS])
def test_nothing_is_booked_or_changed_before_the_upgrade_is_finished(upgraded: int) -> None:
    world = a_world()
    world.memory.upgraded = upgraded
    with pytest.raises(UpgradeUnfinished):
        world.bookings.book(wanted(), by=BY)
    with pytest.raises(UpgradeUnfinished):
        world.bookings.change("res-1", {"count": 1}, version=1, by=BY)


def test_a_request_that_is_sent_again_with_its_key_books_once() -> None:
    world = a_world()
    first = world.bookings.book(wanted(), by=BY, idempotency_key="k")
    world.clock.advance(10 * HOUR)
    again = world.bookings.book(wanted(), by=BY, idempotency_key="k")
    assert (again.replayed, again.reservation) == (True, first.reservation)
    assert len(world.memory.reservations) == 1
    other = world.bookings.book(wanted(at=SOON + DAY), by=Actor(principal="other"), idempotency_key="k")
    assert not other.replayed


def test_a_key_that_was_used_for_something_else_is_refused() -> None:
    world = a_world()
    booked = world.bookings.book(wanted(), by=BY, idempotency_key="k").reservation
    with pytest.raises(IdempotencyMismatch):
        world.bookings.book(wanted(2), by=BY, idempotency_key="k")
    world.bookings.change(booked.reservation_id, {"count": 2}, version=1, by=BY)
    assert world.bookings.book(wanted(), by=BY, idempotency_key="k").replayed
    world.bookings.cancel(booked.reservation_id, by=BY)
    world.reserver.run(by=BY)
    assert world.bookings.book(wanted(), by=BY, idempotency_key="k").reservation.stage is ReservationStage.CANCELLED


def test_there_are_at_most_a_thousand_that_have_not_ended() -> None:
    world = a_world()
    for number in range(MAX_RESERVATIONS):
        at = SOON + DAY * number
        world.reserve(make_reservation(f"res-{number}", count=1, starts_at=at, ends_at=at + 60))
    with pytest.raises(CapacityNotAvailable, match="1000"):
        world.bookings.book(wanted(at=SOON + HOUR + 2 * MAX_RESERVATIONS * DAY), by=BY)


# -- what fits


def test_so_much_of_the_pool_may_be_reserved() -> None:
    assert could_have(a_world(10), wanted()) == 8
    world = a_world(9)
    world.set_policy(reservable_percent=50)
    assert could_have(world, wanted()) == 4


@pytest.mark.parametrize("status", [Status.STALE, Status.DELETION_FAILED, Status.DELETED])
def test_what_is_out_of_service_cannot_be_reserved(status: Status) -> None:
    world = a_world(10)
    world.memory.seed(*[make_sandbox(f"out-{number}", status=status) for number in range(10)])
    assert could_have(world, wanted()) == 8


@pytest.mark.parametrize(("expires_at", "could"), [(SOON - 1801, 8), (SOON - 1800, 2)])
def test_what_is_leased_counts_only_if_its_lease_and_buffer_are_over_before_the_start(
    expires_at: int, could: int
) -> None:
    world = a_world(2)
    world.memory.seed(
        *[
            make_sandbox(f"held-{number}", status=Status.ALLOCATED, expires_at=expires_at, lease_id=f"l{number}")
            for number in range(8)
        ]
    )
    assert could_have(world, wanted()) == could


def test_only_names_with_the_prefix_count() -> None:
    world = a_world(0)
    world.memory.seed(
        *[make_sandbox(f"{letter}{number}", name=f"{letter}-{number}") for letter in "ab" for number in range(5)]
    )
    assert could_have(world, wanted(prefix="a-")) == 4
    assert could_have(world, wanted(prefix="c")) == 0


def test_reservations_of_the_same_time_share_the_pool() -> None:
    world = a_world(10)
    world.bookings.book(wanted(5, hours=2), by=BY)
    assert could_have(world, wanted(at=SOON + HOUR)) == 3
    assert could_have(world, wanted(at=SOON + 2 * HOUR)) == 8
    assert could_have(world, wanted(at=START + 100, hours=0.5)) == 8


def test_of_several_that_follow_each_other_the_largest_counts() -> None:
    world = a_world(10)
    for number, count in enumerate((2, 6, 3)):
        world.bookings.book(wanted(count, at=SOON + number * HOUR), by=BY)
    assert could_have(world, wanted(hours=3)) == 2


def test_reservations_of_wider_and_narrower_names_share_what_both_could_have() -> None:
    world = a_world(0)
    world.memory.seed(
        *[make_sandbox(f"{letter}{number}", name=f"{letter}-{number}") for letter in "ab" for number in range(5)]
    )
    world.bookings.book(wanted(4, prefix="a-"), by=BY)
    assert could_have(world, wanted()) == 4
    assert could_have(world, wanted(prefix="b-")) == 4
    world.bookings.book(wanted(3), by=BY)
    assert could_have(world, wanted(prefix="b-")) == 1
    assert could_have(world, wanted(prefix="a-")) == 0


def test_one_that_has_ended_or_was_cancelled_takes_no_room() -> None:
    world = a_world(10)
    for stage in (ReservationStage.ENDED, ReservationStage.CANCELLED):
        world.reserve(make_reservation(stage, count=8, starts_at=SOON, ends_at=SOON + HOUR, stage=stage))
    assert could_have(world, wanted(at=SOON + 60)) == 8


def test_what_was_drawn_is_not_needed_twice() -> None:
    world = a_world(10)
    world.reserve(make_reservation(count=4), set_aside=4)
    for number in range(4):
        world.allocate(f"track-{number}", track_name="lab-1")
    assert could_have(world, wanted()) == 4


def test_the_check_of_a_change_leaves_out_what_the_reservation_takes_itself() -> None:
    world = a_world(10)
    booked = world.bookings.book(wanted(8), by=BY).reservation.reservation_id
    assert world.bookings.check(wanted(8)).fits is False
    assert world.bookings.check(wanted(8), reservation_id=booked).fits is True
    assert world.bookings.check(wanted(9), reservation_id=booked).fits is False
    assert world.bookings.check(wanted(1, at=SOON + DAY), reservation_id=booked).could_have == 8
    assert world.memory.reservations[booked].count == 8


def test_a_change_that_needs_nothing_more_fits_although_the_pool_has_shrunk() -> None:
    world = a_world(10)
    booked = world.bookings.book(wanted(8), by=BY).reservation.reservation_id
    world.set_policy(reservable_percent=10)
    assert world.bookings.check(wanted(7), reservation_id=booked).fits is True
    assert world.bookings.change(booked, {"count": 7}, version=1, by=BY).count == 7


def test_the_check_of_a_change_refuses_what_the_change_would_refuse() -> None:
    world = a_world(10)
    world.reserve(make_reservation(count=4), set_aside=4)
    for number in range(4):
        world.allocate(f"track-{number}", track_name="lab-1")
    (running,) = world.memory.reservations
    with pytest.raises(InvalidInput, match="at least 4"):
        world.bookings.check(wanted(3), reservation_id=running)
    cancelled = world.bookings.book(wanted(), by=BY).reservation.reservation_id
    world.bookings.cancel(cancelled, by=BY)
    with pytest.raises(ReservationNotOpen):
        world.bookings.check(wanted(), reservation_id=cancelled)
    with pytest.raises(ReservationNotFound):
        world.bookings.check(wanted(), reservation_id="nobody")


# -- races


class BooksFirst(StoreWrapper):
    """Lets another process book just before a booking is written, once."""

    rival: Wanted | None = None
    world: World | None = None

    def write_reservation(self, before: Any, after: Any, *, version: int, fact: Any = None) -> None:
        if self.rival is not None and self.world is not None:
            rival, self.rival = self.rival, None
            self.world.bookings.book(rival, by=BY)
        super().write_reservation(before, after, version=version, fact=fact)


def two_worlds(wrap: Callable[[Any], BooksFirst] = BooksFirst) -> tuple[World, BooksFirst]:
    world = World(wrap=wrap)
    world.pool(10)
    store: Any = world.store
    store.world = World(memory=world.memory, clock=world.clock, seed=2)
    return world, store


def check_two_bookings_at_once(wrap: Callable[[Any], BooksFirst]) -> None:
    world, store = two_worlds(wrap)
    store.rival = wanted(5)
    with pytest.raises(CapacityNotAvailable) as refused:
        world.bookings.book(wanted(5), by=BY)
    assert refused.value.details == {"could_have": 3}
    store.rival = wanted(1)
    world.bookings.book(wanted(2), by=BY)
    assert sorted(each.count for each in world.memory.reservations.values()) == [1, 2, 5]


def test_a_booking_that_another_overtakes_is_checked_again() -> None:
    check_two_bookings_at_once(BooksFirst)


class Unversioned(BooksFirst):
    """A planted bug: a booking is written without the condition on the version."""

    def write_reservation(self, before: Any, after: Any, *, version: int, fact: Any = None) -> None:
        try:
            super().write_reservation(before, after, version=version, fact=fact)
        except Conflict:
            below: Any = self.inner
            super().write_reservation(before, after, version=below.bookings_version, fact=fact)


def test_the_test_above_finds_a_booking_without_its_condition() -> None:
    with pytest.raises(BaseException, match="DID NOT RAISE"):
        check_two_bookings_at_once(Unversioned)


# -- to change


def booked(world: World, **changes: Any) -> Reservation:
    return world.bookings.book(wanted(**{"count": 4, **changes}), by=BY).reservation


def change(world: World, reservation: Reservation, **changes: object) -> Reservation:
    return world.bookings.change(reservation.reservation_id, changes, version=reservation.version, by=BY)


def rename(world: World, *but: str) -> None:
    """Give all sandboxes a name that starts with x, but these."""
    sandboxes = world.memory.dump()[0].values()
    world.memory.seed(*[replace(each, name="x-1") for each in sandboxes if each.sandbox_id not in but])


def test_a_change_changes_the_named_fields_and_the_version() -> None:
    world = a_world()
    first = booked(world, note="a")
    after = change(world, first, count=6, note=None, track_names=("x",))
    assert after == replace(first, count=6, note=None, track_names=("x",), version=2)
    with pytest.raises(VersionMismatch) as error:
        change(world, first, count=7)
    assert error.value.details == {"version": 2}


def test_a_change_to_the_same_values_leaves_the_version_but_must_name_it() -> None:
    world = a_world()
    first = booked(world, note="a")
    assert change(world, first, count=first.count, note="a") == change(world, first) == first
    assert world.memory.read_reservation(first.reservation_id) == first
    with pytest.raises(VersionMismatch):
        world.bookings.change(first.reservation_id, {}, version=2, by=BY)


@pytest.mark.parametrize("ahead", [-50, 50])
def test_a_reservation_is_booked_and_ends_by_the_stores_time_where_the_clock_is_a_bit_off(ahead: int) -> None:
    memory = MemoryStore(FakeClock(START))
    world = World(clock=FakeClock(START + ahead), memory=memory)
    world.pool(10)
    first = booked(world, count=1, at=START + 100, hours=0.5)
    assert first.created_at == pytest.approx(START, abs=1)
    world.clock.advance(100 + 1800 - 5)
    page = world.bookings.list(state=ReservationState.OPEN, limit=5, cursor=None)
    assert page.reservations == (first,)
    world.clock.advance(10)
    assert world.bookings.list(state=ReservationState.OPEN, limit=5, cursor=None).reservations == ()


def test_a_change_is_checked_as_a_booking_is_but_without_itself() -> None:
    world = a_world()
    first = booked(world)
    assert change(world, first, count=8).count == 8
    second = booked(world, at=SOON + DAY)
    with pytest.raises(CapacityNotAvailable) as error:
        change(world, second, count=9)
    assert error.value.details == {"could_have": 8}
    with pytest.raises(CapacityNotAvailable):
        change(world, second, starts_at=SOON)
    for bad, field in (({"count": 0}, "count"), ({"ends_at": SOON}, "ends_at"), ({"set_aside": 3}, "set_aside")):
        with pytest.raises(InvalidInput, match=field):
            change(world, second, **bad)


def test_a_reservation_can_be_made_smaller_although_the_pool_has_shrunk() -> None:
    world = a_world()
    first = booked(world, count=8)
    for number in range(6):
        world.operations.quarantine(f"sbx-{number}", reason="smells", by=BY)
    world.clock.advance(1)
    assert change(world, first, count=7).count == 7
    with pytest.raises(CapacityNotAvailable):
        world.bookings.change(first.reservation_id, {"count": 8}, version=2, by=BY)


def test_one_that_has_begun_can_be_prolonged_and_keeps_its_start() -> None:
    world = a_world()
    first = booked(world)
    world.clock.advance(2500)
    assert change(world, first, ends_at=first.ends_at + HOUR).ends_at == first.ends_at + HOUR


def test_a_smaller_count_returns_what_is_set_aside_too_much_at_once() -> None:
    world = a_world()
    reservation = world.reserve(make_reservation(count=5), set_aside=4)
    world.allocate("track-1", track_name="lab-1")
    change(world, reservation, count=2)
    assert world.counters() == (1, 1)
    assert world.memory.count()[Status.AVAILABLE] == 8
    world.allocate("track-2", track_name="lab-1")
    with pytest.raises(InvalidInput, match="count: must be at least 2"):
        world.bookings.change("res-1", {"count": 1}, version=2, by=BY)


def test_another_prefix_returns_what_no_longer_fits_at_once() -> None:
    world = a_world()
    reservation = world.reserve(make_reservation(count=2), set_aside=2)
    rename(world, "sbx-1")
    change(world, reservation, prefix="x")
    assert world.counters() == (1, 0)
    assert world.record("sbx-0").reservation_id == "res-1"
    assert world.memory.count()[Status.AVAILABLE] == 9


def test_a_later_time_returns_what_is_set_aside_at_once() -> None:
    world = a_world()
    reservation = world.reserve(make_reservation(count=2), set_aside=2)
    change(world, reservation, starts_at=START + DAY, ends_at=START + DAY + HOUR)
    assert world.counters() == (0, 0)
    assert world.memory.count()[Status.AVAILABLE] == 10


@pytest.mark.parametrize(
    "changes", [{"prefix": "x"}, {"starts_at": START + DAY, "ends_at": START + DAY + HOUR}], ids=["prefix", "time"]
)
def test_what_a_change_could_not_return_is_returned_by_the_next_run(changes: dict[str, Any]) -> None:
    world, store = flaky_world()
    world.pool(10)
    reservation = world.reserve(make_reservation(count=2), set_aside=2)
    rename(world, "sbx-0", "sbx-1")
    store.fail("read_candidates", StoreUnavailable("away"))
    change(world, reservation, **changes)
    assert world.counters() == (2, 0)
    world.start()
    assert world.reserver.run(by=BY).returned == 2


def test_one_that_cannot_be_read_does_not_keep_a_count_from_being_made_smaller() -> None:
    world = a_world()
    reservation = world.reserve(make_reservation(count=3), set_aside=3)
    first = world.memory.read_candidates(Position(0), limit=1, prefix="", reservation_id="res-1").candidates[0]
    world.memory.spoil(first.sandbox_id)
    assert change(world, reservation, count=2).count == 2
    assert world.counters() == (2, 0)


def test_one_that_is_moved_to_later_after_its_start_is_told_again() -> None:
    world = a_world()
    reservation = world.reserve(make_reservation(count=1))
    world.clock.advance(600)
    assert world.reserver.run(by=BY).opened == 1
    moved = change(world, reservation, starts_at=START + HOUR)
    assert moved.opened_at is None
    assert world.reserver.run(by=BY).opened == 0
    world.clock.advance(HOUR)
    assert world.reserver.run(by=BY).opened == 1


def test_a_start_that_is_told_while_it_is_moved_is_told_again() -> None:
    world, store = flaky_world()
    world.pool(10)
    reservation = world.reserve(make_reservation(count=1))
    world.clock.advance(600)
    store.just_before("write_reservation", lambda: World(memory=world.memory, clock=world.clock).reserver.run(by=BY))
    assert change(world, reservation, starts_at=START + HOUR).opened_at is None


def test_the_start_of_one_that_is_moved_meanwhile_is_not_told() -> None:
    world, store = flaky_world()
    world.pool(10)
    reservation = world.reserve(make_reservation(count=1))
    world.clock.advance(600)
    rival = World(memory=world.memory, clock=world.clock)
    store.just_before("mark_opened", lambda: change(rival, reservation, starts_at=START + HOUR))
    assert world.reserver.run(by=BY).opened == 0
    assert world.bookings.get("res-1").opened_at is None


@pytest.mark.parametrize("call", ["book", "change", "cancel"])
def test_a_race_that_is_lost_again_and_again_waits_between_tries_and_ends(call: str) -> None:
    world, store = flaky_world()
    world.pool(10)
    first = booked(world)
    calls: dict[str, Callable[[], object]] = {
        "book": lambda: world.bookings.book(wanted(), by=BY),
        "change": lambda: change(world, first, note="b"),
        "cancel": lambda: world.bookings.cancel(first.reservation_id, by=BY),
    }
    before = world.clock.monotonic()
    store.fail("write_reservation", *[Conflict("busy", current=None)] * 1000)
    with pytest.raises(StoreUnavailable, match="try again"):
        calls[call]()
    assert store.calls["write_reservation"] <= 21
    assert world.clock.monotonic() > before


def test_what_cannot_be_returned_yet_is_an_error_and_changes_nothing() -> None:
    world, store = flaky_world()
    world.pool(4)
    reservation = world.reserve(make_reservation(count=3), set_aside=3)
    store.fail("update", *[Conflict("busy", current=None)] * 500)
    with pytest.raises(StoreUnavailable):
        change(world, reservation, count=1)
    assert world.memory.reservations["res-1"].count == 3


# -- to cancel


def test_a_cancellation_returns_all_at_once_is_told_and_may_be_repeated() -> None:
    world = a_world()
    world.reserve(make_reservation(count=3), set_aside=3)
    cancelled = world.bookings.cancel("res-1", by=BY)
    assert (cancelled.stage, cancelled.version, cancelled.set_aside) == (ReservationStage.CANCELLED, 2, 0)
    assert world.memory.count()[Status.AVAILABLE] == 10
    assert world.bookings.cancel("res-1", by=BY) == cancelled
    world.reserver.run(by=BY)
    assert world.bookings.cancel("res-1", by=BY) == cancelled
    told = [each for each in world.memory.facts if isinstance(each, PoolFact)]
    assert [each.kind for each in told] == ["reservation.ended"]
    assert told[0].details["cancelled"]
    assert [told[0].details[name] for name in ("set_aside", "drawn", "short_by")] == [3, 0, 0]


def test_a_return_that_fails_is_made_up_for_by_the_job() -> None:
    world, store = flaky_world()
    world.pool(3)
    world.reserve(make_reservation(count=3), set_aside=3)
    store.fail("update", StoreUnavailable("away"))
    assert world.bookings.cancel("res-1", by=BY).stage is ReservationStage.CANCELLED
    world.reserver.run(by=BY)
    assert world.memory.count()[Status.AVAILABLE] == 3
    assert world.memory.reservations == {}


def test_one_that_cannot_be_read_does_not_keep_the_others_from_being_returned() -> None:
    world = a_world()
    world.reserve(make_reservation(count=3), set_aside=3)
    world.memory.spoil("sbx-1")
    for _ in range(2):
        assert world.bookings.cancel("res-1", by=BY).stage is ReservationStage.CANCELLED
        assert world.counters() == (1, 0)


def test_what_has_ended_cannot_be_changed_or_cancelled() -> None:
    world = a_world()
    first = booked(world)
    world.clock.advance(2000 + HOUR)
    for _ in range(2):
        with pytest.raises(ReservationNotOpen):
            change(world, first, count=1)
        with pytest.raises(ReservationNotOpen):
            world.bookings.cancel(first.reservation_id, by=BY)
        world.reserver.run(by=BY)


def test_an_unknown_reservation_is_not_found() -> None:
    world = a_world()
    calls: list[Callable[[], object]] = [
        lambda: world.bookings.get("x"),
        lambda: world.bookings.cancel("x", by=BY),
        lambda: world.bookings.change("x", {"count": 1}, version=1, by=BY),
    ]
    for call in calls:
        with pytest.raises(ReservationNotFound):
            call()


# -- to list


def listed(world: World, state: ReservationState | None, limit: int) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = world.bookings.list(state=state, limit=limit, cursor=cursor)
        assert len(page.reservations) <= limit
        found += [each.reservation_id for each in page.reservations]
        cursor = page.cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_a_list_has_each_of_its_state_once_by_pages(limit: int) -> None:
    world = a_world()
    for number in range(3):
        world.reserve(make_reservation(f"old-{number}", ends_at=START + 700 + number))
    world.clock.advance(800)
    world.reserver.run(by=BY)
    for number in range(3):
        at = SOON + number * HOUR
        world.reserve(make_reservation(f"new-{number}", starts_at=at, ends_at=at + 60))
    world.reserve(make_reservation("over", starts_at=START, ends_at=START + 1))
    ended = ["old-0", "old-1", "old-2"]
    coming = ["new-0", "new-1", "new-2"]
    assert listed(world, None, limit) == ["over", *coming, *ended]
    assert listed(world, ReservationState.FILLING, limit) == []
    assert listed(world, ReservationState.SCHEDULED, limit) == coming
    assert listed(world, ReservationState.ENDED, limit) == ["over", *ended]
    assert listed(world, ReservationState.CANCELLED, limit) == []


def test_a_cursor_of_another_list_is_refused() -> None:
    world = a_world()
    for number in range(3):
        world.reserve(make_reservation(f"res-{number}"))
    cursor = world.bookings.list(state=None, limit=1, cursor=None).cursor
    assert cursor is not None
    for state, bad in ((ReservationState.OPEN, cursor), (None, "nonsense"), (None, "é"), (None, "W10=")):
        with pytest.raises(InvalidInput, match="cursor"):
            world.bookings.list(state=state, limit=1, cursor=bad)


# -- the curve


def test_the_curve_shows_what_may_be_reserved_and_what_is() -> None:
    world = a_world(10)
    world.bookings.book(wanted(5), by=BY)
    world.bookings.book(wanted(2, at=SOON + 1800), by=BY)
    curve = [
        (each.at - SOON, each.reservable, each.reserved)
        for each in world.bookings.capacity(since=START, until=START + DAY)
    ]
    assert curve == [(START - SOON, 8, 0), (0, 8, 5), (1800, 8, 7), (3600, 8, 2), (5400, 8, 0)]


def test_the_curve_of_a_prefix_says_what_a_booking_would_say() -> None:
    world = a_world(0)
    world.memory.seed(
        *[make_sandbox(f"{letter}{number}", name=f"{letter}-{number}") for letter in "ab" for number in range(5)]
    )
    world.bookings.book(wanted(6), by=BY)
    (_, at_start, _) = world.bookings.capacity(since=START, until=START + DAY, prefix="a-")
    assert (
        at_start.reservable - at_start.reserved == world.bookings.check(wanted(prefix="a-", hours=0.01)).could_have == 2
    )


def test_the_curve_rises_when_leases_end() -> None:
    world = a_world(2)
    world.memory.seed(make_sandbox("held", status=Status.ALLOCATED, expires_at=START + HOUR))
    curve = world.bookings.capacity(since=START, until=START + DAY)
    assert [each.reservable for each in curve] == [2]
    world.set_policy(reservable_percent=100)
    curve = world.bookings.capacity(since=START, until=START + DAY)
    assert [each.reservable for each in curve] == [2, 3]
    assert START + HOUR + 1800 <= curve[1].at <= START + HOUR + 2400


def test_a_curve_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(InvalidInput, match="to"):
        a_world().bookings.capacity(since=START, until=START)
