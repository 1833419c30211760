"""`broker pool` and `broker events`: the pool as a whole."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from broker_common.cli.api import ApiError, operators_api
from broker_common.cli.output import json_option, print_json, show_fact, show_time
from broker_common.cli.times import parse_length
from broker_common.core.facts import FactKind, PoolFactKind

if TYPE_CHECKING:
    from broker_common.cli.api import BrokerApi

_FOLLOW_SEC = 2.0
_KINDS = [kind.value for kind in (*FactKind, *PoolFactKind)]
_TIMES = {"oldest deletion": "oldest_pending_deletion_at", "last sync": "last_sync_at"}


@click.command()
@json_option
def pool(*, as_json: bool) -> None:
    """Show the pool's counts, times and pauses.

    The times are those of the longest waiting deletion and of the last sync that succeeded.

    Example: broker pool
    """
    overview = read_overview(operators_api())
    if as_json:
        print_json([overview])
        return
    for status, count in sorted(overview["counts"].items(), key=lambda counted: counted[0] == "total"):
        click.echo(f"{status:<17} {count:>7,}")
    for title, name in _TIMES.items():
        click.echo(f"{title:<17} {show_time(overview[name])}")
    pauses = overview["pauses"]
    if pauses is None:
        paused = f"unknown: {overview.get('pauses_error') or 'the API does not say why'}"
    else:
        paused = ", ".join(each["operation"] for each in pauses["paused"]) or "-"
    click.echo(f"{'paused':<17} {paused}")


def read_overview(api: BrokerApi) -> dict[str, Any]:
    """Return the overview. Raises `ApiError`, which tells an API without this call from a wrong address."""
    try:
        return api.get("/overview")
    except ApiError as error:
        if error.code != "NOT_FOUND" or not _has_stats(api):
            raise
        raise ApiError(
            "this API is of an earlier release, which has no overview: upgrade it, or use the `broker` of its release"
        ) from error


def _has_stats(api: BrokerApi) -> bool:
    """Tell whether the API has a call that every release has."""
    with suppress(ApiError):
        return bool(api.get("/stats"))
    return False


@click.command()
@click.option("--follow", is_flag=True, help="Show new facts as they come, until Ctrl-C.")
@click.option(
    "--since",
    default="10m",
    callback=lambda _ctx, _name, value: parse_length(value),
    help="How far back: 90s, 10m (the default), 24h, 7d.",
)
@click.option("--kind", type=click.Choice(_KINDS), metavar="KIND", help="Only this kind, such as sandbox.allocated.")
@click.option("--track", "track_id", help="Only facts of this track's leases.")
@json_option
def events(since: int, *, follow: bool, as_json: bool, **filters: str | None) -> None:
    """Show what happened in the pool, oldest first.

    Example: broker events --follow

    What a track did today: broker events --since 24h --track track-4711
    """
    for fact in operators_api().events(since=int(time.time()) - since, follow=follow, **filters):
        if fact is None:
            time.sleep(_FOLLOW_SEC)
        elif as_json:
            print_json([fact])
        else:
            click.echo(show_fact(fact))
