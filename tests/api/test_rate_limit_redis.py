"""The shared rate limit on a real Redis: exact for each key, shared by processes, and off while Redis is away."""

from __future__ import annotations

import math
import signal
import socket
import socketserver
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from fakeredis import TcpFakeServer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.connection import AbstractConnection
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker_common.adapters import redis_rate_limit
from broker_common.adapters.redis_rate_limit import RedisRateLimit
from broker_common.core.ports import Allowance
from deploy.dev.processes import Process, free_ports, wait_until
from deploy.dev.programs import valkey

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """Wait longer for Redis than a loaded machine can make it wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_rate_limit, "TIMEOUT_SEC", 5)
        yield


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections that the limits of a test have made."""
    made: list[RedisRateLimit] = []
    begin = RedisRateLimit.__init__

    def remember(limit: RedisRateLimit, *args: Any, **options: Any) -> None:
        begin(limit, *args, **options)
        made.append(limit)

    monkeypatch.setattr(RedisRateLimit, "__init__", remember)
    yield
    for limit in made:
        limit.close()


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
    assert all(first)
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


def test_threads_that_ask_at_once_get_just_the_burst(redis_url: str) -> None:
    limit, key = RedisRateLimit(redis_url, rps=1, burst=100), str(uuid.uuid4())
    began = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        allowances = list(threads.map(lambda _: limit.take(key), range(300)))
    elapsed = time.monotonic() - began
    assert all(allowances)
    assert 100 <= sum(not each.is_exceeded for each in allowances if each) <= 100 + math.ceil(elapsed)
    assert sorted(each.remaining for each in allowances if each and not each.is_exceeded)[:99] == list(range(99))


class ExactBucket:
    """A bucket of `burst` tokens that gains `rps` a second, in exact numbers."""

    def __init__(self, rps: int, burst: int) -> None:
        self._rps = rps
        self._burst = burst
        self._tokens = Fraction(burst)

    def take(self, elapsed_us: int) -> Allowance:
        self._tokens = min(Fraction(self._burst), self._tokens + Fraction(elapsed_us * self._rps, 1_000_000))
        is_exceeded = self._tokens < 1
        if not is_exceeded:
            self._tokens -= 1
        return Allowance(
            is_exceeded=is_exceeded,
            limit=self._burst,
            remaining=math.floor(self._tokens),
            reset_after=math.ceil((self._burst - self._tokens) / self._rps),
            retry_after=math.ceil((1 - self._tokens) / self._rps) if is_exceeded else 0,
        )


@pytest.fixture(scope="module")
def clocked() -> Iterator[tuple[str, Clock]]:
    """Return the URL of a Redis in this process, and its clock."""
    with TcpFakeServer(("127.0.0.1", 0), server_type="valkey") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0", Clock()
        server.shutdown()


class Clock:
    """A clock that stands, in microseconds."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000

    @contextmanager
    def replacing_time(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "time", lambda: self.now_us / 1_000_000)
            yield


# Rates at which a token takes whole microseconds, so that Redis' clock tells just when it is there.
@given(
    rps=st.sampled_from([1, 2, 5, 8, 20, 50, 64, 100, 1000]),
    burst=st.integers(1, 12),
    # Microseconds, and requests' worth of time: the moments when a token is just there, or just not yet.
    pauses=st.lists(st.tuples(st.integers(-2, 2) | st.integers(0, 3_000_000), st.integers(0, 14)), max_size=40),
)
@example(rps=20, burst=200, pauses=[(0, 0)] * 202 + [(-1, 1), (1, 0), (0, 0), (0, 201)])
@example(rps=1, burst=1, pauses=[(0, 0), (0, 0), (-1, 1), (1, 0)])
@settings(deadline=None, max_examples=60)
def test_every_answer_is_that_of_an_exact_bucket(
    clocked: tuple[str, Clock], rps: int, burst: int, pauses: list[tuple[int, int]]
) -> None:
    url, clock = clocked
    limit, key = RedisRateLimit(url, rps=rps, burst=burst), str(uuid.uuid4())
    exact = ExactBucket(rps, burst)
    with clock.replacing_time():
        for microseconds, requests in pauses:
            elapsed_us = max(0, microseconds + requests * 1_000_000 // rps)
            clock.now_us += elapsed_us
            assert limit.take(key) == exact.take(elapsed_us)


def test_a_redis_that_was_restarted_or_closed_idle_connections_or_forgot_scripts_is_not_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_server() as (url, server):
        limit = RedisRateLimit(url, rps=1, burst=1)
        assert limit.take("one")
        server.stop()
        server.start()
        assert wait_until(server.is_ready, 15)
        assert limit.take("two")
        with Redis.from_url(url) as redis:
            redis.client_kill_filter(_type="normal", skipme=True)
            assert limit.take("three")
            redis.script_flush()
            assert limit.take("four")
    assert caplog.records == []


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


class Switch:
    """A port that leads each new connection to `target`; connections that it made before stay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._opened = [socket.create_server(("127.0.0.1", 0))]
        self.url = f"redis://127.0.0.1:{self._opened[0].getsockname()[1]}/0"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in self._opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(15)
        for each in self._opened:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                ends = (self._opened[0].accept()[0], socket.create_connection(("127.0.0.1", self.target)))
            except OSError:
                return
            self._opened += ends
            for source, sink in (ends, ends[::-1]):
                self._threads.append(threading.Thread(target=self._pass_on, args=(source, sink)))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_after_a_failover_no_request_takes_a_connection_to_the_server_that_writes_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with own_server() as (old_url, _), own_server() as (new_url, _), ExitStack() as ending:
        switch = Switch(urlsplit(old_url).port or 0)
        ending.callback(switch.close)
        limit = RedisRateLimit(switch.url, rps=1, burst=1)
        ending.callback(limit.close)
        with Redis.from_url(old_url) as old, ThreadPoolExecutor(4) as threads:
            old.client_pause(60_000, all=False)
            together = [threads.submit(limit.take, str(uuid.uuid4())) for _ in range(4)]
            assert wait_until(lambda: len(switch._opened) > 2 * 4, 15), "a connection for each"
            old.client_unpause()
            assert all(each.result(15) for each in together)
            switch.target = urlsplit(new_url).port or 0
            old.replicaof("127.0.0.1", "1")
        assert limit.take(str(uuid.uuid4())) is None
        assert wait_until(lambda: limit.take(str(uuid.uuid4())) is not None, 15)
        assert all(limit.take(str(uuid.uuid4())) for _ in range(8))
    assert caplog.text.count("without a rate limit") == 1


def test_an_answer_that_was_not_read_is_no_answer_to_another_key(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, key = RedisRateLimit(redis_url, rps=1, burst=100), str(uuid.uuid4())
    for _ in range(3):
        limit.take(key)

    def interrupt(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", interrupt)
        with pytest.raises(SystemExit):
            limit.take(key)
    another = limit.take(str(uuid.uuid4()))
    assert another is not None
    assert another.remaining == 99


def test_a_request_is_sent_once_over_a_new_connection() -> None:
    """Redis may have counted it before the connection broke."""
    asked = 0

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            nonlocal asked
            for line in self.rfile:
                if line in {b"SETINFO\r\n", b"SET\r\n"}:
                    self.wfile.write(b"+OK\r\n")
                elif line == b"EVALSHA\r\n":
                    asked += 1
                    if asked == 1:
                        return
                    self.wfile.write(b"+0 1 0\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, ExitStack() as ending:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ending.callback(server.shutdown)
        limit = RedisRateLimit(f"redis://127.0.0.1:{server.server_address[1]}/0", rps=1, burst=1)
        ending.callback(limit.close)
        assert limit.take("key") is None
        assert asked == 1
        assert wait_until(lambda: limit.take("key") is not None, 15)


def test_a_limit_whose_probe_could_not_start_is_not_off_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    with own_server() as (url, server):
        limit = RedisRateLimit(url, rps=1, burst=1)
        assert limit.take("track")
        server.stop()

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert limit.take("track") is None
        server.start()
        assert wait_until(server.is_ready, 15)
        assert limit.take("another") is not None
