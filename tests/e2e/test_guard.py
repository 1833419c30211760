"""A broker of real processes whose table is replaced, or one of whose machines has a wrong clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import requests

from broker_common.adapters.dynamo_pool_state import NEXT_PING_SEC
from broker_common.adapters.dynamo_table import LAYOUT_KEY, create_table
from broker_common.adapters.dynamo_transport import make_client
from deploy.dev import programs
from deploy.dev.processes import free_ports, wait_until
from tests import wrong_clock
from tests.e2e.stack import MAKE_RUN_WORKERS, Stack, started_when_healthy, worker_program

if TYPE_CHECKING:
    from pathlib import Path

    from mypy_boto3_dynamodb import DynamoDBClient

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

HOUR = 3600
SETTINGS = {"POOL": "6", "MOCK_CSP_DELETE_SECONDS": "0"}
REFUSED = (503, "TABLE_CHANGED")
PROMISED_SEC = 5
PATIENCE_SEC = 20
"""On a machine that is busy with other tests."""


@pytest.fixture
def client(ministack_url: str, aws_environment: dict[str, str]) -> DynamoDBClient:
    return make_client(region="us-east-1", endpoint_url=ministack_url, timeout_sec=10, connections=2)


def allocate(stack: Stack, track: str) -> tuple[int, str]:
    """Return the status, and the error's code or the sandbox."""
    answer = stack.as_track(track, "POST", "/allocate")
    body = answer.json()
    if answer.status_code == 503:
        assert answer.headers["Retry-After"]
    return answer.status_code, body["error"]["code"] if "error" in body else body["sandbox_id"]


def is_given(stack: Stack, track: str) -> bool:
    return allocate(stack, track)[0] == 201


def readiness(stack: Stack) -> tuple[int, str]:
    answer = requests.get(f"{stack.api_url}/readyz", timeout=10)
    return answer.status_code, answer.json()["checks"].get("table", "")


def make_again(client: DynamoDBClient, table: str) -> None:
    client.delete_table(TableName=table)
    create_table(client, table)


def restore(client: DynamoDBClient, table: str) -> None:
    """Put the records of a while ago into a new table, as a restore does.

    On AWS a restore takes minutes. In that time each process notices that the table is away, or does not look.
    """
    items = client.scan(TableName=table)["Items"]
    client.delete_table(TableName=table)
    time.sleep(NEXT_PING_SEC + 1)
    create_table(client, table)
    for item in items:
        client.put_item(TableName=table, Item=item)


def lose_layout(client: DynamoDBClient, table: str) -> None:
    client.delete_item(TableName=table, Key=LAYOUT_KEY)


def empty(client: DynamoDBClient, table: str) -> None:
    for item in client.scan(TableName=table)["Items"]:
        if item["PK"] != LAYOUT_KEY["PK"]:
            client.delete_item(TableName=table, Key={"PK": item["PK"], "SK": item["SK"]})


@pytest.mark.timeout(300)
def test_on_another_table_than_was_known_nothing_happens_until_an_operator_accepts_it(
    tmp_path: Path, ministack_url: str, client: DynamoDBClient
) -> None:
    table = "Changed"
    here = SETTINGS | {"DDB_ENDPOINT_URL": ministack_url, "DDB_TABLE_NAME": table, "POOL": "12"}
    with Stack(tmp_path, here, services=started_when_healthy, with_webhooks=True) as stack:
        stack.run_job("sync")
        for change in (make_again, restore, empty, lose_layout):
            name = change.__name__
            held = [allocate(stack, f"{name}-{number}") for number in range(3)]
            assert {status for status, _ in held} == {201}, name
            time.sleep(PROMISED_SEC)  # the index has shown the last sync's records for as long as it may lag
            change(client, table)
            assert wait_until(lambda: allocate(stack, "another") == REFUSED, PATIENCE_SEC), name
            assert allocate(stack, f"{name}-0") == REFUSED, name
            assert wait_until(lambda: readiness(stack)[0] == 503, PATIENCE_SEC), name
            assert wait_until(lambda: readiness(stack)[1].startswith("error: "), PATIENCE_SEC), name
            before = client.scan(TableName=table)["Count"]
            for job in ("sync", "cleanup", "expire", "purge-stale"):
                run = stack.run_job(job)
                assert (run["state"], "table" in run["error"]) == ("failed", True), (name, job)

            if change in (make_again, empty):
                stack.restart("api")  # forgets nothing, thanks to Redis
                for worker in MAKE_RUN_WORKERS:
                    stack.restart(worker)
                assert allocate(stack, "another") == REFUSED
                assert stack.run_job("sync")["state"] == "failed"
            assert client.scan(TableName=table)["Count"] == before, name

            stack.create_table()  # where the layout record is missing
            stack.accept_table()
            assert wait_until(lambda: readiness(stack) == (200, "ok"), PATIENCE_SEC), name
            assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", PATIENCE_SEC), name
            assert wait_until(partial(is_given, stack, f"after-{name}"), PATIENCE_SEC), name


class Wrong:
    """The services of a stack, one more worker among them, `late`, whose clock is so many seconds ahead.

    The other worker has one process: what comes while that is at work is the late one's.
    """

    def __init__(self, seconds: int, library: Path) -> None:
        self._clock = wrong_clock.ahead(seconds, library)
        self._right_port, self._port = free_ports(2)

    def __call__(self, plan: Plan, scratch: Path) -> list[Program]:
        right = worker_program(plan, scratch, name="worker", metrics_port=self._right_port, children=1)
        late = worker_program(plan, scratch, name="late", metrics_port=self._port, children=2)
        # Its health is red, so it is ready when it answers at all.
        metrics = late.ready_url.replace("/healthz", "/metrics")
        late = replace(late, env={**late.env, **self._clock}, ready_url=metrics)
        return [right, late, programs.api(plan, scratch), programs.beat(plan)]

    def health(self) -> dict[str, Any]:
        answer = requests.get(f"http://127.0.0.1:{self._port}/healthz", timeout=10)
        return {"status_code": answer.status_code, **answer.json()}


def test_a_worker_six_hours_ahead_ends_no_live_allocation_and_is_red(
    tmp_path: Path, ministack_url: str, aws_environment: dict[str, str]
) -> None:
    services = Wrong(6 * HOUR, wrong_clock.build(tmp_path))
    here = SETTINGS | {"DDB_ENDPOINT_URL": ministack_url, "DDB_TABLE_NAME": "Ahead"}
    with Stack(tmp_path, here, services=services, later=("late",)) as stack:
        stack.run_job("sync")
        status, held = allocate(stack, "track-0")
        assert status == 201
        stack.stop("worker")
        stack.start("late")
        for job in ("expire", "sync", "cleanup", "purge-stale"):
            run = stack.run_job(job)
            assert run["state"] == "failed", job
            assert "clock is +21" in run["error"]
        assert stack.as_admin("GET", f"/sandboxes/{held}").json()["status"] == "allocated"
        assert wait_until(lambda: "its clock is +21" in services.health().get("error", ""), PATIENCE_SEC)
        assert services.health()["status_code"] == 503


def test_a_worker_two_hours_ahead_delivers_no_running_delete_again_and_sends_no_second_one(
    tmp_path: Path, ministack_url: str, aws_environment: dict[str, str]
) -> None:
    services = Wrong(2 * HOUR, wrong_clock.build(tmp_path))
    here = SETTINGS | {
        "DDB_ENDPOINT_URL": ministack_url,
        "DDB_TABLE_NAME": "Again",
        "MOCK_CSP_DELETE_SECONDS": "8",
        "CLEANUP_INTERVAL_SEC": "86400",
    }
    with Stack(tmp_path, here, services=services, later=("late",)) as stack:
        stack.run_job("sync")
        _, held = allocate(stack, "track-0")
        stack.as_track("track-0", "POST", f"/sandboxes/{held}/mark-for-deletion")
        stack.as_admin("POST", "/cleanup")
        assert wait_until(lambda: len(stack.delete_log()["deletes"]) == 1, PATIENCE_SEC)
        stack.start("late")
        assert wait_until(
            lambda: stack.as_admin("GET", f"/sandboxes/{held}").json()["status"] == "available", PATIENCE_SEC
        )
        assert len(stack.delete_log()["deletes"]) == 1
        assert not any("Delete ended" in record["message"] for record in stack.records("late"))


def test_a_table_without_its_index_or_with_a_spoiled_layout_refuses_the_start_and_the_check_in_clear_words(
    tmp_path: Path, ministack_url: str, client: DynamoDBClient
) -> None:
    with Stack(tmp_path, SETTINGS | {"DDB_ENDPOINT_URL": ministack_url, "DDB_TABLE_NAME": "Spoiled"}) as stack:
        client.put_item(TableName="Spoiled", Item={**LAYOUT_KEY, "shards": {"S": "four"}})
        assert wait_until(lambda: allocate(stack, "track-0") == REFUSED, PATIENCE_SEC)
        spoiled = "shards is not a whole number"
        assert wait_until(lambda: spoiled in readiness(stack)[1], PATIENCE_SEC)
        environment = dict(os.environ) | dict(stack.plan.env)
        checked = subprocess.run(
            (sys.executable, "-m", "broker_common.cli", "check"),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "FAIL" in checked.stdout
        assert spoiled in checked.stdout
        assert checked.stderr == ""
        started = subprocess.run(
            (sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "broker_api.wsgi:app"),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert started.returncode == 2
        assert "Traceback" not in started.stderr
