"""The API's side of the queue."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, cast

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from broker_common.adapters.celery_queue import CeleryJobQueue
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.core.errors import JobNotFound, QueueUnavailable
from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_common.core.runs import Runs
from broker_common.services import build_api_services
from broker_common.settings import Settings
from tests.worker.conftest import ASKING, NOWHERE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker.conftest import Desk


def test_a_run_that_is_asked_for_waits_in_the_queue_and_can_be_looked_up(desk: Desk) -> None:
    job_id = desk.queue.enqueue(Job.SYNC, by=ASKING, flags={"force": True})

    (message,) = [json.loads(each) for each in cast("list[bytes]", desk.redis.lrange("jobs", 0, -1))]
    assert (message["headers"]["task"], message["headers"]["id"]) == ("broker.sync", job_id)
    assert "True" in message["headers"]["kwargsrepr"]
    run = desk.queue.find(job_id)
    assert (run.job, run.state, run.principal, run.requested_by) == (Job.SYNC, JobState.QUEUED, "alice", "req-1")


def test_each_run_has_an_id_of_its_own(desk: Desk) -> None:
    assert desk.ask(Job.SYNC) != desk.ask(Job.SYNC)


def test_the_last_runs_are_those_of_one_job_or_of_all(desk: Desk) -> None:
    first, second = desk.ask(Job.SYNC), desk.ask(Job.EXPIRE)

    assert [run.job_id for run in desk.queue.read_last(None, limit=5)] == [second, first]
    assert [run.job_id for run in desk.queue.read_last(Job.SYNC, limit=5)] == [first]


def test_an_unknown_run_is_not_found(desk: Desk) -> None:
    with pytest.raises(JobNotFound):
        desk.queue.find("nobody")


def test_a_queue_that_answers_can_be_pinged(desk: Desk) -> None:
    desk.queue.ping()


@pytest.fixture(params=["refuses", "hangs"])
def dead_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Yield a port where nothing listens, or where nothing ever answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("has_record", [False, True], ids=["all of redis", "the queue alone"])
def test_a_queue_that_is_away_says_so_at_once(dead_port: int, redis: Redis, *, has_record: bool) -> None:
    with Redis(port=dead_port, socket_timeout=0.5, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)) as nobody:
        runs = Runs(RedisJobRuns(redis if has_record else nobody), stall_limit_sec=1)
        queue = CeleryJobQueue(f"redis://127.0.0.1:{dead_port}/0", runs)

        with pytest.raises(QueueUnavailable):
            queue.enqueue(Job.SYNC, by=ASKING, flags={})

        assert redis.keys() == []


def test_as_many_threads_of_the_api_as_it_has_reach_redis_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        settings = Settings(redis_url=url, ddb_endpoint_url=NOWHERE, api_threads=256)
        services = build_api_services(settings, registry=CollectorRegistry())

        def cause_of_failure(_: int) -> BaseException | None:
            with pytest.raises(QueueUnavailable) as raised:
                services.queue.find("nobody")
            return raised.value.__cause__

        with ThreadPoolExecutor(settings.api_threads) as threads:
            causes = list(threads.map(cause_of_failure, range(settings.api_threads)))
    assert {type(cause) for cause in causes} == {RedisTimeoutError}, "none was refused a connection"
