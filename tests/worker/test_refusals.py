"""A Redis that answers, and refuses: what needs a write says so, and a worker takes up its work again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from kombu import Connection
from redis import Redis

from broker_common.adapters.celery_queue import CeleryJobQueue
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.adapters.redis_rate_limit import RedisRateLimit
from broker_common.cli.check import check
from broker_common.core.errors import QueueUnavailable
from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_common.core.runs import Runs
from broker_common.settings import Process as SettingsOf
from broker_worker.messages import CheckedTransport
from tests.worker.conftest import ASKING, Celery, Desk, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.dev.processes import Process

REPEATED = "Redis refuses an acknowledgement"


@pytest.fixture
def own_desk(own_redis: Process) -> Desk:
    return Desk(own_redis.program.ready_url.replace("tcp:", "redis:") + "/0")


def rotate_password(redis: Redis) -> None:
    """Have Redis refuse what connects from now on; the worker's subscription stays, and tells it nothing."""
    redis.config_set("requirepass", "rotated")
    redis.client_kill_filter(_type="normal", skipme=True)


def forbid(redis: Redis, command: str) -> None:
    redis.execute_command("ACL", "SETUSER", "default", f"-{command}")  # type: ignore[no-untyped-call] # redis-py's


REFUSALS: dict[str, Callable[[Redis], object]] = {
    "is out of memory": lambda redis: redis.config_set("maxmemory", 1),
    "is a replica, which takes no writes": lambda redis: redis.replicaof("127.0.0.1", 1),
    "refuses the password": rotate_password,
    "does not permit its user to do this": lambda redis: forbid(redis, "set"),
}
OF_THE_QUEUE: dict[str, Callable[[Redis], object]] = {
    "no right to queue": lambda redis: forbid(redis, "lpush"),
    "the queue is something else": lambda redis: redis.set("jobs", "a text"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_redis_that_takes_no_write_is_told_by_its_reason(own_desk: Desk, reason: str) -> None:
    own_desk.queue.ping()
    REFUSALS[reason](own_desk.redis)
    with Redis.from_url(own_desk.url) as client:
        runs = Runs(RedisJobRuns(client), stall_limit_sec=1)
        for call in (CeleryJobQueue(own_desk.url, runs).ping, lambda: runs.create("run", Job.SYNC, by=ASKING)):
            with pytest.raises(QueueUnavailable) as refusal:
                call()
            assert refusal.value.message == f"Redis, which holds the queue and the jobs' records, {reason}"
    environ = {"BROKER_ENV": "development", "REDIS_URL": own_desk.url}
    *_, finding = check(environ, SettingsOf.BEAT)
    assert (finding.part, finding.ok, reason in finding.text) == ("redis", False, True)


@pytest.mark.parametrize("is_warm", [False, True], ids=["first", "connected"])
@pytest.mark.parametrize("refuse", [*REFUSALS.values(), *OF_THE_QUEUE.values()], ids=[*REFUSALS, *OF_THE_QUEUE])
def test_a_job_that_cannot_be_queued_is_refused_at_once(
    own_desk: Desk, refuse: Callable[[Redis], object], *, is_warm: bool
) -> None:
    with Redis.from_url(own_desk.url) as client:
        queue = CeleryJobQueue(own_desk.url, Runs(RedisJobRuns(client), stall_limit_sec=1))
        if is_warm:
            queue.enqueue(Job.SYNC, by=ASKING, flags={})
            own_desk.redis.delete("jobs")
        refuse(own_desk.redis)
        with pytest.raises(QueueUnavailable):
            queue.enqueue(Job.SYNC, by=ASKING, flags={})


def test_the_rate_limit_waits_until_redis_takes_writes_again(own_desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    limit = RedisRateLimit(own_desk.url, rps=1, burst=1)
    own_desk.redis.replicaof("127.0.0.1", 1)
    assert limit.take("key") is None
    until(lambda: own_desk.redis.info("commandstats")["cmdstat_set"]["rejected_calls"] >= 3, "three more tries")
    assert "answers again" not in caplog.text
    own_desk.redis.replicaof("NO", "ONE")
    until(lambda: limit.take("key") is not None, "the limit")
    assert caplog.text.count("does not answer") == caplog.text.count("answers again") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_whose_acknowledgements_are_refused_for_a_while_takes_up_work_again(own_desk: Desk, pool: str) -> None:
    redis = own_desk.redis
    own_desk.set_due("1", "2")
    own_desk.script(**{"1": "hold", "2": "hold"})
    with Celery(own_desk.url, "worker", "-P", pool, "-c", "2", "--without-mingle", "--without-gossip") as worker:
        own_desk.ask(Job.CLEANUP)
        until(lambda: redis.llen("calls") == 2, "both wipes to be under way")
        rotate_password(redis)
        until(lambda: sum(REPEATED in message for message in worker.messages) == 2, "both to be refused")
        assert redis.hlen("unacked") == 2
        redis.config_set("requirepass", "")
        own_desk.release("1", "2")

        assert own_desk.run(Job.SYNC).state is JobState.SUCCEEDED
        until(lambda: redis.hlen("unacked") == 0, "every message to be settled")
        assert redis.llen("calls") == 3


@pytest.mark.parametrize(("how", "left"), [("ack", 0), ("reject", 0), ("requeue", 1)])
def test_what_redis_refuses_to_settle_holds_its_slot_until_it_is_settled(own_desk: Desk, how: str, left: int) -> None:
    redis = own_desk.redis
    own_desk.ask(Job.SYNC)
    with Connection(own_desk.url, transport=CheckedTransport) as connection, connection.SimpleQueue("jobs") as queue:
        channel: Any = queue.channel
        qos = channel.qos
        qos.prefetch_count = 1
        message = queue.get(timeout=5)
        rotate_password(redis)
        getattr(message, how)()
        assert (redis.hlen("unacked"), qos.can_consume()) == (1, False)
        with pytest.raises(channel.connection_errors):
            qos.restore_visible()
        redis.config_set("requirepass", "")
        qos.restore_visible()
        assert (redis.hlen("unacked"), redis.llen("jobs"), qos.can_consume()) == (0, left, True)
        qos.restore_visible()
        assert redis.llen("jobs") == left
