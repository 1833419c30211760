"""The picture of a sandbox's life, from facts as the API answers them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from broker_api.console.pictures.life import LEFT, WIDTH, draw_life

NOW = 1_750_000_000
UTC = ZoneInfo("UTC")


def fact(at: int, status: str | None, lease_id: str | None = None) -> dict[str, Any]:
    return {"at": NOW + at, "status": status, "lease_id": lease_id, "track_id": lease_id and f"track-of-{lease_id}"}


def stretches(*facts: dict[str, Any], until: int = 100) -> list[tuple[str, int, int]]:
    life = draw_life(facts[::-1], until=NOW + until, zone=UTC)
    assert life is not None
    return [(each.status, each.since - NOW, each.until - NOW) for each in life.stretches]


def test_a_status_lasts_from_its_fact_to_the_next_one_that_changes_it_and_the_latest_until_now() -> None:
    found = stretches(fact(0, "available"), fact(10, "allocated", "a"), fact(30, "pending_deletion", "a"))
    assert found == [("available", 0, 10), ("allocated", 10, 30), ("pending_deletion", 30, 100)]


def test_a_fact_that_changes_no_status_begins_nothing() -> None:
    facts = [
        fact(0, "allocated", "a"),
        fact(10, "allocated", "a"),
        fact(20, "pending_deletion"),
        fact(25, "pending_deletion"),
    ]
    assert stretches(*facts) == [("allocated", 0, 20), ("pending_deletion", 20, 100)]


def test_two_leases_in_a_row_are_two_stretches() -> None:
    assert stretches(fact(0, "allocated", "a"), fact(10, "allocated", "b")) == [
        ("allocated", 0, 10),
        ("allocated", 10, 100),
    ]


def test_what_is_removed_has_no_status_any_more() -> None:
    assert stretches(fact(0, "stale"), fact(10, None)) == [("stale", 0, 10)]


@pytest.mark.parametrize("facts", [[], [fact(0, None)]])
def test_facts_without_a_status_have_no_picture(facts: list[dict[str, Any]]) -> None:
    assert draw_life(facts, until=NOW, zone=UTC) is None


def test_each_status_has_a_row_of_its_own_in_the_order_of_pages() -> None:
    life = draw_life(
        [fact(9, "deletion_failed"), fact(5, "available"), fact(0, "deletion_failed")], until=NOW + 10, zone=UTC
    )
    assert life is not None
    assert [(row.status, row.y, len(row.bars)) for row in life.rows] == [
        ("available", 0, 1),
        ("deletion_failed", 34, 2),
    ]


@pytest.mark.parametrize("length", [0, 1, 59, 3_000, 50_000, 86_400, 8 * 86_400, 90 * 86_400, 900 * 86_400])
def test_bars_and_marks_stay_in_the_picture_however_long_it_is(length: int) -> None:
    life = draw_life([fact(length, "pending_deletion", "a"), fact(0, "allocated", "a")], until=NOW + length, zone=UTC)
    assert life is not None
    assert 1 <= len(life.ticks) <= 7 or length < 300
    for x in [each.place for each in life.ticks] + [bar.x for row in life.rows for bar in row.bars]:
        assert LEFT <= x <= WIDTH
    assert all(bar.width >= 3 for row in life.rows for bar in row.bars)


def test_a_clock_that_went_back_makes_no_bar_of_negative_length() -> None:
    life = draw_life([fact(5, "stale"), fact(10, "available")], until=NOW, zone=UTC)
    assert life is not None
    assert all(each.until >= each.since for each in life.stretches)


def test_a_bar_has_the_name_of_its_track_if_there_is_room() -> None:
    life = draw_life([fact(99, "pending_deletion"), fact(0, "allocated", "a")], until=NOW + 100, zone=UTC)
    assert life is not None
    texts = {bar.text for row in life.rows for bar in row.bars}
    assert texts == {"track-of-a", ""}


@pytest.mark.parametrize(
    ("zone", "hours", "days"),
    [
        ("UTC", ["15 Jun 16:00", "15 Jun 17:00"], ["16 Jun", "17 Jun"]),
        ("Europe/Berlin", ["15 Jun 18:00", "15 Jun 19:00"], ["16 Jun", "17 Jun"]),
        ("Asia/Kolkata", ["15 Jun 21:00", "15 Jun 22:00"], ["16 Jun", "17 Jun"]),
    ],
)
def test_the_marks_of_the_axis_are_full_hours_and_days_of_the_reader_s_zone(
    zone: str, hours: list[str], days: list[str]
) -> None:
    for length, texts in ((5 * 3600, hours), (5 * 86400, days)):
        life = draw_life([fact(length, "stale"), fact(0, "available")], until=NOW + length, zone=ZoneInfo(zone))
        assert life is not None
        assert [each.text for each in life.ticks][:2] == texts
        written = f"2025 {texts[0]}" if ":" in texts[0] else f"2025 {texts[0]} 00:00"
        first = datetime.strptime(written, "%Y %d %b %H:%M").replace(tzinfo=ZoneInfo(zone))
        place = LEFT + (first.timestamp() - NOW) / length * (WIDTH - 10 - LEFT)
        assert life.ticks[0].place == pytest.approx(place, abs=0.1)
