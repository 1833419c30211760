"""`celery -A broker_worker.celery_app`: its settings, its metrics, its lines."""

from __future__ import annotations

import base64
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from deploy.dev.processes import answers, call, free_ports
from tests.worker.conftest import DEPLOYED, OUT_OF_REACH, Celery, until
from tests.worker.scrape import scrape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.worker.conftest import Desk


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def start_worker(database_url: str, port: int, *options: str, **environ: str) -> Celery:
    """Make the worker as it is deployed, whose table and provider are out of reach."""
    env = {
        **OUT_OF_REACH,
        "AWS_EC2_METADATA_DISABLED": "true",
        "REQUEST_DEADLINE_SEC": "0.3",
        "METRICS_PORT": str(port),
    }
    words = ("worker", "-c", "2", "--without-mingle", "--without-gossip", *options)
    return Celery(database_url, *words, application=DEPLOYED, **env, **environ)


@pytest.fixture
def worker(database_url: str, port: int) -> Iterator[Celery]:
    """Yield such a worker."""
    with start_worker(database_url, port) as worker:
        until(lambda: worker.has_said(" ready."), "the worker")
        yield worker


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_bad_settings_are_named_one_a_line_and_end_the_process_with_2(database_url: str, command: str) -> None:
    env = {"SYNC_INTERVAL_SEC": "soon", "LOG_LEVEL": "LOUD"}
    with Celery(database_url, command, application=DEPLOYED, **env) as process:
        assert process.exit_code() == 2

    names = [line.split(":", 1)[0] for line in process.output]
    missing = ["CSP_API_TOKEN", "CSP_BASE_URL"] if command == "worker" else []
    assert names == [*missing, "LOG_LEVEL", "SYNC_INTERVAL_SEC"]


@pytest.mark.parametrize("options", [(), ("-P", "threads")], ids=["processes", "threads"])
def test_a_worker_counts_what_its_pool_does(database_url: str, desk: Desk, port: int, options: tuple[str, ...]) -> None:
    with start_worker(database_url, port, *options):
        assert_runs_are_counted(desk, port)


def assert_runs_are_counted(desk: Desk, port: int) -> None:
    runs = [desk.run(Job.SYNC) for _ in range(3)]

    assert {run.state for run in runs} == {JobState.FAILED}
    until(lambda: scrape(port).get('broker_sync_total{outcome="error"}') == 3, "the three to be counted")
    samples = scrape(port)
    assert samples['broker_sync_total{outcome="success"}'] == 0
    assert samples['broker_job_duration_seconds_count{job="sync"}'] == 3
    assert "process_resident_memory_bytes" in samples
    assert not any(name.startswith("broker_allocat") for name in samples)


def test_a_message_that_is_dropped_is_counted(worker: Celery, desk: Desk, port: int) -> None:
    assert scrape(port)["broker_messages_dropped_total"] == 0
    desk.redis.lpush("jobs", "no message", "{}")

    until(lambda: scrape(port)["broker_messages_dropped_total"] == 2, "both to be counted")


def test_a_process_that_was_killed_keeps_its_counts(worker: Celery, desk: Desk, port: int) -> None:
    desk.run(Job.SYNC)
    until(lambda: scrape(port).get('broker_sync_total{outcome="error"}') == 1, "the run to be counted")
    line = next(line for line in worker.lines if line["message"] == "Sync failed")
    assert line["error"]
    for pid in children_of(worker):
        os.kill(pid, signal.SIGKILL)
    desk.run(Job.SYNC)

    until(lambda: scrape(port).get('broker_sync_total{outcome="error"}') == 2, "both runs to be counted")


def test_what_an_earlier_run_has_counted_is_not_counted_again(database_url: str, port: int, tmp_path: Path) -> None:
    left_over = tmp_path / "counter_1.db"
    left_over.touch()
    with start_worker(database_url, port, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as worker:
        until(lambda: worker.has_said(" ready."), "the worker")
        assert not left_over.exists()


def test_every_line_of_the_worker_is_json_and_holds_no_secret(worker: Celery, desk: Desk) -> None:
    desk.run(Job.SYNC)
    worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 0
    assert [line for line in worker.output if not line.startswith("{")] == []
    assert not any("the-provider-s-secret" in line for line in worker.output)


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_a_port_that_is_taken_is_named_and_ends_the_process_with_2(database_url: str, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {**OUT_OF_REACH, "METRICS_PORT": str(taken.getsockname()[1])}
        with Celery(database_url, command, application=DEPLOYED, **env) as process:
            assert process.exit_code() == 2

    assert process.output[-1].startswith("METRICS_PORT: ")


@pytest.mark.parametrize("credentials", [{}, {"FLOWER_BASIC_AUTH": "password-alone"}, {"FLOWER_BASIC_AUTH": ","}])
def test_flower_does_not_start_in_production_without_a_password(database_url: str, credentials: dict[str, str]) -> None:
    env = {"BROKER_ENV": "production", **credentials}
    with Celery(database_url, "flower", "--port=0", application=DEPLOYED, **env) as flower:
        assert flower.exit_code() == 2

    (line,) = flower.output
    assert line.startswith("FLOWER_BASIC_AUTH: ")
    assert "password-alone" not in line


def test_flower_in_production_asks_for_the_password(database_url: str, port: int) -> None:
    words = ("flower", f"--port={port}", "--address=127.0.0.1")
    env = {"BROKER_ENV": "production", "FLOWER_BASIC_AUTH": "operator:the-password"}
    with Celery(database_url, *words, application=DEPLOYED, **env) as flower:
        url = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/healthcheck"), "Flower")
        for path in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks"):
            assert call("GET", f"{url}{path}")[0] == 401
        assert call("GET", f"{url}/api/tasks", headers={"Authorization": basic("operator:the-password")})[0] == 200
        assert call("GET", f"{url}/api/tasks", headers={"Authorization": basic("operator:another")})[0] == 401
        assert call("GET", f"{url}/metrics")[0] == 200

    assert not any("the-password" in line for line in flower.output)


def basic(credentials: str) -> str:
    return f"Basic {base64.b64encode(credentials.encode()).decode()}"


def test_flower_starts_without_provider_and_tokens(database_url: str, port: int) -> None:
    words = ("flower", f"--port={port}", "--address=127.0.0.1")
    with Celery(database_url, *words, application=DEPLOYED) as flower:
        until(lambda: answers(f"http://127.0.0.1:{port}/healthcheck"), "Flower")
        assert flower.is_running()


def children_of(worker: Celery) -> list[int]:
    with open(f"/proc/{worker.pid}/task/{worker.pid}/children") as children:  # noqa: PTH123 - not a file
        return [int(pid) for pid in children.read().split()]
