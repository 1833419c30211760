"""The job lock in Redis: what the suite says, and when it ends by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.redis_lock import RedisJobLocks
from broker_common.core.errors import QueueUnavailable
from broker_common.core.job_names import Job
from tests.runs_suite import LocksContract
from tests.worker.conftest import until

if TYPE_CHECKING:
    from redis import Redis as RedisClient


@pytest.fixture
def locks(redis: RedisClient) -> RedisJobLocks:
    return RedisJobLocks(redis)


class TestLocksInRedis(LocksContract):
    pass


def test_a_lock_that_another_has_taken_over_is_not_released(locks: RedisJobLocks, redis: RedisClient) -> None:
    with locks.hold(Job.SYNC, owner="a"):
        (key,) = redis.keys()
        redis.set(key, "b")

    assert redis.get(key) == b"b"


def test_a_lock_is_renewed_while_it_is_held(redis: RedisClient) -> None:
    left: list[int] = []

    def has_grown() -> bool:
        left.append(int(redis.pttl(key)))
        return len(left) > 1 and left[-1] > left[-2]

    with RedisJobLocks(redis, expiry_sec=2).hold(Job.SYNC, owner="a"):
        (key,) = redis.keys()
        until(has_grown, "a renewal")


@pytest.mark.timeout(10)
def test_without_redis_nobody_gets_in() -> None:
    with (
        Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)) as nobody,
        pytest.raises(QueueUnavailable),
        RedisJobLocks(nobody).hold(Job.SYNC, owner="a"),
    ):
        pass
