"""A reservation's state by time, and which reservation a free sandbox goes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker_common.core.reservation import Reservation, ReservationStage, ReservationState, drawn_by, is_same, place_for
from tests.fakes import START, make_reservation

STARTS = START + 10_000
ENDS = STARTS + 3600


def planned(reservation_id: str = "res-1", **changes: object) -> Reservation:
    return make_reservation(reservation_id, **{"starts_at": STARTS, "ends_at": ENDS, **changes})


@pytest.mark.parametrize(
    ("now", "state"),
    [
        (STARTS - 901, "scheduled"),
        (STARTS - 900, "filling"),
        (STARTS - 601, "filling"),
        (STARTS - 600, "open"),
        (ENDS - 1, "open"),
        (ENDS, "ended"),
    ],
)
def test_its_state_follows_from_the_time(now: int, state: str) -> None:
    assert planned().state_at(now) == state


@pytest.mark.parametrize("now", [STARTS - 901, STARTS, ENDS])
def test_one_that_was_ended_or_cancelled_stays_so(now: int) -> None:
    assert planned(stage=ReservationStage.ENDED).state_at(now) is ReservationState.ENDED
    assert planned(stage=ReservationStage.CANCELLED).state_at(now) is ReservationState.CANCELLED


@pytest.mark.parametrize(("set_aside", "drawn", "short_by"), [(0, 0, 3), (1, 1, 1), (0, 3, 0), (3, 0, 0)])
def test_it_is_short_by_what_is_not_set_aside_and_not_drawn(set_aside: int, drawn: int, short_by: int) -> None:
    reservation = planned(set_aside=set_aside, drawn=drawn)
    assert (reservation.lacking, reservation.short_by_at(START)) == (short_by, short_by)
    assert replace(reservation, stage=ReservationStage.CANCELLED).short_by_at(START) == 0


def test_it_is_not_short_once_nothing_is_set_aside_for_it() -> None:
    reservation = make_reservation(hold_sec=60)
    held_until = reservation.starts_at + 60
    assert [reservation.short_by_at(held_until - 1), reservation.short_by_at(held_until)] == [3, 0]


@pytest.mark.parametrize(
    ("now", "hold_sec", "is_filled"),
    [
        (STARTS - 901, None, False),
        (STARTS - 900, None, True),
        (ENDS - 1, None, True),
        (ENDS, None, False),
        (STARTS + 59, 60, True),
        (STARTS + 60, 60, False),
        (ENDS, 10**6, False),
    ],
)
def test_it_is_filled_from_its_lead_on_until_its_hold_or_end(now: int, hold_sec: int | None, is_filled: bool) -> None:
    assert planned(hold_sec=hold_sec).is_filled_at(now) is is_filled


@pytest.mark.parametrize(
    ("track_name", "customer", "is_for"),
    [("lab-1", None, False), ("lab-1", "acme", True), ("lab-2", "acme", False), (None, "acme", False)],
)
def test_it_is_for_the_tracks_of_its_labs_and_its_customer(
    track_name: str | None, customer: str | None, is_for: bool
) -> None:
    assert planned(customer="acme").is_for(track_name, customer) is is_for
    assert planned().is_for("lab-1", customer)


def test_a_free_sandbox_goes_to_the_reservation_that_starts_first_and_lacks_it() -> None:
    later, sooner = planned("a", starts_at=STARTS + 60), planned("b")
    full, named = planned("c", starts_at=STARTS - 60, set_aside=3), planned("d", starts_at=STARTS - 60, prefix="x")
    known = [later, sooner, full, named]
    assert place_for("lab-1", known, now=STARTS) == sooner
    assert place_for("lab-1", known, now=STARTS, without=["b"]) == later
    assert place_for("x-1", known, now=STARTS) == named
    assert place_for("lab-1", known, now=STARTS - 901) is None
    assert place_for("lab-1", known, now=ENDS) is None


def test_of_two_that_start_together_the_one_that_fewer_names_fit_is_served_first() -> None:
    wide, narrow = planned("a"), planned("b", prefix="lab-")
    assert place_for("lab-1", [wide, narrow], now=STARTS) == narrow


def test_a_track_draws_first_from_the_one_that_ends_first() -> None:
    longer, shorter = planned("a", ends_at=ENDS + 60), planned("b")
    others = [planned("c", track_names=()), planned("d", customer="acme"), planned("e", starts_at=STARTS + 700)]
    found = drawn_by([longer, shorter, *others], track_name="lab-1", customer=None, now=STARTS)
    assert found == [shorter, longer]


def test_a_stored_reservation_is_the_written_one_if_only_its_counters_differ() -> None:
    written = planned()
    assert is_same(replace(written, set_aside=1, drawn=1, opened_at=5), written)
    assert not is_same(replace(written, version=2), written)
