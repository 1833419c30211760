"""What an allocation costs in the API, part by part, as a chart.

APIs run side by side, each without one more part than the one before, and get the same load in turn. A part's cost is
the difference of processor time between two neighbours. So it has everything that the part causes: also the changes
between threads while they wait for it.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from matplotlib import rcParams
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PARTS = ("log lines", "metrics", "rate limit", "DynamoDB client", "hooks, marshmallow, core", "Flask", "gunicorn")
"""In the order in which they are left out; the last is what remains."""

Costs = dict[str, list[float]]
"""The processor time of each part in milliseconds, by round."""


def costs_of(spent: Sequence[Sequence[float]]) -> Costs:
    """Return the cost of each part; `spent[n]` has the API's milliseconds by round without the first n parts."""
    nothing = [0.0] * len(spent[0])
    return {
        part: [more - less for more, less in zip(with_it, without_it, strict=True)]
        for part, with_it, without_it in zip(PARTS, spent, [*spent[1:], nothing], strict=True)
    }


def draw_parts(path: Path, runs: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the parts' costs of one or more runs, by the names of the runs, as SVG. Lines show the extremes of the rounds."""
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "parts", "font.size": 9})
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(1, len(runs))
    for number, (run, costs) in enumerate(runs.items()):
        middles = [median(rounds) for rounds in costs.values()]
        below = [middle - min(rounds) for middle, rounds in zip(middles, costs.values(), strict=True)]
        above = [max(rounds) - middle for middle, rounds in zip(middles, costs.values(), strict=True)]
        at = [place + height * (number - (len(runs) - 1) / 2) for place in range(len(costs))]
        bars = axes.barh(
            at, middles, height, xerr=[below, above], capsize=2, label=f"{run}: {sum(middles):.2f} ms in all"
        )
        axes.bar_label(bars, [f"{middle:.2f}" for middle in middles], padding=3)
    axes.set_yticks(range(len(PARTS)), PARTS)
    axes.invert_yaxis()
    axes.set(title="Processor time of one allocation in the API, by part", xlabel="milliseconds")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
