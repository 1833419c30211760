"""What the commands of `broker` share to talk to a person or a program: tables, times, JSON lines."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with every field.")


def is_terminal() -> bool:
    """Tell whether a person can be asked."""
    return sys.stdin.isatty()


def print_rows(columns: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Print a table with a heading; a value that is missing or None is a hyphen."""
    rows: list[Sequence[str]] = [columns]
    rows += (["-" if each.get(name) is None else str(each[name]) for name in columns] for each in records)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(records: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON object a line."""
    for each in records:
        click.echo(json.dumps(each))


def print_fields(record: Mapping[str, Any], times: Collection[str] = ()) -> None:
    """Print one field a line. Fields whose name ends with `_at`, and those of `times`, hold times."""
    width = max(map(len, record))
    for name, value in record.items():
        is_time = value is not None and (name.endswith("_at") or name in times)
        click.echo(f"{name:<{width}}  {'-' if value is None else value}{f'  ({show_time(value)})' if is_time else ''}")


def show_time(moment: int | None) -> str:
    """Return a time in UTC and its distance from now; a hyphen for None."""
    if moment is None:
        return "-"
    seconds = round(moment - time.time())
    distance = f"in {seconds} s" if seconds > 0 else f"{-seconds} s ago"
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}Z, {distance}"


def show_fact(fact: Mapping[str, Any]) -> str:
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
