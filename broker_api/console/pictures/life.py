"""A sandbox's life as a picture: one row for each status, and a bar for each time that it had this status.

The SVG is written by the template `pictures/life.html`, because pygal has no bars along an axis of time that begin and
end anywhere. Statuses are rows, not only colours, so that the picture can be read without colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from broker_api.console.pictures.scale import Tick
from broker_api.console.texts import STATUS_NAMES, status_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from zoneinfo import ZoneInfo

WIDTH = 1000
LEFT = 190
"""Where the time begins. The names of the rows are left of it."""
_RIGHT = 990
_ROW = 34
_AXIS = 34
_LEAST_BAR = 3
"""So that a wipe of a few seconds can be seen in a picture of weeks."""
_LETTER = 11
_SHORTEST_SEC = 60
_MOST_TICKS = 6
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_STEPS = (
    *(each * _MINUTE for each in (1, 5, 10, 15, 30)),
    *(each * _HOUR for each in (1, 2, 3, 6, 12)),
    *(each * _DAY for each in (1, 2, 7, 14, 30, 90)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A time in which a sandbox had one status, and, if allocated, one lease."""

    status: str
    since: int
    until: int
    track_id: str | None = None
    lease_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A stretch in the picture. `text` is written in it, if it fits."""

    stretch: Stretch
    x: float
    width: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All bars of one status. `y` is the upper edge of the row."""

    status: str
    y: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """All that the template draws, and `stretches`, oldest first, for the table of numbers."""

    stretches: tuple[Stretch, ...]
    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    height: int
    since: int
    until: int
    width: int = WIDTH


def draw_life(facts: Iterable[Mapping[str, Any]], *, until: int, zone: ZoneInfo) -> Life | None:
    """Return the picture of `facts`, newest first as the API answers them, up to the time `until`.

    It begins at the oldest of the facts. The marks of its axis are times of `zone`. None if they say no status.
    """
    stretches = _stretches(list(facts)[::-1], until=until)
    if not stretches:
        return None
    until = max(until, stretches[-1].until)
    since = min(stretches[0].since, until - _SHORTEST_SEC)
    per_second = (_RIGHT - LEFT) / (until - since)

    def x_of(at: int) -> float:
        return round(LEFT + (at - since) * per_second, 1)

    used = [status for status in STATUS_NAMES if any(each.status == status for each in stretches)]
    rows = tuple(
        Row(
            status=status,
            y=number * _ROW,
            bars=tuple(_bar(each, x_of(each.since), x_of(each.until)) for each in stretches if each.status == status),
        )
        for number, status in enumerate(used)
    )
    return Life(
        stretches=stretches,
        rows=rows,
        ticks=tuple(Tick(place=x_of(at), value=at, text=text) for at, text in _ticks(since, until, zone)),
        height=len(rows) * _ROW + _AXIS,
        since=since,
        until=until,
    )


def _stretches(facts: Iterable[Mapping[str, Any]], *, until: int) -> tuple[Stretch, ...]:
    found: list[Stretch] = []
    current: Stretch | None = None
    for fact in facts:
        status = fact["status"]
        lease_id = fact["lease_id"] if status == "allocated" else None
        if current is not None and (status, lease_id) == (current.status, current.lease_id):
            continue
        if current is not None:
            found.append(_ended(current, fact["at"]))
        # Without a status, the record is removed.
        current = status and Stretch(
            status=status,
            since=fact["at"],
            until=fact["at"],
            track_id=fact["track_id"] if lease_id else None,
            lease_id=lease_id,
        )
    return (*found, *([_ended(current, until)] if current is not None else []))


def _ended(stretch: Stretch, at: int) -> Stretch:
    return Stretch(
        status=stretch.status,
        since=stretch.since,
        until=max(at, stretch.since),
        track_id=stretch.track_id,
        lease_id=stretch.lease_id,
    )


def _bar(stretch: Stretch, x: float, end: float) -> Bar:
    width = round(max(_LEAST_BAR, end - x), 1)
    text = stretch.track_id or status_name(stretch.status)
    return Bar(stretch=stretch, x=x, width=width, text=text if len(text) * _LETTER < width else "")


def _ticks(since: int, until: int, zone: ZoneInfo) -> list[tuple[int, str]]:
    step = next((each for each in _STEPS if (until - since) / each <= _MOST_TICKS), _STEPS[-1])
    shape = "%d %b" if step >= _DAY else "%d %b %H:%M"
    # By the clocks of the zone when the picture begins. If they change within it, the marks are no longer full hours.
    ahead = (datetime.fromtimestamp(since, zone).utcoffset() or timedelta()) // timedelta(seconds=1)
    first = -(-(since + ahead) // step) * step - ahead
    return [(at, f"{datetime.fromtimestamp(at, zone):{shape}}") for at in range(first, until + 1, step)][
        : _MOST_TICKS + 1
    ]
