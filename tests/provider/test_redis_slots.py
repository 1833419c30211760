"""The call slots, on a real Redis-compatible server."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from broker_common.adapters.redis_slots import RedisSlots
from broker_common.core.errors import ProviderBusy, ProviderSlotsUnavailable
from deploy.dev.processes import wait_until
from tests.provider.conftest import OwnRedis, connected

if TYPE_CHECKING:
    from redis import Redis

PACE = "sandbox-broker:csp:pace"


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


def paced(redis: Redis, per_minute: int, *, limit: int = 100, calls: int = 20) -> int:
    """Try `calls` paced calls by three workers in turn; returns how many may begin."""
    workers = [RedisSlots(redis, limit=limit, lease_sec=60, paced_per_minute=per_minute) for _ in range(3)]
    begun = 0
    for number in range(calls):
        with suppress(ProviderBusy), workers[number % 3].hold(wait_sec=0, is_paced=True):
            begun += 1
    return begun


def move_clock(redis: Redis, seconds: float) -> None:
    """Have the pace see a time that is so much later: its only record is a time. No record: a call may begin anyway."""
    stored = redis.get(PACE)
    if isinstance(stored, bytes):
        redis.set(PACE, int(stored) - round(seconds * 1e6))


def redis_now(redis: Redis) -> float:
    """Return the time by Redis' clock, in Unix seconds."""
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def wait_left(redis: Redis) -> float:
    """Return for how many seconds the pace allows no other call."""
    stored = redis.get(PACE)
    return max(0, int(stored) / 1e6 - redis_now(redis)) if isinstance(stored, bytes) else 0


# Paces of a few calls a minute, so that no test lasts until the next call may begin.


@pytest.mark.parametrize("per_minute", [1, 2, 4])
def test_all_workers_together_begin_as_many_paced_calls_as_the_time_allows(redis: Redis, per_minute: int) -> None:
    assert paced(redis, per_minute) == 1
    assert paced(redis, per_minute) == 0
    for _ in range(3):
        move_clock(redis, 60 / per_minute)
        assert paced(redis, per_minute) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_minute", [1, 7, 60])
def test_no_sixty_seconds_have_more_paced_calls_than_the_pace_allows(redis: Redis, per_minute: int, seed: int) -> None:
    chance = random.Random(seed)
    step = 60 / per_minute
    workers = [RedisSlots(redis, limit=5, lease_sec=60, paced_per_minute=per_minute) for _ in range(2)]
    moved = 0.0
    begun: list[tuple[float, float]] = []
    """Between which two times each call began, so that no stall can make a distance look shorter."""

    def try_after(seconds: float) -> None:
        nonlocal moved
        move_clock(redis, seconds)
        moved += seconds
        before = redis_now(redis) + moved
        with suppress(ProviderBusy), chance.choice(workers).hold(wait_sec=0, is_paced=True):
            begun.append((before, redis_now(redis) + moved))

    for _ in range(2):
        try_after(chance.choice([0, step, 6, 59, 3600]))  # a rest
        for _ in range(per_minute + 2):  # each as soon as it may
            try_after(wait_left(redis))
        try_after(chance.choice([0, step, 6, 59, 3600]))
        for _ in range(3 * per_minute):
            try_after(chance.uniform(0, step))
    assert len(begun) > 3 * per_minute
    pairs = zip(begun, begun[per_minute:], strict=False)
    assert [pair for pair in pairs if pair[1][1] - pair[0][0] < 60] == []


def test_a_clock_that_was_set_back_does_not_stop_paced_calls_for_long(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=60)
    redis.set(PACE, round((redis_now(redis) + 86400) * 1e6))
    with slots.hold(wait_sec=60, is_paced=True):
        assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_a_call_that_waits_for_the_pace_holds_no_slot(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=1)
    assert paced(redis, 1, calls=1) == 1
    with pytest.raises(ProviderBusy, match="the pace"), slots.hold(wait_sec=0.2, is_paced=True):
        pytest.fail("the pace allows none")
    with slots.hold(wait_sec=0):  # the only slot, which a waiting call would have kept until its lease ends
        assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_a_call_that_waits_for_the_pace_begins_when_it_may(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=1)
    assert paced(redis, 1, calls=1) == 1
    may_begin_at = redis_now(redis) + wait_left(redis) - 59
    move_clock(redis, 59)
    with slots.hold(wait_sec=60, is_paced=True):
        assert redis_now(redis) >= may_begin_at


def test_a_call_that_gets_no_slot_uses_up_nothing_of_the_pace(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=1)
    with (
        slots.hold(wait_sec=0),
        pytest.raises(ProviderBusy, match="all 1 call slots"),
        slots.hold(wait_sec=0, is_paced=True),
    ):
        pytest.fail("there is no second slot")
    with slots.hold(wait_sec=0, is_paced=True) as slot:
        slot.renew()


def test_a_refusal_says_that_it_is_the_pace(redis: Redis) -> None:
    slots = RedisSlots(redis, limit=5, lease_sec=60, paced_per_minute=2)
    with (
        slots.hold(wait_sec=0, is_paced=True),
        pytest.raises(ProviderBusy, match="pace of 2 deletes a minute"),
        slots.hold(wait_sec=0, is_paced=True),
    ):
        pytest.fail("the pace allows one")


def test_calls_without_a_pace_begin_as_long_as_there_are_slots(redis: Redis) -> None:
    assert paced(redis, 0) == 20
    slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=1)
    for _ in range(3):
        with slots.hold(wait_sec=0):
            assert redis.get(PACE) is None


def test_a_record_of_the_pace_that_cannot_be_read_counts_as_none(redis: Redis) -> None:
    redis.set(PACE, "soon")
    assert paced(redis, 1) == 1


def test_the_record_of_the_pace_ends_when_the_next_call_may_begin(redis: Redis) -> None:
    assert paced(redis, 1) == 1
    assert 0 < redis.pttl(PACE) <= 60_001


def test_without_redis_no_slot_is_given_and_with_it_again_one_is(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis:
        slots = RedisSlots(redis, limit=1, lease_sec=60, paced_per_minute=60)
        own_redis.stop()
        for is_paced in (False, True):
            with pytest.raises(ProviderSlotsUnavailable), slots.hold(wait_sec=5, is_paced=is_paced):
                pytest.fail("a slot was given without Redis")
        own_redis.start()
        with slots.hold(wait_sec=0):
            assert redis.zcard("sandbox-broker:csp:slots") == 1


def test_redis_going_away_while_a_slot_is_held_is_no_error_for_its_holder(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis, RedisSlots(redis, limit=1, lease_sec=60).hold(wait_sec=0):
        own_redis.stop()
