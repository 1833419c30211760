"""The calendar of reservations: the curve of what can be reserved, and below it a bar for each reservation.

The SVG is written by the template `capacity.html` and not by pygal, which has no bars along a time axis, and no curves
that go in steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from broker_api.console.pictures.scale import Tick, round_up

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from zoneinfo import ZoneInfo

WIDTH = 1000
LEFT, RIGHT, TOP = 44, 8, 12
CURVE_HEIGHT = 170
_AXIS_HEIGHT = 44
_LANE_HEIGHT, BAR_HEIGHT = 32, 22
"""So that on a phone the bars, which are links, are far enough from each other (WCAG 2.2, 2.5.8)."""
_CHARACTER = 6.4
"""How wide a character of a bar's label is at most, on average."""
_GAP = 6
_LONGEST_LABEL = 36
_NARROWEST = 3
_TICKS = 4
MOST_BARS = 100


@dataclass(frozen=True, slots=True)
class Day:
    """A day of the axis: where it begins, where its name stands, and its name."""

    x: float
    middle: float
    name: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one reservation with its label, and what a pointer over it shows. `is_short`: it lacks sandboxes."""

    x: float
    y: float
    width: float
    state: str
    is_short: bool
    label: str
    label_x: float
    anchor: str
    hint: str
    of: Mapping[str, Any]
    """The reservation, as the API answers it."""


@dataclass(frozen=True, slots=True)
class Step:
    """From `at` on, `reserved` of `reservable` sandboxes are booked."""

    at: int
    reservable: int
    reserved: int

    @property
    def left(self) -> int:
        """How many more can be booked."""
        return max(0, self.reservable - self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """All that the template needs to draw: positions, and texts that it escapes."""

    height: float
    days: Sequence[Day]
    ticks: Sequence[Tick]
    limit: str
    """The path of the curve of what can be reserved; empty if nothing is known."""
    booked: str
    """The path around what is booked."""
    now_x: float | None
    bars: Sequence[Bar]
    wanted: int
    """How many reservations there are, also those whose bars are not drawn."""
    steps: Sequence[Step]
    label: str


@dataclass(slots=True)
class _Lanes:
    """Finds for each bar the first lane in which it and its label have room."""

    ends: list[float] = field(default_factory=list)

    def place(self, begin: float, end: float) -> int:
        for number, taken in enumerate(self.ends):
            if taken <= begin:
                self.ends[number] = end
                return number
        self.ends.append(end)
        return len(self.ends) - 1


def days_of(first: date, count: int, zone: ZoneInfo) -> list[int]:
    """Return when each of `count` days begins in a zone, and when the last one ends: `count` + 1 times."""
    days = (first + timedelta(days=number) for number in range(count + 1))
    return [int(datetime.combine(day, time(), zone).timestamp()) for day in days]


def draw_calendar(
    points: Sequence[Mapping[str, int]],
    reservations: Sequence[Mapping[str, Any]],
    *,
    first: date,
    count: int,
    zone: ZoneInfo,
    now: int,
) -> Calendar:
    """Return the picture of `count` days from `first` on. `points` and `reservations` are as the API answers them.

    The curve begins at `now`: what could be reserved before is not known. At most `MOST_BARS` bars are drawn.
    """
    begins = days_of(first, count, zone)
    since, until = begins[0], begins[-1]
    steps = _steps(points, max(since, now), until)

    def x_of(at: float) -> float:
        inside = min(max(at, since), until)
        return round(LEFT + (inside - since) / (until - since) * (WIDTH - LEFT - RIGHT), 1)

    top = round_up(max((max(each.reservable, each.reserved) for each in steps), default=0) or 1, parts=_TICKS)

    def y_of(number: float) -> float:
        return round(TOP + CURVE_HEIGHT * (1 - number / top), 1)

    lanes = _Lanes()
    shown = sorted(reservations, key=lambda each: (each["starts_at"], each["reservation_id"]))[:MOST_BARS]
    bars = [_bar(each, x_of(each["starts_at"]), x_of(each["ends_at"]), lanes) for each in shown]
    return Calendar(
        height=TOP + CURVE_HEIGHT + _AXIS_HEIGHT + _LANE_HEIGHT * len(lanes.ends),
        days=[
            Day(x_of(begin), (x_of(begin) + x_of(end)) / 2, f"{datetime.fromtimestamp(begin, zone):%a %-d %b}")
            for begin, end in pairwise(begins)
        ],
        ticks=[Tick(place=y_of(value), value=value) for value in range(0, top + 1, top // _TICKS)],
        limit=_curve([(x_of(each.at), y_of(each.reservable)) for each in steps], x_of(until)),
        booked=_area([(x_of(each.at), y_of(each.reserved)) for each in steps], x_of(until), y_of(0)),
        now_x=x_of(now) if since <= now < until else None,
        bars=bars,
        wanted=len(reservations),
        steps=steps,
        label=_label(steps, len(reservations), first, count),
    )


def _steps(points: Sequence[Mapping[str, int]], since: int, until: int) -> list[Step]:
    """Return the steps from `since` on: the last point before it holds at `since`."""
    steps: list[Step] = []
    for each in points:
        step = Step(max(each["at"], since), each["reservable"], each["reserved"])
        if step.at >= until:
            break
        if steps and steps[-1].at == step.at:
            steps.pop()
        steps.append(step)
    return steps


def _bar(reservation: Mapping[str, Any], begin: float, end: float, lanes: _Lanes) -> Bar:
    width = max(end - begin, _NARROWEST)
    short_by = reservation["short_by"] if reservation["state"] in {"filling", "open"} else 0
    name = reservation["name"]
    name = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
    label = f"{name}: {reservation['count']}{f', short by {short_by}' if short_by else ''}"
    needed = len(label) * _CHARACTER + _GAP
    if width >= needed + _GAP:
        label_x, anchor, left, right = begin + _GAP, "start", begin, begin + width
    elif begin + width + needed <= WIDTH:
        label_x, anchor, left, right = begin + width + _GAP, "start", begin, begin + width + needed + _GAP
    else:
        label_x, anchor, left, right = begin - _GAP, "end", begin - needed - _GAP, begin + width
    lane = lanes.place(left, right + _GAP)
    return Bar(
        x=begin,
        y=TOP + CURVE_HEIGHT + _AXIS_HEIGHT + lane * _LANE_HEIGHT,
        width=round(width, 1),
        state=reservation["state"],
        is_short=bool(short_by),
        label=label,
        label_x=round(label_x, 1),
        anchor=anchor,
        hint=f"{label} ({reservation['state']})",
        of=reservation,
    )


def _curve(corners: Sequence[tuple[float, float]], end: float) -> str:
    """Return the path of a curve in steps through `corners`, up to `end`."""
    if not corners:
        return ""
    (x, y), *rest = corners
    return f"M{x} {y}" + "".join(f"H{x}V{y}" for x, y in rest) + f"H{end}"


def _area(corners: Sequence[tuple[float, float]], end: float, bottom: float) -> str:
    return f"{_curve(corners, end)}V{bottom}H{corners[0][0]}Z" if corners else ""


def _label(steps: Sequence[Step], classes: int, first: date, count: int) -> str:
    last = first + timedelta(days=count - 1)
    booked = f"{classes} reservation{'' if classes == 1 else 's'}"
    label = f"Reservations from {first:%A, %-d %B} to {last:%A, %-d %B}: {booked}."
    if not steps:
        return label
    most = max(each.reservable for each in steps)
    return f"{label} At most {max(each.reserved for each in steps)} of up to {most} sandboxes are booked at once."
