"""The report on usage: what counts, in which form, and which times are refused."""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.sandbox import DeletionReason
from broker_common.core.usage import UsageLine
from broker_common.core.utc import DAY_SEC
from tests.api.harness import Api, assert_error, body_of, make_api, named_token, refusing
from tests.fakes import START, make_sandbox

if TYPE_CHECKING:
    from pathlib import Path

PATH = "/v1/admin/usage"
MIDNIGHT = START - START % DAY_SEC
ROW = (
    *("group", "leases", "sandbox_hours", "marked", "released", "expired"),
    *("lease_median_sec", "lease_p95_sec", "wipes", "wipe_median_sec", "wipe_p95_sec"),
)


def report(api: Api, by: str = "track_name", **query: Any) -> dict[str, Any]:
    return body_of(api.admin("GET", PATH, query_string={"from": START, "by": by, **query}), 200)


def as_csv(api: Api, accept: str = "text/csv") -> Any:
    return api.admin("GET", PATH, query_string={"from": START, "by": "track_name"}, headers={"Accept": accept})


def test_a_lease_counts_from_its_end_on(api: Api) -> None:
    api.store.seed(make_sandbox("1"))
    held = api.allocate(X_Instruqt_Track_ID="intro")
    api.clock.advance(1800)
    nothing = report(api)
    assert (nothing["rows"], nothing["total"]["leases"]) == ([], 0)
    body_of(api.track("POST", f"/v1/sandboxes/{held['sandbox_id']}/mark-for-deletion"), 200)
    api.clock.advance(1)
    found = report(api)
    assert (found["from"], found["to"], found["by"]) == (START, START + 1801, "track_name")
    (row,) = found["rows"]
    assert row.keys() == set(ROW)
    assert (row["group"], row["leases"], row["sandbox_hours"], row["marked"]) == ("intro", 1, 0.5, 1)
    assert (row["lease_median_sec"], row["wipes"], row["wipe_median_sec"]) == (1800, 0, None)
    assert found["total"] == row | {"group": None}
    assert [each["group"] for each in report(api, "customer")["rows"]] == [None]
    assert [each["group"] for each in report(api, "day")["rows"]] == ["2025-06-15"]
    assert report(api, to=START + 1800)["rows"] == []


def test_a_lease_is_that_of_the_customer_of_the_token_that_allocated(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(named_token("acme-tracks", "token-of-acme", "track") + 'customer = "acme"\n')
    api = make_api(BROKER_TOKENS_FILE=str(file))
    api.store.seed(make_sandbox("1"))
    api.track_headers = {"Authorization": "Bearer token-of-acme"}
    held = api.allocate()
    assert body_of(api.admin("GET", f"/v1/admin/sandboxes/{held['sandbox_id']}"))["customer"] == "acme"
    body = {"lease_id": held["lease_id"]}
    body_of(api.admin("POST", f"/v1/admin/sandboxes/{held['sandbox_id']}/release", json=body), 200)
    api.clock.advance(1)
    (row,) = report(api, "customer")["rows"]
    assert (row["group"], row["released"]) == ("acme", 1)
    (row,) = report(api, customer="acme")["rows"]
    assert (row["group"], row["released"]) == (None, 1)
    assert report(api, customer="other")["rows"] == []
    assert "customer" not in held


def test_the_rows_come_as_csv_for_a_spreadsheet_without_formulas(api: Api) -> None:
    for number, lab in enumerate(('=HYPERLINK("x")', 'a, "b"', None)):
        lease_id = str(number)
        api.store.usage[lease_id] = UsageLine(
            lease_id=lease_id,
            track_name=lab,
            allocated_at=START - 7200,
            ended_at=START + number,
            ending=DeletionReason.MARKED,
        )
    api.clock.advance(10)
    answer = as_csv(api)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    rows = list(csv.DictReader(StringIO(answer.text, newline="")))
    assert tuple(rows[0]) == ROW
    assert {each["group"] for each in rows} == {'\'=HYPERLINK("x")', 'a, "b"', ""}
    assert {each["wipe_median_sec"] for each in rows} == {""}


def test_csv_of_nothing_has_a_heading(api: Api) -> None:
    api.clock.advance(1)
    assert as_csv(api).text == ",".join(ROW) + "\r\n"


@pytest.mark.parametrize(
    ("accept", "is_csv"),
    [
        ("text/csv, application/json;q=0.5", True),
        ("application/json, text/csv;q=0.5", False),
        ("*/*", False),
        ("text/html", False),
        ("", False),
    ],
)
def test_the_form_is_the_one_that_the_caller_prefers(api: Api, accept: str, is_csv: bool) -> None:
    api.clock.advance(1)
    assert as_csv(api, accept).mimetype == ("text/csv" if is_csv else "application/json")


@pytest.mark.parametrize("accept", [None, "text/csv"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": MIDNIGHT - 90 * DAY_SEC - 1}, "from"),
        ({"from": START}, "from"),
        ({"from": START - 5, "to": START - 5}, "from"),
        ({"from": START - 5, "to": START - 6}, "from"),
        ({"from": START - 5, "to": START + 61}, "to"),
        ({"from": START + 61}, "from"),
        ({"from": "-1"}, "from"),
        ({"from": "30d"}, "from"),
        ({"from": 2**41}, "from"),
        ({"from": START - 5, "to": 2**41}, "to"),
        ({"from": START - 5, "to": ""}, "to"),
        ({"from": START - 5, "customer": ""}, "customer"),
        ({"by": "day", "from": None}, "from"),
        ({"by": None}, "by"),
        ({"by": "hour"}, "by"),
        ({"by": "Day"}, "by"),
        ({"limit": 5}, "limit"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_and_the_field_named(
    shared_api: Api, query: dict[str, Any], field: str, accept: str | None
) -> None:
    asked = {"from": START - 5, "by": "day", **query}
    answer = shared_api.admin(
        "GET",
        PATH,
        query_string={name: value for name, value in asked.items() if value is not None},
        headers={} if accept is None else {"Accept": accept},
    )
    error = assert_error(answer, 400, "VALIDATION_ERROR")
    assert error["details"].keys() == {field}
    assert error["message"].startswith(f"{field}: ")


def test_a_time_before_what_is_kept_is_answered_with_the_earliest(api: Api) -> None:
    error = assert_error(api.admin("GET", f"{PATH}?from=5&by=day"), 400, "VALIDATION_ERROR")
    earliest = MIDNIGHT - 90 * DAY_SEC
    assert str(earliest) in error["message"]
    assert report(api, "day", **{"from": earliest})["rows"] == []


def test_a_store_that_is_away_is_answered_503() -> None:
    api = make_api(around=refusing("read_usage"))
    api.clock.advance(1)
    assert_error(api.admin("GET", f"{PATH}?from={START}&by=day"), 503, "SERVICE_UNAVAILABLE")
