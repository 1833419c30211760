"""Times as people write them on the command line: zones, daylight saving, and lengths of time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from broker_common.cli.times import Moment, parse_length, parse_moment
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

NINE_IN_BERLIN = 1796112000
"""2026-12-01 09:00 in Berlin, 08:00 in UTC."""
MADE_UP = examples(200, derandomize=True, database=None)
NEW_YEAR = datetime.fromisoformat("2026-01-01T00:00")
ZONES = ("Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia", "UTC")


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put this machine into Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def refusal(text: str) -> str:
    with pytest.raises(click.BadParameter) as refused:
        parse_moment(text)
    return refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "2026-12-01 09:00 Europe/Berlin",
        "2026-12-01 9:00 Europe/Berlin",
        "2026-12-01T09:00:00 Europe/Berlin",
        " 2026-12-01 09:00   Europe/Berlin ",
        "2026-12-01 03:00 America/New_York",
        "2026-12-01 13:45 Asia/Kathmandu",
        "2026-12-01 03:00 Etc/GMT+5",
        "2026-12-01 08:00 UTC",
        "2026-12-01T09:00+01:00",
        "2026-12-01 09:00+0100",
        "2026-12-01 09:00 +01",
        "2026-12-01T08:00Z",
        "2026-12-01T08:00:00Z",
        "1796112000",
    ],
)
def test_one_moment_may_be_written_in_many_ways(text: str) -> None:
    assert parse_moment(text) == Moment(NINE_IN_BERLIN)


def test_a_zone_has_its_summer_time() -> None:
    assert parse_moment("2026-07-01 09:00 Europe/Berlin").at == parse_moment("2026-07-01T07:00Z").at
    assert parse_moment("2026-12-01 09:00 Europe/Berlin").at == parse_moment("2026-12-01T08:00Z").at


def test_now_is_now() -> None:
    before = int(time.time())
    assert before <= parse_moment("now").at <= time.time()


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("text", "at", "taken_as"),
    [
        ("2026-12-01 09:00", NINE_IN_BERLIN, "2026-12-01T09:00+01:00 (CET)"),
        ("2026-07-01T09:00", 1782889200, "2026-07-01T09:00+02:00 (CEST)"),
    ],
)
def test_without_a_zone_it_is_this_machine_s_and_that_is_said(text: str, at: int, taken_as: str) -> None:
    assert parse_moment(text) == Moment(at, f"{taken_as}, by this machine's time zone")


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("zone", "where"), [(" Europe/Berlin", "Europe/Berlin"), ("", "the time zone of this machine")]
)
def test_a_time_that_the_clocks_skip_is_refused_with_the_next_one(zone: str, where: str) -> None:
    for clock, later in (("02:00", "03:00"), ("02:30", "03:30"), ("02:59", "03:59")):
        assert refusal(f"2026-03-29 {clock}{zone}") == (
            f"2026-03-29 {clock} does not exist in {where}, because the clocks go forward then. Did you mean {later}?"
        )
    assert parse_moment(f"2026-03-29 01:59{zone}").at + 60 == parse_moment(f"2026-03-29 03:00{zone}").at


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("zone", "where"), [(" Europe/Berlin", "Europe/Berlin"), ("", "the time zone of this machine")]
)
def test_a_time_that_comes_twice_asks_for_the_distance_from_utc(zone: str, where: str) -> None:
    message = refusal(f"2026-10-25 02:30{zone}")
    assert message == (
        f"2026-10-25 02:30 comes twice in {where}, because the clocks go back then. Give 2026-10-25T02:30+02:00 or"
        " 2026-10-25T02:30+01:00"
    )
    first, second = (parse_moment(f"2026-10-25T02:30{distance}").at for distance in ("+02:00", "+01:00"))
    assert second - first == 3600
    assert parse_moment(f"2026-10-25 01:59{zone}").at < first
    assert parse_moment(f"2026-10-25 03:00{zone}").at == second + 1800


def test_half_an_hour_may_come_twice_and_a_whole_day_may_not_exist() -> None:
    assert "2026-04-05T01:45+11:00 or 2026-04-05T01:45+10:30" in refusal("2026-04-05 01:45 Australia/Lord_Howe")
    assert "does not exist in Pacific/Apia" in refusal("2011-12-30 12:00 Pacific/Apia")


@MADE_UP
@given(
    st.sampled_from(ZONES).map(ZoneInfo),
    st.datetimes(min_value=NEW_YEAR.replace(year=2020), max_value=NEW_YEAR.replace(year=2035)),
)
def test_what_a_zone_s_clocks_show_once_is_read_as_that_moment(zone: ZoneInfo, utc: datetime) -> None:
    moment = utc.replace(second=0, microsecond=0, tzinfo=UTC)
    shown = moment.astimezone(zone)
    others = {
        (moment + timedelta(minutes=minutes)).astimezone(zone).replace(tzinfo=None) for minutes in (-60, -30, 30, 60)
    }
    text = f"{shown:%Y-%m-%d %H:%M} {zone.key}"
    if shown.replace(tzinfo=None) in others:
        assert "comes twice" in refusal(text)
    else:
        assert parse_moment(text) == Moment(int(moment.timestamp()))


@MADE_UP
@given(
    st.sampled_from(ZONES).map(ZoneInfo),
    st.datetimes(min_value=NEW_YEAR, max_value=NEW_YEAR.replace(year=2027)),
)
def test_no_time_is_read_that_the_zone_s_clocks_do_not_show(zone: ZoneInfo, shown: datetime) -> None:
    shown = shown.replace(second=0, microsecond=0)
    try:
        found = parse_moment(f"{shown:%Y-%m-%d %H:%M} {zone.key}")
    except click.BadParameter:
        reject()
    assert datetime.fromtimestamp(found.at, zone).replace(tzinfo=None) == shown


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("europe/berlin", "Did you mean Europe/Berlin"),
        ("Europe/Berln", "Did you mean Europe/Berlin"),
        ("PST", "Give one such as Europe/Berlin, or +01:00"),
        ("Mars/Base", "Give one such as Europe/Berlin, or +01:00"),
        ("Europe", "Give one such as Europe/Berlin, or +01:00"),
    ],
)
def test_an_unknown_zone_is_refused_with_those_that_are_alike(name: str, advice: str) -> None:
    message = refusal(f"2026-12-01 09:00 {name}")
    assert message.startswith(f"{name} is no time zone that is known here. {advice}")


@pytest.mark.parametrize(
    "text",
    [
        *("", "tomorrow", "2026-12-01", "09:00", "9 am", "2026-12-01 9", "01.12.2026 09:00", "20261201T0900Z"),
        *("2026-13-01 09:00Z", "2026-02-29 09:00 Europe/Berlin", "2026-12-01 24:01Z", "2026-12-01 09:60Z"),
        *("2026-12-01 09:00+25:00", "2026-12-01 09:00 ../../etc/passwd", "2026-12-01 09:00 Europe/Berlin x"),
        *("0000-01-01 00:00Z", "-1", "179611200000000"),
    ],
)
def test_what_is_no_time_is_refused_with_an_example(text: str) -> None:
    assert "2026-12-01 09:00 Europe/Berlin" in refusal(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90s", 90), ("90m", 5400), ("3h", 10800), ("7d", 604800), ("1d2h", 93600), ("1h30m", 5400)),
        *(("1d2h3m4s", 93784), ("0s", 0)),
    ],
)
def test_a_length_of_time_is_read(text: str, seconds: int) -> None:
    assert parse_length(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "3", "h", "2h1d", "1h1h", "1.5h", "3 h", "3H", "-3h", "1h30", "9999999999h", "\N{ARABIC-INDIC DIGIT ONE}h"],
)
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be a length of time"):
        parse_length(text)
