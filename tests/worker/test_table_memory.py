"""What Redis remembers of the table, for all processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import ConnectionError as Unreachable

from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.core.errors import QueueUnavailable
from broker_common.core.ports import KnownTable
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from redis import Redis


@pytest.fixture
def memory(redis: Redis) -> RedisTableMemory:
    return RedisTableMemory(redis, FakeClock())


def test_what_is_remembered_first_holds(memory: RedisTableMemory) -> None:
    assert memory.recall() is None
    memory.remember(KnownTable(identity="first"))
    memory.remember(KnownTable(identity="second"))
    assert memory.recall() == KnownTable(identity="first")


def test_that_a_table_had_records_is_remembered_of_it_alone(memory: RedisTableMemory) -> None:
    memory.remember(KnownTable(identity="first"))
    memory.remember(KnownTable(identity="first", had_records=True))
    assert memory.recall() == KnownTable(identity="first", had_records=True)
    memory.replace("second")
    known = memory.recall()
    assert known
    assert (known.identity, known.had_records) == ("second", False)


def test_a_later_acceptance_has_a_later_time(memory: RedisTableMemory, redis: Redis) -> None:
    times = []
    for identity in ("first", "second"):
        memory.replace(identity)
        known = memory.recall()
        assert known
        assert known.identity == identity
        times.append(known.accepted_at)
    assert 1_700_000_000_000 < times[0] <= times[1]
    assert redis.ttl("sandbox-broker:table") == -1


def test_an_acceptance_outlives_a_redis_that_lost_everything(memory: RedisTableMemory, redis: Redis) -> None:
    memory.replace("first")
    known = memory.recall()
    redis.flushdb()
    assert known
    memory.remember(known)
    assert memory.recall() == known


def test_what_a_hand_spoiled_is_no_acceptance(memory: RedisTableMemory, redis: Redis) -> None:
    redis.hset("sandbox-broker:table", mapping={"identity": "first", "accepted_at": "now"})
    assert memory.recall() == KnownTable(identity="first")


def test_a_redis_that_is_away_is_asked_once_in_ten_seconds() -> None:
    asked = 0

    class Away:
        def hgetall(self, _: str) -> Any:
            nonlocal asked
            asked += 1
            raise Unreachable

    clock = FakeClock()
    memory = RedisTableMemory(Away(), clock)  # type: ignore[arg-type] # all that is asked of it
    for _ in range(3):
        with pytest.raises(QueueUnavailable):
            memory.recall()
    assert asked == 1
    clock.advance(10)
    with pytest.raises(QueueUnavailable):
        memory.recall()
    assert asked == 2
