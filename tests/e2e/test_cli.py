"""The operator's command line, on a broker of real processes."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import click
import pytest
import requests
from click.testing import CliRunner, Result

from broker_common.cli import jobs
from broker_common.cli.commands import main
from deploy.dev.processes import free_ports, wait_until
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack
from tests.fakes import START, FakeClock
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient


@pytest.fixture
def broker(stack: Stack, aws_environment: dict[str, str]) -> Callable[..., Result]:
    """Return a function that runs `broker` with an operator's environment; keyword arguments replace parts of it."""
    operator = dict(stack.plan.env) | {"BROKER_API_URL": f"{stack.api_url}/v1", "BROKER_ADMIN_TOKEN": ADMIN_TOKEN}

    def run(*words: str, **env: str) -> Result:
        return CliRunner().invoke(main, words, env=operator | env, prog_name="broker")

    return run


@pytest.fixture
def dynamodb(stack: Stack) -> DynamoDBClient:
    """Return a client that changes the table without the broker."""
    return boto3.client(
        "dynamodb",
        region_name="us-east-1",
        endpoint_url=stack.plan.env["DDB_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def lines(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


def test_check_has_a_line_for_each_part_that_is_right(broker: Callable[..., Result]) -> None:
    result = broker("check")
    assert result.exit_code == 0, result.output
    assert [words[:2] for words in lines(result)] == [
        [part, "OK"] for part in ("api", "settings", "table", "index", "history", "redis", "provider")
    ]
    assert "counts 20 sandboxes" in result.stdout
    assert "lists 20 sandbox accounts" in result.stdout


@pytest.mark.parametrize(
    ("part", "variable", "value", "advice"),
    [
        ("table", "DDB_TABLE_NAME", "Elsewhere", "broker table create"),
        ("redis", "REDIS_URL", "redis://127.0.0.1:{port}/0", "look at REDIS_URL"),
        ("provider", "CSP_API_TOKEN", "expired", "look at CSP_BASE_URL and CSP_API_TOKEN"),
        ("provider", "CSP_BASE_URL", "http://127.0.0.1:{port}", "look at CSP_BASE_URL and CSP_API_TOKEN"),
        ("table", "DDB_ENDPOINT_URL", "http://127.0.0.1:{port}", "look at AWS_REGION, DDB_ENDPOINT_URL"),
    ],
)
def test_check_says_what_to_do_about_a_part_that_is_wrong(
    broker: Callable[..., Result], part: str, variable: str, value: str, advice: str
) -> None:
    result = broker("check", **{variable: value.format(port=free_ports(1)[0])})
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(part)]
    assert line.split()[1] == "FAIL"
    assert advice in line


def test_check_signs_in_as_the_user_who_removes_services(broker: Callable[..., Result]) -> None:
    user = {"CSP_SERVICES_EMAIL": "cleaner@example.com", "CSP_SERVICES_PASSWORD": "services_password_123"}
    right = broker("check", "--process", "worker", CSP_SERVICES_CLEANUP="shadow", **user)
    assert (right.exit_code, lines(right)[-1][:2]) == (0, ["services", "OK"])
    wrong = broker(
        "check", "--process", "worker", CSP_SERVICES_CLEANUP="on", **user | {"CSP_SERVICES_PASSWORD": "no-no"}
    )
    assert wrong.exit_code == 1
    assert lines(wrong)[-1][:2] == ["services", "FAIL"]
    assert "sign in: HTTP 401: look at CSP_SERVICES_EMAIL and CSP_SERVICES_PASSWORD" in wrong.stdout
    assert "no-no" not in wrong.output


@pytest.mark.parametrize(
    ("process", "lacks", "parts"),
    [
        ("api", ("CSP_BASE_URL", "CSP_API_TOKEN"), ["settings", "table", "index", "history", "redis"]),
        (
            "worker",
            ("BROKER_API_TOKEN", "BROKER_ADMIN_TOKEN"),
            ["settings", "table", "index", "history", "redis", "provider"],
        ),
        ("beat", ("CSP_API_TOKEN", "BROKER_API_TOKEN", "DDB_ENDPOINT_URL"), ["settings", "redis"]),
    ],
)
def test_check_with_the_environment_of_one_process_looks_at_what_that_needs(
    broker: Callable[..., Result], process: str, lacks: tuple[str, ...], parts: list[str]
) -> None:
    result = broker("check", "--process", process, **dict.fromkeys(lacks, ""))
    assert (result.exit_code, [words[:2] for words in lines(result)]) == (0, [[part, "OK"] for part in parts])


def test_what_is_reached_by_a_part_that_is_wrong_is_not_blamed(broker: Callable[..., Result]) -> None:
    result = broker("check", AWS_PROFILE="nobody-s", REDIS_URL=f"redis://127.0.0.1:{free_ports(1)[0]}/0")
    assert result.exit_code == 1
    of_parts = {words[0]: " ".join(words[2:]) for words in lines(result)}
    assert "nobody-s" in of_parts["table"]
    assert of_parts["index"] == of_parts["history"] == "not looked at before table is right"
    assert of_parts["provider"] == "not looked at before redis is right"


def test_check_says_by_how_much_the_clock_is_wrong(
    broker: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_common.cli.check.SystemClock", lambda: FakeClock(START))
    told = broker("check", "--process", "api")
    assert told.exit_code == 1
    assert re.search(r"^table     FAIL this machine's clock is -\d+ s from the table's", told.stdout, re.MULTILINE)


def test_check_fails_where_facts_are_kept_for_ever_until_the_table_is_created_again(
    broker: Callable[..., Result], dynamodb: DynamoDBClient
) -> None:
    def line_of_history() -> str:
        result = broker("check", "--process", "api")
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("history")]
        return f"{result.exit_code} {line}"

    assert re.fullmatch(r"0 history +OK +facts are removed when they are older than 1 d", line_of_history())
    dynamodb.update_time_to_live(
        TableName="SandboxPool", TimeToLiveSpecification={"Enabled": False, "AttributeName": "ttl"}
    )
    assert line_of_history().startswith("1 history   FAIL SandboxPool keeps facts for ever: its TTL is not on")
    assert "run `broker table create`" in line_of_history()
    assert broker("table", "create").stdout == "table SandboxPool was there already\n"
    assert line_of_history().startswith("0 history   OK")


def test_history_is_refused_until_the_upgrade_is_finished(
    broker: Callable[..., Result], dynamodb: DynamoDBClient, stack: Stack
) -> None:
    (sandbox_id, *_), *_ = lines(broker("sandboxes", "--status", "available"))[1:]
    # As the release before left it.
    dynamodb.update_item(
        TableName="SandboxPool",
        Key={"PK": {"S": "POOL"}, "SK": {"S": "CONFIG"}},
        UpdateExpression="REMOVE upgrade_finished",
    )
    assert wait_until(lambda: broker("sandbox", "history", sandbox_id).exit_code == 1, 20)
    assert "503 UPGRADE_UNFINISHED" in broker("events").stderr
    assert "`broker upgrade finish`" in broker("events").stderr
    assert "once no older release runs: `broker upgrade finish`" in broker("check", "--process", "api").stdout
    held = stack.as_track("while-unfinished", "POST", "/allocate").json()["sandbox_id"]
    assert "503 UPGRADE_UNFINISHED" in broker("sandbox", "quarantine", held, "--reason", "slow").stderr

    for _ in range(2):
        assert broker("upgrade", "finish").stdout == "the upgrade is finished: every process knows within 5 s\n"
    assert wait_until(lambda: broker("sandbox", "history", held).exit_code == 0, 20)
    # Each process of the API learns of it by itself.
    assert wait_until(lambda: all(broker("events").exit_code == 0 for _ in range(8)), 20)
    assert "upgrade finish" not in broker("check", "--process", "api").stdout


def test_an_upgrade_that_cannot_be_finished_is_told_in_one_line(broker: Callable[..., Result]) -> None:
    told = broker("upgrade", "finish", DDB_ENDPOINT_URL="http://127.0.0.1:1")
    assert told.exit_code == 1
    assert re.fullmatch(r"Error: the upgrade is not finished: .+\n", told.stderr)


def test_a_table_that_cannot_be_accepted_is_told_in_one_line_and_stays_as_it_is(broker: Callable[..., Result]) -> None:
    for away in ({"REDIS_URL": "redis://127.0.0.1:1/0"}, {"DDB_ENDPOINT_URL": "http://127.0.0.1:1"}):
        told = broker("table", "accept", **away)
        assert told.exit_code == 1
        assert re.fullmatch(r"Error: table \S+ is not accepted: .+\n", told.stderr)
    assert broker("check", "--process", "api").exit_code == 0


def test_the_table_can_be_created_as_often_as_you_like(broker: Callable[..., Result]) -> None:
    elsewhere = {"DDB_TABLE_NAME": "OfTheCli"}
    assert [broker("table", "create", **elsewhere).stdout for _ in range(2)] == [
        "table OfTheCli is created\n",
        "table OfTheCli was there already\n",
    ]
    told = broker("check", **elsewhere)
    assert told.exit_code == 1
    assert "table     FAIL the table was replaced" in told.stdout, "Redis remembers another one"
    assert "broker table accept" in told.stdout


def test_a_table_that_cannot_be_created_is_one_line(broker: Callable[..., Result]) -> None:
    result = broker("table", "create", AWS_PROFILE="nobody-s")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_check_that_the_provider_refuses_does_not_stop_the_workers_calls(
    stack: Stack, broker: Callable[..., Result]
) -> None:
    for _ in range(2):
        assert "HTTP 401" in broker("check", CSP_API_TOKEN="expired").stdout
    assert stack.run_job("sync")["state"] == "succeeded"


def test_check_names_every_bad_setting_and_no_secret(broker: Callable[..., Result]) -> None:
    result = broker("check", K_CANDIDATES="many", CSP_API_TOKEN="two words")
    assert result.exit_code == 1
    assert [words[:3] for words in lines(result)] == [
        ["api", "OK", "answers,"],
        ["settings", "FAIL", "CSP_API_TOKEN:"],
        ["settings", "FAIL", "K_CANDIDATES:"],
        *([part, "FAIL", "not"] for part in ("table", "index", "history", "redis", "provider")),
    ]
    assert "two words" not in result.output


def test_pool_shows_the_counts_the_oldest_deletion_and_the_last_sync(
    stack: Stack, broker: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cleanup    paused" in broker("pause", "cleanup").stdout
    held = stack.as_track("shown", "POST", "/allocate").json()
    stack.as_track("shown", "POST", f"/sandboxes/{held['sandbox_id']}/mark-for-deletion")
    sent: list[str] = []
    send = requests.Session.send

    def note(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        sent.append(str(request.path_url))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", note)
    shown = {words[0]: words[1:] for words in lines(broker("pool"))}
    assert sent == ["/v1/admin/overview"]
    monkeypatch.undo()
    counts = stack.as_admin("GET", "/stats").json()
    assert {name: int(shown[name][0]) for name in counts} == counts
    assert (shown["oldest"][-2:], shown["last"][-2:]) == (["s", "ago"], ["s", "ago"])
    assert "cleanup    runs" in broker("resume", "cleanup").stdout


def test_sandboxes_are_listed_as_table_json_and_csv(stack: Stack, broker: Callable[..., Result]) -> None:
    held = stack.as_track("listed", "POST", "/allocate").json()["sandbox_id"]
    header, row = lines(broker("sandboxes", "--track", "listed"))
    assert header[:4] == ["sandbox_id", "name", "status", "allocated_to_track"]
    assert [row[0], row[2], row[3]] == [held, "allocated", "listed"]
    (record,) = [json.loads(line) for line in broker("sandboxes", "--track=listed", "--json").stdout.splitlines()]
    assert record == stack.as_admin("GET", f"/sandboxes/{held}").json()
    everything = list(csv.DictReader(io.StringIO(broker("sandboxes", "--csv").stdout)))
    assert len(everything) == 20
    assert {
        row["status"] for row in csv.DictReader(io.StringIO(broker("sandboxes", "--status=available", "--csv").stdout))
    } == {"available"}


def test_sandboxes_are_found_by_part_of_their_name_and_by_lab_and_sorted(
    stack: Stack, broker: Callable[..., Result]
) -> None:
    held = [
        stack.as_track(track, "POST", "/allocate", headers={"X-Instruqt-Track-ID": "a-lab"}).json()
        for track in ("first-of-lab", "second-of-lab")
    ]

    def is_found(*words: str, expected: list[str]) -> bool:
        shown = broker("sandboxes", *words, "--json").stdout.splitlines()
        return [json.loads(line)["sandbox_id"] for line in shown] == expected

    ids, name = sorted(each["sandbox_id"] for each in held), held[0]["name"]
    # Each process of the API answers these from a copy of its own, which is up to five seconds old.
    for words, expected in (
        (("--lab", "a-lab"), ids),
        (("--lab", "a-lab", "--sort", "-sandbox_id"), ids[::-1]),
        (("--name", name[4:].upper(), "--track", "first-of-lab"), [held[0]["sandbox_id"]]),
        (("--name", name, "--status", "available"), []),
    ):
        assert wait_until(partial(is_found, *words, expected=expected), 20), words
    by_name = [row[1] for row in lines(broker("sandboxes", "--sort", "name"))[1:]]
    assert by_name == sorted(by_name)
    assert len(by_name) == 20


def test_by_status_or_track_sandboxes_are_listed_as_they_are_now(stack: Stack, broker: Callable[..., Result]) -> None:
    for track in ("just-now", "a-moment-later"):
        held = stack.as_track(track, "POST", "/allocate").json()["sandbox_id"]
        assert [row[0] for row in lines(broker("sandboxes", "--track", track))[1:]] == [held]
        assert held in broker("sandboxes", "--status", "allocated").stdout


def test_a_listing_goes_on_to_its_last_page(broker: Callable[..., Result], stack: Stack) -> None:
    listed = [words[0] for words in lines(broker("sandboxes"))[1:]]
    assert len(listed) == len(set(listed)) == stack.as_admin("GET", "/stats").json()["total"]


def test_a_sandbox_is_shown_with_every_field_and_its_times_in_words(
    stack: Stack, broker: Callable[..., Result]
) -> None:
    held = stack.as_track("seen", "POST", "/allocate").json()
    shown = {words[0]: words[1:] for words in lines(broker("sandbox", "show", held["sandbox_id"]))}
    assert shown.keys() == stack.as_admin("GET", f"/sandboxes/{held['sandbox_id']}").json().keys()
    assert shown["status"] == ["allocated"]
    assert (shown["expires_at"][0], shown["expires_at"][3]) == (str(held["expires_at"]), "in")


def test_a_history_shows_what_happened_newest_first_and_by_whom(stack: Stack, broker: Callable[..., Result]) -> None:
    held = stack.as_track("has-history", "POST", "/allocate").json()
    stack.as_track("has-history", "POST", f"/sandboxes/{held['sandbox_id']}/mark-for-deletion")
    told = broker("sandbox", "history", held["sandbox_id"])
    marked, allocated, *_, added = told.stdout.splitlines()
    assert re.search(r"sandbox\.marked +allocated → pending_deletion +has-history +by track", marked)
    assert re.search(r"sandbox\.allocated +available → allocated .*expires_at=\d+", allocated)
    assert re.search(r"sandbox\.added +- → available +by ", added)
    facts = [
        json.loads(line) for line in broker("sandbox", "history", held["sandbox_id"], "--json").stdout.splitlines()
    ]
    assert [fact["kind"] for fact in facts[:2]] == ["sandbox.marked", "sandbox.allocated"]
    assert {fact["lease_id"] for fact in facts[:2]} == {held["lease_id"]}


def test_events_are_shown_oldest_first_by_kind_and_by_track(stack: Stack, broker: Callable[..., Result]) -> None:
    held = stack.as_track("makes-events", "POST", "/allocate").json()["sandbox_id"]
    stack.as_admin("POST", "/pause", json={"sync": True})
    stack.as_admin("POST", "/pause", json={"sync": False})
    stack.as_track("makes-events", "POST", f"/sandboxes/{held}/mark-for-deletion")

    def kinds(*words: str) -> list[str]:
        result = broker("events", "--json", *words)
        assert result.exit_code == 0, result.output
        return [json.loads(line)["kind"] for line in result.stdout.splitlines()]

    assert kinds("--track", "makes-events")[:2] == ["sandbox.allocated", "sandbox.marked"]
    assert set(kinds("--kind", "pool.paused", "--since", "1h")) == {"pool.paused"}
    assert {"sandbox.allocated", "pool.paused", "pool.resumed", "sandbox.marked"} <= set(kinds("--since", "7d"))
    assert re.search(r"Z  pool +pool\.paused +by admin  operation=sync$", broker("events").stdout, re.MULTILINE)


def test_a_follower_sees_each_new_fact_once(stack: Stack, broker: Callable[..., Result]) -> None:
    assert broker("events").exit_code == 0
    env = dict(stack.plan.env) | {"BROKER_API_URL": f"{stack.api_url}/v1", "BROKER_ADMIN_TOKEN": ADMIN_TOKEN}
    command = [sys.executable, "-m", "broker_common.cli", "events", "--follow", "--json", "--track", "is-followed"]
    follower = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    with follower:
        try:
            assert follower.stdout is not None
            seen = []
            for key in ("first", "second", "third"):
                key_header = {"Idempotency-Key": key}
                held = stack.as_track("is-followed", "POST", "/allocate", headers=key_header).json()["sandbox_id"]
                fact = json.loads(follower.stdout.readline())
                seen.append((fact["kind"], fact["sandbox_id"]) == ("sandbox.allocated", held))
                stack.as_track("is-followed", "POST", f"/sandboxes/{held}/mark-for-deletion")
                fact = json.loads(follower.stdout.readline())
                seen.append((fact["kind"], fact["sandbox_id"]) == ("sandbox.marked", held))
        finally:
            follower.terminate()
    assert seen == [True] * 6, "what was told already would have come between"


def test_a_sandbox_that_is_held_is_set_aside_once_it_is_wiped_unless_that_is_taken_back(
    stack: Stack, broker: Callable[..., Result]
) -> None:
    def give_back(track: str, *, is_taken_back: bool) -> str:
        held = stack.as_track(track, "POST", "/allocate").json()["sandbox_id"]
        told = broker("sandbox", "quarantine", held, "--reason", "it is slow")
        assert told.stdout == f"{held} is allocated, and is set aside once it is wiped\n"
        assert stack.as_track(track, "GET", f"/sandboxes/{held}").json()["status"] == "allocated"
        if is_taken_back:
            told = broker("sandbox", "unquarantine", held)
            assert told.stdout == f"{held} is allocated, and goes the usual way once it is wiped\n"
        stack.as_track(track, "POST", f"/sandboxes/{held}/mark-for-deletion")
        return str(held)

    aside, usual = give_back("slow", is_taken_back=False), give_back("not-slow", is_taken_back=True)
    stack.run_job("cleanup")

    def status_of(sandbox_id: str) -> str:
        return str(stack.as_admin("GET", f"/sandboxes/{sandbox_id}").json()["status"])

    assert wait_until(lambda: status_of(aside) == "deletion_failed", 30)
    assert wait_until(lambda: status_of(usual) == "available", 30)
    assert "reason=it is slow" in broker("sandbox", "history", aside).stdout
    assert "409 INVALID_TRANSITION" in broker("sandbox", "unquarantine", aside).stderr
    assert (
        broker("sandbox", "retry", aside).stdout == f"{aside} is pending_deletion, and the next cleanup has it wiped\n"
    )
    stack.run_job("cleanup")


def test_a_free_sandbox_is_set_aside_at_once(stack: Stack, broker: Callable[..., Result]) -> None:
    free = lines(broker("sandboxes", "--status", "available"))[1][0]
    told = broker("sandbox", "quarantine", free, "--reason", "it is slow")
    assert told.stdout == f"{free} is deletion_failed\n"
    assert broker("bulk", "retry").stdout.startswith("1 sandboxes wait to be wiped again")
    stack.run_job("cleanup")


def test_a_lease_is_released_once_and_not_in_place_of_the_next_one(stack: Stack, broker: Callable[..., Result]) -> None:
    held = stack.as_track("forgetful", "POST", "/allocate").json()
    sandbox_id, lease_id = held["sandbox_id"], held["lease_id"]
    refused = broker("sandbox", "release", sandbox_id, "--lease", "another")
    assert (refused.exit_code, "409 LEASE_MISMATCH" in refused.stderr) == (1, True)
    unnamed = broker("sandbox", "release", sandbox_id)
    assert (unnamed.exit_code, "name the lease by --lease" in unnamed.stderr) == (2, True)
    released = broker("sandbox", "release", sandbox_id, "--lease", lease_id).stdout
    assert released == f"{sandbox_id} is pending_deletion: the lease {lease_id} has ended\n"
    assert "no track holds it" in broker("sandbox", "release", sandbox_id, "--yes").stderr


def test_records_are_removed_in_bulk(stack: Stack, broker: Callable[..., Result]) -> None:
    free = lines(broker("sandboxes", "--status", "available"))[1][0]
    broker("sandbox", "quarantine", free, "--reason", "the provider lost it")
    assert broker("bulk", "delete", "--status", "deletion_failed").exit_code == 2
    assert broker("bulk", "delete", "--status", "deletion_failed", "--yes").stdout.startswith("1 records are removed")
    assert stack.run_job("sync")["state"] == "succeeded"
    assert broker("sandbox", "show", free).exit_code == 0, "the account is still there"


def test_tokens_of_operators_and_of_tracks_are_checked(broker: Callable[..., Result]) -> None:
    assert lines(broker("token", "check")) == lines(broker("whoami"))
    good = broker("token", "check", "--env", "NEW", "--track", "a-look", NEW=TRACK_TOKEN)
    assert good.stdout.splitlines() == ["the token is good, and for tracks alone", "the token may act for a-look"]
    bad = broker("token", "check", "--env", "NEW", NEW="not-taken-in")
    assert (bad.exit_code, "the token is unknown (401 UNAUTHORIZED" in bad.stderr) == (1, True)


def test_health_is_told_by_every_process_itself(stack: Stack, broker: Callable[..., Result]) -> None:
    urls = {
        "BROKER_WORKER_URL": " ".join(map(stack.plan.url, ("METRICS_PORT", "DELETIONS_METRICS_PORT"))),
        "BROKER_BEAT_URL": stack.plan.url("BEAT_METRICS_PORT"),
    }
    result = broker("health", **urls)
    assert result.exit_code == 0, result.output
    assert [words[:2] for words in lines(result)] == [
        [part, "OK"] for part in ("api", "api", "worker", "worker", "beat")
    ]
    assert "dynamodb ok" in result.stdout


def test_no_record_is_unreadable(broker: Callable[..., Result]) -> None:
    assert broker("sandboxes", "--unreadable", "--json").stdout == ""


def test_a_job_that_is_waited_for_prints_its_result(broker: Callable[..., Result]) -> None:
    result = broker("job", "run", "sync", "--wait")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["synced"] == 20
    assert result.stderr.splitlines()[-1] == "succeeded"


def test_a_job_that_is_waited_for_tells_how_it_goes(
    broker: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["queued", "queued", "running", "running", "succeeded"])

    class Slow(Handler):
        def reply(self) -> None:
            run = {"job_id": "1", "job": "sync"}
            self.answer(200, json.dumps(run if self.command == "POST" else run | {"state": next(states)}).encode())

    monkeypatch.setattr(jobs, "_LOOK_AGAIN_SEC", 0)
    monkeypatch.setattr(jobs, "_SAY_AGAIN_SEC", 0)
    with serving(Slow) as server:
        result = broker("job", "run", "sync", "--wait", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1")
    told = [line.split()[0] for line in result.stderr.splitlines()]
    assert told == ["1", "queued", "queued", "running", "running", "succeeded"]


def test_a_job_that_fails_is_told_with_its_reason_and_exit_code_1(stack: Stack, broker: Callable[..., Result]) -> None:
    requests.patch(f"{stack.csp_url}/_mock/switches", json={"empty_list": True}, timeout=10)
    result = broker("job", "run", "sync", "--wait")
    requests.patch(f"{stack.csp_url}/_mock/switches", json={"empty_list": False}, timeout=10)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("failed: ")


def test_a_job_that_is_not_waited_for_is_named(stack: Stack, broker: Callable[..., Result]) -> None:
    job_id = broker("job", "run", "expire").stdout.strip()
    assert stack.as_admin("GET", f"/jobs/{job_id}").json()["job"] == "expire"


def test_whoami_shows_what_the_api_makes_of_the_token(broker: Callable[..., Result]) -> None:
    assert lines(broker("whoami")) == [["principal", "admin"], ["roles", "admin"], ["customer", "-"]]


@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (("sandbox", "show", "nobody"), {}, "SANDBOX_NOT_FOUND"),
        (("sandbox", "show", "a/../b"), {}, "404 SANDBOX_NOT_FOUND"),
        (("pool",), {"BROKER_ADMIN_TOKEN": ""}, "BROKER_ADMIN_TOKEN: Missing"),
        (("pool",), {"BROKER_ADMIN_TOKEN": "clé"}, "BROKER_ADMIN_TOKEN: Must be printable ASCII."),
        (("pool",), {"BROKER_ADMIN_TOKEN": "a-wrong-token"}, "401 UNAUTHORIZED"),
        (("pool",), {"BROKER_ADMIN_TOKEN": TRACK_TOKEN}, "403 FORBIDDEN"),
        (("pool",), {"BROKER_API_URL": "http://127.0.0.1:1/v1"}, "is BROKER_API_URL right?"),
        (("pool",), {"BROKER_API_URL": "nonsense"}, "is BROKER_API_URL right?"),
        (("job", "run", "cleanup", "--force"), {}, "--force is for sync alone."),
        (("sandbox", "history", "nobody"), {}, "404 SANDBOX_NOT_FOUND"),
        (("sandbox", "quarantine", "nobody", "--reason", "none"), {}, "404 SANDBOX_NOT_FOUND"),
        (("sandbox", "unquarantine", "a/../b"), {}, "404 SANDBOX_NOT_FOUND"),
        (("sandbox", "retry", "nobody"), {}, "404 SANDBOX_NOT_FOUND"),
        (("sandbox", "release", "nobody"), {}, "name the lease by --lease"),
        (("sandbox", "release", "nobody", "--yes"), {}, "404 SANDBOX_NOT_FOUND"),
        (("bulk", "retry"), {"BROKER_ADMIN_TOKEN": TRACK_TOKEN}, "403 FORBIDDEN"),
        (("events", "--since", "yesterday"), {}, "must be a length of time, such as 90s, 10m, 24h, 7d or 1d2h"),
        (("events", "--kind", "sandbox.lost"), {}, "'sandbox.lost' is not one of 'sandbox.added', "),
        (("sandboxes", "--sort", "colour"), {}, "'colour' is not one of 'sandbox_id', '-sandbox_id', "),
    ],
)
def test_what_cannot_be_done_is_one_line_without_a_traceback(
    broker: Callable[..., Result], words: tuple[str, ...], env: dict[str, str], told: str
) -> None:
    result = broker(*words, **env)
    assert result.exit_code in {1, 2}
    assert isinstance(result.exception, SystemExit)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert told in line
    assert "a-wrong-token" not in result.output


def test_a_base_path_that_is_missing_is_told(stack: Stack, broker: Callable[..., Result]) -> None:
    assert "is BROKER_API_URL right?" in broker("pool", BROKER_API_URL=stack.api_url).stderr


def test_the_token_is_not_replaced_by_one_of_netrc(broker: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login somebody password else")
    (tmp_path / ".netrc").chmod(0o600)
    assert broker("pool", HOME=str(tmp_path)).exit_code == 0


def every_command(command: click.Command = main, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command and group."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            yield from every_command(each, *words, name)


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_help_has_an_example_that_can_be_called(words: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, [*words, "-h"], prog_name="broker", terminal_width=200).output
    examples = re.findall(
        r"^ *(?:Example: |In a pod: |  )(?:\S+=\S+ |kubectl .*-- )*(broker [a-z].*)$", told, re.MULTILINE
    )
    assert examples
    for example in examples:
        command, *rest = shlex.split(example.partition(" > ")[0])[1:]
        assert [command, *rest][: len(words)] == list(words)
        # Within its group's context: a command keeps the help options that it was first given.
        parent = click.Context(main, **main.context_settings)
        called = main.get_command(parent, command)
        assert called is not None
        called.make_context(command, rest, parent=parent)


def test_bash_completes_commands_options_and_their_values() -> None:
    code = f"""
        PATH={Path(sys.executable).parent}:$PATH
        eval "$(_BROKER_COMPLETE=bash_source broker)"
        for words in "broker sandb" "broker sandboxes --sta" "broker sandboxes --status del" "broker job run cl"; do
            COMP_WORDS=($words); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
            _broker_completion broker; echo "${{COMPREPLY[@]}}"
        done"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["sandbox sandboxes", "--status", "deletion_failed deleted", "cleanup"]


def test_an_address_that_is_not_the_api_s_is_told_apart(stack: Stack, broker: Callable[..., Result]) -> None:
    result = broker("pool", BROKER_API_URL=stack.csp_url)
    assert result.exit_code == 1
    assert "is this the broker's API?" in result.stderr


def test_the_line_shows_a_track_that_waits_and_a_place_is_removed_from_it(
    broker: Callable[..., Result], stack: Stack
) -> None:
    waits = {"Prefer": "wait=0", "X-Sandbox-Name-Prefix": "nobody-s-", "X-Instruqt-Track-ID": "intro"}
    assert stack.as_track("patient", "POST", "/allocate", headers=waits).status_code == 202
    (place,) = [json.loads(line) for line in broker("line", "--json").stdout.splitlines()]
    assert (place["position"], place["track_id"], place["name_prefix"]) == (1, "patient", "nobody-s-")
    heading, row = lines(broker("line"))
    assert (heading[:3], row[:3]) == (["position", "track_id", "track_name"], ["1", "patient", "intro"])
    place_id = place["place_id"]
    for said in ("removed the place of track patient", f"no place {place_id} is in the line now"):
        removed = broker("line", "remove", place_id)
        assert (removed.exit_code, removed.stdout) == (0, f"{said}\n")
    assert broker("line", "--json").stdout == ""
