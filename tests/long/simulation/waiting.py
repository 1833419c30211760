"""How well a line is served: `python -m tests.long.simulation.waiting --out DIR` prints a table, and writes `line.json` and `line.svg`.

The same command gives the same figures.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.long.simulation.line import LineResult, LineScenario, simulate_line
from tests.long.simulation.scale import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

IDLE_P50_SEC, IDLE_P95_SEC, IDLE_MAX_SEC = 1.0, 2.5, 10.0
"""The bars of how long a freed sandbox may be idle.

The longest is due to a track that is gone: it is passed over 5 s after its last `Retry-After` of up to 3 s, at the next
look.
"""
MOST_READS, MOST_WRITES = 4.0, 1.1
"""The bars of reads a second of a process, and of writes for each `Retry-After`: some answers come a bit earlier."""
VARIED = ("tracks", "processes", "returns", "dead")
FIGURES = (
    "violations",
    "out_of_turn",
    "starved",
    "lost_places",
    "idle_p50_s",
    "idle_p99_s",
    "wait_p50_s",
    "longest_wait_s",
    "reads",
    "writes",
    "conflicts",
)
_STEP = 50
"""The waits are shown by the position of joining, in steps."""


def scenarios(quick: bool) -> list[LineScenario]:
    """Vary the processes, the sandboxes that come back, and the tracks that are gone. Quick: one short line."""
    if quick:
        return [LineScenario(tracks=60, join_sec=5)]
    return [
        LineScenario(processes=4, returns=10),
        LineScenario(processes=20, returns=10),
        LineScenario(processes=20, returns=5, dead=0.2),
        LineScenario(processes=4, returns=2, dead=0.05, tracks=300),
    ]


def run(*, quick: bool) -> Iterator[tuple[LineScenario, LineResult]]:
    """Simulate each scenario, and print a line for it."""
    heading = (*VARIED, *FIGURES)
    say("".join(f"{name:>15}" for name in heading))
    planned = scenarios(quick)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for scenario, result in zip(planned, pool.map(simulate_line, planned), strict=True):
            row = {name: getattr(scenario, name) for name in VARIED} | result.summary()
            say("".join(f"{row[name]:>15}" for name in heading))
            yield scenario, result


def plot(runs: list[tuple[LineScenario, LineResult]]) -> Figure:
    """Draw two panels: how long freed sandboxes are idle, and how long tracks wait by their position."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "line", "font.size": 9})
    figure = Figure(figsize=(11, 4), layout="constrained")
    idle, waits = figure.subplots(1, 2)
    for scenario, result in runs:
        label = f"{scenario.tracks:,} tracks, {scenario.processes} processes, {scenario.returns:g} a second, {100 * scenario.dead:g} % dead"
        _draw_idle(idle, result, label)
        _draw_waits(waits, result, label)
    idle.set(title="Freed sandboxes that are taken", xlabel="seconds since they are free", ylabel="share", xlim=(0, 8))
    waits.set(title="Wait by position", xlabel="position at which a track joins", ylabel="seconds (median)")
    for axes in (idle, waits):
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _draw_idle(axes: Axes, result: LineResult, label: str) -> None:
    times = sorted(result.idle)
    axes.step(times, [(number + 1) / len(times) for number in range(len(times))], where="post", label=label)


def _draw_waits(axes: Axes, result: LineResult, label: str) -> None:
    by_position: defaultdict[int, list[float]] = defaultdict(list)
    for position, seconds in result.waits:
        by_position[position // _STEP * _STEP].append(seconds)
    places = sorted(by_position)
    axes.plot(places, [median(by_position[each]) for each in places], marker="o", markersize=3, label=label)


def main() -> None:
    """Run all scenarios, or with `--quick` a short one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="directory for line.json and line.svg")
    parser.add_argument("--quick", action="store_true", help="one short scenario")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = list(run(quick=options.quick))
    rows = [{name: getattr(s, name) for name in VARIED} | r.summary() for s, r in runs]
    (options.out / "line.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(runs).savefig(options.out / "line.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
