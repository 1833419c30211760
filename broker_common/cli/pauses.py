"""`broker pause` and `broker resume`: stop operations, and let them go on."""

from __future__ import annotations

from typing import Any

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import json_option, print_json, print_rows, show_time
from broker_common.core.store import PAUSABLE

_COLUMNS = ("operation", "state", "by", "since")


@click.command()
@click.argument("operations", nargs=-1, type=click.Choice(PAUSABLE))
@json_option
def pause(operations: tuple[str, ...], *, as_json: bool) -> None:
    """Pause operations, or show who paused what.

    Without an operation it shows what is paused, by whom and since when. Every process obeys within 5 seconds. Work
    that has begun is finished. While allocate is paused, tracks keep what they hold and can give it back. A job that is
    paused is skipped.

    Example: broker pause

    Before maintenance of the provider: broker pause cleanup sync
    """
    _set(operations, wanted=True, as_json=as_json)


@click.command()
@click.argument("operations", nargs=-1, required=True, type=click.Choice(PAUSABLE))
@json_option
def resume(operations: tuple[str, ...], *, as_json: bool) -> None:
    """Resume operations that are paused.

    Every process obeys within 5 seconds. A job that is started earlier may still be skipped.

    Example: broker resume cleanup
    """
    _set(operations, wanted=False, as_json=as_json)


def _set(operations: tuple[str, ...], *, wanted: bool, as_json: bool) -> None:
    api = operators_api()
    pauses = api.post("/pause", dict.fromkeys(operations, wanted)) if operations else api.get("/pause")
    by_operation = {each["operation"]: each for each in pauses["paused"]}
    rows: list[dict[str, Any]] = [
        {"by": None, "since": None, **by_operation.get(name, {}), "operation": name, "paused": pauses[name]}
        for name in PAUSABLE
    ]
    if as_json:
        print_json(rows)
        return
    shown = ({"state": "paused" if row["paused"] else "runs", "since": show_time(row["since"])} for row in rows)
    print_rows(_COLUMNS, ({**row, **more} for row, more in zip(rows, shown, strict=True)))
    if operations:
        click.echo("every process obeys within 5 s", err=True)
