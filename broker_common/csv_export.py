"""CSV for people who open it in a spreadsheet: every export is written here."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - full width, meant so


def write_csv(rows: Collection[Mapping[str, Any]], stream: TextIO) -> None:
    """Write rows as CSV, after a line with the names of all their fields; nothing if there are no rows.

    A text that a spreadsheet would run as a formula gets an apostrophe in front. Numbers stay as they are. Source:
    "CSV Injection", OWASP.
    """
    if not rows:
        return
    writer = csv.DictWriter(stream, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows({name: _defuse(value) for name, value in row.items()} for row in rows)


def _defuse(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
