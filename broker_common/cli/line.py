"""`broker line`: the tracks that wait for a sandbox."""

from __future__ import annotations

from urllib.parse import quote

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import json_option, print_json, print_rows, show_time

_COLUMNS = ("position", "track_id", "track_name", "customer", "name_prefix", "waits_since", "back_by", "place_id")
_LISTED = 1000
"""As many places as the API lists at most."""


@click.group(invoke_without_command=True)
@click.option(
    "--limit", default=100, type=click.IntRange(1, _LISTED), help="How many places, from the first one on (100)."
)
@json_option
@click.pass_context
def line(ctx: click.Context, limit: int, *, as_json: bool) -> None:
    """Show the line of tracks that wait for a sandbox, or remove a place from it.

    `back_by` is when the track should repeat its request. A track that is late is marked. It is passed over, and keeps
    its place for LINE_GRACE_SEC.

    Example: broker line
    """
    if ctx.invoked_subcommand is not None:
        return
    found = operators_api().get("/waiting", limit=limit)
    if as_json:
        print_json(found["places"])
        return
    shown = (
        {
            **each,
            "name_prefix": each["name_prefix"] or None,
            "waits_since": show_time(each["joined_at"]),
            "back_by": show_time(each["back_by"]) + (" (late)" if each["late"] else ""),
        }
        for each in found["places"]
    )
    print_rows(_COLUMNS, shown)
    if found["count"] < found["waiting"]:
        click.echo(f"{found['waiting'] - found['count']} more tracks wait behind these: see --limit", err=True)


@line.command()
@click.argument("place_id")
def remove(place_id: str) -> None:
    """Remove a place from the line.

    `broker line` shows the ids. If the track asks again, it waits at the end. May be repeated.

    Example: broker line remove PLACE_ID
    """
    api = operators_api()
    found = next((each for each in api.get("/waiting", limit=_LISTED)["places"] if each["place_id"] == place_id), None)
    api.delete(f"/waiting/{quote(place_id, safe='')}")
    if found is None:
        # It may have been one of those that are not listed, far back in a long line. Now it is gone, too.
        click.echo(f"no place {place_id} is in the line now")
    else:
        click.echo(f"removed the place of track {found['track_id']}")
