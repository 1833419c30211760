"""The overview: what an operator looks at first, from few reads, also while Redis is away."""

from __future__ import annotations

from typing import Any

import pytest

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import QueueUnavailable, StoreUnavailable, UnreadableRecord
from broker_common.core.jobs import JobState
from broker_common.core.overview import Breaker, Overviews
from broker_common.core.reservation import ReservationStage
from broker_common.core.runs import JobRun
from broker_common.core.samples import minute_of
from broker_common.core.sandbox import Status
from broker_common.core.store import PoolCount, Watermark
from broker_common.core.telemetry import AllocateOutcome
from tests.fakes import BY, START, make_reservation
from tests.world import World, flaky_world

HOUR = 3600
COUNT = PoolCount(
    by_status={**dict.fromkeys(Status, 0), Status.AVAILABLE: 7},
    oldest_pending_deletion=START - 60,
    began_at=START - 1,
    counted_by="another",
    waiting=2,
    longest_waiting_since=START - 30,
)


class Redis:
    """The queue and the breaker, which a test may take away."""

    def __init__(self) -> None:
        self.runs: dict[str, list[JobRun]] = {}
        self.breaker = Breaker(state="open", failures=5, reason="a timeout", open_until=START + 60)
        self.queue_is_away = False
        self.breaker_is_away = False
        self.calls = 0

    def read_last(self, job: str, *, limit: int) -> list[JobRun]:
        self.calls += 1
        if self.queue_is_away:
            raise QueueUnavailable("Redis does not answer")
        return self.runs.get(job, [])[:limit]

    def read(self) -> Breaker:
        self.calls += 1
        if self.breaker_is_away:
            raise QueueUnavailable("Redis does not answer")
        return self.breaker


def make(world: World, redis: Redis, *, counts: Any = None) -> Overviews:
    queue: Any = redis
    return Overviews(
        store=world.store,
        inventory=world.inventory,
        reservations=world.reservations,
        pool_count=counts or (lambda: COUNT),
        queue=queue,
        breaker=redis,
        clock=world.clock,
        jobs=("sync", "expire", "watch"),
    )


def run_of(job: str, number: int = 1) -> JobRun:
    return JobRun(job_id=f"{job}-{number}", job=job, state=JobState.SUCCEEDED, principal=f"job:{job}", result={"n": 1})


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def redis() -> Redis:
    return Redis()


def test_it_has_the_shared_count_the_last_sync_the_pauses_the_breaker_and_the_last_run_of_each_job(
    world: World, redis: Redis
) -> None:
    redis.runs = {"sync": [run_of("sync", 2), run_of("sync")], "watch": [run_of("watch")]}
    world.memory.write_watermark(Watermark(synced_at=START - 5, accounts=7))
    paused = world.pauses.set({"sync": True}, by=BY)
    found = make(world, redis).read()
    assert (found.count, found.last_sync_at, found.pauses, found.breaker) == (COUNT, START - 5, paused, redis.breaker)
    assert found.jobs == [run_of("sync", 2), run_of("watch")]
    assert (found.pauses_error, found.jobs_error, found.breaker_error) == (None, None, None)


def test_it_reads_each_record_once(world: World, redis: Redis) -> None:
    make(world, redis, counts=lambda: world.memory.read_counts() and COUNT).read()
    assert world.memory.calls == {
        "read_counts": 1,
        "read_pauses": 1,
        "read_watermark": 1,
        "read_booked": 1,
        "read_endpoints": 1,
        "read_samples": 1,
    }


def test_the_allocates_are_those_of_the_sixty_minutes_up_to_now(world: World, redis: Redis) -> None:
    this = minute_of(START)
    for minutes_ago, count in ((0, 1), (59, 10), (60, 100)):
        world.memory.add_allocates(this - 60 * minutes_ago, {AllocateOutcome.SUCCESS: count})
    world.memory.add_allocates(this - 60, {AllocateOutcome.WAITING: 5})
    found = make(world, redis).read()
    assert found.allocates == {
        **dict.fromkeys(AllocateOutcome, 0),
        AllocateOutcome.SUCCESS: 11,
        AllocateOutcome.WAITING: 5,
    }
    assert found.allocates_since == this - 59 * 60


def test_it_shows_reservations_that_are_open_and_those_that_are_filled_and_lack_sandboxes(
    world: World, redis: Redis
) -> None:
    def add(name: str, **changes: Any) -> None:
        world.memory.reservations[name] = make_reservation(name, **changes)

    add("open, full", count=3, set_aside=3)
    add("open, short", count=3, set_aside=1, starts_at=START + 300)
    add("filling, full", count=3, set_aside=3, starts_at=START + 800)
    add("filling, short", count=3, set_aside=2, starts_at=START + 700)
    add("scheduled", starts_at=START + HOUR)
    add("ended", stage=ReservationStage.ENDED)
    add("over", starts_at=START - HOUR, ends_at=START - 1)
    shown = [each.reservation_id for each in make(world, redis).read().reservations]
    assert shown == ["open, short", "open, full", "filling, short"]


def test_without_redis_jobs_and_breaker_are_missing_with_the_reason_and_redis_is_asked_once(
    world: World, redis: Redis
) -> None:
    redis.queue_is_away = redis.breaker_is_away = True
    found = make(world, redis).read()
    assert (found.jobs, found.breaker) == (None, None)
    assert found.jobs_error == found.breaker_error == "Redis does not answer"
    assert (found.count, redis.calls) == (COUNT, 1)


def test_if_redis_goes_away_in_between_the_jobs_are_there(world: World, redis: Redis) -> None:
    redis.breaker_is_away = True
    found = make(world, redis).read()
    assert (found.jobs, found.jobs_error) == ([], None)
    assert (found.breaker, found.breaker_error) == (None, "Redis does not answer")


def test_damaged_pauses_are_missing_with_the_reason(redis: Redis) -> None:
    world, store = flaky_world()
    store.fail("read_pauses", UnreadableRecord("the record of the pauses", "sync is no boolean"))
    found = make(world, redis).read()
    assert found.pauses is None
    assert "sync is no boolean" in (found.pauses_error or "")


def test_it_waits_for_the_first_count_of_the_process(world: World, redis: Redis) -> None:
    answers: list[PoolCount | None] = [None, None, COUNT]
    with deadline_in(3, world.clock):
        assert make(world, redis, counts=lambda: answers.pop(0)).read().count == COUNT


def test_it_gives_up_if_nobody_can_count_while_time_is_left_for_the_answer(world: World, redis: Redis) -> None:
    with deadline_in(3, world.clock), pytest.raises(StoreUnavailable, match="could not be counted"):
        make(world, redis, counts=lambda: None).read()
    assert world.clock.now() - START <= 2
