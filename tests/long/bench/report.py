"""The findings of the bench: figures beside their goals, as a table for the terminal, JSON, and a plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal of a figure: at most, or at least, a bound."""

    bound: float
    at_least: bool = False

    def is_met(self, value: float) -> bool:
        """Tell whether a value reaches the goal."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure. Of several rounds it is the median; `low` and `high` are the extremes."""

    scenario: str
    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    goal: Goal | None = None

    @property
    def verdict(self) -> str:
        """Whether its goal is met; empty without a goal."""
        if self.goal is None:
            return ""
        return "met" if self.goal.is_met(self.value) else "MISSED"


def _series() -> defaultdict[Any, Any]:
    return defaultdict(dict)


@dataclass(slots=True)
class Findings:
    """All figures, more values of each scenario for JSON and plot, other tables, and the failures with their reasons."""

    figures: list[Figure] = field(default_factory=list)
    series: defaultdict[str, defaultdict[Any, Any]] = field(default_factory=lambda: defaultdict(_series))
    tables: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add(
        self, scenario: str, name: str, values: float | Sequence[float], unit: str = "", goal: Goal | None = None
    ) -> None:
        """Add a figure: one value, or a value for each round."""
        rounds = [values] if isinstance(values, int | float) else list(values)
        several = len(rounds) > 1
        self.figures.append(
            Figure(
                scenario=scenario,
                name=name,
                value=statistics.median(rounds),
                unit=unit,
                low=min(rounds) if several else None,
                high=max(rounds) if several else None,
                goal=goal,
            )
        )

    def fail(self, scenario: str, reason: Exception) -> None:
        """Note that a scenario failed, with the first line of the reason. Its earlier figures stay."""
        first, *_ = str(reason).splitlines() or [""]
        self.failures[scenario] = f"{type(reason).__name__}: {first}"


def describe(findings: Findings) -> str:
    """Return the whole output: the figures, the other tables, and last the failed scenarios."""
    parts = [table(findings.figures), *findings.tables]
    if findings.failures:
        reasons = [f"  {name}: {reason}" for name, reason in findings.failures.items()]
        parts.append("\n".join(["FAILED, and measured in part or not at all:", *reasons]))
    return "\n\n".join(parts)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as one table."""
    rows = [("", "measured", "of the rounds", "goal", "")]
    scenario = ""
    for each in figures:
        if each.scenario != scenario:
            scenario = each.scenario
            rows.append((scenario, "", "", "", ""))
        spread = f"{_show(each.low)} to {_show(each.high)}" if each.low is not None else ""
        measured = f"{_show(each.value)}{' ' + each.unit if each.unit else ''}"
        rows.append((f"  {each.name}", measured, spread, str(each.goal or ""), each.verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "-" * (sum(widths) + 8))
    missed = [each for each in figures if each.verdict == "MISSED"]
    aimed = [each for each in figures if each.goal]
    if aimed:
        lines += ["", f"{len(aimed) - len(missed)} of {len(aimed)} goals met on this machine, this time."]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table. The first row is the head; the first column is aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(corner: str, rows: Mapping[Any, Mapping[str, str]]) -> str:
    """Return rows of cells, each by its name and column, as a table in Markdown, as docs/performance.md shows it.

    The first row names the columns; other rows may lack some. `corner` is the head of the rows' names.
    """
    heads = list(next(iter(rows.values())))
    lines = [(corner, *heads), ("---", *["---:"] * len(heads))]
    lines += [(str(name), *(cells.get(head, "") for head in heads)) for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(findings: Findings, path: Path) -> None:
    """Write all findings, and the machine, as JSON."""
    content = {
        "machine": {
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "figures": [
            asdict(each) | {"goal": str(each.goal) if each.goal else None, "verdict": each.verdict or None}
            for each in findings.figures
        ],
        "series": findings.series,
        "failures": findings.failures,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_plot(findings: Findings, path: Path) -> None:
    """Draw rates and latencies by clients, and a burst. A panel without figures stays empty."""
    figure, (rates, latencies, burst) = plt.subplots(1, 3, figsize=(16, 5))
    _draw_rates(rates, findings.series["rates"])
    _draw_latencies(latencies, findings.series["latencies"])
    _draw_burst(burst, findings.series["burst"].get("served_after", []))
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _draw_rates(axes: Axes, rates: Mapping[int, Mapping[str, Sequence[float]]]) -> None:
    axes.set_title("Allocations a second (median and extremes of the rounds)")
    axes.set_xlabel("clients")
    for offset, which in enumerate(("bare", "broker", "textbook")):
        rounds = {place: values[which] for place, values in enumerate(rates.values()) if which in values}
        middles = [statistics.median(each) for each in rounds.values()]
        below = [middle - min(each) for middle, each in zip(middles, rounds.values(), strict=True)]
        above = [max(each) - middle for middle, each in zip(middles, rounds.values(), strict=True)]
        at = [place + 0.27 * (offset - 1) for place in rounds]
        axes.bar(at, middles, 0.25, label=which, yerr=[below, above], capsize=3)
    axes.set_xticks(range(len(rates)), [str(clients) for clients in rates])
    axes.legend()


def _draw_latencies(axes: Axes, latencies: Mapping[int, Mapping[str, Sequence[float]]]) -> None:
    axes.set_title("Latency of allocate, in ms")
    axes.set_xlabel("clients")
    axes.set_yscale("log")
    for percent in ("p50", "p90", "p99"):
        medians = [statistics.median(values[percent]) for values in latencies.values()]
        axes.plot(range(len(medians)), medians, marker="o", label=percent)
    axes.set_xticks(range(len(latencies)), [str(clients) for clients in latencies])
    axes.legend()


def _draw_burst(axes: Axes, served_after: Sequence[float]) -> None:
    axes.set_title("A class starts: tracks that have their sandbox")
    axes.set_xlabel("seconds since all of them asked")
    axes.step(sorted(served_after), range(1, len(served_after) + 1), where="post")
