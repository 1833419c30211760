"""The operator's command line, where no broker is needed to see what it does."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest
import requests
import responses
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_common.cli import commands

SIGNS = (
    "BROKER_API_TOKEN",
    "BROKER_API_TOKEN_FILE",
    "BROKER_TOKENS_FILE",
    "CSP_BASE_URL",
    "CSP_API_TOKEN",
    "REDIS_URL",
)
URL = "http://127.0.0.1:8080/v1/admin"
QUICK = settings(max_examples=50, derandomize=True, deadline=None, database=None)


def broker(*words: str, **env: str) -> Result:
    return CliRunner().invoke(commands.main, words, env={"BROKER_ADMIN_TOKEN": "a-token"} | env, prog_name="broker")


@responses.activate
@pytest.mark.parametrize(
    ("words", "query"),
    [
        ((), {"sort": "sandbox_id", "limit": "1000"}),
        (("--sort", "-expires_at"), {"sort": "-expires_at", "limit": "1000"}),
        (
            ("--name", "lab", "--status", "stale"),
            {"name": "lab", "status": "stale", "sort": "sandbox_id", "limit": "1000"},
        ),
        (("--lab", "intro"), {"track_name": "intro", "sort": "sandbox_id", "limit": "1000"}),
        (("--status", "stale", "--track", "mine"), {"status": "stale", "track_id": "mine", "limit": "100"}),
    ],
)
def test_a_listing_is_read_page_after_page(words: tuple[str, ...], query: dict[str, str]) -> None:
    for cursor, following in ((None, "next"), ("next", None)):
        asked: dict[str, Any] = query | ({"cursor": cursor} if cursor else {})
        page = {"sandboxes": [{"sandbox_id": f"after-{cursor}"}], "unreadable": [], "cursor": following}
        responses.get(f"{URL}/sandboxes", json=page, match=[responses.matchers.query_param_matcher(asked)])
    listed = [json.loads(line)["sandbox_id"] for line in broker("sandboxes", *words, "--json").stdout.splitlines()]
    assert listed == ["after-None", "after-next"]


def fact(number: int, **values: Any) -> dict[str, Any]:
    """Return a fact as the API shows it."""
    return {
        "kind": "sandbox.updated",
        "at": 1_750_000_000 + number,
        "sandbox_id": "7",
        "fact_id": None,
        "version": number,
        "principal": "anna",
        "track_id": None,
        "status_before": "stale",
        "status": "stale",
        "details": {},
    } | values


@responses.activate
def test_a_follower_shows_once_what_the_feed_repeats_and_reads_on_where_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "_FOLLOW_SEC", 0)
    pages: tuple[tuple[dict[str, str], list[dict[str, Any]], str, bool], ...] = (
        ({}, [fact(1), fact(2)], "b", False),
        ({"after": "b"}, [fact(3)], "c", True),
        ({"after": "c"}, [fact(1), fact(2), fact(3), fact(3, kind="sandbox.stale")], "d", True),
        ({"after": "d"}, [fact(3), fact(4)], "e", True),
    )
    for query, shown, cursor, is_last in pages:
        feed = {"events": shown, "cursor": cursor, "is_last": is_last}
        match = [responses.matchers.query_param_matcher({"limit": "1000", **query}, strict_match=False)]
        responses.get(f"{URL}/events", json=feed, match=match)
    refusal = {"error": {"code": "UNAUTHORIZED", "message": "no such token", "request_id": "r"}}
    at_the_end = [responses.matchers.query_param_matcher({"after": "e"}, strict_match=False)]
    # What may pass is waited for.
    responses.get(f"{URL}/events", body=requests.ConnectionError("away"), match=at_the_end)
    responses.get(f"{URL}/events", status=503, body="<html>", match=at_the_end)
    responses.get(
        f"{URL}/events",
        json=refusal,
        status=401,
        match=at_the_end,
    )
    result = broker("events", "--follow", "--json")
    assert [json.loads(line)["version"] for line in result.stdout.splitlines()] == [1, 2, 3, 3, 4]
    assert (result.exit_code, "no such token" in result.stderr) == (1, True)


@responses.activate
def test_a_sandbox_that_rests_after_its_wipe_does_not_wait_for_deletion() -> None:
    listed = [
        {"sandbox_id": "1", "deletion_requested_at": 1_750_000_000, "ready_at": 1_750_009_000},
        {"sandbox_id": "2", "deletion_requested_at": 1_750_000_100, "ready_at": None},
    ]
    responses.get(f"{URL}/stats", json={"pending_deletion": 2, "total": 2})
    for status, found in (("pending_deletion", listed), ("available", [])):
        match = [responses.matchers.query_param_matcher({"status": status}, strict_match=False)]
        responses.get(f"{URL}/sandboxes", json={"sandboxes": found, "unreadable": [], "cursor": None}, match=match)
    (oldest,) = [line for line in broker("pool").stdout.splitlines() if line.startswith("oldest deletion")]
    assert "2025-06-15 15:08:20Z" in oldest


@responses.activate
def test_a_fact_is_one_line_for_a_person() -> None:
    facts = [
        fact(0, kind="sandbox.removed", status=None, track_id="t", details={"tombstone": True}),
        fact(1, kind="sandbox.added", status_before=None, status="available"),
        fact(2),
        fact(3, kind="pool.paused", sandbox_id=None, fact_id="f", status=None, status_before=None, version=None),
    ]
    responses.get(f"{URL}/events", json={"events": facts, "cursor": "a", "is_last": True})
    assert [re.split("  +", line) for line in broker("events").stdout.splitlines()] == [
        ["2025-06-15 15:06:40Z", "7", "sandbox.removed", "stale → gone", "t", "by anna", "tombstone=True"],
        ["2025-06-15 15:06:41Z", "7", "sandbox.added", "- → available", "by anna"],
        ["2025-06-15 15:06:42Z", "7", "sandbox.updated", "stale", "by anna"],
        ["2025-06-15 15:06:43Z", "pool", "pool.paused", "by anna"],
    ]


@responses.activate
def test_check_in_an_operator_s_shell_asks_the_api_and_leaves_out_each_process_without_settings() -> None:
    responses.get(f"{URL}/stats", json={"available": 7, "total": 9})
    result = broker("check", **dict.fromkeys(SIGNS, " "), BROKER_API_URL=URL.removesuffix("/admin"))
    signs_of_api = "BROKER_API_TOKEN, BROKER_API_TOKEN_FILE or BROKER_TOKENS_FILE"
    assert result.stdout.splitlines() == [
        f"settings  --   the API is left out without {signs_of_api}; to look: --process api",
        "settings  --   a worker is left out without CSP_BASE_URL or CSP_API_TOKEN; to look: --process worker",
        "settings  --   beat is left out without REDIS_URL; to look: --process beat",
        "api       OK   answers, and counts 9 sandboxes",
    ]
    assert result.exit_code == 0


@responses.activate
def test_check_tells_an_api_apart_that_is_not_the_broker_s() -> None:
    responses.get(f"{URL}/stats", json={"hello": "world"})
    result = broker("check", **dict.fromkeys(SIGNS, ""), BROKER_API_URL=URL.removesuffix("/admin"))
    assert result.exit_code == 1
    assert "api       FAIL answers without a total" in result.stdout


def test_check_without_any_setting_is_not_all_right() -> None:
    result = broker("check", **dict.fromkeys(SIGNS, ""), BROKER_ADMIN_TOKEN="")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[3:] == ["api       FAIL BROKER_ADMIN_TOKEN: Missing: an operator's token, plain."]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"BROKER_API_TOKEN": "track_token_123"}, {"BROKER_ADMIN_TOKEN", "RECYCLE_POLICY"}),
        ({"BROKER_API_TOKEN_FILE": "/nowhere"}, {"BROKER_API_TOKEN_FILE", "BROKER_ADMIN_TOKEN", "RECYCLE_POLICY"}),
        ({"BROKER_TOKENS_FILE": "/nowhere"}, {"BROKER_TOKENS_FILE", "RECYCLE_POLICY"}),
        ({"CSP_API_TOKEN": "a-token"}, {"CSP_BASE_URL", "RECYCLE_POLICY"}),
        ({"REDIS_URL": "http://nowhere"}, {"REDIS_URL"}),
    ],
)
def test_check_is_strict_with_a_process_of_whose_settings_one_is_there(given: dict[str, str], found: set[str]) -> None:
    settings = dict.fromkeys([*SIGNS, "BROKER_ADMIN_TOKEN", "BROKER_ENV", "RECYCLE_POLICY"], "")
    result = broker("check", **settings | given)
    assert result.exit_code == 1
    failures = re.findall(r"^settings  FAIL (\w+): ", result.stdout, re.MULTILINE)
    assert set(failures) - {"BROKER_API_TOKEN"} == found


@responses.activate
def test_whoami_shows_whose_token_it_is_and_its_roles() -> None:
    responses.get(f"{URL}/whoami", json={"principal": "anna", "roles": ["track", "viewer"], "customer": None})
    assert broker("whoami").stdout.splitlines() == [
        "principal  anna",
        "roles      track, viewer",
        "customer   -",
    ]


@responses.activate
def test_a_sandbox_whose_record_cannot_be_read_is_listed_with_the_reason() -> None:
    page = {
        "sandboxes": [{"sandbox_id": "7", "status": "stale", "dirty": True}],
        "unreadable": [{"sandbox_id": "8", "reason": "name is missing"}],
        "cursor": None,
    }
    responses.get(f"{URL}/sandboxes", json=page)
    bad = {"sandbox_id": "8", "status": "unreadable", "reason": "name is missing"}
    listed = [json.loads(line) for line in broker("sandboxes", "--json").stdout.splitlines()]
    assert listed == [*page["sandboxes"], bad]  # type: ignore[misc] # a list
    assert broker("sandboxes", "--csv").stdout.split() == [
        "sandbox_id,status,dirty,reason", "7,stale,True,", "8,unreadable,,name", "is", "missing"
    ]  # fmt: skip
    _, *rows = [line.split() for line in broker("sandboxes").stdout.splitlines()]
    assert [row[0] for row in rows] == ["7", "8"]
    assert rows[1][2] == "unreadable"


@responses.activate
def test_an_error_that_is_not_the_broker_s_is_told_apart() -> None:
    responses.get(f"{URL}/stats", json={"detail": "a proxy's"}, status=502)
    result = broker("pool")
    assert result.exit_code == 1
    assert "answered 502: is this the broker's API?" in result.stderr


@responses.activate
def test_a_refusal_is_none_the_less_one_with_the_status_of_a_success() -> None:
    refusal = {"error": {"code": "UNAUTHORIZED", "message": "no such token", "request_id": "r"}}
    responses.post(f"{URL}/sync", json=refusal, status=200)
    result = broker("job", "run", "sync")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such token (200 UNAUTHORIZED, request r)" in result.stderr


@responses.activate
def test_a_job_s_state_is_said_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_FOLLOW_SEC", 0)
    monkeypatch.setattr(commands, "_SAY_AGAIN_SEC", 3600)
    responses.post(f"{URL}/sync", json={"job_id": "7"}, status=202)
    for state in ("queued", "running", "running", "succeeded"):
        responses.get(f"{URL}/jobs/7", json={"state": state})
    result = broker("job", "run", "sync", "--wait")
    said = [line.partition(" … ")[0] for line in result.stderr.splitlines()]
    assert said == ["7 is asked for", "queued", "running", "succeeded"]


@responses.activate
def test_the_last_runs_are_a_table_that_says_who_asked_for_each() -> None:
    runs = [
        {
            "job_id": "8",
            "job": "purge_stale",
            "state": "skipped",
            "principal": "job:purge_stale",
            "started_at": 1_750_000_000,
            "error": "paused by an operator",
        },
        {"job_id": "7", "job": "purge_stale", "state": "queued", "principal": "alice", "queued_at": 1_750_000_000},
        {
            "job_id": "6",
            "job": "purge_stale",
            "state": "succeeded",
            "principal": "alice",
            "result": {"removed": 4, "kept": 2, "failed": 0},
        },
    ]
    query = {"job": "purge_stale", "limit": "2"}
    match = [responses.matchers.query_param_matcher(query)]
    responses.get(f"{URL}/jobs", json={"runs": runs, "count": 2}, match=match)
    result = broker("jobs", "--job", "purge-stale", "--limit", "2")
    assert result.exit_code == 0
    head, skipped, queued, succeeded = (re.split(r"  +", line) for line in result.stdout.splitlines())
    assert head == ["job_id", "job", "state", "principal", "started_at", "result"]
    assert skipped[:4] == ["8", "purge_stale", "skipped", "job:purge_stale"]
    assert skipped[4].startswith("2025-06-15 15:06:40Z, ")
    assert skipped[5] == "paused by an operator"
    assert queued[3:] == ["alice", "-", "-"]
    assert succeeded[5] == "removed=4 kept=2"


@responses.activate
def test_the_last_runs_of_all_jobs_are_listed_if_none_is_named() -> None:
    match = [responses.matchers.query_param_matcher({"limit": "20"})]
    responses.get(f"{URL}/jobs", json={"runs": [], "count": 0}, match=match)
    assert broker("jobs").exit_code == 0


@pytest.mark.parametrize("words", [("--job", "nonsense"), ("--limit", "0"), ("--limit", "101")])
def test_a_listing_of_runs_that_cannot_be_is_wrong_use(words: tuple[str, str]) -> None:
    assert broker("jobs", *words).exit_code == 2


def test_a_table_is_not_created_with_bad_settings() -> None:
    result = broker("table", "create", DDB_TABLE_NAME="no good", AWS_REGION="")
    assert result.exit_code == 2
    assert any(line.startswith("DDB_TABLE_NAME: ") for line in result.stderr.splitlines())


def test_a_table_that_cannot_be_created_is_told_in_one_line(aws_environment: dict[str, str]) -> None:
    result = broker("table", "create", DDB_ENDPOINT_URL="http://127.0.0.1:1", **aws_environment)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("table SandboxPool could not be created: ")


def in_csv(value: object) -> str:
    """Return a sandbox's name as `broker sandboxes --csv` writes it, read back."""
    with responses.RequestsMock() as api:
        api.get(
            f"{URL}/sandboxes",
            json={
                "sandboxes": [{"sandbox_id": "1", "status": "stale", "name": value}],
                "unreadable": [],
                "cursor": None,
            },
        )
        (row,) = csv.DictReader(io.StringIO(broker("sandboxes", "--csv").stdout, newline=""))
    return row["name"]


@QUICK
@given(
    start=st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"]), rest=st.text("=1+A()'\",; ", max_size=8)
)
def test_no_cell_of_the_csv_is_a_formula(start: str, rest: str) -> None:
    assert in_csv(start + rest) == f"'{start}{rest}"


@QUICK
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text[0].isalnum()))
def test_other_cells_are_written_as_they_are(name: str) -> None:
    assert in_csv(name) == name


def test_a_number_in_the_csv_stays_one() -> None:
    assert in_csv(-5) == "-5"
