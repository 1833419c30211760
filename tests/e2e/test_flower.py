"""What Flower shows of jobs: readable names, arguments and results, and no secret."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import Process, free_ports, wait_until
from deploy.dev.programs import valkey
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "the-password-of-redis"


@pytest.fixture
def guarded_redis() -> Iterator[str]:
    """Yield the URL of a Redis-compatible server that asks for a password."""
    (port,) = free_ports(1)
    program = valkey(port)
    redis = Process(replace(program, command=(*program.command, "--requirepass", PASSWORD)), lambda *_: None)
    redis.start()
    assert wait_until(redis.is_ready, 30)
    yield f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    redis.stop()


def test_flower_shows_jobs_by_name_with_arguments_and_results(tmp_path: Path) -> None:
    settings = {"FLOWER_UNAUTHENTICATED_API": "true", "MOCK_CSP_DELETE_SECONDS": "0.05"}
    with Stack(tmp_path, settings, with_flower=True) as stack:
        stack.run_job("sync", json={"force": True})
        sandbox = stack.as_track("seen", "POST", "/allocate").json()
        stack.as_track("seen", "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
        cleanup = stack.run_job("cleanup")

        def tasks() -> dict[str, dict[str, Any]]:
            found = requests.get(f"{stack.plan.flower_url}/api/tasks", timeout=10).json()
            return {task["name"]: task for task in found.values() if task["state"] == "SUCCESS"}

        names = {"broker.sync", "broker.cleanup", "broker.delete_sandbox"}
        assert wait_until(lambda: tasks().keys() >= names, 20), tasks()
        seen = tasks()
        assert "'synced': 20" in seen["broker.sync"]["result"]
        assert "'force': True" in seen["broker.sync"]["kwargs"]
        assert sandbox["sandbox_id"] in seen["broker.delete_sandbox"]["kwargs"]
        assert cleanup["job_id"] in seen["broker.delete_sandbox"]["kwargs"]
        assert seen["broker.cleanup"]["result"] == "{'dispatched': 1}"
        assert "'deleted'" in seen["broker.delete_sandbox"]["result"]
        with socket.create_connection(("127.0.0.1", stack.plan.number("FLOWER_PORT")), 30) as silent:
            assert silent.recv(1) == b"", "who sends no request is not waited for"
        shown = requests.get(f"{stack.plan.flower_url}/api/tasks", timeout=10).text
        for secret in (TRACK_TOKEN, ADMIN_TOKEN, stack.plan.env["CSP_API_TOKEN"]):
            assert secret not in shown


def test_no_page_of_flower_and_no_inspection_shows_a_secret(tmp_path: Path, guarded_redis: str) -> None:
    settings = {"FLOWER_UNAUTHENTICATED_API": "true", "REDIS_URL": guarded_redis}
    with Stack(tmp_path, settings, with_flower=True) as stack:
        stack.run_job("sync")
        url = stack.plan.flower_url

        def get(path: str) -> str:
            return requests.get(f"{url}{path}", timeout=10).text

        assert wait_until(lambda: "broker.sync" in get("/api/tasks"), 20)
        workers: list[str] = []

        def is_known() -> bool:
            # Flower waits a second for a worker's answer, which a busy machine may not give in time.
            workers[:] = requests.get(f"{url}/api/workers?refresh=1", timeout=10).json()
            return len(workers) == 3

        assert wait_until(is_known, 60), workers
        name = min(workers, key=lambda each: "jobs" not in each)
        (task,) = [
            task
            for task, seen in requests.get(f"{url}/api/tasks", timeout=10).json().items()
            if seen["name"] == "broker.sync"
        ]
        pages = {
            path: get(path)
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
        pages["logs"] = "".join(
            stack.output(part) for part in ("api", "worker-jobs", "worker-deletions", "beat", "flower")
        )

    assert "broker_url" in pages[f"/worker/{name}"]
    assert "broker_url" in pages["conf"]
    secrets = (PASSWORD, TRACK_TOKEN, ADMIN_TOKEN, stack.plan.env["CSP_API_TOKEN"], stack.plan.operator_token)
    assert [(path, secret) for path, page in pages.items() for secret in secrets if secret in page] == []
