"""What callers and operators meet when a part that the broker stands on is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import requests
from redis import Redis

from deploy.dev.processes import ROOT, wait_until
from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

API = ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "broker_api.wsgi:app")
WORKER = ("-m", "celery", "--quiet", "-A", "broker_worker.celery_app", "worker", "-c", "1")
PROCESSES = pytest.mark.parametrize("command", [API, WORKER], ids=["api", "worker"])


@pytest.fixture(scope="module")
def environment(ministack_url: str, redis_url: str) -> dict[str, str]:
    """Return what a process needs, on a table that does not exist."""
    return {
        "PATH": os.environ["PATH"],
        "BROKER_ENV": "development",
        "BROKER_API_TOKEN": "a-track-token",
        "BROKER_ADMIN_TOKEN": "an-admin-token",
        "API_BIND": "127.0.0.1",
        "API_PORT": "1",
        "DDB_ENDPOINT_URL": ministack_url,
        "DDB_TABLE_NAME": "NotThere",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "REDIS_URL": redis_url,
        "CSP_BASE_URL": "http://127.0.0.1:9",
        "CSP_API_TOKEN": "a-provider-token",
        "METRICS_PORT": "0",
    }


def run(command: tuple[str, ...], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@PROCESSES
def test_a_missing_table_ends_the_start_and_names_the_command_that_creates_it(
    command: tuple[str, ...], environment: dict[str, str]
) -> None:
    ended = run(command, environment)
    assert ended.returncode == 2, ended.stdout
    assert "'NotThere' does not exist" in ended.stdout
    assert "broker table create" in ended.stdout
    assert "Traceback" not in ended.stdout


@PROCESSES
def test_settings_that_do_not_parse_are_all_named_at_once(
    command: tuple[str, ...], environment: dict[str, str]
) -> None:
    bad = {"LAB_DURATION_HOURS": "four", "REDIS_URL": "localhost:6379", "BROKER_ENV": "staging"}
    ended = run(command, environment | bad)
    assert ended.returncode == 2, ended.stdout
    for name in bad:
        assert f"{name}: " in ended.stdout
    assert "Traceback" not in ended.stdout


@PROCESSES
def test_missing_aws_credentials_end_the_start_with_a_clear_line(
    command: tuple[str, ...], environment: dict[str, str]
) -> None:
    without = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    nowhere = {"HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
    ended = run(command, without | nowhere)
    assert ended.returncode == 2, ended.stdout
    assert "there are no AWS credentials" in ended.stdout
    assert "Traceback" not in ended.stdout


def test_tracks_are_served_while_redis_is_away_from_the_start(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        stack.kill("redis")
        stack.restart("api")
        given = stack.as_track("lonely", "POST", "/allocate")
        assert given.status_code == 201
        marked = stack.as_track("lonely", "POST", f"/sandboxes/{given.json()['sandbox_id']}/mark-for-deletion")
        assert marked.status_code == 200
        ready = requests.get(f"{stack.api_url}/readyz", timeout=10)
        assert ready.status_code == 200
        assert ready.json()["checks"]["redis"].startswith("error")
        refused = stack.as_admin("POST", "/sync")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "QUEUE_UNAVAILABLE")
        stack.start("redis")
        for name in ("worker-jobs", "worker-deletions", "beat"):
            # Beat ends when it loses Redis, and so does a worker that loses it with a message not yet acknowledged
            # (a weakness of kombu's): their supervisor starts them again.
            if not stack.is_running(name):
                assert stack.exit_code(name) != 0
                stack.start(name)
        assert wait_until(lambda: stack.as_admin("POST", "/cleanup").status_code == 202, 30)
        assert wait_until(lambda: stack.as_admin("GET", "/stats").json()["pending_deletion"] == 0, 60)


def test_tracks_are_served_while_redis_is_full_and_readiness_says_so(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack, Redis.from_url(stack.plan.env["REDIS_URL"]) as redis:
        assert stack.run_job("sync")["state"] == "succeeded"
        redis.config_set("maxmemory", 1)
        assert stack.as_track("lonely", "POST", "/allocate").status_code == 201
        ready = requests.get(f"{stack.api_url}/readyz", timeout=10)
        assert (ready.status_code, ready.json()["checks"]["redis"].endswith("is out of memory")) == (200, True)
        refused = stack.as_admin("POST", "/sync")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "QUEUE_UNAVAILABLE")
        redis.config_set("maxmemory", 0)
        assert requests.get(f"{stack.api_url}/readyz", timeout=10).json()["checks"]["redis"] == "ok"
        assert stack.as_admin("POST", "/sync").status_code == 202


def test_a_provider_that_is_away_fails_the_sync_and_changes_nothing(tmp_path: Path) -> None:
    with Stack(tmp_path, {"CIRCUIT_BREAKER_TIMEOUT_SEC": "0.5"}) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        before = stack.as_admin("GET", "/stats").json()
        stack.kill("csp")
        run = stack.run_job("sync")
        assert run["state"] == "failed"
        assert "could not connect" in run["error"]
        assert stack.as_admin("GET", "/stats").json() == before
        stack.start("csp")
        assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", 30)


def test_a_store_that_is_away_is_answered_503_and_comes_back_by_itself(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        stack.kill("dynamodb")
        refused = stack.as_track("patient", "POST", "/allocate")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "SERVICE_UNAVAILABLE")
        assert int(refused.headers["Retry-After"]) > 0
        assert requests.get(f"{stack.api_url}/healthz", timeout=10).status_code == 200
        ready = requests.get(f"{stack.api_url}/readyz", timeout=10)
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        stack.start("dynamodb")
        stack.create_table()
        stack.accept_table()  # the engine kept its tables in memory: this is another one
        assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", 20)
        assert wait_until(lambda: stack.as_track("patient", "POST", "/allocate").status_code == 201, 20)
        assert wait_until(lambda: requests.get(f"{stack.api_url}/readyz", timeout=10).status_code == 200, 20)
