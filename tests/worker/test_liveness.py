"""What /healthz says of real workers and beats, and when a pulse counts as stopped."""

from __future__ import annotations

import http.client
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery as CeleryApp
from celery import signals
from celery.worker.state import active_requests
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import TimeoutError as RedisTimeoutError

from broker_common.core.job_names import Job
from broker_worker.liveness import Pulse, watch_worker
from deploy.dev.processes import Process, call, free_ports
from tests.worker.conftest import DEADLINE_SEC, DEPLOYED, OUT_OF_REACH, Celery, Desk, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.utils.dispatch import Signal

WORKER = ("worker", "-c", "1", "--without-mingle", "--without-gossip")
IN_THREADS = (*WORKER, "-P", "threads")
POOLS = pytest.mark.parametrize("words", [WORKER, IN_THREADS], ids=["processes", "threads"])


def url_of(redis: Process) -> str:
    return redis.program.ready_url.replace("tcp:", "redis:") + "/0"


def start(url: str, port: int, *words: str) -> Celery:
    env = {**OUT_OF_REACH, "LIVENESS_LIMIT_SEC": "2.5", "METRICS_PORT": str(port)}
    return Celery(url, *words, application=DEPLOYED, **env)


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


@POOLS
def test_a_worker_is_red_while_redis_is_away_and_green_again_by_itself(
    own_redis: Process, words: tuple[str, ...]
) -> None:
    (port,) = free_ports(1)
    with start(url_of(own_redis), port, *words) as worker:
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


def test_a_worker_that_redis_refuses_is_red_and_green_again_once_redis_relents(own_redis: Process) -> None:
    (port,) = free_ports(1)
    with start(url_of(own_redis), port, *WORKER) as worker, Redis.from_url(url_of(own_redis)) as redis:
        until(lambda: is_green(port), "the worker to be green")
        redis.config_set("requirepass", "rotated")
        redis.client_kill_filter(_type="normal", skipme=True)
        until(lambda: is_red(port), "the worker to be red")
        redis.config_set("requirepass", "")
        until(lambda: is_green(port), "the worker to be green again")
        assert worker.is_running()


@POOLS
def test_a_worker_that_takes_nothing_of_what_waits_is_red(own_redis: Process, words: tuple[str, ...]) -> None:
    (port,) = free_ports(1)
    desk = Desk(url_of(own_redis))
    with start(url_of(own_redis), port, *words):
        until(lambda: is_green(port), "the worker to be green")
        # One task an hour: the next one fills the worker's only slot, and the rest waits.
        control = CeleryApp(broker=desk.url, set_as_current=False).control
        assert control.rate_limit("broker.expire", "1/h", reply=True, timeout=DEADLINE_SEC, limit=1)
        for _ in range(3):
            desk.ask(Job.EXPIRE)
        until(lambda: is_red(port), "the worker to be red")
        assert desk.redis.llen("jobs") == 1
        desk.redis.delete("jobs")
        until(lambda: is_green(port), "the worker to be green again")


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
    assert pulse.problem() == "it has not started to work yet"
    pulse.beat()
    now += 60
    assert pulse.problem() is None
    now += 1
    assert pulse.problem() == "it has not worked for 61 s"
    pulse.beat()
    assert pulse.problem() is None


class Watched:
    """A worker's pulse over time, and what the worker and its queues look like meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: int | Exception = 0
        self.pool: Any = SimpleNamespace(info={"processes": [4711]}, num_processes=1)
        self.pulse = Pulse(60, monotonic=lambda: self.now)
        app: Any = SimpleNamespace(steps={"consumer": set()})
        redis: Any = SimpleNamespace(llen=self._length)  # all that it uses
        watch_worker(app, self.pulse, redis, monotonic=lambda: self.now)
        (watch,) = app.steps["consumer"]
        self.queues = [SimpleNamespace(name="jobs")]
        consumer = SimpleNamespace(pool=self.pool, task_consumer=SimpleNamespace(queues=self.queues))
        self._turns: list[Callable[[], None]] = []
        hub = SimpleNamespace(call_repeatedly=lambda _, turn: self._turns.append(turn))
        watch.register_with_event_loop(None, consumer, hub)

    def problem_after(self, seconds: int, each: Callable[[], object] = lambda: None) -> str | None:
        """Let the time pass, a turn and a call of `each` a second."""
        for _ in range(seconds):
            self.now += 1
            each()
            self._turns[0]()
        return self.pulse.problem()

    def _length(self, name: str) -> int:
        assert name == "jobs"
        if isinstance(self.waiting, Exception):
            raise self.waiting
        return self.waiting


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_worker_without_work_is_well(watched: Watched) -> None:
    assert watched.problem_after(600) is None


def test_a_worker_whose_pool_has_no_process_left_has_no_pulse(watched: Watched) -> None:
    watched.pool.info["processes"] = []
    assert watched.problem_after(61) == "it has not worked for 61 s"
    watched.pool.info["processes"] = [4711]
    assert watched.problem_after(1) is None


def test_a_worker_whose_pool_has_threads_needs_no_processes(watched: Watched) -> None:
    watched.pool.info = {"max-concurrency": 100, "threads": 0}
    assert watched.problem_after(600) is None
    watched.waiting = 1
    assert watched.problem_after(61) == "it has not worked for 61 s"


@pytest.mark.parametrize(
    "waiting", [1, AuthenticationError(), RedisTimeoutError()], ids=lambda each: type(each).__name__
)
def test_a_worker_that_takes_nothing_of_what_waits_has_no_pulse(watched: Watched, waiting: int | Exception) -> None:
    watched.waiting = waiting
    assert watched.problem_after(60) is None
    assert watched.problem_after(1) == "it has not worked for 61 s"
    watched.waiting = 0
    assert watched.problem_after(1) is None


@pytest.mark.parametrize("signal", [signals.task_received, signals.task_rejected], ids=lambda signal: signal.name)
def test_a_worker_that_takes_what_waits_is_well_however_much_it_is(watched: Watched, signal: Signal) -> None:
    watched.waiting = 1000
    assert watched.problem_after(600, lambda: signal.send(sender=None)) is None
    assert watched.problem_after(61) is not None


def test_a_worker_that_was_told_to_consume_nothing_is_well_while_work_waits(watched: Watched) -> None:
    watched.waiting = 1
    watched.queues.clear()
    assert watched.problem_after(600) is None


class Request:
    """What Celery keeps of a task that runs."""

    task = SimpleNamespace(time_limit=100)


def test_a_worker_has_no_pulse_while_one_of_its_tasks_runs_longer_than_it_may(watched: Watched) -> None:
    watched.pool.num_processes = 2
    hanging, other = Request(), Request()
    for request in (hanging, other):
        signals.task_received.send(sender=None, request=request)
        active_requests.add(request)
    assert watched.problem_after(100) is None
    active_requests.discard(other)
    assert watched.problem_after(60) is None, "its process may just have been ended"
    assert watched.problem_after(40) is not None
    active_requests.discard(hanging)
    assert watched.problem_after(1) is None


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_worker_all_of_whose_tasks_hang_has_no_pulse(watched: Watched, waiting: int) -> None:
    running = Request()
    signals.task_received.send(sender=None, request=running)
    active_requests.add(running)
    watched.waiting = waiting
    assert watched.problem_after(300) is not None
    active_requests.discard(running)


def test_a_task_that_waits_long_for_its_turn_does_not_hang(watched: Watched) -> None:
    running = Request()
    signals.task_received.send(sender=None, request=running)
    assert watched.problem_after(600) is None
    active_requests.add(running)
    assert watched.problem_after(100) is None
    active_requests.discard(running)


def test_a_worker_all_of_whose_processes_are_busy_is_well_while_work_waits(watched: Watched) -> None:
    running = Request()
    watched.waiting = 1
    active_requests.add(running)
    assert watched.problem_after(600) is None
    watched.pool.num_processes = 2
    assert watched.problem_after(61) == "it has not worked for 61 s"
    active_requests.discard(running)


def test_a_process_that_finishes_its_work_before_it_stops_is_well() -> None:
    now = 100.0
    pulse = Pulse(60, monotonic=lambda: now)
    pulse.beat()
    pulse.stop()
    now += 600
    assert pulse.problem() is None
