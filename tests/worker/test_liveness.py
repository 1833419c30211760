"""What /healthz says of real workers and beats, and when a pulse counts as stopped."""

from __future__ import annotations

import http.client
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from broker_worker.liveness import Pulse, watch_worker
from deploy.dev.processes import Process, call, free_ports
from deploy.dev.programs import valkey
from tests.worker.conftest import Celery, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLICATION = "broker_worker.celery_app"
NOWHERE = "http://127.0.0.1:1"
ENV = {
    "DDB_ENDPOINT_URL": NOWHERE,
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "CSP_BASE_URL": NOWHERE,
    "CSP_API_TOKEN": "token",
    "API_BIND": "127.0.0.1",
    "LIVENESS_LIMIT_SEC": "2.5",
}
WORKER = ("worker", "-c", "1", "--without-mingle", "--without-gossip")


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


def url_of(redis: Process) -> str:
    return redis.program.ready_url.replace("tcp:", "redis:") + "/0"


def start(url: str, port: int, *words: str) -> Celery:
    return Celery(url, *words, application=APPLICATION, METRICS_PORT=str(port), **ENV)


def health(port: int) -> tuple[int, dict[str, Any]]:
    """Return status and body; 0 if there is no answer."""
    try:
        return call("GET", f"http://127.0.0.1:{port}/healthz")
    except (OSError, http.client.HTTPException):
        return 0, {}


def is_green(port: int) -> bool:
    status, body = health(port)
    return status == 200 and body["status"] == "healthy"


def is_red(port: int) -> bool:
    status, body = health(port)
    return status == 503 and body["status"] == "unhealthy" and bool(body["error"])


def test_a_worker_is_red_while_redis_is_away_and_green_again_by_itself(own_redis: Process) -> None:
    (port,) = free_ports(1)
    with start(url_of(own_redis), port, *WORKER) as worker:
        until(lambda: is_green(port), "the worker to be green")
        assert isinstance(health(port)[1]["timestamp"], int)
        own_redis.stop()
        until(lambda: is_red(port), "the worker to be red")
        own_redis.start()
        until(lambda: is_green(port), "the worker to be green again")
        assert worker.is_running()


def test_a_worker_that_starts_without_redis_is_red_until_redis_is_there(own_redis: Process) -> None:
    own_redis.stop()
    (port,) = free_ports(1)
    with start(url_of(own_redis), port, *WORKER):
        until(lambda: is_red(port), "the worker to answer")
        own_redis.start()
        until(lambda: is_green(port), "the worker to be green")


def test_a_worker_whose_main_process_hangs_does_not_answer(database_url: str) -> None:
    (port,) = free_ports(1)
    with start(database_url, port, *WORKER) as worker:
        until(lambda: is_green(port), "the worker to be green")
        worker.signal(signal.SIGSTOP)
        assert health(port) == (0, {})
        worker.signal(signal.SIGCONT)
        until(lambda: is_green(port), "the worker to be green again")


def test_a_worker_s_metrics_port_is_free_once_its_main_process_is_gone(database_url: str) -> None:
    (port,) = free_ports(1)
    with start(database_url, port, *WORKER) as worker:
        until(lambda: is_green(port), "the worker to be green")
        worker.signal(signal.SIGKILL)
        until(lambda: not worker.is_running(), "the worker to be gone")
        with start(database_url, port, *WORKER):
            until(lambda: is_green(port), "the next worker to be green")


def test_a_beat_and_one_that_waits_for_its_turn_are_green(database_url: str) -> None:
    ports = free_ports(2)
    with start(database_url, ports[0], "beat") as first, start(database_url, ports[1], "beat") as second:
        until(lambda: is_green(ports[0]) and is_green(ports[1]), "both to be green")
        assert [beat.has_said("Acquired lock") for beat in (first, second)].count(True) == 1


def test_a_beat_whose_redis_hangs_or_goes_away_ends_and_its_successor_is_green(own_redis: Process) -> None:
    (port,) = free_ports(1)
    with start(url_of(own_redis), port, "beat") as beat:
        until(lambda: is_green(port), "beat to be green")
        own_redis.kill(signal.SIGSTOP)
        assert beat.exit_code() == 1
        assert health(port) == (0, {})
    own_redis.kill(signal.SIGCONT)
    with start(url_of(own_redis), port, "beat"):
        until(lambda: is_green(port), "beat to be green again")


def test_a_pulse_is_well_from_its_first_beat_until_the_limit_after_its_last() -> None:
    now = 100.0
    pulse = Pulse(60, monotonic=lambda: now)
    assert pulse.problem() == "it has not begun to work yet"
    pulse.beat()
    now += 60
    assert pulse.problem() is None
    now += 1
    assert pulse.problem() == "it has not worked for 61 s"
    pulse.beat()
    assert pulse.problem() is None


def test_a_worker_whose_pool_has_no_process_left_has_no_pulse() -> None:
    consumer_steps: set[Any] = set()
    turns: list[Callable[[], None]] = []
    pulse = Pulse(60)
    watch_worker(SimpleNamespace(steps={"consumer": consumer_steps}), pulse)  # type: ignore[arg-type] # all that it uses
    (watch,) = consumer_steps
    consumer = SimpleNamespace(pool=SimpleNamespace(info={"processes": []}))
    hub = SimpleNamespace(call_repeatedly=lambda _, turn: turns.append(turn))
    watch.register_with_event_loop(None, consumer, hub)
    assert pulse.problem() == "it has not begun to work yet"
    consumer.pool.info["processes"] = [4711]
    turns[0]()
    assert pulse.problem() is None


def test_a_process_that_finishes_its_work_before_it_stops_is_well() -> None:
    now = 100.0
    pulse = Pulse(60, monotonic=lambda: now)
    pulse.beat()
    pulse.stop()
    now += 600
    assert pulse.problem() is None
