"""The circuit breaker, on a real Redis-compatible server."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from redis import Redis

from broker_common.adapters.redis_breaker import RedisBreaker
from broker_common.core.errors import (
    ListingUnusable,
    ProviderCircuitOpen,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
    QueueUnavailable,
)
from broker_common.core.overview import Breaker
from deploy.dev.processes import wait_until
from tests.provider.conftest import OwnRedis, connected

FAILING = ProviderFailing("HTTP 500", outcome_unknown=False)
SOON = 0.2
LATE = 60.0


def make_breaker(redis: Redis, *, timeout_sec: float = LATE, trial_sec: float = LATE) -> RedisBreaker:
    return RedisBreaker(redis, threshold=3, timeout_sec=timeout_sec, trial_sec=trial_sec)


def call(breaker: RedisBreaker, error: ProviderError | None = None) -> None:
    """Make a call that succeeds, or ends with an error of the provider's."""
    with suppress(type(error) if error else ProviderFailing), breaker.admit() as permit, permit.call():
        if error:
            raise error


def state_of(breaker: RedisBreaker) -> str:
    """Read the state again: a type checker would take a property for a constant."""
    return str(breaker.state)


def is_refused(breaker: RedisBreaker) -> bool:
    try:
        breaker.check()
    except ProviderCircuitOpen:
        return True
    return False


def open_it(breaker: RedisBreaker) -> None:
    call(breaker, ProviderMisconfigured("HTTP 401"))


def make_half_open(redis: Redis, *, timeout_sec: float = SOON, trial_sec: float = LATE) -> RedisBreaker:
    """Open the breaker, and wait until a call may try. The breaker that is returned has these times."""
    open_it(make_breaker(redis, timeout_sec=SOON))
    breaker = make_breaker(redis, timeout_sec=timeout_sec, trial_sec=trial_sec)
    assert wait_until(lambda: state_of(breaker) == "half-open", 10)
    return breaker


def test_failures_in_a_row_of_different_workers_open_it_for_all(redis: Redis) -> None:
    one, other = make_breaker(redis), make_breaker(redis)
    call(one, FAILING)
    call(other, FAILING)
    assert state_of(one) == "closed"
    call(one, FAILING)
    assert state_of(other) == "open"
    with pytest.raises(ProviderCircuitOpen) as refused, other.admit():
        pytest.fail("a call was admitted")
    assert refused.value.retry_after is not None
    assert 1 <= refused.value.retry_after <= LATE


def test_a_refusal_says_for_how_long_and_why(redis: Redis) -> None:
    open_it(make_breaker(redis))
    with pytest.raises(ProviderCircuitOpen, match=r"circuit breaker is open for another \d+ s, since: HTTP 401$"):
        make_breaker(redis).check()


def test_a_success_between_failures_starts_the_count_again(redis: Redis) -> None:
    breaker = make_breaker(redis)
    for error in (FAILING, FAILING, None, FAILING, FAILING):
        call(breaker, error)
    assert state_of(breaker) == "closed"


@pytest.mark.parametrize("error", [ProviderRejected("HTTP 400"), ListingUnusable("empty")])
def test_a_refusal_or_an_unusable_list_is_no_failure(redis: Redis, error: ProviderError) -> None:
    breaker = make_breaker(redis)
    for _ in range(5):
        call(breaker, error)
    assert state_of(breaker) == "closed"


def test_half_open_lets_one_call_of_all_workers_try(redis: Redis) -> None:
    breakers = [make_half_open(redis), *(make_breaker(redis, timeout_sec=SOON) for _ in range(7))]
    barrier, may_end = threading.Barrier(8), threading.Event()
    admitted, refused = [], []

    def attempt(breaker: RedisBreaker) -> None:
        barrier.wait()
        try:
            with breaker.admit():
                admitted.append(breaker)
                may_end.wait(20)
        except ProviderCircuitOpen:
            refused.append(breaker)

    with ThreadPoolExecutor(8) as threads:
        threads.map(attempt, breakers)
        all_tried = wait_until(lambda: len(admitted) + len(refused) == 8, 10)
        may_end.set()
    assert all_tried
    assert (len(admitted), len(refused)) == (1, 7)


def test_the_success_of_the_call_that_tries_closes_it(redis: Redis) -> None:
    breaker = make_half_open(redis)
    call(breaker)
    assert state_of(breaker) == "closed"
    call(breaker, FAILING)
    assert state_of(breaker) == "closed"


def test_the_failure_of_the_call_that_tries_opens_it_again(redis: Redis) -> None:
    breaker = make_half_open(redis, timeout_sec=LATE)
    call(breaker, FAILING)
    assert state_of(breaker) == "open"


def test_a_right_to_try_that_was_not_used_goes_to_the_next_call(redis: Redis) -> None:
    breaker = make_half_open(redis)
    with breaker.admit():
        assert is_refused(breaker)
    assert state_of(breaker) == "half-open"
    assert not is_refused(breaker)


def test_a_call_that_was_interrupted_says_nothing_about_the_provider(redis: Redis) -> None:
    breaker = make_half_open(redis)
    with pytest.raises(RuntimeError), breaker.admit() as permit, permit.call():
        raise RuntimeError
    assert state_of(breaker) == "half-open"
    assert not is_refused(breaker)


def test_another_call_may_try_when_the_first_never_reports(redis: Redis) -> None:
    breaker = make_half_open(redis, trial_sec=SOON)
    dead = breaker.admit()
    dead.__enter__()
    assert wait_until(lambda: not is_refused(breaker), 10)
    call(breaker)
    assert state_of(breaker) == "closed"
    del dead


def test_a_call_that_began_before_it_opened_cannot_close_it(redis: Redis) -> None:
    breaker = make_breaker(redis)
    with breaker.admit() as permit, permit.call():
        open_it(breaker)
    assert state_of(breaker) == "open"


def test_a_record_that_cannot_be_read_counts_as_closed(redis: Redis) -> None:
    redis.set("sandbox-broker:csp:breaker", '{"of": "another release"}')
    breaker = make_breaker(redis)
    assert state_of(breaker) == "closed"
    open_it(breaker)
    assert state_of(breaker) == "open"


def test_it_goes_on_by_itself_while_redis_is_away_and_shares_again_afterwards(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis:
        breaker, other = make_breaker(redis), make_breaker(redis)
        own_redis.stop()
        for _ in range(3):
            call(breaker, FAILING)
        assert state_of(breaker) == "open"
        assert is_refused(breaker)
        assert state_of(other) == "closed"
        own_redis.start()
        assert state_of(breaker) == "closed"
        open_it(breaker)
        assert state_of(other) == "open"


def test_an_open_breaker_stays_open_when_redis_goes_away(own_redis: OwnRedis) -> None:
    with connected(own_redis.url) as redis:
        breaker = make_breaker(redis)
        open_it(breaker)
        own_redis.stop()
        assert state_of(breaker) == "open"


def test_it_can_be_made_while_redis_is_away(own_redis: OwnRedis) -> None:
    own_redis.stop()
    with connected(own_redis.url) as redis:
        assert state_of(make_breaker(redis)) == "closed"


def test_operators_read_the_shared_state_with_its_reason(redis: Redis) -> None:
    breaker = make_breaker(redis)
    assert breaker.read() == Breaker(state="closed")
    call(breaker, FAILING)
    assert breaker.read() == Breaker(state="closed", failures=1, reason="HTTP 500")
    open_it(breaker)
    shown = make_breaker(redis).read()
    assert (shown.state, shown.failures, shown.reason) == ("open", 2, "HTTP 401")
    assert shown.open_until is not None
    assert abs(shown.open_until - time.time() - LATE) < 30


def test_operators_see_that_a_call_may_try(redis: Redis) -> None:
    assert make_half_open(redis).read().state == "half-open"


def test_without_redis_operators_are_told_that_the_state_is_not_known() -> None:
    away = Redis.from_url("redis://127.0.0.1:1/0", socket_connect_timeout=0.5)
    with pytest.raises(QueueUnavailable, match="circuit breaker"):
        make_breaker(away).read()
