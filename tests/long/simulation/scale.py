"""How far the design scales: `python -m tests.long.simulation.scale --out DIR` prints tables, and writes `scale.json` and `scale.svg`.

The same command gives the same figures. The limits of a process's own CPU are not simulated: `make bench` measures these.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.long.simulation.broker import Scenario, simulate
from tests.long.simulation.flood import Flood
from tests.long.simulation.table import WRITE_UNITS, TableConditions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes

Row = dict[str, float | int | str]
SHARDS = (1, 2, 4, 8, 16, 32)
PROCESSES = (1, 4, 16, 64, 200)
CACHE_SIZES, AGES = (5, 15, 30, 60), (5, 30, 120)
RATES = (1000, 2000, 10_000)
MOST_PER_SHARD = 2500
"""Allocations per second. Beyond that nearly every call is throttled, which takes long to simulate."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A question, the values that are varied, and the figures that answer it."""

    name: str
    question: str
    scenarios: Callable[[bool], Iterator[tuple[Row, Scenario]]]
    figures: tuple[str, ...]


def processes_and_pools(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Vary the number of processes, of 50 requests per second each. Partitions have saved units, so that conflicts show."""
    for free in (1000, 10_000) if quick else (1000, 10_000, 100_000, 1_000_000):
        for processes in (4, 16) if quick else PROCESSES:
            if free == 1_000_000 and processes not in {4, 200}:
                continue
            rate = 50 * processes
            yield (
                {"free": free, "processes": processes, "rate": rate},
                Scenario(
                    processes=processes,
                    requests=500 if quick else max(1000, min(rate, 6000)),
                    rate=rate,
                    returns=rate,
                    free=free,
                    table=TableConditions(saved_seconds=300),
                ),
            )


def shards(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Send a steady flow through every status, without saved units: the lasting limit of the index's partitions."""
    for rate in RATES[:1] if quick else RATES:
        for count in (1, 4) if quick else SHARDS:
            if rate / count > MOST_PER_SHARD:
                continue
            yield (
                {"rate": rate, "shards": count},
                Scenario(
                    processes=200,
                    requests=rate // 4 if quick else min(rate, 5000),
                    rate=rate,
                    returns=rate,
                    free=20_000,
                    table=TableConditions(shards=count, partitions=200, saved_seconds=0.1),
                ),
            )


def candidate_caches(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Send each process a request every two seconds, so that candidates grow old."""
    for size in (5, 15) if quick else CACHE_SIZES:
        for age in (30,) if quick else AGES:
            yield (
                {"size": size, "age": age},
                Scenario(
                    processes=20,
                    requests=500 if quick else 2000,
                    rate=10,
                    returns=10,
                    free=500,
                    cache_size=size,
                    candidate_age=age,
                ),
            )


def empty_pool(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Send more than twice as many tracks as sandboxes come back: the cost of a refusal."""
    for returns in (2,) if quick else (2, 20, 100):
        for count in (4,) if quick else SHARDS:
            yield (
                {"returns": returns, "shards": count},
                Scenario(
                    processes=16,
                    requests=200 if quick else 600,
                    rate=2 * returns + 40,
                    returns=returns,
                    free=0,
                    table=TableConditions(shards=count),
                ),
            )


def class_starts(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Send a thousand tracks at once."""
    for free in (1000,) if quick else (1000, 1100, 10_000):
        for processes in (4,) if quick else (4, 16, 64):
            yield {"free": free, "processes": processes}, Scenario(processes=processes, requests=1000, free=free)


def floods(quick: bool) -> Iterator[tuple[Row, Scenario]]:
    """Have a worker tell 50,000 facts meanwhile, and another one send them. Partitions have saved no units."""
    facts = 2000 if quick else 50_000
    beside = {
        "nothing": None,
        "telling": Flood(facts=facts, is_sent=False),
        "telling, sending": Flood(facts=facts),
    }
    for rate, seconds in ((100, 3),) if quick else ((100, 60), (500, 20)):
        for name, flood in beside.items():
            yield (
                {"rate": rate, "beside": name},
                Scenario(
                    processes=16,
                    requests=rate * seconds,
                    rate=rate,
                    returns=rate,
                    free=5000,
                    table=TableConditions(saved_seconds=0.1),
                    flood=flood,
                ),
            )


SWEEPS = (
    Sweep("processes", "Processes and pools", processes_and_pools, ("conflicts", "calls", "p50_ms", "p99_ms")),
    Sweep(
        "shards",
        "Shards",
        shards,
        ("hottest", "heat", "throttled", "unavailable", "conflicts", "calls", "p50_ms", "p99_ms"),
    ),
    Sweep(
        "caches",
        "Size of the candidate cache, and age of a candidate",
        candidate_caches,
        ("conflicts", "calls", "p99_ms"),
    ),
    Sweep(
        "empty",
        "An empty pool",
        empty_pool,
        ("allocated", "refused", "unavailable", "false_refusals", "conflicts", "calls", "refused_p99_ms"),
    ),
    Sweep(
        "burst",
        "A class starts",
        class_starts,
        ("allocated", "refused", "unavailable", "conflicts", "calls", "p50_ms", "p99_ms", "seconds"),
    ),
    Sweep(
        "flood",
        "A flood of facts",
        floods,
        ("told_a_second", "sent_a_second", "hottest", "heat", "throttled", "unavailable", "p50_ms", "p99_ms"),
    ),
)


def main() -> None:
    """Run all sweeps, or with `--quick` a few points of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="directory for scale.json and scale.svg")
    parser.add_argument("--quick", action="store_true", help="a few points of each sweep")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}
    for sweep in SWEEPS:
        rows[sweep.name] = list(run(sweep, quick=options.quick))
        # After each sweep: one that fails leaves the figures of those before.
        (options.out / "scale.json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows).savefig(options.out / "scale.svg", metadata={"Date": None})


def run(sweep: Sweep, *, quick: bool) -> Iterator[Row]:
    """Simulate each scenario of a sweep, and print a line for it."""
    say(f"\n{sweep.question}\n")
    heading: list[str] = []
    for varied, scenario in sweep.scenarios(quick):
        if not heading:
            heading = [*varied, *sweep.figures]
            say("".join(f"{name:>20}" for name in heading))
        row = {**varied, **simulate(scenario).summary()}
        say("".join(f"{row[name]:>20}" for name in heading))
        yield row


def plot(rows: dict[str, list[Row]]) -> Figure:
    """Draw four panels: conflicts, partition heat, latency, and the candidate cache's settings."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "scale", "font.size": 9})
    figure = Figure(figsize=(11, 8), layout="constrained")
    conflicts, heat, latency, cache = figure.subplots(2, 2).flat
    for free in distinct(rows["processes"], "free"):
        line(conflicts, select(rows["processes"], free=free), "processes", "conflicts", f"{free:,} free")
    conflicts.axhline(0.05, color="grey", linestyle=":")
    conflicts.set(
        title="Conflicts an allocation (50 requests a second a process)",
        xlabel="API processes",
        xscale="log",
    )
    conflicts.set_xticks(PROCESSES, [str(each) for each in PROCESSES])
    conflicts.set_yscale("symlog", linthresh=0.01)
    conflicts.set_ylim(0, None)
    for rate in distinct(rows["shards"], "rate"):
        some = select(rows["shards"], rate=rate)
        line(heat, some, "shards", "heat", f"{rate:,} allocations a second")
        line(latency, some, "shards", "p99_ms", f"allocated, {rate:,} a second")
    heat.axhline(WRITE_UNITS, color="grey", linestyle=":")
    heat.set(title="Write units a second of the hottest index partition", xlabel="shards", ylim=(0, None))
    refused = select(rows["empty"], returns=min(distinct(rows["empty"], "returns")))
    line(latency, refused, "shards", "refused_p99_ms", "refused by an empty pool")
    latency.set(title="p99 in milliseconds", xlabel="shards", yscale="log")
    for age in distinct(rows["caches"], "age"):
        line(cache, select(rows["caches"], age=age), "size", "conflicts", f"candidates up to {age} s old")
    cache.set(
        title="Conflicts an allocation (20 quiet processes, 500 free)",
        xlabel="size of the candidate cache (K_CANDIDATES)",
        ylim=(0, None),
    )
    for axes in (heat, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(SHARDS, [str(each) for each in SHARDS])
    for axes in (conflicts, heat, latency, cache):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def line(axes: Axes, rows: Sequence[Row], x: str, y: str, label: str) -> None:
    """Draw one figure of some rows over another."""
    axes.plot([float(row[x]) for row in rows], [float(row[y]) for row in rows], marker="o", markersize=3, label=label)


def select(rows: Sequence[Row], **values: float | str) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def distinct(rows: Sequence[Row], name: str) -> list[int]:
    """Return the distinct values of a column, in order."""
    return list(dict.fromkeys(int(row[name]) for row in rows))


def say(text: str) -> None:
    """Print a line and flush it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
