"""The call slots, on a real Redis-compatible server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from broker_common.adapters.redis_slots import RedisSlots
from broker_common.core.errors import ProviderBusy, ProviderSlotsUnavailable
from deploy.dev.processes import wait_until
from tests.provider.conftest import OwnRedis, connected

if TYPE_CHECKING:
    from redis import Redis


def lease_ends(redis: Redis) -> float:
    """Return when the lease of the only slot ends."""
    (token,) = redis.zrange("sandbox-broker:csp:slots", 0, -1)
    assert isinstance(token, bytes)
    return float(redis.zscore("sandbox-broker:csp:slots", token) or 0)


def test_no_more_slots_are_given_than_there_are(redis: Redis) -> None:
    workers = [RedisSlots(redis, limit=2, lease_sec=60) for _ in range(3)]
    with ExitStack() as stack:
        stack.enter_context(workers[0].hold(wait_sec=0))
        stack.enter_context(workers[1].hold(wait_sec=0))
        with pytest.raises(ProviderBusy):
            stack.enter_context(workers[2].hold(wait_sec=0))


def test_a_slot_comes_free_when_its_holder_is_done_or_fails(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60)
    with slots.hold(wait_sec=0):
        pass
    with pytest.raises(RuntimeError), slots.hold(wait_sec=0):
        raise RuntimeError
    with slots.hold(wait_sec=0):
        assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_who_waits_gets_the_slot_that_comes_free(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60)
    got = threading.Event()

    def wait_for_it() -> None:
        with slots.hold(wait_sec=30):
            got.set()

    waiting = threading.Thread(target=wait_for_it)
    with slots.hold(wait_sec=0):
        waiting.start()
        assert not got.wait(0.3)
    assert got.wait(10)
    waiting.join()


def test_the_slot_of_a_worker_that_died_frees_itself(redis: Redis) -> None:
    dead = RedisSlots(redis, limit=1, lease_sec=0.3).hold(wait_sec=0)
    dead.__enter__()
    with RedisSlots(redis, limit=1, lease_sec=60).hold(wait_sec=10):
        assert redis.zcard("sandbox-broker:csp:slots") == 1
    del dead


def test_a_renewed_slot_outlives_its_first_lease(redis: Redis) -> None:
    with RedisSlots(redis, limit=1, lease_sec=60).hold(wait_sec=0) as slot:
        first = lease_ends(redis)

        def renewed() -> bool:
            slot.renew()
            return lease_ends(redis) > first

        assert wait_until(renewed, 10)
        assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_a_slot_lost_to_another_cannot_be_renewed(redis: Redis) -> None:
    with ExitStack() as stack:
        lost = stack.enter_context(RedisSlots(redis, limit=1, lease_sec=0.1).hold(wait_sec=0))
        stack.enter_context(RedisSlots(redis, limit=1, lease_sec=60).hold(wait_sec=10))
        with pytest.raises(ProviderBusy):
            lost.renew()


def test_many_workers_at_once_never_hold_more_than_the_limit(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=3, lease_sec=60)
    lock = threading.Lock()
    held, most = 0, 0

    def work() -> None:
        nonlocal held, most
        for _ in range(5):
            with slots.hold(wait_sec=60):
                with lock:
                    held += 1
                    most = max(most, held)
                redis.ping()
                with lock:
                    held -= 1

    with ThreadPoolExecutor(12) as threads:
        for done in [threads.submit(work) for _ in range(12)]:
            done.result()
    assert 1 <= most <= 3
    assert redis.zcard("sandbox-broker:csp:slots") == 0


def test_without_redis_no_slot_is_given_and_with_it_again_one_is(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis:
        slots = RedisSlots(redis, limit=1, lease_sec=60)
        own_redis.stop()
        with pytest.raises(ProviderSlotsUnavailable), slots.hold(wait_sec=5):
            pytest.fail("a slot was given without Redis")
        own_redis.start()
        with slots.hold(wait_sec=0):
            assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_redis_going_away_while_a_slot_is_held_is_no_error_for_its_holder(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis, RedisSlots(redis, limit=1, lease_sec=60).hold(wait_sec=0):
        own_redis.stop()
