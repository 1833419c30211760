"""The picture of usage: sandbox hours as bars, by lab, by customer or along the days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pygal  # type: ignore[import-untyped] # it ships no types
from pygal.style import Style  # type: ignore[import-untyped] # the same

from broker_api.console.pictures.drawing import to_svg
from broker_api.console.texts import span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

MOST_BARS = 15
"""Labs or customers that have a bar of their own. The others share one."""
_MOST_DAYS = 400
_MOST_DAY_LABELS = 8
_LONGEST_NAME = 28
_UNKNOWN = "(not known)"
_FONT = {f"{name}_font_size": 13 for name in ("label", "major_label", "value", "legend")}
_COMMON: Mapping[str, Any] = {
    "style": Style(**_FONT),
    "js": [],
    "no_prefix": True,
    "disable_xml_declaration": True,
    "show_legend": False,
    "truncate_label": -1,
    "margin": 8,
    "width": 960,
    # The scale of hours begins at 0, so that lengths can be compared.
    "min_scale": 3,
    "max_scale": 8,
}


def draw_usage(rows: Sequence[Mapping[str, Any]], *, by: str, since: int, until: int) -> Markup | None:
    """Return sandbox hours as bars; None if no lease ended.

    Each day from `since` to `until` (Unix seconds) has a bar, also without a lease. Labs and customers come with the
    most hours first.
    """
    if not rows:
        return None
    return _draw_days(rows, since, until) if by == "day" else _draw_groups(rows, by)


def _draw_groups(rows: Sequence[Mapping[str, Any]], by: str) -> Markup:
    ordered = sorted(rows, key=lambda row: -row["sandbox_hours"])
    shown, rest = ordered[:MOST_BARS], ordered[MOST_BARS:]
    bars = [(row["group"] or _UNKNOWN, row["sandbox_hours"], row["leases"]) for row in shown]
    if rest:
        others = f"({len(rest)} others)"
        bars.append((others, round(sum(row["sandbox_hours"] for row in rest), 2), sum(row["leases"] for row in rest)))
    names = _short([name for name, *_ in bars])
    chart = pygal.HorizontalBar(height=60 + 30 * len(bars), **_COMMON)
    # The first is drawn at the bottom.
    chart.x_labels = names[::-1]
    chart.add("sandbox hours", [hours for _, hours, _ in reversed(bars)])
    notes = {short: _note(name, hours, leases) for short, (name, hours, leases) in zip(names, bars, strict=True)}
    of = "lab" if by == "track_name" else "customer"
    first = bars[0]
    return to_svg(chart, label=f"Sandbox hours by {of}. The most: {_note(*first)}.", notes=notes)


def _draw_days(rows: Sequence[Mapping[str, Any]], since: int, until: int) -> Markup:
    known = {row["group"]: row for row in rows}
    first, last = _day(since), _day(max(since, until - 1))
    first = max(first, last - timedelta(days=_MOST_DAYS - 1))
    days = [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]
    bars = [(day, known[day]["sandbox_hours"], known[day]["leases"]) if day in known else (day, 0, 0) for day in days]
    every = -(-len(days) // _MOST_DAY_LABELS)
    chart = pygal.Bar(height=300, show_minor_x_labels=False, **_COMMON)
    chart.x_labels = days
    chart.x_labels_major = days[::every]
    chart.add("sandbox hours", [hours for _, hours, _ in bars])
    most = max(bars, key=lambda bar: bar[1])
    label = f"Sandbox hours by day, from {days[0]} to {days[-1]}. The most: {_note(*most)}."
    return to_svg(chart, label=label, notes={bar[0]: _note(*bar) for bar in bars})


def _note(name: str, hours: float, leases: int) -> str:
    return f"{name}: {span(hours * 3600)} in {leases} {'lease' if leases == 1 else 'leases'}"


def _short(names: Sequence[str]) -> list[str]:
    """Return the names short enough for the axis, and each one different."""
    found: list[str] = []
    for name in names:
        short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        while short in found:
            short += "\N{ZERO WIDTH SPACE}"
        found.append(short)
    return found


def _day(at: int) -> date:
    return datetime.fromtimestamp(at, UTC).date()
