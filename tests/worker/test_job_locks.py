"""The job lock: one owner at a time, who may come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.redis_lock import RedisJobLocks
from broker_common.core.errors import QueueUnavailable
from broker_common.core.jobs import Job
from tests.worker.conftest import until

if TYPE_CHECKING:
    from redis import Redis as RedisClient


@pytest.fixture
def locks(redis: RedisClient) -> RedisJobLocks:
    return RedisJobLocks(redis)


def test_a_second_owner_does_not_get_in_until_the_first_has_left(locks: RedisJobLocks) -> None:
    with locks.hold(Job.SYNC, owner="a") as first, locks.hold(Job.SYNC, owner="b") as second:
        assert (first, second) == (True, False)
    with locks.hold(Job.SYNC, owner="b") as later:
        assert later


def test_each_job_has_its_own_lock(locks: RedisJobLocks) -> None:
    with locks.hold(Job.SYNC, owner="a"), locks.hold(Job.EXPIRE, owner="b") as other:
        assert other


def test_the_owner_of_a_run_that_was_cut_off_enters_again(locks: RedisJobLocks) -> None:
    with locks.hold(Job.SYNC, owner="a"), locks.hold(Job.SYNC, owner="a") as again:
        assert again


def test_one_who_did_not_get_in_releases_nothing(locks: RedisJobLocks) -> None:
    with locks.hold(Job.SYNC, owner="a"):
        with locks.hold(Job.SYNC, owner="b"):
            pass
        with locks.hold(Job.SYNC, owner="c") as third:
            assert not third


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
