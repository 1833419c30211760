"""CSV as a spreadsheet reads it."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker_common.csv_export import stream_csv, write_csv
from tests.examples import examples

if TYPE_CHECKING:
    from collections.abc import Mapping

RUNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_TEXTS = (
    st.text()
    | st.sampled_from(["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", " \u3000=1", "\uff1d1", "'=1"])
    | st.builds("{}{}".format, st.sampled_from([*RUNS, "\t", "\r", "\n", "\0", " "]), st.text("=;,\"'x \n", max_size=4))
)


def written(*records: Mapping[str, Any]) -> list[list[str]]:
    file = io.StringIO(newline="")
    write_csv(records, file)
    return list(csv.reader(io.StringIO(file.getvalue(), newline="")))


@examples(100, derandomize=True, database=None)
@given(texts=st.lists(_TEXTS, min_size=2, max_size=5))
@example(texts=['"\r\n=1', 'x,=1"'])
def test_no_text_starts_a_formula_and_each_can_be_read_back(texts: list[str]) -> None:
    _, cells = written({str(place): text for place, text in enumerate(texts)})
    for cell, text in zip(cells, texts, strict=True):
        assert not cell.lstrip().startswith(RUNS)
        assert not cell.startswith(("\t", "\r", "\n", "\0"))
        assert cell in {text, f"'{text}"}


@pytest.mark.parametrize("text", ["", "a=1", "lab-adventure-0087", "7", "'=1", "intro (2)", "5-1", "ünter"])
def test_a_plain_text_is_written_as_it_is(text: str) -> None:
    assert written({"name": text, "other": None}) == [["name", "other"], [text, ""]]


@given(number=st.integers() | st.floats(allow_nan=False))
def test_a_number_stays_a_number(number: float) -> None:
    _, (cell, *_) = written({"number": number, "other": True})
    assert type(number)(cell) == number


def test_the_names_of_fields_are_cells_like_others() -> None:
    assert written({"=1": 1, "b": 2}) == [["'=1", "b"], ["1", "2"]]


def test_records_of_different_fields_share_their_columns() -> None:
    assert written({"a": 1, "b": 2}, {"c": 3, "a": 4}) == [["a", "b", "c"], ["1", "2", ""], ["4", "", "3"]]


def test_no_records_are_no_lines() -> None:
    assert written() == []


def test_batches_are_streamed_one_piece_each_with_the_same_columns() -> None:
    batches: list[list[dict[str, Any]]] = [[{"a": "=1", "b": 2}], [], [{"b": 3, "c": 4}]]
    pieces = list(stream_csv(iter(batches), fields=("a", "b")))
    assert pieces == ["a,b\r\n", "'=1,2\r\n", "", ",3\r\n"]
