"""`broker sandboxes`, `broker sandbox` and `broker bulk`: list sandboxes, look at one, and change them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from broker_common.cli.api import UNREADABLE, ApiError, operators_api, sandbox_path
from broker_common.cli.output import (
    is_terminal,
    json_option,
    print_fields,
    print_json,
    print_rows,
    show_fact,
    show_time,
)
from broker_common.cli.times import Moment, parse_length, parse_moment, say_how_taken
from broker_common.core.purge import BULK_DELETABLE
from broker_common.core.sandbox import Status
from broker_common.core.search import SortField
from broker_common.csv_export import write_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from broker_common.cli.api import BrokerApi

_COLUMNS = ("sandbox_id", "name", "status", "allocated_to_track", "expires_at", "deletion_retry_count", "dirty")
_UNREADABLE_COLUMNS = ("sandbox_id", "reason")
_SORTS = [sign + field.value for field in SortField for sign in ("", "-")]
_TIMES = {"last_synced", "stale_since"}
_WAIT_SEC = 1.0
_OF_ALL = {None, "UNAUTHORIZED", "FORBIDDEN"}
"""Errors that the next sandbox would meet, too."""


@click.command()
@click.option("--status", type=click.Choice([str(status) for status in Status]), help="Only those in this status.")
@click.option("--track", "track_id", help="Only those that this track holds.")
@click.option("--name", help="Only those with this in their name.")
@click.option("--lab", "track_name", help="Only those whose latest lease is this lab's.")
@click.option("--sort", type=click.Choice(_SORTS), metavar="FIELD", help="Sort by it; -FIELD puts the greatest first.")
@click.option("--unreadable", is_flag=True, help="Only those whose record cannot be read; looks at the whole table.")
@click.option("--json", "form", flag_value="json", help="One JSON object a line, with every field.")
@click.option("--csv", "form", flag_value="csv", help="CSV with every field; a ' marks texts that would be formulas.")
def sandboxes(form: str | None, sort: str | None, *, unreadable: bool, **filters: str | None) -> None:
    """List sandboxes, as a table unless --json or --csv is given.

    With --status or --track alone the list shows the pool as it is now, otherwise as it was up to 5 seconds ago.
    A sandbox whose record cannot be read has the status `unreadable`, and --json and --csv say why as `reason`.

    Example: broker sandboxes --status deletion_failed --csv > failed.csv

    The longest held first: broker sandboxes --status allocated --sort allocated_at

    Records to repair: broker sandboxes --unreadable
    """
    if unreadable and (sort or any(filters.values())):
        raise click.UsageError("--unreadable goes with --json and --csv alone.")
    found = operators_api().sandboxes(sort=sort, from_table=unreadable, **filters)
    columns: Sequence[str] = _COLUMNS
    if unreadable:
        found, columns = (each for each in found if each["status"] == UNREADABLE), _UNREADABLE_COLUMNS
    if form == "json":
        print_json(found)
    elif form == "csv":
        write_csv(sorted(found, key=lambda each: each["status"] == UNREADABLE), sys.stdout)
    else:
        print_rows(columns, ({**each, "expires_at": show_time(each.get("expires_at"))} for each in found))


@click.group()
def sandbox() -> None:
    """Look at one sandbox, extend or end its lease, or set it aside.

    Example: broker sandbox show 2009521
    """


@sandbox.command()
@click.argument("sandbox_id")
@json_option
def show(sandbox_id: str, *, as_json: bool) -> None:
    """Show every field of a sandbox.

    Example: broker sandbox show 2009521
    """
    record = operators_api().get(sandbox_path(sandbox_id))
    if as_json:
        print_json([record])
    else:
        print_fields(record, _TIMES)


@sandbox.command()
@click.argument("sandbox_id")
@json_option
def history(sandbox_id: str, *, as_json: bool) -> None:
    """Show what happened to a sandbox, newest first.

    The facts of a sandbox that is gone are shown, too, as long as they are kept (HISTORY_DAYS).

    Example: broker sandbox history 2009521
    """
    for fact in operators_api().history(sandbox_id):
        if as_json:
            print_json([fact])
        else:
            click.echo(show_fact(fact))


@sandbox.command()
@click.argument("sandbox_id")
@click.option("--lease", "lease_id", help="The lease to end. If left out, you are asked about the current one.")
@click.option("--yes", is_flag=True, help="Do not ask: end the current lease, even if you looked at another.")
def release(sandbox_id: str, lease_id: str | None, *, yes: bool) -> None:
    """End the lease of a sandbox for its track, and have it wiped.

    The request names the lease. If that lease is not the current one, the request is refused and nothing changes. Where
    there is no terminal, give --lease with the `lease_id` that you looked at.

    Example: broker sandbox release 2009521

    A lease that you looked at: broker sandbox release 2009521 --lease LEASE_ID
    """
    api = operators_api()
    if lease_id is None:
        if not yes and not is_terminal():
            raise click.UsageError(
                "nobody can be asked here: name the lease by --lease, or give --yes to end the current one."
            )
        found = api.get(sandbox_path(sandbox_id))
        lease_id = found["lease_id"]
        if lease_id is None:
            raise ApiError(f"{sandbox_id} is {found['status']}: no track holds it, so there is no lease to end")
        if not yes:
            for title, value in (
                ("track", found["allocated_to_track"]),
                ("lab", found["track_name"] or "-"),
                ("since", show_time(found["allocated_at"])),
                ("lease_id", lease_id),
            ):
                click.echo(f"{title:<8}  {value}", err=True)
            click.confirm(f"End this lease, and have {sandbox_id} wiped?", abort=True, err=True)
    done = api.post(f"{sandbox_path(sandbox_id)}/release", {"lease_id": lease_id})
    click.echo(f"{sandbox_id} is {done['status']}: the lease {lease_id} has ended")


@sandbox.command()
@click.argument("sandbox_id")
@click.option(
    "--until",
    callback=lambda _ctx, _name, value: None if value is None else parse_moment(value),
    help="The new end, such as '2026-12-01 18:00 Europe/Berlin', or in Unix seconds.",
)
@click.option(
    "--for",
    "seconds",
    callback=lambda _ctx, _name, value: None if value is None else parse_length(value),
    help="The new end, as a length of time from now: 90m, 2h, 3d.",
)
@click.option("--lease", "lease_id", help="The lease to extend. If left out, it is the current one.")
def extend(sandbox_id: str, until: Moment | None, seconds: int | None, lease_id: str | None) -> None:
    """Have the lease of a sandbox last longer, for its track.

    A lease is never shortened: if it lasts as long already, nothing changes. An operator may extend it to 30 days after
    its begin. May be repeated.

    Example: broker sandbox extend 2009521 --for 2h

    To a time: broker sandbox extend 2009521 --until 2026-12-01T18:00+01:00
    """
    if (until is None) == (seconds is None):
        raise click.UsageError("give the new end by --until or by --for.")
    say_how_taken(until)
    expires_at = until.at if until is not None else int(time.time()) + (seconds or 0)
    body = {"expires_at": expires_at} | ({} if lease_id is None else {"lease_id": lease_id})
    done = operators_api().post(f"{sandbox_path(sandbox_id)}/extend", body)
    unchanged = "" if done["expires_at"] == expires_at else ", as before"
    click.echo(f"{sandbox_id} is held until {show_time(done['expires_at'])}{unchanged}: the lease {done['lease_id']}")


_ids = click.argument("sandbox_ids", metavar="ID...", nargs=-1, required=True)


@sandbox.command()
@_ids
@click.option("--reason", required=True, help="Why; it is kept with the sandbox.")
def quarantine(sandbox_ids: tuple[str, ...], reason: str) -> None:
    """Set sandboxes aside: keep them out of service.

    A free sandbox is out of service at once. If a track holds it, or it waits to be wiped, it is out of service once it
    is wiped. Exits 1 if one of the sandboxes was refused.

    Example: broker sandbox quarantine 2009521 --reason "students report that it is slow"
    """

    def set_aside(api: BrokerApi, sandbox_id: str) -> str:
        done = api.post(f"{sandbox_path(sandbox_id)}/quarantine", {"reason": reason})
        later = "" if done["status"] == Status.DELETION_FAILED else ", and is set aside once it is wiped"
        return f"{sandbox_id} is {done['status']}{later}"

    _for_each(sandbox_ids, set_aside)


@sandbox.command()
@_ids
def unquarantine(sandbox_ids: tuple[str, ...]) -> None:
    """Lift the quarantine of sandboxes that are not wiped yet.

    Exits 1 if one of the sandboxes was refused.

    Example: broker sandbox unquarantine 2009521
    """

    def lift(api: BrokerApi, sandbox_id: str) -> str:
        done = api.delete(f"{sandbox_path(sandbox_id)}/quarantine")
        return f"{sandbox_id} is {done['status']}, and goes the usual way once it is wiped"

    _for_each(sandbox_ids, lift)


@sandbox.command()
@_ids
def retry(sandbox_ids: tuple[str, ...]) -> None:
    """Have sandboxes wiped that are deletion_failed.

    Their attempts are counted from zero again. RECYCLE_POLICY says what follows the wipe: with reuse they are back in
    service, with confirm they come back once a sync has seen them, and with retire they are never used again. Exits 1
    if one of the sandboxes was refused.

    Example: broker sandbox retry 2009521
    """

    def retry_one(api: BrokerApi, sandbox_id: str) -> str:
        done = api.post(f"{sandbox_path(sandbox_id)}/retry-deletion")
        return f"{sandbox_id} is {done['status']}, and the next cleanup has it wiped"

    _for_each(sandbox_ids, retry_one)


@click.group()
def bulk() -> None:
    """Change all sandboxes of one status.

    Example: broker bulk retry
    """


@bulk.command(name="retry")
def retry_all() -> None:
    """Have all sandboxes wiped that are deletion_failed.

    Those that an operator has set aside are wiped, too. May be repeated: it goes on.

    Example: broker bulk retry
    """
    done = operators_api().post("/bulk-retry")
    click.echo(f"{done['retried']} sandboxes wait to be wiped again ({done['duration_ms']} ms)")


@bulk.command(name="delete")
@click.option("--status", required=True, type=click.Choice([str(each) for each in BULK_DELETABLE]), help="Which ones.")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where there is no terminal.")
def delete_all(status: str, *, yes: bool) -> None:
    """Remove the records of all sandboxes in one status.

    The provider is asked nothing: its accounts stay. Needs the role admin. May be repeated: it goes on.

    Example: broker bulk delete --status stale
    """
    api = operators_api()
    if not yes:
        if not is_terminal():
            raise click.UsageError("nobody can be asked here: give --yes to remove the records.")
        count = api.get("/stats")[status]
        click.confirm(f"Remove the records of all {count} sandboxes that are {status}?", abort=True, err=True)
    done = api.post("/bulk-delete", status=status)
    click.echo(f"{done['deleted']} records are removed ({done['duration_ms']} ms)")


def _for_each(sandbox_ids: Iterable[str], act: Callable[[BrokerApi, str], str]) -> None:
    """Print what `act` says of each sandbox, or why it was refused; exit 1 at the end if one was.

    An error that the next sandbox would meet, too, ends it at once, as `ApiError`.
    """
    api, is_done = operators_api(), True
    for sandbox_id in sandbox_ids:
        try:
            click.echo(_patiently(act, api, sandbox_id))
        except ApiError as error:
            if error.code in _OF_ALL:
                raise
            click.echo(f"Error: {sandbox_id}: {error}", err=True)
            is_done = False
    if not is_done:
        sys.exit(1)


def _patiently(act: Callable[[BrokerApi, str], str], api: BrokerApi, sandbox_id: str) -> str:
    """Return what `act` says; wait as long as the API allows no further call."""
    while True:
        try:
            return act(api, sandbox_id)
        except ApiError as error:
            if error.code != "RATE_LIMIT_EXCEEDED":
                raise
        time.sleep(_WAIT_SEC)
