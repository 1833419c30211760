"""What Flower shows of jobs: readable names, arguments and results, and no secret."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import free_ports, wait_until
from deploy.dev.programs import valkey
from tests.backends import running
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "the-password-of-redis"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a broker with Flower, on a Redis that asks for a password."""
    (port,) = free_ports(1)
    redis = valkey(port)
    settings = {
        "FLOWER_UNAUTHENTICATED_API": "true",
        "MOCK_CSP_DELETE_SECONDS": "0.05",
        "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:{port}/0",
    }
    with (
        running(replace(redis, command=(*redis.command, "--requirepass", PASSWORD))),
        Stack(tmp_path_factory.mktemp("flower"), settings, with_flower=True, with_webhooks=True) as stack,
    ):
        stack.run_job("sync", json={"force": True})
        yield stack


def get(stack: Stack, path: str) -> str:
    return requests.get(f"{stack.plan.flower_url}{path}", timeout=10).text


def tasks(stack: Stack) -> dict[str, dict[str, Any]]:
    """Return the tasks that succeeded, by their names."""
    found = json.loads(get(stack, "/api/tasks"))
    return {task["name"]: task for task in found.values() if task["state"] == "SUCCESS"}


def test_flower_shows_jobs_by_name_with_arguments_and_results(stack: Stack) -> None:
    sandbox = stack.as_track("seen", "POST", "/allocate").json()
    stack.as_track("seen", "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
    cleanup = stack.run_job("cleanup")

    names = {"broker.sync", "broker.cleanup", "broker.delete_sandbox"}
    assert wait_until(lambda: tasks(stack).keys() >= names, 20), tasks(stack)
    seen = tasks(stack)
    assert "'synced': 20" in seen["broker.sync"]["result"]
    assert "'force': True" in seen["broker.sync"]["kwargs"]
    assert sandbox["sandbox_id"] in seen["broker.delete_sandbox"]["kwargs"]
    assert cleanup["job_id"] in seen["broker.delete_sandbox"]["kwargs"]
    assert seen["broker.cleanup"]["result"] == "{'dispatched': 1}"
    assert "'deleted'" in seen["broker.delete_sandbox"]["result"]


def test_a_connection_that_sends_no_request_is_closed(stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", stack.plan.number("FLOWER_PORT")), 30) as silent:
        assert silent.recv(1) == b""


def test_no_page_of_flower_and_no_inspection_shows_a_secret(stack: Stack) -> None:
    assert wait_until(lambda: "broker.sync" in tasks(stack), 20)
    workers: list[str] = []

    def are_known() -> bool:
        # Flower waits a second for a worker's answer, which a busy machine may not give in time.
        workers[:] = json.loads(get(stack, "/api/workers?refresh=1"))
        return len(workers) == 3

    assert wait_until(are_known, 60), workers
    name = min(workers, key=lambda each: "jobs" not in each)
    task = tasks(stack)["broker.sync"]["uuid"]
    pages = {
        path: get(stack, path)
        for path in (
            *("/", "/workers?json=1", "/tasks", "/broker", "/metrics", "/healthcheck"),
            *(f"/worker/{name}", f"/task/{task}", f"/api/task/info/{task}"),
            *("/api/workers", f"/api/workers?workername={name}", "/api/tasks", "/api/task/types"),
            "/api/queues/length",
        )
    }
    for command in ("conf", "report", "stats"):
        inspect = ["inspect", command, "--timeout", "20", "--destination", name]
        words = [sys.executable, "-m", "celery", "-A", "broker_worker.celery_app", *inspect]
        pages[command] = subprocess.run(
            words, env=dict(stack.plan.env), check=True, capture_output=True, text=True, timeout=60
        ).stdout
    pages["logs"] = "".join(stack.output(part) for part in ("api", "worker-jobs", "worker-deletions", "beat", "flower"))

    assert "broker_url" in pages[f"/worker/{name}"]
    assert "broker_url" in pages["conf"]
    secrets = (PASSWORD, TRACK_TOKEN, ADMIN_TOKEN, stack.plan.env["CSP_API_TOKEN"], stack.plan.operator_token)
    assert [(path, secret) for path, page in pages.items() for secret in secrets if secret in page] == []
