"""Writes records as CSV: in this one place, because a spreadsheet runs some texts as formulas."""

from __future__ import annotations

import csv
import re
from io import StringIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_FORMULA = re.compile(r"[\t\r\n\0]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def write_csv(records: Iterable[Mapping[str, Any]], file: IO[str], *, fields: Iterable[str] = ()) -> None:
    """Write `records` as CSV, after a line with `fields` and the names of all their other fields.

    Writes nothing if there are no records and no `fields`.

    A text that a spreadsheet could run as a formula gets a `'` in front. These are texts that start
    with `=`, `+`, `-`, `@` (full-width or after blanks, too), a tab, a line end or a null character. Numbers stay
    numbers. Sources: OWASP, "CSV Injection"; OWASP ASVS 5.0, 1.2.10.
    """
    rows = list(records)
    names = dict.fromkeys([*fields, *(name for each in rows for name in each)])
    if names:
        writer = csv.writer(file)
        writer.writerow(map(_cell, names))
        writer.writerows([_cell(each.get(name)) for name in names] for each in rows)


def stream_csv(batches: Iterable[Iterable[Mapping[str, Any]]], *, fields: Sequence[str]) -> Iterator[str]:
    """Yield a line with `fields`, then the records of each batch as CSV, made harmless as by `write_csv`.

    Holds one batch at a time. Leaves out what a record has besides `fields`.
    """
    yield _lines([fields])
    for batch in batches:
        yield _lines([each.get(name) for name in fields] for each in batch)


def _lines(rows: Iterable[Iterable[Any]]) -> str:
    file = StringIO(newline="")
    csv.writer(file).writerows([_cell(value) for value in row] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:  # noqa: ANN401 - any JSON
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
