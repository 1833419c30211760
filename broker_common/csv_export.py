"""CSV for people who open it in a spreadsheet: every export is written here."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 - full width, meant so


def write_csv(rows: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    """Write rows as CSV, after a line with the names of the first row's fields; nothing if there are no rows.

    A text that a spreadsheet would run as a formula gets an apostrophe in front. Numbers stay as they are. Source:
    "CSV Injection", OWASP.
    """
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(stream, row)
            writer.writeheader()
        writer.writerow({name: _defuse(value) for name, value in row.items()})


def _defuse(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
