"""`broker job` and `broker jobs`: start jobs, and list their runs."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import json_option, print_json, print_rows, show_time
from broker_common.core.jobs import JobState

if TYPE_CHECKING:
    from broker_common.core.jobs import Jobs

_COLUMNS = ("job_id", "job", "state", "principal", "started_at", "result")
_LOOK_AGAIN_SEC = 0.5
_SAY_AGAIN_SEC = 5.0
_ENDED = {state for state in JobState if state.is_final}


def job_commands(jobs: Jobs) -> tuple[click.Group, click.Command]:
    """Return the commands `job`, which starts these jobs, and `jobs`, which lists their runs."""
    names = {job.path: job for job in jobs.values()}
    flags: dict[str, dict[str, str]] = defaultdict(dict)
    for spec in jobs.values():
        for flag in spec.flags:
            flags[flag.name][spec.path] = flag.help

    @click.group()
    def job() -> None:
        """Start jobs.

        Example: broker job run sync --wait
        """

    @job.command()
    @click.argument("name", type=click.Choice(list(names)))
    @click.option(
        "--wait", is_flag=True, help="Wait until the run has ended, and show its state; exits 1 if it failed."
    )
    def run(name: str, *, wait: bool, **given: bool) -> None:
        """Start a job now, on a worker.

        Prints the run's id, or with --wait its result.

        Example: broker job run sync --wait
        """
        asked = {flag: True for flag, is_on in given.items() if is_on}
        for flag in asked:
            if name not in flags[flag]:
                raise click.UsageError(f"--{flag} is for {' and '.join(flags[flag])} alone.")
        _run_job(name, asked, wait=wait)

    for flag_name, of in flags.items():
        said = "; ".join(f"for {path}: {text}" for path, text in of.items())
        run.params.append(click.Option([f"--{flag_name}"], is_flag=True, help=f"{said[0].upper()}{said[1:]}."))

    @click.command(name="jobs")
    @click.option("--job", type=click.Choice(list(names)), help="Only runs of this job.")
    @click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many at most.")
    @json_option
    def list_runs(job: str | None, limit: int, *, as_json: bool) -> None:
        """List the last runs of jobs, newest first, and who started each.

        Runs of the schedule have job:<name> as principal. The result says why a run failed or was skipped, or what it
        counted. A run is kept for a day.

        Example: broker jobs --job sync --limit 5
        """
        found = operators_api().get("/jobs", job=None if job is None else names[job].name, limit=limit)["runs"]
        if as_json:
            print_json(found)
        else:
            shown = ({"started_at": show_time(run.get("started_at")), "result": _show_result(run)} for run in found)
            print_rows(_COLUMNS, ({**run, **more} for run, more in zip(found, shown, strict=True)))

    return job, list_runs


def _run_job(name: str, flags: dict[str, bool], *, wait: bool) -> None:
    api = operators_api()
    job_id = api.post(f"/{name}", flags or None)["job_id"]
    click.echo(f"{job_id} is asked for", err=True)
    if not wait:
        click.echo(job_id)
        return
    began = said_at = time.monotonic()
    seen, state = "", api.get(f"/jobs/{job_id}")
    while state["state"] not in _ENDED:
        if state["state"] != seen or time.monotonic() - said_at >= _SAY_AGAIN_SEC:
            seen, said_at = state["state"], time.monotonic()
            click.echo(f"{seen} … {said_at - began:.0f} s", err=True)
        time.sleep(_LOOK_AGAIN_SEC)
        state = api.get(f"/jobs/{job_id}")
    click.echo(json.dumps(state.get("result") or {}))
    click.echo(f"{state['state']}{': ' + state['error'] if state.get('error') else ''}", err=True)
    sys.exit(1 if state["state"] == JobState.FAILED else 0)


def _show_result(run: dict[str, Any]) -> str | None:
    """Return why a run failed or was skipped, or what it counted without the zeros."""
    counts = (f"{name}={count}" for name, count in (run.get("result") or {}).items() if count)
    return run.get("error") or " ".join(counts) or None
