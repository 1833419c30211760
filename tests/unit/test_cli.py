"""The operator's command line, where no broker is needed to see what it does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import time
from typing import Any

import pytest
import requests
import responses
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from broker_common.cli import jobs, pool, sandboxes, tokens
from broker_common.cli.commands import main
from broker_common.core.policy import RecyclePolicy
from broker_common.core.principals import Role
from broker_common.tokens import BadTokenError, parse_tokens, split_tokens
from tests.examples import examples
from tests.issuer import Key

SIGNS = (
    "BROKER_API_TOKEN",
    "BROKER_API_TOKEN_FILE",
    "BROKER_TOKENS_FILE",
    "CSP_BASE_URL",
    "CSP_API_TOKEN",
    "REDIS_URL",
    "CONSOLE_SECRET_KEY",
)
ROOT_URL = "http://127.0.0.1:8080"
URL = f"{ROOT_URL}/v1/admin"
MADE_UP = examples(50, derandomize=True, database=None)


def broker(*words: str, **env: str) -> Result:
    return CliRunner().invoke(main, words, env={"BROKER_ADMIN_TOKEN": "a-token"} | env, prog_name="broker")


def refusal(code: str, message: str) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"code": code, "message": message, "request_id": "r"}}


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
    monkeypatch.setattr(pool, "_FOLLOW_SEC", 0)
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
    at_the_end = [responses.matchers.query_param_matcher({"after": "e"}, strict_match=False)]
    # What may pass is waited for.
    responses.get(f"{URL}/events", body=requests.ConnectionError("away"), match=at_the_end)
    responses.get(f"{URL}/events", status=503, body="<html>", match=at_the_end)
    unknown = refusal("UNAUTHORIZED", "no such token")
    responses.get(f"{URL}/events", json=unknown, status=401, match=at_the_end)
    result = broker("events", "--follow", "--json")
    assert [json.loads(line)["version"] for line in result.stdout.splitlines()] == [1, 2, 3, 3, 4]
    assert (result.exit_code, "no such token" in result.stderr) == (1, True)


@responses.activate
@pytest.mark.parametrize("pending", [0, 700])
def test_pool_is_one_call_however_much_is_pending(pending: int) -> None:
    overview = {
        "counts": {"available": 3, "pending_deletion": pending, "total": 3 + pending},
        "oldest_pending_deletion_at": 1_750_000_100 if pending else None,
        "last_sync_at": 1_750_000_000,
        "pauses": {"paused": [{"operation": "sync"}, {"operation": "cleanup"}] if pending else []},
    }
    responses.get(f"{URL}/overview", json=overview)
    shown = [re.split("  +", line) for line in broker("pool").stdout.splitlines()]
    assert len(responses.calls) == 1
    assert shown[:3] == [["available", "3"], ["pending_deletion", str(pending)], ["total", str(3 + pending)]]
    (oldest, since), (synced, at), paused = shown[3:]
    assert (oldest, since.partition(",")[0]) == ("oldest deletion", "2025-06-15 15:08:20Z" if pending else "-")
    assert (synced, at.partition(",")[0]) == ("last sync", "2025-06-15 15:06:40Z")
    assert paused == ["paused", "sync, cleanup" if pending else "-"]
    assert json.loads(broker("pool", "--json").stdout) == overview


@responses.activate
@pytest.mark.parametrize(
    ("why", "told"),
    [
        ({"pauses_error": "DynamoDB does not answer"}, "unknown: DynamoDB does not answer"),
        ({}, "unknown: the API does not say why"),
    ],
)
def test_pool_says_why_the_pauses_are_unknown(why: dict[str, str], told: str) -> None:
    times = {"oldest_pending_deletion_at": None, "last_sync_at": None}
    responses.get(f"{URL}/overview", json={"counts": {"total": 3}, **times, "pauses": None, **why})
    result = broker("pool")
    assert (result.exit_code, re.split("  +", result.stdout.splitlines()[-1])) == (0, ["paused", told])


CALM: dict[str, Any] = {
    "counts": {
        "available": 1042,
        "reserved": 3,
        "allocated": 7,
        "pending_deletion": 2,
        "stale": 1,
        "deletion_failed": 0,
        "total": 1055,
    },
    "counted_at": 1_750_000_000,
    "oldest_pending_deletion_at": None,
    "last_sync_at": 1_749_999_400,
    "line": {"waiting": 0, "longest_waiting_since": None},
    "allocates": {"success": 118, "idempotent": 4, "no_sandboxes": 0, "waiting": 0, "error": 0},
    "allocates_since": 1_749_996_400,
    "reservations": [],
    "webhooks": {"endpoints": 0, "failing": 0, "disabled": 0},
    "pauses": {"paused": []},
    "pauses_error": None,
    "jobs": [
        {"job": "sync", "state": "succeeded", "ended_at": 1_749_999_400, "result": {"synced": 50, "added": 0}},
        {"job": "purge_stale", "state": "running", "started_at": 1_749_999_990},
    ],
    "jobs_error": None,
    "breaker": {"state": "closed", "failures": 0, "reason": None, "open_until": None},
    "breaker_error": None,
}
"""The overview of a broker that needs no look."""
CLASS = {
    "reservation_id": "res-1",
    "name": "Intro",
    "state": "open",
    "starts_at": 1_749_999_000,
    "ends_at": 1_750_003_200,
    "count": 30,
    "set_aside": 4,
    "drawn": 24,
    "short_by": 2,
}


@pytest.fixture
def at_1_750_000_002(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_750_000_002.0)


@responses.activate
@pytest.mark.usefixtures("at_1_750_000_002")
def test_the_overview_of_a_calm_broker_fits_on_a_screen_and_says_that_nothing_needs_a_look() -> None:
    responses.get(f"{URL}/overview", json=CALM)
    assert broker("overview").stdout.splitlines() == [
        "OK: nothing needs a look",
        "",
        "Pool          1,042 available of 1,054 in service (98 %)",
        "              3 set aside, 7 in use, 2 waiting for the wipe",
        "              out of service: 1 stale, 0 with a failed deletion",
        "              counted 2 s ago",
        "Oldest wipe   -",
        "Line          0 wait",
        "Last hour     118 got a sandbox, 4 asked again, 0 waiting, 0 refused, 0 failed",
        "Reservations  -",
        "Webhooks      -",
        "Paused        -",
        "Breaker       closed",
        "Last sync     10 min ago",
        "Jobs          sync         succeeded  10 min ago   synced=50",
        "              purge_stale  running    12 s ago",
    ]
    assert json.loads(broker("overview", "--json").stdout) == CALM


@responses.activate
@pytest.mark.usefixtures("at_1_750_000_002")
def test_the_overview_says_what_needs_a_look_and_which_command_says_more() -> None:
    trouble = {
        "counts": CALM["counts"] | {"available": 0, "deletion_failed": 3},
        "oldest_pending_deletion_at": 1_749_990_000,
        "line": {"waiting": 12, "longest_waiting_since": 1_749_999_700},
        "allocates": CALM["allocates"] | {"error": 5},
        "reservations": [CLASS, CLASS | {"name": "Full", "short_by": 0}],
        "webhooks": {"endpoints": 5, "failing": 2, "disabled": 1},
        "pauses": {
            "paused": [
                {"operation": "cleanup", "by": "ops-anna", "since": 1_749_999_882},
                {"operation": "sync", "by": None, "since": None},
            ]
        },
        "jobs": [{"job": "purge_stale", "state": "failed", "ended_at": 1_749_827_202, "error": "a reason"}],
        "breaker": {"state": "open", "failures": 5, "reason": "the provider answered 500", "open_until": 1_750_000_050},
    }
    responses.get(f"{URL}/overview", json=CALM | trouble)
    lines = broker("overview").stdout.splitlines()
    blank = lines.index("")
    assert lines[:blank] == [
        "LOOK: cleanup is paused by ops-anna for 2 min: broker resume cleanup",
        "LOOK: sync is paused: broker resume sync",
        "LOOK: no sandbox is available: broker sandboxes",
        "LOOK: 12 tracks wait in line: broker line",
        "LOOK: 5 requests to allocate failed in the last hour: read the log of the API",
        "LOOK: 3 sandboxes need a person: broker sandboxes --status deletion_failed",
        "LOOK: a wipe has waited for 2 h: broker sandboxes --status pending_deletion",
        "LOOK: the provider's circuit breaker is open: the provider answered 500",
        "LOOK: the job purge_stale failed: broker jobs --job purge-stale",
        "LOOK: the reservation Intro lacks 2: broker reservation show res-1",
        "LOOK: 2 of 5 webhooks fail: broker webhook list",
        "LOOK: 1 of 5 webhooks are disabled: broker webhook list",
    ]
    for line in (
        "Line          12 wait, the longest for 5 min",
        "Oldest wipe   waits for 2 h",
        "Reservations  Intro: open until 16:00Z, 24 of 30 in use or used, 4 set aside, lacks 2",
        "              Full: open until 16:00Z, 24 of 30 in use or used, 4 set aside",
        "Webhooks      5 endpoints, 2 failing, 1 disabled",
        "Paused        cleanup, sync",
        "Breaker       open",
        "Jobs          purge_stale  failed     2 d ago      a reason",
    ):
        assert line in lines[blank:], (line, lines)


@responses.activate
def test_the_overview_says_what_is_not_known_and_why() -> None:
    away = {"jobs": None, "jobs_error": "Redis is away", "breaker": None, "breaker_error": "Redis is away"}
    empty = {"counts": dict.fromkeys(CALM["counts"], 0), "last_sync_at": None}
    responses.get(f"{URL}/overview", json=CALM | away | empty | {"pauses": None, "pauses_error": "it is damaged"})
    lines = broker("overview").stdout.splitlines()
    assert lines[0] == "LOOK: the pauses cannot be read: it is damaged"
    assert "LOOK: Redis is away: broker health" in lines
    for line in (
        "Pool          0 available of 0 in service",
        "Paused        not known",
        "Breaker       not known",
        "Last sync     -",
        "Jobs          not known",
    ):
        assert line in lines


@responses.activate
@pytest.mark.usefixtures("at_1_750_000_002")
def test_the_overview_shows_a_breaker_whose_reason_is_not_known_and_a_run_that_has_not_begun() -> None:
    more = {"breaker": CALM["breaker"] | {"state": "half-open"}, "jobs": [{"job": "sync", "state": "queued"}]}
    responses.get(f"{URL}/overview", json=CALM | more)
    lines = broker("overview").stdout.splitlines()
    assert lines[0] == "LOOK: the provider's circuit breaker is half-open: its reason is not known"
    assert lines[-1] == "Jobs          sync         queued"


@responses.activate
@pytest.mark.parametrize("is_earlier", [True, False])
def test_pool_tells_an_api_of_an_earlier_release_from_a_wrong_address(is_earlier: bool) -> None:
    missing = refusal("NOT_FOUND", "no such path")
    responses.get(f"{URL}/overview", json=missing, status=404)
    responses.get(f"{URL}/stats", json={"total": 3} if is_earlier else missing, status=200 if is_earlier else 404)
    result = broker("pool")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert ("this API is of an earlier release, which has no overview: upgrade it" in line) is is_earlier
    assert ("is BROKER_API_URL right?" in line) is not is_earlier


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
        f"settings  --   the API is left out without {signs_of_api}; to check it: --process api",
        "settings  --   a worker is left out without CSP_BASE_URL or CSP_API_TOKEN; to check it: --process worker",
        "settings  --   beat is left out without REDIS_URL; to check it: --process beat",
        "settings  --   the console is left out without CONSOLE_SECRET_KEY; to check it: --process console",
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
    assert result.stdout.splitlines()[4:] == [
        "api       FAIL BROKER_ADMIN_TOKEN: Missing: give a token here, plain and not hashed."
    ]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"BROKER_API_TOKEN": "track_token_123"}, {"BROKER_ADMIN_TOKEN", "RECYCLE_POLICY"}),
        ({"BROKER_API_TOKEN_FILE": "/nowhere"}, {"BROKER_API_TOKEN_FILE", "BROKER_ADMIN_TOKEN", "RECYCLE_POLICY"}),
        ({"BROKER_TOKENS_FILE": "/nowhere"}, {"BROKER_TOKENS_FILE", "RECYCLE_POLICY"}),
        ({"CSP_API_TOKEN": "a-token"}, {"CSP_BASE_URL", "RECYCLE_POLICY"}),
        ({"REDIS_URL": "http://nowhere"}, {"REDIS_URL"}),
        ({"CONSOLE_SECRET_KEY": "short"}, {"CONSOLE_SECRET_KEY", "BROKER_API_URL"}),
    ],
)
def test_check_is_strict_with_a_process_of_whose_settings_one_is_there(given: dict[str, str], found: set[str]) -> None:
    settings = dict.fromkeys([*SIGNS, "BROKER_ADMIN_TOKEN", "BROKER_ENV", "RECYCLE_POLICY"], "")
    result = broker("check", **settings | given)
    assert result.exit_code == 1
    failures = re.findall(r"^settings  FAIL (\w+): ", result.stdout, re.MULTILINE)
    assert set(failures) - {"BROKER_API_TOKEN"} == found


KEY = "the-secret-key-of-the-console-123456"
OF_CONSOLE = dict.fromkeys([*SIGNS, "BROKER_ADMIN_TOKEN"], "") | {
    "BROKER_ENV": "production",
    "CONSOLE_SECRET_KEY": KEY,
    "BROKER_API_URL": URL.removesuffix("/admin"),
}
ISSUER = "https://issuer.example.com"
OF_ISSUER = {
    "OIDC_ISSUER": ISSUER,
    "OIDC_AUDIENCE": "https://broker.example.com",
    "OIDC_CLIENT_ID": "console",
    "OIDC_CLIENT_SECRET": "the-secret-at-the-issuer",
}
METADATA = {
    "issuer": ISSUER,
    "jwks_uri": f"{ISSUER}/keys",
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
}


def answer_as_api_and_issuer(**metadata: str) -> None:
    responses.get(f"{URL}/whoami", json=refusal("UNAUTHORIZED", "the token is unknown"), status=401)
    responses.get(f"{ISSUER}/.well-known/openid-configuration", json=METADATA | metadata)
    responses.get(f"{ISSUER}/keys", json={"keys": [Key("first", "EdDSA").public()]})


def found_by(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


@responses.activate
def test_check_of_the_console_asks_the_api_and_the_issuer_and_shows_no_secret() -> None:
    answer_as_api_and_issuer()
    result = broker("check", "--process", "console", **OF_CONSOLE, **OF_ISSUER)
    assert found_by(result) == [
        "settings OK the console can start with them",
        f"api OK {URL.removesuffix('/admin')} is the broker's API, and answers",
        "issuer OK publishes keys that the broker can use: 1",
    ]
    assert result.exit_code == 0
    assert KEY not in result.output
    assert "the-secret-at-the-issuer" not in result.output


@responses.activate
def test_check_in_the_shell_of_a_console_looks_at_it_without_a_token() -> None:
    answer_as_api_and_issuer()
    result = broker("check", **OF_CONSOLE)
    assert [line.split()[:2] for line in found_by(result)] == [["settings", "--"]] * 3 + [
        ["settings", "OK"],
        ["api", "OK"],
    ]
    assert "the console is left out" not in result.stdout


@responses.activate
def test_check_of_an_operator_with_the_console_s_settings_asks_the_api_once_by_the_token() -> None:
    responses.get(f"{URL}/stats", json={"total": 9})
    result = broker("check", **OF_CONSOLE | {"BROKER_ADMIN_TOKEN": "a-token"})
    assert [line for line in found_by(result) if line.startswith("api")] == ["api OK answers, and counts 9 sandboxes"]
    assert result.exit_code == 0


@responses.activate
@pytest.mark.parametrize("process", [("--process", "console"), ()])
@pytest.mark.parametrize("missing", ["authorization_endpoint", "token_endpoint"])
def test_check_says_that_people_cannot_be_sent_to_an_issuer_without_an_address_for_that(
    process: tuple[str, ...], missing: str
) -> None:
    answer_as_api_and_issuer(**{missing: "http://issuer.example.com"})
    result = broker("check", *process, **OF_CONSOLE, **OF_ISSUER)
    assert result.exit_code == 1
    assert (
        f"issuer FAIL its discovery document has no {missing} with https: look at OIDC_ISSUER" in found_by(result)[-1]
    )


@responses.activate
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"json": refusal("NOT_FOUND", "no such path"), "status": 404}, "answered 404 NOT_FOUND: look at"),
        ({"json": refusal("SERVICE_UNAVAILABLE", "away"), "status": 503}, "answered 503 SERVICE_UNAVAILABLE: look at"),
        ({"json": {"hello": "world"}}, "takes any token: look at"),
        ({"body": "<html>"}, "answered 200 without JSON: is this the broker's API?: look at"),
        ({"body": requests.ConnectionError()}, "cannot be reached (ConnectionError): is BROKER_API_URL right?: look"),
    ],
)
def test_check_of_the_console_says_what_is_wrong_with_the_api(answer: dict[str, Any], told: str) -> None:
    responses.get(f"{URL}/whoami", **answer)
    result = broker("check", "--process", "console", **OF_CONSOLE)
    (line,) = [line for line in found_by(result) if line.startswith("api FAIL")]
    assert told in line
    assert "BROKER_API_URL, which has the base path" in line
    assert result.exit_code == 1


def test_check_of_the_console_names_each_bad_setting_and_asks_nobody() -> None:
    result = broker("check", "--process", "console", **OF_CONSOLE | {"CONSOLE_SECRET_KEY": "short-secret"})
    assert [line.split()[:3] for line in found_by(result)] == [
        ["settings", "FAIL", "CONSOLE_SECRET_KEY:"],
        ["api", "FAIL", "not"],
    ]
    assert "short-secret" not in result.output


@responses.activate
def test_whoami_shows_whose_token_it_is_and_its_roles() -> None:
    responses.get(f"{URL}/whoami", json={"principal": "anna", "roles": ["track", "viewer"], "customer": None})
    assert broker("whoami").stdout.splitlines() == [
        "principal  anna",
        "roles      track, viewer",
        "customer   -",
    ]


@responses.activate
@pytest.mark.parametrize("source", ["variable", "stdin"])
def test_a_token_is_checked_and_hashed_and_not_shown(source: str) -> None:
    def run(*words: str) -> Result:
        given = ("--stdin",) if source == "stdin" else ("--env", "NEW_TOKEN")
        text = "the-new-token\n" if source == "stdin" else None
        env = {"BROKER_ADMIN_TOKEN": "", "NEW_TOKEN": "the-new-token"}
        return CliRunner().invoke(main, ["token", *words, *given], env=env, input=text, prog_name="broker")

    match = [responses.matchers.header_matcher({"Authorization": "Bearer the-new-token"})]
    responses.get(f"{URL}/whoami", json={"principal": "anna", "roles": ["viewer"], "customer": None}, match=match)
    assert run("check").stdout.splitlines()[:2] == ["principal  anna", "roles      viewer"]
    assert run("hash").stdout == f"{hashlib.sha256(b'the-new-token').hexdigest()}\n"
    assert "the-new-token" not in run("check").output + run("hash").output


def test_a_token_is_asked_for_at_a_terminal_and_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "is_terminal", lambda: True)
    result = CliRunner().invoke(main, ["token", "hash", "--stdin"], input="the-new-token\n")
    assert result.stdout.strip() == hashlib.sha256(b"the-new-token").hexdigest()
    assert "the-new-token" not in result.output


@responses.activate
def test_a_token_for_tracks_alone_is_good_and_its_track_can_be_checked() -> None:
    only_track = refusal("FORBIDDEN", "this call needs the role viewer, and the token has only track")
    responses.get(f"{URL}/whoami", json=only_track, status=403)
    of_track = [responses.matchers.header_matcher({"X-Track-ID": "acme-7"})]
    of_other = [responses.matchers.header_matcher({"X-Track-ID": "other"})]
    responses.get(f"{ROOT_URL}/v1/sandboxes", json={"sandboxes": [], "count": 0}, match=of_track)
    responses.get(f"{ROOT_URL}/v1/sandboxes", json=refusal("FORBIDDEN", "not its track"), status=403, match=of_other)
    good = broker("token", "check", "--track", "acme-7")
    assert good.stdout.splitlines() == ["the token is good, and for tracks alone", "the token may act for acme-7"]
    bad = broker("token", "check", "--track", "other")
    assert (bad.exit_code, "not its track" in bad.stderr) == (1, True)


@responses.activate
@pytest.mark.parametrize(
    ("words", "source"),
    [
        ((), "BROKER_ADMIN_TOKEN"),
        (("--env", "NEW_TOKEN"), "NEW_TOKEN"),
        (("--stdin",), "the token on standard input"),
    ],
)
def test_an_unknown_token_is_told_with_its_source_and_exits_1(words: tuple[str, ...], source: str) -> None:
    responses.get(f"{URL}/whoami", json=refusal("UNAUTHORIZED", "the token is unknown"), status=401)
    env = {"BROKER_ADMIN_TOKEN": "a-token", "NEW_TOKEN": "a-token"}
    result = CliRunner().invoke(main, ["token", "check", *words], env=env, input="a-token\n")
    assert (result.exit_code, result.stdout) == (1, "")
    told = f"Error: the token is unknown (401 UNAUTHORIZED, request r): is {source} right?\n"
    assert result.stderr == told


SEVERAL = "the-new-token, acme-*=the-old-token\n"


def with_several(*words: str, by: str) -> Result:
    """Run a command of `broker token` on two tokens, given by a variable or on standard input."""
    given = ("--stdin",) if by == "standard input" else ("--env", by)
    result = CliRunner().invoke(main, ["token", *words, *given], env={by: SEVERAL}, input=SEVERAL)
    assert not re.search("new-token|old-token|acme", result.output)
    return result


@pytest.mark.parametrize("by", ["NEW_TOKEN", "standard input"])
def test_each_of_several_tokens_is_hashed_as_the_api_knows_it(by: str) -> None:
    first, second = (each.digest.hex() for each in parse_tokens(SEVERAL, Role.TRACK))
    assert with_several("hash", by=by).stdout.splitlines() == [
        f"token 1 of {by}: {first}",
        f"token 2 of {by}: {second}",
    ]


@MADE_UP
@given(words=st.lists(st.sampled_from(["a", "b*", "*=", "=", ",", "\n", " "]), max_size=12))
def test_a_list_of_tokens_is_divided_as_the_api_divides_it(words: list[str]) -> None:
    text = "".join(words)
    secrets = [secret for _, secret in split_tokens(text)]
    try:
        known = [each.digest for each in parse_tokens(text, Role.TRACK)]
    except BadTokenError:
        assert "" in secrets, "nothing follows a prefix"
    else:
        assert [hashlib.sha256(each.encode()).digest() for each in secrets] == known


@pytest.mark.parametrize("command", ["hash", "check"])
def test_one_of_several_tokens_that_is_hashed_is_told_by_its_position(command: str) -> None:
    result = broker("token", command, BROKER_ADMIN_TOKEN=f"the-new-token,sha256:{64 * 'a'}")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: token 2 of BROKER_ADMIN_TOKEN: Missing: ")


@responses.activate
def test_each_of_several_tokens_is_checked_alone() -> None:
    def of(token: str) -> list[Any]:
        return [responses.matchers.header_matcher({"Authorization": f"Bearer {token}"})]

    anna = {"principal": "anna", "roles": ["viewer"], "customer": None}
    unknown = refusal("UNAUTHORIZED", "the token is unknown")
    new = responses.get(f"{URL}/whoami", json=unknown, status=401, match=of("the-new-token"))
    responses.get(f"{URL}/whoami", json=anna, match=of("the-old-token"))
    result = with_several("check", by="NEW_TOKEN")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:3] == ["token 1 of NEW_TOKEN:", "token 2 of NEW_TOKEN:", "principal  anna"]
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: token 1 of NEW_TOKEN: the token is unknown (401 UNAUTHORIZED, request r)")
    responses.replace(responses.GET, f"{URL}/whoami", json=anna, match=of("the-new-token"))
    assert with_several("check", by="NEW_TOKEN").exit_code == 0
    assert new.call_count == 1


@responses.activate
def test_an_api_that_is_away_ends_the_check_of_several_tokens_at_the_first() -> None:
    responses.get(f"{URL}/whoami", body=requests.ConnectionError("away"))
    assert (with_several("check", by="NEW_TOKEN").exit_code, len(responses.calls)) == (1, 1)


@responses.activate
def test_of_several_tokens_an_operator_s_calls_use_the_first() -> None:
    match = [responses.matchers.header_matcher({"Authorization": "Bearer the-new-token"})]
    whoami = {"principal": "anna", "roles": ["viewer"], "customer": None}
    responses.get(f"{URL}/whoami", json=whoami, match=match)
    assert broker("whoami", BROKER_ADMIN_TOKEN=f"\n{SEVERAL}").exit_code == 0


@pytest.mark.parametrize("words", [("check",), ("hash",), ("check", "--env", "NOT_SET"), ("hash", "--stdin")])
def test_a_token_that_is_missing_or_hashed_is_told_where(words: tuple[str, ...]) -> None:
    result = broker("token", *words, BROKER_ADMIN_TOKEN=f"sha256:{64 * 'a'}")
    where = {"--env": "NOT_SET", "--stdin": "standard input"}.get(words[1] if words[1:] else "", "BROKER_ADMIN_TOKEN")
    assert (result.exit_code, where in result.stderr) == (1, True)


HELD = {
    "status": "allocated",
    "lease_id": "lease-1",
    "allocated_to_track": "track-4711",
    "track_name": "intro",
    "allocated_at": 1_750_000_000,
}
PAUSES = {
    "allocate": False,
    "sync": False,
    "cleanup": True,
    "expire": False,
    "paused": [{"operation": "cleanup", "by": "anna", "since": 1_750_000_000}],
}


@responses.activate
def test_what_is_paused_is_shown_with_who_paused_it_and_since_when() -> None:
    responses.get(f"{URL}/pause", json=PAUSES)
    shown = [re.split("  +", line) for line in broker("pause").stdout.splitlines()]
    assert shown[0] == ["operation", "state", "by", "since"]
    assert [row[:3] for row in shown[1:]] == [
        ["allocate", "runs", "-"], ["sync", "runs", "-"], ["cleanup", "paused", "anna"], ["expire", "runs", "-"]
    ]  # fmt: skip
    assert shown[3][3].startswith("2025-06-15 15:06:40Z, ")
    listed = [json.loads(line) for line in broker("pause", "--json").stdout.splitlines()]
    assert listed[2] == {"operation": "cleanup", "paused": True, "by": "anna", "since": 1_750_000_000}
    assert listed[0] == {"operation": "allocate", "paused": False, "by": None, "since": None}


@responses.activate
@pytest.mark.parametrize(("command", "wanted"), [("pause", True), ("resume", False)])
def test_operations_are_paused_and_resumed_by_name_alone(command: str, wanted: bool) -> None:
    match = [responses.matchers.json_params_matcher({"cleanup": wanted, "sync": wanted})]
    responses.post(f"{URL}/pause", json=PAUSES, match=match)
    result = broker(command, "cleanup", "sync")
    assert (result.exit_code, result.stderr) == (0, "every process obeys within 5 s\n")


@pytest.mark.parametrize("words", [("resume",), ("pause", "everything"), ("resume", "purge")])
def test_an_operation_that_there_is_not_is_wrong_use(words: tuple[str, ...]) -> None:
    assert broker(*words).exit_code == 2


@responses.activate
@pytest.mark.parametrize("words", [("--yes",), ("--lease", "lease-1"), ("--lease", "lease-1", "--yes")])
def test_a_release_names_the_lease_so_that_another_one_is_refused(words: tuple[str, ...]) -> None:
    responses.get(f"{URL}/sandboxes/7", json=HELD)
    match = [responses.matchers.json_params_matcher({"lease_id": "lease-1"})]
    responses.post(f"{URL}/sandboxes/7/release", json={"status": "pending_deletion"}, match=match)
    responses.post(f"{URL}/sandboxes/7/release", json=refusal("LEASE_MISMATCH", "not held"), status=409, match=match)
    assert broker("sandbox", "release", "7", *words).stdout == "7 is pending_deletion: the lease lease-1 has ended\n"
    result = broker("sandbox", "release", "7", *words)
    assert result.exit_code == 1
    assert "409 LEASE_MISMATCH" in result.stderr
    assert "`broker sandbox show` names the current one" in result.stderr
    assert len(responses.calls) == (2 if "--lease" in words else 4)


@responses.activate
@pytest.mark.parametrize(
    ("is_terminal", "answer", "exit_code"),
    [(True, "y\n", 0), (True, "n\n", 1), (True, "\n", 1), (True, "", 1), (False, "y\n", 2)],
)
def test_a_lease_that_is_not_named_is_ended_only_if_somebody_who_saw_it_says_yes(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, answer: str, exit_code: int
) -> None:
    monkeypatch.setattr(sandboxes, "is_terminal", lambda: is_terminal)
    responses.get(f"{URL}/sandboxes/7", json=HELD)
    match = [responses.matchers.json_params_matcher({"lease_id": "lease-1"})]
    ended = responses.post(f"{URL}/sandboxes/7/release", json={"status": "pending_deletion"}, match=match)
    result = CliRunner().invoke(
        main, ["sandbox", "release", "7"], env={"BROKER_ADMIN_TOKEN": "a-token"}, input=answer, prog_name="broker"
    )
    assert (result.exit_code, ended.call_count) == (exit_code, 0 if exit_code else 1)
    assert result.stdout == ("" if exit_code else "7 is pending_deletion: the lease lease-1 has ended\n")
    if is_terminal:
        track, lab, since, lease, question, *_ = result.stderr.splitlines()
        assert [line.split() for line in (track, lab, lease)] == [
            ["track", "track-4711"], ["lab", "intro"], ["lease_id", "lease-1"]
        ]  # fmt: skip
        assert since.startswith("since     2025-06-15 15:06:40Z, ")
        assert question.startswith("End this lease, and have 7 wiped? [y/N]:")
    else:
        assert "name the lease by --lease, or give --yes" in result.stderr
        assert len(responses.calls) == 0


UNTIL = 1796144400
"""2026-12-01 17:00 in UTC."""


@responses.activate
@pytest.mark.parametrize(
    "text",
    ["2026-12-01T17:00Z", "2026-12-01 17:00:00Z", "2026-12-01T18:00+01:00", "2026-12-01T17:00+00:00", "1796144400"],
)
@pytest.mark.parametrize("lease", [None, "lease-1"])
def test_a_lease_is_extended_to_a_time_as_people_write_it(text: str, lease: str | None) -> None:
    body: dict[str, object] = {"expires_at": UNTIL} | ({"lease_id": lease} if lease else {})
    match = [responses.matchers.json_params_matcher(body)]
    responses.post(f"{URL}/sandboxes/7/extend", json=body | {"sandbox_id": "7", "lease_id": "lease-1"}, match=match)
    result = broker("sandbox", "extend", "7", "--until", text, *(["--lease", lease] if lease else []))
    assert result.exit_code == 0
    assert result.stdout.startswith("7 is held until 2026-12-01 17:00:00Z, ")
    assert result.stdout.endswith(": the lease lease-1\n")
    assert "as before" not in result.stdout


@responses.activate
def test_a_lease_is_extended_for_a_time_from_now_and_one_that_lasts_longer_is_said_to() -> None:
    extended = responses.post(
        f"{URL}/sandboxes/7/extend", json={"sandbox_id": "7", "lease_id": "lease-1", "expires_at": UNTIL}
    )
    result = broker("sandbox", "extend", "7", "--for", "90m")
    asked = json.loads(extended.calls[0].request.body)["expires_at"]
    assert 0 <= time.time() + 5400 - asked < 60
    assert ", as before: the lease lease-1\n" in result.stdout


@responses.activate
@pytest.mark.parametrize(
    "words",
    [
        *((), ("--until", "2026-12-01T18:00Z", "--for", "2h"), ("--for", "2"), ("--for", "2 hours")),
        *(("--until", each) for each in ("tomorrow", "2026-12-01", "18:00Z", "20261201")),
    ],
)
def test_an_extension_without_one_clear_end_is_not_sent(words: tuple[str, ...]) -> None:
    result = broker("sandbox", "extend", "7", *words)
    assert result.exit_code == 2
    assert re.search(r"give the new end by|must be a (length of )?time", result.stderr)
    assert len(responses.calls) == 0


@responses.activate
def test_an_extension_beyond_the_limit_says_the_limit() -> None:
    refused = refusal("DURATION_LIMIT", "the lease on sandbox '7' can last until 1796144400 at most")
    responses.post(f"{URL}/sandboxes/7/extend", json=refused, status=409)
    result = broker("sandbox", "extend", "7", "--for", "60d")
    assert (result.exit_code, "can last until 1796144400 at most (409 DURATION_LIMIT" in result.stderr) == (1, True)


@responses.activate
def test_a_sandbox_without_a_lease_is_not_released() -> None:
    responses.get(f"{URL}/sandboxes/7", json={"status": "stale", "lease_id": None})
    result = broker("sandbox", "release", "7", "--yes")
    assert (result.exit_code, "7 is stale: no track holds it" in result.stderr) == (1, True)


@responses.activate
def test_one_sandbox_that_is_refused_does_not_keep_the_others_from_being_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandboxes, "_WAIT_SEC", 0)
    responses.post(f"{URL}/sandboxes/1/quarantine", json=refusal("INVALID_TRANSITION", "it is deleted"), status=409)
    responses.post(f"{URL}/sandboxes/2/quarantine", json=refusal("RATE_LIMIT_EXCEEDED", "too many"), status=429)
    responses.post(f"{URL}/sandboxes/2/quarantine", json={"status": "deletion_failed"})
    result = broker("sandbox", "quarantine", "1", "2", "--reason", "restored")
    assert (result.exit_code, result.stdout) == (1, "2 is deletion_failed\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: 1: it is deleted (409 INVALID_TRANSITION, request r)")


@responses.activate
@pytest.mark.parametrize(("code", "status"), [("UNAUTHORIZED", 401), ("FORBIDDEN", 403), (None, 502)])
def test_what_no_sandbox_could_pass_ends_a_change_of_many_at_the_first(code: str | None, status: int) -> None:
    responses.post(re.compile(".*/retry-deletion"), json=refusal(code, "no") if code else {}, status=status)
    result = broker("sandbox", "retry", "1", "2", "3")
    assert (result.exit_code, len(responses.calls)) == (1, 1)


WAITS = {
    "position": 1,
    "track_id": "track-7",
    "idempotency_key": "track-7",
    "track_name": None,
    "customer": "acme",
    "name_prefix": "",
    "joined_at": 1_750_000_000,
    "back_by": 1_750_000_003,
    "place_kept_until": 1_750_000_603,
    "late": True,
    "place_id": "place-1",
}


def line_of(waiting: int) -> None:
    """Have the API list one place of a line of so many."""
    body = {"places": [WAITS], "count": 1, "waiting": waiting}
    responses.get(f"{URL}/waiting", json=body, match=[responses.matchers.query_param_matcher({"limit": "1"})])


@responses.activate
def test_the_line_is_a_table_that_says_who_waits_since_when_and_how_many_are_not_shown() -> None:
    line_of(waiting=4)
    result = broker("line", "--limit", "1")
    heading, row = result.stdout.splitlines()
    assert heading.split() == [
        "position",
        "track_id",
        "track_name",
        "customer",
        "name_prefix",
        "waits_since",
        "back_by",
        "place_id",
    ]
    assert row.split()[:5] == ["1", "track-7", "-", "acme", "-"]
    assert "2025-06-15 15:06:40Z" in row
    assert re.search(r"2025-06-15 15:06:43Z, \d+ s ago \(late\) +place-1$", row)
    assert "3 more tracks wait behind these" in result.stderr


@responses.activate
def test_the_line_is_shown_as_json_with_every_field() -> None:
    line_of(waiting=1)
    result = broker("line", "--limit", "1", "--json")
    assert [json.loads(row) for row in result.stdout.splitlines()] == [WAITS]
    assert result.stderr == ""


@responses.activate
@pytest.mark.parametrize(
    ("place_id", "told"),
    [("place/1", "removed the place of track track-7\n"), ("a/b", "no place a/b is in the line now\n")],
)
def test_a_removal_says_whose_place_it_was_or_that_there_is_none(place_id: str, told: str) -> None:
    responses.get(f"{URL}/waiting", json={"places": [WAITS | {"place_id": "place/1"}], "count": 1, "waiting": 1})
    removed = responses.delete(f"{URL}/waiting/{place_id.replace('/', '%2F')}", status=204)
    result = broker("line", "remove", place_id)
    assert (result.exit_code, result.stdout, removed.call_count) == (0, told, 1)


@responses.activate
def test_a_removal_that_is_refused_says_why() -> None:
    told = refusal("FORBIDDEN", "this call needs the role operator")
    responses.get(f"{URL}/waiting", json={"places": [WAITS], "count": 1, "waiting": 1})
    responses.delete(f"{URL}/waiting/place-1", json=told, status=403)
    result = broker("line", "remove", "place-1")
    assert (result.exit_code, "needs the role operator" in result.output) == (1, True)


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
def test_a_limit_of_the_line_that_cannot_be_is_wrong_use(limit: str) -> None:
    assert broker("line", "--limit", limit).exit_code == 2


@responses.activate
def test_an_empty_answer_to_a_question_is_not_the_broker_s() -> None:
    responses.get(f"{URL}/waiting", status=204)
    result = broker("line")
    assert (result.exit_code, "is this the broker's API?" in result.output) == (1, True)


@responses.activate
def test_all_that_failed_are_sent_back_to_be_wiped() -> None:
    responses.post(f"{URL}/bulk-retry", json={"retried": 12, "duration_ms": 34})
    assert broker("bulk", "retry").stdout == "12 sandboxes wait to be wiped again (34 ms)\n"


@responses.activate
@pytest.mark.parametrize(
    ("words", "is_terminal", "answer", "exit_code"),
    [
        (("--yes",), False, "", 0),
        ((), True, "y\n", 0),
        ((), True, "n\n", 1),
        ((), True, "\n", 1),
        ((), False, "y\n", 2),
    ],
)
def test_records_are_removed_only_if_somebody_says_yes(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], is_terminal: bool, answer: str, exit_code: int
) -> None:
    monkeypatch.setattr(sandboxes, "is_terminal", lambda: is_terminal)
    responses.get(f"{URL}/stats", json={"stale": 3, "total": 9})
    match = [responses.matchers.query_param_matcher({"status": "stale"})]
    removal = responses.post(f"{URL}/bulk-delete", json={"deleted": 3, "duration_ms": 5}, match=match)
    result = CliRunner().invoke(
        main, ["bulk", "delete", "--status", "stale", *words], env={"BROKER_ADMIN_TOKEN": "a-token"}, input=answer
    )
    assert (result.exit_code, removal.call_count) == (exit_code, 0 if exit_code else 1)
    assert ("3 records are removed" in result.stdout) is (exit_code == 0)
    assert ("all 3 sandboxes that are stale?" in result.stderr) is is_terminal


def test_records_of_sandboxes_in_service_are_not_removed_in_bulk() -> None:
    assert broker("bulk", "delete", "--status", "available", "--yes").exit_code == 2


@responses.activate
def test_health_asks_every_part_that_is_named_and_needs_no_token() -> None:
    at = 1_750_000_000
    responses.get(f"{ROOT_URL}/healthz", json={"status": "healthy", "timestamp": at})
    checks = {"dynamodb": "ok", "redis": "error: it is away"}
    responses.get(f"{ROOT_URL}/readyz", json={"status": "ready", "timestamp": at, "checks": checks})
    responses.get("http://worker-1:9101/healthz", json={"status": "healthy", "timestamp": at})
    responses.get("http://worker-2:9101/healthz", json={"status": "unhealthy", "error": "it stands still"}, status=503)
    responses.get("http://beat:9102/healthz", body="<html>", status=502)
    result = broker(
        "health",
        BROKER_ADMIN_TOKEN="",
        BROKER_WORKER_URL="http://worker-1:9101 http://worker-2:9101/",
        BROKER_BEAT_URL="http://beat:9102",
    )
    assert result.exit_code == 1
    assert [re.split(" +", line, maxsplit=2) for line in result.stdout.splitlines()] == [
        ["api", "OK", f"{ROOT_URL}/healthz healthy"],
        ["api", "OK", f"{ROOT_URL}/readyz ready: dynamodb ok, redis error: it is away"],
        ["worker", "OK", "http://worker-1:9101/healthz healthy"],
        ["worker", "FAIL", "http://worker-2:9101/healthz unhealthy: it stands still"],
        ["beat", "FAIL", "http://beat:9102/healthz answered 502: is this a broker's address?"],
    ]


@responses.activate
def test_health_of_an_api_that_is_away_or_not_ready_is_a_failure() -> None:
    responses.get(f"{ROOT_URL}/healthz", body=requests.ConnectionError("away"))
    checks = {"dynamodb": "error: DynamoDB does not answer"}
    responses.get(f"{ROOT_URL}/readyz", json={"status": "not_ready", "checks": checks}, status=503)
    result = broker("health", "--json")
    away, not_ready = (json.loads(line) for line in result.stdout.splitlines())
    assert (away["ok"], not_ready["ok"], result.exit_code) == (False, False, 1)
    assert "cannot be reached (ConnectionError)" in away["text"]
    assert "not_ready: dynamodb error: DynamoDB does not answer" in not_ready["text"]


@responses.activate
@pytest.mark.parametrize("url", ["http://[", "http://a..b/", "nonsense"])
def test_health_of_an_address_that_is_none_is_one_line_for_each_part(url: str) -> None:
    responses.add_passthru("http")
    result = broker("health", "--worker", url, BROKER_API_URL=url, BROKER_WORKER_URL="", BROKER_BEAT_URL="")
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    *of_api, of_worker = (line.split(maxsplit=2) for line in result.stdout.splitlines())
    assert {tuple(words[:2]) for words in of_api} == {("api", "FAIL")}
    assert of_worker[:2] == ["worker", "FAIL"]
    if url == "http://[":
        assert [words[2] for words in of_api] == [
            "http://[ is not an address (Invalid IPv6 URL): is BROKER_API_URL right?"
        ]


@pytest.mark.parametrize("url", ["http://[", "http://a..b/"])
def test_a_command_whose_address_is_none_ends_in_one_line(url: str) -> None:
    result = broker("pool", BROKER_API_URL=url)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    (line,) = result.stderr.splitlines()
    assert line.endswith("is BROKER_API_URL right?")


def test_every_kubectl_of_a_help_names_the_namespace() -> None:
    told = CliRunner().invoke(main, ["check", "-h"], terminal_width=200).output
    assert "kubectl exec -n sandbox-broker deploy/broker-api -- broker check --process api" in told


def test_the_help_of_retry_says_what_each_policy_makes_of_a_wiped_sandbox() -> None:
    told = " ".join(CliRunner().invoke(main, ["sandbox", "retry", "-h"]).output.split())
    assert "RECYCLE_POLICY says" in told
    assert all(f"with {policy} they" in told for policy in RecyclePolicy)


@responses.activate
def test_a_health_that_is_another_service_s_json_is_a_failure() -> None:
    responses.get(f"{ROOT_URL}/healthz", json=["hello"])
    responses.get(f"{ROOT_URL}/readyz", json={"hello": "world"})
    assert [line.split()[1] for line in broker("health").stdout.splitlines()] == ["FAIL", "FAIL"]


@responses.activate
def test_a_sandbox_is_shown_as_json_with_every_field() -> None:
    record = {"sandbox_id": "7", "status": "stale", "stale_since": 1_750_000_000, "name": None}
    responses.get(f"{URL}/sandboxes/7", json=record)
    assert json.loads(broker("sandbox", "show", "7", "--json").stdout) == record
    assert re.search(
        r"^stale_since +1750000000  \(2025-06-15 15:06:40Z, ", broker("sandbox", "show", "7").stdout, re.MULTILINE
    )


@responses.activate
def test_records_that_cannot_be_read_are_looked_for_in_the_whole_table() -> None:
    bad = {"sandbox_id": "8", "reason": "status is unknown"}
    for cursor, following, unreadable in ((None, "next", []), ("next", None, [bad])):
        asked: dict[str, Any] = {"limit": "100"} | ({"cursor": cursor} if cursor else {})
        page = {"sandboxes": [{"sandbox_id": "7", "status": "stale"}], "unreadable": unreadable, "cursor": following}
        responses.get(f"{URL}/sandboxes", json=page, match=[responses.matchers.query_param_matcher(asked)])
    assert [re.split("  +", line) for line in broker("sandboxes", "--unreadable").stdout.splitlines()] == [
        ["sandbox_id", "reason"],
        ["8", "status is unknown"],
    ]


def test_a_filter_beside_unreadable_is_wrong_use() -> None:
    assert broker("sandboxes", "--unreadable", "--status", "stale").exit_code == 2


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
    responses.get(f"{URL}/overview", json={"detail": "a proxy's"}, status=502)
    result = broker("pool")
    assert result.exit_code == 1
    assert "answered 502: is this the broker's API?" in result.stderr


@responses.activate
def test_a_refusal_with_the_status_of_a_success_is_still_a_refusal() -> None:
    responses.post(f"{URL}/sync", json=refusal("UNAUTHORIZED", "no such token"), status=200)
    result = broker("job", "run", "sync")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no such token (200 UNAUTHORIZED, request r)" in result.stderr


@responses.activate
def test_a_job_s_state_is_said_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_LOOK_AGAIN_SEC", 0)
    monkeypatch.setattr(jobs, "_SAY_AGAIN_SEC", 3600)
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
    listed = broker("jobs", "--job", "purge-stale", "--limit", "2", "--json").stdout.splitlines()
    assert [json.loads(line) for line in listed] == runs


@responses.activate
def test_the_last_runs_of_all_jobs_are_listed_if_no_job_is_named() -> None:
    match = [responses.matchers.query_param_matcher({"limit": "20"})]
    responses.get(f"{URL}/jobs", json={"runs": [], "count": 0}, match=match)
    assert broker("jobs").exit_code == 0


@pytest.mark.parametrize("words", [("--job", "nonsense"), ("--limit", "0"), ("--limit", "101")])
def test_a_listing_of_runs_that_cannot_be_is_wrong_use(words: tuple[str, str]) -> None:
    assert broker("jobs", *words).exit_code == 2


def test_a_command_that_asks_the_api_starts_without_the_clients_of_aws_redis_and_celery() -> None:
    code = "import broker_common.cli.commands, sys; print({'boto3', 'redis', 'celery'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


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


@MADE_UP
@given(
    start=st.sampled_from(["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"]), rest=st.text("=1+A()'\",; ", max_size=8)
)
def test_no_cell_of_the_csv_is_a_formula(start: str, rest: str) -> None:
    assert in_csv(start + rest) == f"'{start}{rest}"


@MADE_UP
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text[0].isalnum()))
def test_other_cells_are_written_as_they_are(name: str) -> None:
    assert in_csv(name) == name


def test_a_number_in_the_csv_stays_one() -> None:
    assert in_csv(-5) == "-5"
