"""The pool over a day: its sandboxes stacked by status, and the length of the line over them.

This computes the shapes, and `pool_picture.html` writes the SVG. pygal is not used here, because it draws a minute of
which nothing is known as an empty pool, and because its letters shrink with the picture on a small screen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker_api.console.pictures.scale import Tick, round_up
from broker_api.console.texts import STATUS_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 1440, 1000
"""The units of the shapes. The browser stretches them to the size of the picture."""
STACK = ("available", "reserved", "allocated", "pending_deletion", "stale", "deletion_failed")
"""The statuses from the bottom of the stack to its top."""
_DAY_SEC, _HOUR_SEC = 24 * 3600, 3600
_TICKS_SEC = 3 * _HOUR_SEC
_LABEL_SHARE = 0.1
"""A band that is at least so high has its name written on it."""
_LABEL_MARGIN = 14
"""How far a name stays from both ends, in percent."""
_PARTS = 2
_LEAST_LINE = 10
"""A line of one track must not look like a long one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The shape of one status, as the `d` of a path, and where its name fits on it, in percent; None if nowhere."""

    status: str
    shape: str
    label: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn. `line` is the path of the line's length, empty if no track waited.

    `fewest` and `longest` are the samples with the fewest available sandboxes and with the longest line; None if the
    pool was not counted, or nobody waited. `rows` are the samples that are drawn, the newest first.
    """

    bands: Sequence[Band]
    line: str
    hours: Sequence[Tick]
    """Places are in percent, here from the left, below from the top."""
    counts: Sequence[Tick]
    waiting: Sequence[Tick]
    fewest: Mapping[str, Any] | None
    longest: Mapping[str, Any] | None
    latest: Mapping[str, Any] | None
    rows: Sequence[Mapping[str, Any]]


def draw(samples: Sequence[Mapping[str, Any]], *, step_sec: int, now: int) -> Picture:
    """Return the picture of the day that ends `now` (Unix seconds), from samples of the API in order."""
    until = now - now % step_sec + step_sec
    since = until - _DAY_SEC
    counted = [each for each in samples if each["counts"] is not None and since <= each["at"] < until]
    top = round_up(max((each["counts"]["total"] for each in counted), default=0), parts=_PARTS)
    longest = max(counted, key=_waiting, default=None)
    waiting_top = round_up(max(_LEAST_LINE, _waiting(longest)), parts=_PARTS) if longest and _waiting(longest) else 0
    runs = _without_gaps(counted, step_sec)
    edges = {id(each): _edges(each["counts"], top) for each in counted}
    return Picture(
        bands=[
            Band(
                status=status,
                shape="".join(_area(run, [edges[id(each)] for each in run], number, since, step_sec) for run in runs),
                label=_label([(each, edges[id(each)]) for each in counted], number, since),
            )
            for number, status in enumerate(STACK)
            if any(each["counts"][status] for each in counted)
        ],
        line="".join(
            _stairs(run, [_height(_waiting(each), waiting_top) for each in run], since, step_sec) for run in runs
        )
        if waiting_top
        else "",
        hours=[
            Tick(place=_percent(at - since, _DAY_SEC), value=at)
            for at in range(since - since % -_TICKS_SEC, until, _TICKS_SEC)
        ],
        counts=_ticks(top),
        waiting=_ticks(waiting_top),
        fewest=min(counted, key=lambda each: each["counts"]["available"], default=None),
        longest=longest if waiting_top else None,
        latest=counted[-1] if counted else None,
        rows=counted[::-1],
    )


def describe(picture: Picture) -> str:
    """Return what the picture shows, for people who do not see it."""
    if picture.latest is None:
        return "The pool over the last 24 hours. Nothing was counted in this time."
    counts = picture.latest["counts"]
    parts = ", ".join(f"{counts[status]:,} {STATUS_NAMES[status]}" for status in STACK if counts[status])
    line = f"At most {_waiting(picture.longest):,} tracks waited in the line." if picture.longest else "Nobody waited."
    return f"The pool over the last 24 hours, stacked by status. At its end: {parts or 'no sandbox'}. {line}"


def _waiting(sample: Mapping[str, Any] | None) -> int:
    return int(sample["waiting"] or 0) if sample else 0


def _without_gaps(samples: Sequence[Mapping[str, Any]], step_sec: int) -> list[list[Mapping[str, Any]]]:
    """Part the samples wherever a step is absent, so that nothing is drawn there."""
    runs: list[list[Mapping[str, Any]]] = []
    for each in samples:
        if runs and runs[-1][-1]["at"] + step_sec >= each["at"]:
            runs[-1].append(each)
        else:
            runs.append([each])
    return runs


def _edges(counts: Mapping[str, int], top: int) -> list[int]:
    """Return the lower edges of all bands, and the upper one of the last."""
    found, so_far = [_height(0, top)], 0
    for status in STACK:
        so_far += counts[status]
        found.append(_height(so_far, top))
    return found


def _area(
    run: Sequence[Mapping[str, Any]], edges: Sequence[Sequence[int]], number: int, since: int, step_sec: int
) -> str:
    upper = _stairs(run, [each[number + 1] for each in edges], since, step_sec)
    lower = []
    for each, edge in zip(reversed(run), reversed(edges), strict=True):
        lower.append(f"V{edge[number]}H{_x(each['at'], since)}")
    return f"{upper}{''.join(lower)}Z"


def _stairs(run: Sequence[Mapping[str, Any]], heights: Sequence[int], since: int, step_sec: int) -> str:
    """Return a path that holds each height for its step."""
    parts = [f"M{_x(run[0]['at'], since)} {heights[0]}"]
    for each, height in zip(run, heights, strict=True):
        parts.append(f"V{height}H{_x(each['at'] + step_sec, since)}")
    return "".join(parts)


def _label(
    samples: Sequence[tuple[Mapping[str, Any], Sequence[int]]], number: int, since: int
) -> tuple[float, float] | None:
    """Return a place in the middle of where the band is high enough for its name."""
    high = [
        (each["at"], (edges[number] + edges[number + 1]) / 2)
        for each, edges in samples
        if edges[number] - edges[number + 1] >= _LABEL_SHARE * HEIGHT
    ]
    if not high:
        return None
    at, middle = high[len(high) // 2]
    across = _percent(at - since, _DAY_SEC)
    return min(max(across, _LABEL_MARGIN), 100 - _LABEL_MARGIN), _percent(middle, HEIGHT)


def _x(at: int, since: int) -> int:
    return round((at - since) * WIDTH / _DAY_SEC)


def _height(count: int, top: int) -> int:
    return HEIGHT - round(count * HEIGHT / top) if top else HEIGHT


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2)


def _ticks(top: int) -> list[Tick]:
    """Return the marks of an axis that ends at `top`: the half and the whole."""
    return [Tick(place=_percent(top - value, top), value=value) for value in (top // _PARTS, top) if value]
