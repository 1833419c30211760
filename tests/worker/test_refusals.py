"""A worker whose Redis answers, and refuses: acknowledgements are repeated, and cost no slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kombu import Connection
from kombu.simple import SimpleQueue

from broker_common.core.jobs import Job, JobState
from broker_worker.messages import CheckedTransport
from tests.worker.conftest import Celery, Desk, until

if TYPE_CHECKING:
    from redis import Redis

    from deploy.dev.processes import Process

REPEATED = "Redis refuses an acknowledgement"


@pytest.fixture
def own_desk(own_redis: Process) -> Desk:
    return Desk(own_redis.program.ready_url.replace("tcp:", "redis:") + "/0")


def rotate_password(redis: Redis) -> None:
    """Have Redis refuse what connects from now on; the worker's subscription stays, and tells it nothing."""
    redis.config_set("requirepass", "rotated")
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_a_worker_whose_acknowledgements_are_refused_for_a_while_takes_up_work_again(own_desk: Desk) -> None:
    redis = own_desk.redis
    own_desk.set_due("1", "2")
    own_desk.script(**{"1": "hold", "2": "hold"})
    with Celery(own_desk.url, "worker", "-c", "2", "--without-mingle", "--without-gossip") as worker:
        own_desk.ask(Job.CLEANUP)
        until(lambda: redis.llen("calls") == 2, "both processes to be busy")
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
    with Connection(own_desk.url, transport=CheckedTransport) as connection, SimpleQueue(connection, "jobs") as queue:
        qos = queue.channel.qos
        qos.prefetch_count = 1
        message = queue.get(timeout=5)
        rotate_password(redis)
        getattr(message, how)()
        assert (redis.hlen("unacked"), qos.can_consume()) == (1, False)
        with pytest.raises(queue.channel.connection_errors):
            qos.restore_visible()
        redis.config_set("requirepass", "")
        qos.restore_visible()
        assert (redis.hlen("unacked"), redis.llen("jobs"), qos.can_consume()) == (0, left, True)
        qos.restore_visible()
        assert redis.llen("jobs") == left
