"""The picture of usage, as its page has it."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from broker_api.console.pictures.usage import MOST_BARS, draw_usage

_SVG = "{http://www.w3.org/2000/svg}"
DAY = 86400
FIRST = 1749945600  # 2025-06-15 00:00 UTC
EVIL = '"><script>alert(1)</script>'


def row(group: str | None, hours: float = 1, leases: int = 1) -> dict[str, Any]:
    return {"group": group, "sandbox_hours": hours, "leases": leases}


def drawn(rows: list[dict[str, Any]], by: str = "track_name", days: int = 3) -> ET.Element:
    picture = draw_usage(rows, by=by, since=FIRST, until=FIRST + days * DAY)
    assert picture is not None
    return ET.fromstring(str(picture))  # noqa: S314 - it is ours


def notes(picture: ET.Element) -> list[str | None]:
    """Return what the bars say on hover, in the order in which they are drawn."""
    return [each.text for each in picture.iter(f"{_SVG}title")]


def heights(picture: ET.Element, side: str) -> list[float]:
    bars = [each for each in picture.iter(f"{_SVG}g") if each.get("class") == "bar"]
    return [float(rect.get(side, "0")) for bar in bars for rect in bar.iter(f"{_SVG}rect")]


def test_the_bars_of_labs_are_as_long_as_their_hours_and_the_most_stands_on_top() -> None:
    picture = drawn([row("dns", 10, 3), row("intro", 20.5, 1)])

    assert notes(picture) == ["dns: 10 h in 3 leases", "intro: 20 h 30 min in 1 lease"]
    short, long = heights(picture, "width")
    assert abs(long / short - 2.05) < 0.01
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == "Sandbox hours by lab. The most: intro: 20 h 30 min in 1 lease."


def test_customers_are_named_so_and_one_that_is_not_known_has_a_bar() -> None:
    picture = drawn([row(None)], by="customer")

    assert picture.get("aria-label") == "Sandbox hours by customer. The most: (not known): 1 h in 1 lease."


def test_small_labs_share_one_bar() -> None:
    picture = drawn([row(f"lab-{number:02}", 100 - number) for number in range(MOST_BARS + 5)])

    found = notes(picture)
    assert len(found) == MOST_BARS + 1
    assert found[0] == "(5 others): 17 d 7 h in 5 leases"


def test_each_day_has_a_bar_also_without_a_lease() -> None:
    picture = drawn([row("2025-06-15", 2), row("2025-06-17", 1)], by="day")

    assert notes(picture) == [
        "2025-06-15: 2 h in 1 lease",
        "2025-06-16: 0 s in 0 leases",
        "2025-06-17: 1 h in 1 lease",
    ]
    first, none, last = heights(picture, "height")
    assert (none, round(first / last, 2)) == (0, 2)
    assert picture.get("aria-label") == (
        "Sandbox hours by day, from 2025-06-15 to 2025-06-17. The most: 2025-06-15: 2 h in 1 lease."
    )


def test_many_days_have_few_labels() -> None:
    picture = drawn([row("2025-06-15")], by="day", days=90)

    labels = [each.text for each in picture.iter(f"{_SVG}text") if (each.text or "").startswith("2025-")]
    assert len(notes(picture)) == 90
    assert 4 <= len(labels) <= 8
    assert len(notes(drawn([row("2025-06-15")], by="day", days=3000))) == 400


def test_long_names_that_begin_alike_keep_their_own_bars() -> None:
    long = "a-lab-with-a-very-long-name-that-"
    picture = drawn([row(f"{long}{end}", hours) for end, hours in (("one", 3), ("two", 2), ("three", 1))])

    assert notes(picture) == [
        f"{long}three: 1 h in 1 lease",
        f"{long}two: 2 h in 1 lease",
        f"{long}one: 3 h in 1 lease",
    ]


def test_the_picture_has_nothing_that_the_policy_of_the_pages_forbids() -> None:
    picture = drawn([row(EVIL), row("dns")])

    tags = {each.tag.removeprefix(_SVG) for each in picture.iter()}
    assert tags == {"svg", "g", "rect", "path", "text", "title"}
    assert not [each for each in picture.iter() if each.get("style") or each.get("id") is not None]
    assert f"{EVIL}: 1 h in 1 lease" in notes(picture)


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_usage([], by="day", since=FIRST, until=FIRST + DAY) is None
