"""The calendar of reservations as a picture."""

from __future__ import annotations

import itertools
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from broker_api.console.pictures.capacity import LEFT, MOST_BARS, RIGHT, WIDTH, Calendar, days_of, draw_calendar

UTC = ZoneInfo("UTC")
FIRST = date(2026, 11, 30)
SINCE, DAY, HOUR = 1_795_996_800, 86_400, 3600


def reservation(number: int = 1, *, starts_at: int, ends_at: int, **different: Any) -> dict[str, Any]:
    return {
        "reservation_id": f"r-{number}",
        "name": f"Class {number}",
        "count": 30,
        "starts_at": starts_at,
        "ends_at": ends_at,
        "state": "scheduled",
        "short_by": 30,
    } | different


def draw(points: list[dict[str, int]], *reservations: dict[str, Any], now: int = SINCE) -> Calendar:
    return draw_calendar(points, reservations, first=FIRST, count=7, zone=UTC, now=now)


def point(at: int, reservable: int, reserved: int) -> dict[str, int]:
    return {"at": at, "reservable": reservable, "reserved": reserved}


def test_the_axis_has_the_days_of_the_zone_also_when_its_clocks_change() -> None:
    begins = days_of(date(2026, 10, 24), 3, ZoneInfo("Europe/Berlin"))

    assert [later - earlier for earlier, later in itertools.pairwise(begins)] == [DAY, DAY + HOUR, DAY]


def test_the_curve_begins_now_with_what_holds_now() -> None:
    points = [point(SINCE, 10, 0), point(SINCE + HOUR, 40, 5), point(SINCE + 2 * HOUR, 80, 5)]

    picture = draw(points, now=SINCE + HOUR + 60)

    assert [(each.at, each.reservable, each.left) for each in picture.steps] == [
        (SINCE + HOUR + 60, 40, 35),
        (SINCE + 2 * HOUR, 80, 75),
    ]
    assert picture.now_x is not None
    assert picture.limit.startswith(f"M{picture.now_x} ")


def test_what_comes_after_the_week_is_not_drawn() -> None:
    picture = draw([point(SINCE, 80, 0), point(SINCE + 8 * DAY, 90, 0)])

    assert len(picture.steps) == 1


def test_a_week_of_which_nothing_is_known_has_no_curve() -> None:
    picture = draw([], now=SINCE + 30 * DAY)

    assert (picture.limit, picture.booked, picture.now_x) == ("", "", None)
    assert picture.label == "Reservations from Monday, 30 November to Sunday, 6 December: 0 reservations."


def test_the_label_says_what_the_picture_shows() -> None:
    one = reservation(starts_at=SINCE + DAY, ends_at=SINCE + DAY + HOUR)

    label = draw([point(SINCE, 96, 0), point(SINCE + DAY, 96, 30)], one).label

    assert label.endswith("1 reservation. At most 30 of up to 96 sandboxes are booked at once.")


@pytest.mark.parametrize(("most", "top"), [(0, 4), (3, 4), (5, 8), (13, 20), (96, 100), (130, 200), (8000, 8000)])
def test_the_numbers_of_the_axis_reach_the_highest_value(most: int, top: int) -> None:
    ticks = draw([point(SINCE, most, 0)]).ticks

    assert [each.value for each in ticks] == [top * number // 4 for number in range(5)]


def test_a_bar_spans_its_time_and_is_cut_at_the_edges() -> None:
    long = reservation(starts_at=SINCE - DAY, ends_at=SINCE + 30 * DAY)

    (bar,) = draw([], long).bars

    assert (bar.x, bar.width) == (LEFT, WIDTH - LEFT - RIGHT)
    assert (bar.anchor, bar.label) == ("start", "Class 1: 30")
    assert bar.x < bar.label_x < bar.x + bar.width


def test_the_label_of_a_short_bar_stands_beside_it_where_there_is_room() -> None:
    early = reservation(1, starts_at=SINCE + HOUR, ends_at=SINCE + 2 * HOUR)
    late = reservation(2, starts_at=SINCE + 7 * DAY - HOUR, ends_at=SINCE + 7 * DAY)

    first, last = draw([], early, late).bars

    assert (first.anchor, first.label_x > first.x + first.width) == ("start", True)
    assert (last.anchor, last.label_x < last.x) == ("end", True)


def test_bars_that_would_overlap_stand_in_lanes_and_the_others_share_one() -> None:
    at_nine = [reservation(number, starts_at=SINCE + 9 * HOUR, ends_at=SINCE + 12 * HOUR) for number in (1, 2)]
    later = reservation(3, starts_at=SINCE + 5 * DAY, ends_at=SINCE + 5 * DAY + HOUR)

    first, second, third = draw([], *at_nine, later).bars

    assert first.y < second.y
    assert third.y == first.y


def test_a_bar_says_how_many_sandboxes_its_class_lacks_only_when_they_are_set_aside() -> None:
    times = {"starts_at": SINCE, "ends_at": SINCE + HOUR}
    scheduled, filling = reservation(1, **times), reservation(2, **times, state="filling", short_by=4)

    first, second = draw([], scheduled, filling).bars

    assert (first.label, first.is_short) == ("Class 1: 30", False)
    assert (second.label, second.is_short) == ("Class 2: 30, short by 4", True)


def test_a_long_name_is_cut() -> None:
    (bar,) = draw([], reservation(starts_at=SINCE, ends_at=SINCE + HOUR, name="n" * 128)).bars

    assert bar.label == f"{'n' * 35}…: 30"


def test_so_many_bars_are_drawn_as_a_picture_can_have() -> None:
    many = [
        reservation(number, starts_at=SINCE + number, ends_at=SINCE + HOUR + number) for number in range(MOST_BARS + 1)
    ]

    picture = draw([], *many)

    assert (len(picture.bars), picture.wanted) == (MOST_BARS, MOST_BARS + 1)
