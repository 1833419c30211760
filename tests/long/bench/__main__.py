"""`python -m tests.long.bench` (`make bench`): measure the broker against its limit, a textbook broker, and its goals."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.dev.dynamodb_local import NotInstalled
from deploy.dev.processes import ROOT
from tests.backends import hide_aws
from tests.long.bench.load import Generator
from tests.long.bench.parts import draw_parts
from tests.long.bench.report import Findings, describe, write_json, write_plot
from tests.long.bench.scenarios import SCENARIOS, Bench, Length
from tests.long.bench.servers import API_PROCESSES, Servers

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--quick",
    "length",
    flag_value=Length.QUICK,
    type=Length,
    default=Length.FULL,
    help="Send few requests: a minute or two, and rough figures.",
)
@click.option(
    "--shortest",
    "length",
    flag_value=Length.SHORTEST,
    type=Length,
    help="Only check that each scenario works; its figures mean nothing.",
)
@click.option(
    "--only", type=click.Choice(list(SCENARIOS)), multiple=True, help="Run only this scenario; may be repeated."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / ".cache" / "bench",
    help="Where bench.json, bench.png and parts.svg go (.cache/bench).",
)
@click.option(
    "--before",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A bench.json of an earlier release, to be drawn beside in parts.svg.",
)
def main(*, length: Length, only: tuple[str, ...], out: Path, before: Path | None) -> None:
    """Measure, print the figures and the tables of docs/performance.md, and write JSON and plots.

    Exits with 1 if a scenario fails; the others still run. A missed goal is no failure: machines are noisy. A stop by
    Ctrl-C or SIGTERM still prints all figures so far.
    """
    hide_aws()
    for each in (signal.SIGINT, signal.SIGTERM):  # a shell starts background programs with SIGINT ignored
        signal.signal(each, signal.default_int_handler)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    findings = Findings()
    processes = 1 if length is Length.SHORTEST else API_PROCESSES
    try:
        with (
            tempfile.TemporaryDirectory() as scratch,
            Servers(Path(scratch), processes=processes) as servers,
            Generator() as generator,
        ):
            _run(only or SCENARIOS, Bench(servers, generator, length, findings), out / "bench.json")
    except NotInstalled as reason:
        raise click.ClickException(f"DynamoDB Local is missing: {reason}") from reason
    finally:
        if findings.figures or findings.failures:
            click.echo(describe(findings))
            click.echo(f"\n{time.monotonic() - began:.0f} s; {out / 'bench.json'}, {out / 'bench.png'}")
            write_plot(findings, out / "bench.png")
        if costs := findings.series["parts"]:
            earlier = {"before": json.loads(before.read_text())["series"]["parts"]} if before else {}
            draw_parts(out / "parts.svg", {**earlier, "now": costs})
    if findings.failures:
        sys.exit(1)


def _run(names: Iterable[str], bench: Bench, path: Path) -> None:
    """Run all scenarios, also after one has failed; write the findings after each."""
    for name in names:
        started, ending = time.monotonic(), ""
        try:
            SCENARIOS[name](bench)
        except Exception as reason:  # noqa: BLE001 - the others are measured after any error
            traceback.print_exc()
            bench.findings.fail(name, reason)
            ending = ", FAILED"
        finally:
            write_json(bench.findings, path)
        click.echo(f"{name}: {time.monotonic() - started:.0f} s{ending}", err=True)


if __name__ == "__main__":
    main()
