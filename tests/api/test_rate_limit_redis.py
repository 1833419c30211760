"""The shared rate limit on a real Redis: exact for each key, shared by processes, and off while Redis is away."""

from __future__ import annotations

import signal
import socket
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker_common.adapters.redis_rate_limit import RedisRateLimit
from deploy.dev.processes import Process, free_ports, wait_until
from deploy.dev.programs import valkey

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def own_server() -> Iterator[tuple[str, Process]]:
    port = free_ports(1)[0]
    server = Process(valkey(port), lambda *_: None)
    server.start()
    assert wait_until(server.is_ready, 15)
    try:
        yield f"redis://127.0.0.1:{port}/0", server
    finally:
        server.stop()


def test_a_key_gets_its_burst_and_is_then_told_when_to_come_back(redis_url: str) -> None:
    limit, key = RedisRateLimit(redis_url, rps=1, burst=5), str(uuid.uuid4())
    allowances = [limit.take(key) for _ in range(6)]
    assert all(allowances)
    taken = [allowance for allowance in allowances if allowance]
    assert [each.is_exceeded for each in taken] == [False] * 5 + [True]
    assert [each.remaining for each in taken] == [4, 3, 2, 1, 0, 0]
    assert {each.limit for each in taken} == {5}
    assert (taken[-1].retry_after, taken[-1].reset_after) == (1, 5)


def test_each_key_has_a_bucket_of_its_own(redis_url: str) -> None:
    limit = RedisRateLimit(redis_url, rps=1, burst=1)
    first = [limit.take(str(uuid.uuid4())) for _ in range(5)]
    assert not any(allowance.is_exceeded for allowance in first if allowance)


def test_processes_share_a_bucket(redis_url: str) -> None:
    key = str(uuid.uuid4())
    processes = [RedisRateLimit(redis_url, rps=1, burst=4) for _ in range(2)]
    allowances = [process.take(key) for process in processes for _ in range(3)]
    assert sum(allowance.is_exceeded for allowance in allowances if allowance) == 2


def test_every_key_expires_once_its_bucket_is_full_again(redis_url: str) -> None:
    limit, key = RedisRateLimit(redis_url, rps=10, burst=50), str(uuid.uuid4())
    limit.take(key)
    with Redis.from_url(redis_url) as redis:
        (stored,) = redis.keys(f"*{key}*")
        assert 0 < redis.ttl(stored) <= 5


def test_requests_pass_while_redis_is_away_and_are_limited_once_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_server() as (url, server):
        limit = RedisRateLimit(url, rps=1, burst=1)
        assert limit.take("track")
        server.stop()
        assert [limit.take("track") for _ in range(10)] == [None] * 10
        said = [record.message for record in caplog.records if "without a rate limit" in record.message]
        assert len(said) == 1, "once, not once a request"
        server.start()
        assert wait_until(lambda: limit.take("track") is not None, 15)


def test_redis_is_asked_again_until_it_answers() -> None:
    with own_server() as (url, server):
        limit = RedisRateLimit(url, rps=1, burst=1)
        assert limit.take("track")
        server.stop()
        assert limit.take("track") is None
        with socket.create_server(("127.0.0.1", urlsplit(url).port or 0)) as listener:
            listener.settimeout(15)
            for _ in range(2):
                listener.accept()[0].close()
        assert limit.take("track") is None
        server.start()
        assert wait_until(lambda: limit.take("track") is not None, 15)


def test_a_redis_that_hangs_is_waited_for_once_and_limits_again_when_it_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_server() as (url, server):
        limit = RedisRateLimit(url, rps=1, burst=1)
        assert limit.take("track")
        server.kill(signal.SIGSTOP)
        with Redis.from_url(url, socket_timeout=0.05, retry=None) as another, pytest.raises(RedisTimeoutError):
            another.ping()
        assert [limit.take("track") for _ in range(10)] == [None] * 10
        said = [record.message for record in caplog.records if "without a rate limit" in record.message]
        assert len(said) == 1, "the next nine did not ask"
        server.kill(signal.SIGCONT)
        assert wait_until(lambda: limit.take("track") is not None, 15)
