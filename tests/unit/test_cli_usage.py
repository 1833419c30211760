"""`broker usage`, where no broker is needed to see what it does."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import responses
from responses.matchers import query_param_matcher

from tests.unit.test_cli import URL, broker, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_796_112_000
DAY = 86400
MONTH = {"from": str(NOW - 30 * DAY)}


def row(group: str | None, **values: Any) -> dict[str, Any]:
    return {
        "group": group,
        "leases": 40,
        "sandbox_hours": 38.5,
        "marked": 36,
        "released": 1,
        "expired": 3,
        "lease_median_sec": 3300,
        "lease_p95_sec": 7140,
        "wipes": 40,
        "wipe_median_sec": 14,
        "wipe_p95_sec": 125,
    } | values


NOTHING = row(None, leases=0, sandbox_hours=0.0, lease_median_sec=None, lease_p95_sec=None) | {
    "wipe_median_sec": None,
    "wipe_p95_sec": None,
}


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as the API shows them: with their fields in alphabetical order."""
    return [dict(sorted(each.items())) for each in rows]


def answer(rows: list[dict[str, Any]], query: Mapping[str, str], *, total: Mapping[str, Any] = NOTHING) -> None:
    """Have the API answer a report to a query."""
    body = {"from": NOW - DAY, "to": NOW, "by": query.get("by"), "rows": _sorted(rows), "total": total}
    responses.get(f"{URL}/usage", json=body, match=[query_param_matcher(dict(query))])


@pytest.fixture(autouse=True)
def _at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(NOW))


@responses.activate
def test_usage_is_a_table_for_people_with_a_total() -> None:
    rows = [row("intro"), row(None, leases=2, sandbox_hours=0.04, wipe_median_sec=None, wipe_p95_sec=None)]
    total = row(None, leases=42, sandbox_hours=12038.54)
    answer(rows, MONTH | {"by": "track_name"}, total=total)
    result = broker("usage", "--by", "lab", "--since", "30d")
    assert result.stdout.splitlines() == [
        "lab     leases  hours    marked  released  expired  length  length p95  wipe  wipe p95",
        "intro   40      38.5     36      1         3        55m00s  1h59m       14s   2m05s",
        "(none)  2       0.0      36      1         3        55m00s  1h59m       -     -",
        "total   42      12038.5  36      1         3        55m00s  1h59m       14s   2m05s",
    ]
    assert result.stderr == "leases that ended from 2026-11-30 08:00:00Z to 2026-12-01 08:00:00Z\n"


@responses.activate
@pytest.mark.parametrize(
    ("words", "query"),
    [
        ((), {"by": "track_name", "from": str(NOW - 30 * DAY)}),
        (("--by", "customer", "--since", "12h"), {"by": "customer", "from": str(NOW - DAY // 2)}),
        (("--by", "day", "--until", str(NOW - DAY), "--since", "1d"), {"from": str(NOW - 2 * DAY), "by": "day"}),
        (("--since", "99999d"), {"by": "track_name", "from": "0"}),
        (("--customer", "acme & co"), {"by": "track_name", "from": str(NOW - 30 * DAY), "customer": "acme & co"}),
    ],
)
def test_the_time_reaches_back_from_its_end_and_one_customer_can_be_asked_for(
    words: tuple[str, ...], query: dict[str, str]
) -> None:
    until = {"to": str(NOW - DAY)} if "--until" in words else {}
    answer([], query | until)
    assert broker("usage", *words).exit_code == 0


@responses.activate
def test_csv_has_every_field_and_no_formulas() -> None:
    answer([row("=HYPERLINK(1)"), row(None)], MONTH | {"by": "customer"})
    shown = list(csv.DictReader(io.StringIO(broker("usage", "--by", "customer", "--csv").stdout)))
    assert list(shown[0]) == list(row(None))
    assert [each["group"] for each in shown] == ["'=HYPERLINK(1)", ""]
    assert shown[0]["sandbox_hours"] == "38.5"


@responses.activate
def test_csv_of_nothing_has_a_heading_and_json_has_a_row_a_line() -> None:
    answer([], MONTH | {"by": "track_name"})
    assert broker("usage", "--csv").stdout.splitlines() == [",".join(row(None))]
    answer([row("a"), row("b")], MONTH | {"by": "day"})
    lines = broker("usage", "--by", "day", "--json").stdout.splitlines()
    assert [json.loads(each)["group"] for each in lines] == ["a", "b"]


@responses.activate
def test_a_time_before_what_is_kept_is_refused_in_words() -> None:
    refused = refusal("VALIDATION_ERROR", "from: Must be 1788336000 or later")
    responses.get(f"{URL}/usage", json=refused, status=400)
    result = broker("usage", "--since", "90d")
    assert result.exit_code == 1
    assert "from: Must be 1788336000 or later" in result.stderr


@pytest.mark.parametrize(
    "words", [("--by", "hour"), ("--since", "a month"), ("--until", "tomorrow"), ("--csv", "--json")]
)
def test_wrong_use_is_told_without_a_call(words: tuple[str, ...]) -> None:
    assert broker("usage", *words).exit_code == 2
