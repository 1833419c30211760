"""The commands of `broker`, and how they print."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
from botocore.exceptions import BotoCoreError, ClientError

from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.adapters.system_clock import SystemClock
from broker_common.cli.api import UNREADABLE, ApiError, BrokerApi, operators_api
from broker_common.cli.check import PARTS, check
from broker_common.core.errors import BrokerError
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.sandbox import Status
from broker_common.core.search import SortField
from broker_common.core.table_identity import accept_table
from broker_common.csv_export import write_csv
from broker_common.services import build_store, connect_redis
from broker_common.settings import Process
from broker_common.startup import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from broker_common.core.jobs import Jobs

ADMIN_TIMEOUT_SEC = 10.0
"""Table operations are slower than reads and writes."""
_LOOK_AGAIN_SEC = 0.5
_FOLLOW_SEC = 2.0
_SAY_AGAIN_SEC = 5.0
_COLUMNS = ("sandbox_id", "name", "status", "allocated_to_track", "expires_at", "deletion_retry_count", "dirty")
_RUN_COLUMNS = ("job_id", "job", "state", "principal", "started_at", "result")
_VERDICTS = {True: "OK", False: "FAIL", None: "--"}
_SORTS = [sign + field.value for field in SortField for sign in ("", "-")]
_KINDS = [kind.value for kind in (*FactKind, *PoolFactKind)]
_ENDED = {state for state in JobState if state.is_final}


class _Commands(click.Group):
    """Commands whose failure to reach or move the API is one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        try:
            return super().invoke(ctx)
        except ApiError as error:
            raise click.ClickException(str(error)) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  broker check
  broker table create
  broker pool
  broker sandboxes --status deletion_failed
  broker sandbox show 2009521
  broker sandbox history 2009521
  broker events --follow
  broker job run sync --wait
  broker jobs --job sync
\b
Completion, for a line of ~/.bashrc, ~/.zshrc or ~/.config/fish/config.fish:
  eval "$(_BROKER_COMPLETE=bash_source broker)"
  eval "$(_BROKER_COMPLETE=zsh_source broker)"
  _BROKER_COMPLETE=fish_source broker | source""",
)
def main() -> None:
    """Operate a Sandbox Broker.

    Commands that ask its API read BROKER_API_URL (http://127.0.0.1:8080/v1 by default) and BROKER_ADMIN_TOKEN, which
    may be any operator's token. `check`, `table` and `upgrade` read the settings of the broker's processes. Exit codes:
    0 done, 1 not done, 2 wrong use.
    """


def _api() -> BrokerApi:
    return operators_api(os.environ)


@main.command(name="check")
@click.option(
    "--process",
    type=click.Choice([process.value for process in PARTS]),
    help="Look at all that this process needs, whether its settings are here or missing.",
)
def check_command(process: str | None) -> None:
    """Tell of each part whether it is right, or what to do.

    The parts are settings, table, index, Redis and provider, a line each; nothing is changed. Exits 1 when something is
    wrong. Without --process it looks at what those processes need whose settings are here, and at the API that
    BROKER_API_URL names; it says which processes it leaves out.

    Example: broker check

    In a pod: kubectl exec deploy/broker-api -- broker check --process api
    """
    is_all_right = True
    for finding in check(os.environ, Process(process) if process else None):
        click.echo(f"{finding.part:<9} {_VERDICTS[finding.ok]:<4} {finding.text}")
        is_all_right = is_all_right and finding.ok is not False
    sys.exit(0 if is_all_right else 1)


@main.group()
def table() -> None:
    """Look after the DynamoDB table.

    Example: broker table create
    """


@table.command()
def create() -> None:
    """Create the table, its index and its layout record.

    Changes nothing that is there already.

    Example: DDB_TABLE_NAME=SandboxPool AWS_REGION=eu-central-1 broker table create
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    try:
        client = make_client(
            region=settings.aws_region,
            endpoint_url=settings.ddb_endpoint_url,
            timeout_sec=ADMIN_TIMEOUT_SEC,
            connections=1,
        )
        created = create_table(client, settings.ddb_table_name)
    except (ClientError, BotoCoreError) as error:
        click.echo(f"table {settings.ddb_table_name} could not be created: {error}", err=True)
        sys.exit(1)
    click.echo(f"table {settings.ddb_table_name} {'is created' if created else 'was there already'}")


@table.command()
def accept() -> None:
    """Have every process use the table as it is now.

    API and jobs stop (503 TABLE_CHANGED) when the table was replaced, restored or emptied: it may call a sandbox free
    that a track holds. Run this once its records are right; the runbook says how. They go on within 5 seconds.

    It reads DDB_TABLE_NAME, AWS_REGION and REDIS_URL, as API and workers do.

    Example: broker table accept
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    clock, name = SystemClock(), settings.ddb_table_name
    try:
        memory = RedisTableMemory(connect_redis(settings), clock)
        accept_table(build_store(settings), memory, clock, identity=str(uuid.uuid4()))
    except (BrokerError, BotoCoreError) as error:
        raise click.ClickException(f"table {name} is not accepted: {error}") from error
    click.echo(f"table {name} is accepted: API and jobs use it within 5 s")


@main.command()
def whoami() -> None:
    """Show whose token BROKER_ADMIN_TOKEN holds, and its roles.

    Example: broker whoami
    """
    found = _api().get("/whoami")
    for name, value in (("principal", found["principal"]), ("roles", ", ".join(found["roles"]))):
        click.echo(f"{name:<9}  {value}")
    click.echo(f"{'customer':<9}  {found['customer'] or '-'}")


@main.command()
def pool() -> None:
    """Show counts, the longest waiting deletion, the last sync.

    Example: broker pool
    """
    api = _api()
    for status, count in sorted(api.get("/stats").items(), key=lambda counted: counted[0] == "total"):
        click.echo(f"{status:<17} {count:>7,}")
    pending = api.sandboxes(status=Status.PENDING_DELETION)
    # One that has `ready_at` is wiped already, and rests.
    asked = [each.get("deletion_requested_at") for each in pending if each.get("ready_at") is None]
    click.echo(f"{'oldest deletion':<17} {_ago(min(filter(None, asked), default=None))}")
    # The API tells of an available sandbox alone when sync saw it last.
    seen = api.get("/sandboxes", status=Status.AVAILABLE, limit=1)["sandboxes"]
    click.echo(f"{'last sync':<17} {_ago(seen[0]['last_synced']) if seen else 'not known while none is available'}")


@main.command()
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only those in this status.")
@click.option("--track", "track_id", help="Only those that this track holds.")
@click.option("--name", help="Only those with this in their name.")
@click.option("--lab", "track_name", help="Only those whose latest lease is this lab's.")
@click.option("--sort", type=click.Choice(_SORTS), metavar="FIELD", help="Sort by it; -FIELD puts the greatest first.")
@click.option("--json", "form", flag_value="json", help="One JSON object a line, with every field.")
@click.option("--csv", "form", flag_value="csv", help="CSV with every field; a ' marks texts that would be formulas.")
def sandboxes(form: str | None, sort: str | None, **filters: str | None) -> None:
    """List sandboxes, as a table unless --json or --csv is given.

    With --status or --track alone the list shows the pool as it is now, otherwise as it was up to 5 seconds ago.
    A sandbox whose record cannot be read has the status `unreadable`, and --json and --csv say why as `reason`.

    Example: broker sandboxes --status deletion_failed --csv > failed.csv

    The longest held first: broker sandboxes --status allocated --sort allocated_at
    """
    found = _api().sandboxes(sort=sort, **filters)
    _print_as[form](found)


@main.group()
def sandbox() -> None:
    """Look at one sandbox, or set it aside.

    Example: broker sandbox show 2009521
    """


@sandbox.command()
@click.argument("sandbox_id")
def show(sandbox_id: str) -> None:
    """Show every field of a sandbox.

    Example: broker sandbox show 2009521
    """
    record = _api().get(f"/sandboxes/{quote(sandbox_id, safe='')}")
    width = max(map(len, record))
    for name, value in record.items():
        is_time = value is not None and (name.endswith("_at") or name in {"last_synced", "stale_since"})
        click.echo(f"{name:<{width}}  {'-' if value is None else value}{f'  ({_ago(value)})' if is_time else ''}")


@sandbox.command(name="history")
@click.argument("sandbox_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every field.")
def history_command(sandbox_id: str, *, as_json: bool) -> None:
    """Show what happened to a sandbox, newest first.

    Also of one that is gone, as long as its facts are kept (HISTORY_DAYS).

    Example: broker sandbox history 2009521
    """
    for fact in _api().history(sandbox_id):
        click.echo(json.dumps(fact) if as_json else _told_fact(fact))


@sandbox.command()
@click.argument("sandbox_id")
@click.option("--reason", required=True, help="Why; it is kept with the sandbox.")
def quarantine(sandbox_id: str, reason: str) -> None:
    """Take a sandbox out of service for a person.

    At once; if a track holds it, or it waits to be wiped, once it is wiped.

    Example: broker sandbox quarantine 2009521 --reason "students report that it is slow"
    """
    done = _api().post(f"/sandboxes/{quote(sandbox_id, safe='')}/quarantine", {"reason": reason})
    later = "" if done["status"] == Status.DELETION_FAILED else ", and is set aside once it is wiped"
    click.echo(f"{sandbox_id} is {done['status']}{later}")


@sandbox.command()
@click.argument("sandbox_id")
def unquarantine(sandbox_id: str) -> None:
    """Lift the quarantine of a sandbox that is not wiped yet.

    Example: broker sandbox unquarantine 2009521
    """
    done = _api().delete(f"/sandboxes/{quote(sandbox_id, safe='')}/quarantine")
    click.echo(f"{sandbox_id} is {done['status']}, and goes the usual way once it is wiped")


@main.command()
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "--since",
    default="10m",
    callback=lambda _ctx, _name, value: _seconds(value),
    help="How far back: 90s, 10m (the default), 24h, 7d.",
)
@click.option("--kind", type=click.Choice(_KINDS), metavar="KIND", help="Only these, as in sandbox.allocated.")
@click.option("--track", "track_id", help="Only facts of this track's leases.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every field.")
def events(since: int, *, follow: bool, as_json: bool, **filters: str | None) -> None:
    """Show what happened in the pool, oldest first.

    Example: broker events --follow

    What a track did today: broker events --since 24h --track track-4711
    """
    for fact in _api().events(since=int(time.time()) - since, follow=follow, **filters):
        if fact is None:
            time.sleep(_FOLLOW_SEC)
        else:
            click.echo(json.dumps(fact) if as_json else _told_fact(fact))


@main.group()
def upgrade() -> None:
    """Go on to a newer release.

    Example: broker upgrade finish
    """


@upgrade.command()
def finish() -> None:
    """Say that no process of the release before this one runs any more.

    Until then calls that such a process could not keep answer 503 UPGRADE_UNFINISHED: history, events, setting aside a
    sandbox that is held. Run it once every API, worker and beat is of this release. May be repeated.

    Example: broker upgrade finish
    """
    settings = read_settings(os.environ, process=Process.TOOL)
    try:
        build_store(settings).finish_upgrade()
    except (BrokerError, BotoCoreError) as error:
        raise click.ClickException(f"the upgrade is not finished: {error}") from error
    click.echo("the upgrade is finished: every process knows within 5 s")


def job_commands(jobs: Jobs) -> tuple[click.Group, click.Command]:
    """Return `job`, which has these jobs run, and `jobs`, which lists their runs."""
    names = {job.path: job for job in jobs.values()}
    flags: dict[str, dict[str, str]] = defaultdict(dict)
    for spec in jobs.values():
        for flag in spec.flags:
            flags[flag.name][spec.path] = flag.help

    @click.group()
    def job() -> None:
        """Have jobs run.

        Example: broker job run sync --wait
        """

    @job.command()
    @click.argument("name", type=click.Choice(list(names)))
    @click.option("--wait", is_flag=True, help="Stay until it has ended, and tell how it goes; exits 1 if it failed.")
    def run(name: str, *, wait: bool, **given: bool) -> None:
        """Have a job run now, on a worker.

        Its id goes to stdout, or with --wait its result.

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
    def list_runs(job: str | None, limit: int) -> None:
        """List the last runs of jobs, newest first, and who asked for each.

        The schedule's runs have job:<name> as principal. Result is why a run failed or was skipped, or what it counted.
        A run is kept for a day.

        Example: broker jobs --job sync --limit 5
        """
        found = _api().get("/jobs", job=None if job is None else names[job].name, limit=limit)["runs"]
        _print_rows(
            _RUN_COLUMNS, ({**run, "started_at": _ago(run.get("started_at")), "result": _told(run)} for run in found)
        )

    return job, list_runs


for _command in job_commands(JOBS):
    main.add_command(_command)


def _run_job(name: str, flags: dict[str, bool], *, wait: bool) -> None:
    api = _api()
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


def _told_fact(fact: dict[str, Any]) -> str:
    """Return a fact as one line for a person."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(fact["at"]))
    about = fact["sandbox_id"] or "pool"
    before, after = fact["status_before"] or "-", fact["status"] or "gone"
    moved = "" if fact["sandbox_id"] is None else after if after == before else f"{before} → {after}"
    details = " ".join(f"{name}={value}" for name, value in fact["details"].items())
    parts = (
        f"{at}Z",
        f"{about:<12}",
        f"{fact['kind']:<24}",
        moved,
        fact["track_id"],
        f"by {fact['principal']}",
        details,
    )
    return "  ".join(part for part in parts if part)


def _seconds(text: str) -> int:
    """Return the seconds of a length of time such as 90s, 10m, 24h or 7d."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise click.BadParameter("must be a length of time, such as 90s, 10m, 24h or 7d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def _told(run: dict[str, Any]) -> str | None:
    """Say why a run failed or was skipped, or what it counted, zeros left out."""
    counts = (f"{name}={count}" for name, count in (run.get("result") or {}).items() if count)
    return run.get("error") or " ".join(counts) or None


def _print_table(found: Iterable[dict[str, Any]]) -> None:
    _print_rows(_COLUMNS, ({**each, "expires_at": _ago(each.get("expires_at"))} for each in found))


def _print_rows(columns: Sequence[str], found: Iterable[dict[str, Any]]) -> None:
    rows: list[Sequence[str]] = [columns]
    rows += (["-" if each.get(name) is None else str(each[name]) for name in columns] for each in found)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_json(found: Iterable[dict[str, Any]]) -> None:
    for each in found:
        click.echo(json.dumps(each))


def _print_csv(found: Iterable[dict[str, Any]]) -> None:
    write_csv(sorted(found, key=lambda each: each["status"] == UNREADABLE), sys.stdout)


_print_as: dict[str | None, Callable[[Iterable[dict[str, Any]]], None]] = {
    None: _print_table,
    "json": _print_json,
    "csv": _print_csv,
}


def _ago(moment: int | None) -> str:
    """Say when something was or will be: in UTC, and how far from now."""
    if moment is None:
        return "-"
    seconds = round(moment - time.time())
    distance = f"in {seconds} s" if seconds > 0 else f"{-seconds} s ago"
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}Z, {distance}"
