"""`python -m tests.bench` (`make bench`): measure the broker against its limit, a textbook broker, and its goals."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import click

from deploy.dev.dynamodb_local import NotInstalled
from deploy.dev.processes import ROOT
from tests.backends import AWS_ENVIRONMENT
from tests.bench.load import Generator
from tests.bench.report import table, write_json, write_plot
from tests.bench.scenarios import SCENARIOS, Bench
from tests.bench.servers import Servers


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Send few requests: a minute or two, and rough figures.")
@click.option("--only", type=click.Choice(list(SCENARIOS)), multiple=True, help="Run this scenario alone; repeatable.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / ".cache" / "bench",
    help="Where bench.json and bench.png go (.cache/bench).",
)
def main(*, quick: bool, only: tuple[str, ...], out: Path) -> None:
    """Measure, print one table, and write JSON and a plot. A goal that is missed is no failure: machines are noisy."""
    _hide_aws()
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as scratch, Servers(Path(scratch)) as servers, Generator() as generator:
            bench = Bench(servers, generator, quick=quick)
            for name in only or SCENARIOS:
                started = time.monotonic()
                SCENARIOS[name](bench)
                write_json(bench.findings, out / "bench.json")  # a run that is cut short leaves what it has found
                click.echo(f"{name}: {time.monotonic() - started:.0f} s", err=True)
    except NotInstalled as reason:
        raise click.ClickException(f"DynamoDB Local is missing: {reason}") from reason
    write_plot(bench.findings, out / "bench.png")
    click.echo("\n\n".join([table(bench.findings.figures), *bench.findings.tables]))
    click.echo(f"\n{time.monotonic() - began:.0f} s; {out / 'bench.json'}, {out / 'bench.png'}")


def _hide_aws() -> None:
    """Keep this machine's credentials from boto3, here and in what is started."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(AWS_ENVIRONMENT)


if __name__ == "__main__":
    main()
