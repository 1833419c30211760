"""What the provider's tests run against: a real Redis-compatible server, and the mock CSP as a process of its own."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import requests
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.csp_client import CspClient
from broker_common.adapters.redis_breaker import RedisBreaker
from broker_common.adapters.redis_slots import RedisSlots
from broker_common.adapters.system_clock import SystemClock
from deploy.dev.processes import ROOT, Process, Program, free_ports, wait_until
from deploy.dev.programs import valkey
from tests.fakes import RecordingRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

TOKEN = "s3cret-provider-token"


@contextmanager
def connected(url: str) -> Iterator[Redis]:
    """Give a client of Redis, as impatient as the broker's."""
    with Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)) as client:
        yield client


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """Connect to the shared server, without what earlier tests left in it of ours."""
    with connected(redis_url) as client:
        client.delete("sandbox-broker:csp:slots", "sandbox-broker:csp:pace", "sandbox-broker:csp:breaker")
        yield client


class OwnRedis:
    """A server of a test's own, to stop and start."""

    def __init__(self) -> None:
        port = free_ports(1)[0]
        self.url = f"redis://127.0.0.1:{port}/0"
        self._process = Process(valkey(port), lambda *_: None)

    def start(self) -> None:
        self._process.start()
        assert wait_until(self._process.is_ready, 15)

    def stop(self) -> None:
        self._process.stop()


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    server = OwnRedis()
    server.start()
    yield server
    server.stop()


@dataclass
class MockCsp:
    """The mock CSP, as tests reach it: over HTTP."""

    url: str
    process: Process
    lines: list[str] = field(default_factory=list)

    def switch(self, **switches: Any) -> None:
        requests.put(f"{self.url}/_mock/switches", json=switches, timeout=10).raise_for_status()

    def deletes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.log()["deletes"]
        return found

    def log(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{self.url}/_mock/deletes", timeout=10).json()
        return found

    def accounts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = requests.get(f"{self.url}/_mock/accounts", timeout=10).json()["accounts"]
        return found

    def sandboxes(self) -> dict[str, dict[str, Any]]:
        """Return the accounts that count, by csp_id as a string."""
        return {
            str(account["csp_id"]): account
            for account in self.accounts()
            if (account["account_type"], account["state"]) == ("sandbox", "active")
        }

    def any_account(self) -> str:
        return str(next(iter(self.sandboxes().values()))["id"])


def mock_program(port: int, environ: Mapping[str, str]) -> Program:
    return Program(
        name="csp",
        command=(sys.executable, str(ROOT / "deploy" / "dev" / "mock_csp.py")),
        env={"PATH": os.environ["PATH"], "MOCK_CSP_PORT": str(port), "MOCK_CSP_TOKEN": TOKEN, **environ},
        ready_url=f"tcp://127.0.0.1:{port}",
    )


@contextmanager
def running_mock(**environ: str) -> Iterator[MockCsp]:
    """Run the mock CSP until the context ends."""
    port = free_ports(1)[0]
    lines: list[str] = []
    process = Process(mock_program(port, environ), lambda _, line: lines.append(line))
    process.start()
    try:
        assert wait_until(process.is_ready, 15, give_up=process.has_ended), process.ending()
        yield MockCsp(f"http://127.0.0.1:{port}", process, lines)
    finally:
        process.stop()


@pytest.fixture(scope="session")
def shared_mock() -> Iterator[MockCsp]:
    with running_mock(MOCK_CSP_DELETE_SECONDS="0") as mock:
        yield mock


@pytest.fixture
def mock(shared_mock: MockCsp) -> MockCsp:
    """Give the mock CSP with its switches as at the start, and its log empty."""
    shared_mock.switch()
    requests.delete(f"{shared_mock.url}/_mock/deletes", timeout=10).raise_for_status()
    return shared_mock


def client_of(base_url: str, *, redis: Redis, limit: int = 10, threshold: int = 5, **changes: Any) -> CspClient:
    """Make a client as workers do: all share the slots and the breaker in Redis."""
    options: dict[str, Any] = {
        "token": TOKEN,
        "connect_timeout": 2,
        "read_timeout": 5,
        "connections": 10,
        "slots": RedisSlots(redis, limit=limit, lease_sec=60),
        "breaker": RedisBreaker(redis, threshold=threshold, timeout_sec=60, trial_sec=60),
        "recorder": RecordingRecorder(),
        "clock": SystemClock(),
    }
    return CspClient(base_url=base_url, **options | changes)


@pytest.fixture
def make_client(redis: Redis) -> Callable[..., CspClient]:
    return partial(client_of, redis=redis)


@pytest.fixture
def client(mock: MockCsp, make_client: Callable[..., CspClient]) -> CspClient:
    return make_client(mock.url)
