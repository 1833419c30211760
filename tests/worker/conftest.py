"""A database of its own in the session's Redis, and a real worker on it whose use cases are scripted."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from celery import Celery as CeleryApp
from coverage import Coverage
from redis import Redis

from broker_common.adapters.celery_queue import CeleryJobQueue
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.core.principals import Actor
from broker_common.core.runs import Runs
from deploy.dev.processes import Process, Program, free_ports, wait_until
from deploy.dev.programs import valkey
from tests.backends import empty_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from broker_common.core.job_names import Job
    from broker_common.core.runs import JobRun

_DATABASE = 9
DEADLINE_SEC = 30.0
ASKING = Actor(principal="alice", request_id="req-1")
DEPLOYED = "broker_worker.celery_app"
"""The application that is deployed."""
NOWHERE = "http://127.0.0.1:1"
OUT_OF_REACH = {
    "DDB_ENDPOINT_URL": NOWHERE,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "CSP_BASE_URL": NOWHERE,
    "CSP_API_TOKEN": "the-provider-s-secret",
    "API_BIND": "127.0.0.1",
}
"""Settings of a worker whose table and provider are out of reach."""
_ENVIRONMENT = {"BROKER_ENV": "development", "PYTHONUNBUFFERED": "1"}


class Celery:
    """A process of Celery's command line, and what it logged."""

    def __init__(self, url: str, *words: str, application: str = "tests.worker.scripted_app", **env: str) -> None:
        self.output: list[str] = []
        machine = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        self._process = Process(
            Program(
                name=words[0],
                command=(sys.executable, "-m", "celery", "-A", application, *words),
                env={**machine, **_ENVIRONMENT, "REDIS_URL": url, **env},
                stop_limit_sec=20,
            ),
            lambda _, line: self.output.append(line),
        )

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if Coverage.current() is None:  # what is killed writes down no coverage
            self._process.kill_group()
        self._process.stop()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log's lines so far."""
        return [json.loads(line) for line in list(self.output) if line.startswith("{")]

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]

    def has_said(self, text: str) -> bool:
        return any(text in message for message in self.messages)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, signum: int) -> None:
        self._process.kill(signum)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def exit_code(self) -> int:
        """Wait for the end."""
        until(lambda: self._process.poll() is not None, "the process to end")
        self._process.ending()
        return cast("int", self._process.poll())


class Desk:
    """What a test does from outside: sets the script, asks for runs, and looks at them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = Redis.from_url(url)
        self.runs = Runs(RedisJobRuns(self.redis), stall_limit_sec=60)
        self.queue = CeleryJobQueue(url, self.runs)

    def script(self, **behaviours: str) -> None:
        for name, behaviour in behaviours.items():
            self.redis.set(f"script:{name}", behaviour)

    def release(self, *names: str) -> None:
        for name in names:
            self.redis.delete(f"script:{name}")

    def set_due(self, *sandbox_ids: str) -> None:
        self.redis.set("due", json.dumps(sandbox_ids))

    def calls(self, name: str) -> list[dict[str, Any]]:
        calls = [json.loads(call) for call in cast("list[bytes]", self.redis.lrange("calls", 0, -1))]
        return [call for call in calls if call["name"] == name]

    def await_calls(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        until(lambda: len(self.calls(name)) >= count, f"{count} calls of {name}")
        return self.calls(name)

    def ask(self, job: Job, *, force: bool = False) -> str:
        return self.queue.enqueue(job, by=ASKING, flags={"force": force})

    def send(self, task: str, **options: Any) -> str:
        """Put a message in a queue past the API's own way; returns its id."""
        with CeleryApp(broker=self.url, set_as_current=False) as producer:
            sent: str = producer.send_task(task, ignore_result=True, **options).id
            return sent

    def await_end(self, job_id: str) -> JobRun:
        def find() -> JobRun | None:
            return self.runs.find(job_id)

        until(lambda: (run := find()) is not None and run.state.is_final, f"run {job_id} to end")
        return cast("JobRun", find())

    def run(self, job: Job, *, force: bool = False) -> JobRun:
        """Ask for a run, and wait for its end."""
        return self.await_end(self.ask(job, force=force))


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fails the test if it does not come true."""
    assert wait_until(condition, DEADLINE_SEC), f"waited in vain for {what}"


@pytest.fixture
def database_url(redis_url: str) -> str:
    """Return the URL of an empty database that is this package's alone."""
    return empty_database(redis_url, _DATABASE)


@pytest.fixture
def redis(database_url: str) -> Iterator[Redis]:
    with Redis.from_url(database_url) as client:
        yield client


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    desk = Desk(database_url)
    yield desk
    desk.redis.close()


@pytest.fixture
def start_worker(database_url: str) -> Callable[[], AbstractContextManager[Celery]]:
    return lambda: Celery(database_url, "worker", "-c", "2", "--without-mingle", "--without-gossip")


@pytest.fixture
def worker(start_worker: Callable[[], AbstractContextManager[Celery]]) -> Iterator[Celery]:
    """Yield a worker that is ready, with two processes."""
    with start_worker() as worker:
        until(lambda: worker.has_said(" ready."), "the worker")
        yield worker


@pytest.fixture
def own_redis() -> Iterator[Process]:
    """Yield a Redis-compatible server that the test may stop."""
    (port,) = free_ports(1)
    redis = Process(valkey(port), lambda *_: None)
    redis.start()
    until(redis.is_ready, "Redis")
    yield redis
    redis.kill(signal.SIGCONT)
    redis.stop()
