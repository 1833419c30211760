"""`broker usage`: how labs, customers and days used the pool."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from broker_common.cli.api import operators_api
from broker_common.cli.output import json_option, print_json, print_rows
from broker_common.cli.times import Moment, parse_length, parse_moment, say_how_taken
from broker_common.core.usage import Grouping, UsageRow
from broker_common.csv_export import write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping

_GROUPINGS = {"lab": Grouping.TRACK_NAME, "customer": Grouping.CUSTOMER, "day": Grouping.DAY}
_FIELDS = [each.name for each in fields(UsageRow)]
_UNKNOWN = "(none)"
_COLUMNS = ("leases", "hours", "marked", "released", "expired", "length", "length p95", "wipe", "wipe p95")


@click.command()
@click.option(
    "--by", "grouping", type=click.Choice(list(_GROUPINGS)), default="lab", help="A row for each: lab (the default)."
)
@click.option(
    "--since",
    default="30d",
    callback=lambda _ctx, _name, value: parse_length(value),
    help="How far back from the end: 24h, 7d, 30d (the default).",
)
@click.option(
    "--until",
    callback=lambda _ctx, _name, value: None if value is None else parse_moment(value),
    help="The end, such as '2026-12-01 00:00 UTC', or in Unix seconds. Now if it is left out.",
)
@click.option("--customer", help="Only leases of this customer.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with every field; a ' marks texts that would be formulas.")
@json_option
def usage(
    grouping: str, since: int, until: Moment | None, customer: str | None, *, as_csv: bool, as_json: bool
) -> None:
    """Show how long labs or customers held sandboxes, or how long sandboxes were held each day.

    Leases that ended in this time count, all of each on the day of its end (UTC). `length` is the median length of a
    lease, and `wipe` the median time from its end to the wipe; 95 % took as long as `p95` or less. Where the lab or the
    customer is not known, there is the row (none).

    Example: broker usage --by lab --since 30d

    For a spreadsheet: broker usage --by customer --since 90d --csv > usage.csv
    """
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json, not both.")
    say_how_taken(until)
    # Without --until the API takes its own clock, which may be behind this one.
    end = int(time.time()) if until is None else until.at
    asked = {"from": max(0, end - since), "to": None if until is None else end, "by": _GROUPINGS[grouping].value}
    report = operators_api().get("/usage", **asked, customer=customer)
    if as_json:
        print_json(report["rows"])
        return
    if as_csv:
        write_csv(report["rows"], sys.stdout, fields=_FIELDS)
        return
    rows = [_shown(each, grouping, each["group"] or _UNKNOWN) for each in report["rows"]]
    print_rows((grouping, *_COLUMNS), [*rows, _shown(report["total"], grouping, "total")])
    click.echo(f"leases that ended from {_moment(report['from'])} to {_moment(report['to'])}", err=True)


def _moment(moment: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(moment))


def _shown(row: Mapping[str, Any], grouping: str, group: str) -> dict[str, str | None]:
    """Return a row by the columns of the table."""
    counts = {name: str(row[name]) for name in ("leases", "marked", "released", "expired")}
    lengths = {
        "length": row["lease_median_sec"],
        "length p95": row["lease_p95_sec"],
        "wipe": row["wipe_median_sec"],
        "wipe p95": row["wipe_p95_sec"],
    }
    hours = f"{row['sandbox_hours']:.1f}"
    return {grouping: group, "hours": hours, **counts, **{name: _length(each) for name, each in lengths.items()}}


def _length(seconds: int | None) -> str | None:
    """Return a length of time in two parts, as in 1h05m or 2m30s."""
    if seconds is None:
        return None
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
