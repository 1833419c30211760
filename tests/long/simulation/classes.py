"""How well a class is served: `python -m tests.long.simulation.classes --out DIR` prints a table, and writes `class.json` and `class.svg`.

The same command gives the same figures.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.long.simulation.class_run import ClassResult, ClassScenario, simulate_class
from tests.long.simulation.scale import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

VARIED = ("students", "within_sec", "processes", "returns")
FIGURES = (
    "violations",
    "misdrawn",
    "starved",
    "kept",
    "at_once",
    "p50_ms",
    "p99_ms",
    "waited",
    "wait_p50_s",
    "longest_wait_s",
    "idle_p50_s",
    "longest_idle_s",
    "others_p50_s",
    "fill_s",
    "calls",
    "reads",
    "conflicts",
    "unavailable",
)


def scenarios(quick: bool) -> list[ClassScenario]:
    """Vary how many of the class come, and within which time. Quick: a small class."""
    if quick:
        return [ClassScenario(count=30, students=32, pool=45, tracks=5, within_sec=10, returns=0.5, lasts_sec=60)]
    return [
        ClassScenario(),
        ClassScenario(processes=20),
        ClassScenario(within_sec=0),
        ClassScenario(students=330),
        ClassScenario(students=270, hold_sec=120),
    ]


def run(*, quick: bool) -> Iterator[tuple[ClassScenario, ClassResult]]:
    """Simulate each scenario, and print a line for it."""
    heading = (*VARIED, *FIGURES)
    say("".join(f"{name:>15}" for name in heading))
    planned = scenarios(quick)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for scenario, result in zip(planned, pool.map(simulate_class, planned), strict=True):
            row = {name: getattr(scenario, name) for name in VARIED} | result.summary()
            say("".join(f"{row[name]:>15}" for name in heading))
            yield scenario, result


def plot(runs: list[tuple[ClassScenario, ClassResult]]) -> Figure:
    """Draw two panels: how soon the class has its sandboxes, and how long who comes too late waits, by position."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "class", "font.size": 9})
    figure = Figure(figsize=(11, 4), layout="constrained")
    soon, waits = figure.subplots(1, 2)
    for scenario, result in runs:
        coming = f"within {scenario.within_sec:g} s" if scenario.within_sec else "at once"
        label = f"{scenario.students} of {scenario.count} booked, {coming}, {scenario.processes} processes"
        _draw_served(soon, result, label)
        if result.waits:
            waits.plot(*zip(*sorted(result.waits), strict=True), marker="o", markersize=3, linestyle="", label=label)
    soon.set(title="The class, served", xlabel="seconds since a track asked", ylabel="share", xscale="log")
    waits.set(title="Wait of those for whom nothing was set aside", xlabel="position at joining", ylabel="seconds")
    for axes in (soon, waits):
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _draw_served(axes: Axes, result: ClassResult, label: str) -> None:
    times = sorted([*result.at_once, *(seconds for _, seconds in result.waits)])
    shares = [number / 100 for number in range(101)]
    axes.plot([times[round(share * (len(times) - 1))] for share in shares], shares, label=label)


def main() -> None:
    """Run all scenarios, or with `--quick` a small one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="directory for class.json and class.svg")
    parser.add_argument("--quick", action="store_true", help="one small class")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = list(run(quick=options.quick))
    rows = [{name: getattr(s, name) for name in VARIED} | r.summary() for s, r in runs]
    (options.out / "class.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(runs).savefig(options.out / "class.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
