"""Beat: what it sends, what a changed setting does, and what a second one is for."""

from __future__ import annotations

import json
import signal
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest
from redbeat.decoder import (  # type: ignore[import-untyped] # it ships no types
    RedBeatJSONDecoder,
    RedBeatJSONEncoder,
)

from broker_common.adapters.celery_names import QUEUES, task_name
from broker_common.core.job_registry import JOBS
from broker_worker.beat import BeatHealth
from broker_worker.clock_watch import ClockWatch
from deploy.dev.processes import call, free_ports, wait_until
from tests import wrong_clock
from tests.fakes import FakeClock
from tests.worker.conftest import DEPLOYED, Celery, until
from tests.worker.scrape import scrape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis import Redis

SELDOM = {"SYNC_INTERVAL_SEC": "86400", "CLEANUP_INTERVAL_SEC": "86400", "AUTO_EXPIRY_INTERVAL_SEC": "86400"}

TAKE_OVER = timedelta(seconds=10)
"""Within so long of its time a job is sent, also when the beat whose turn it is has been killed."""


def start_beat(url: str, port: int, **env: str) -> Celery:
    env = {**SELDOM, "METRICS_PORT": str(port), "API_BIND": "127.0.0.1", **env}
    return Celery(url, "beat", application=DEPLOYED, **env)


FREQUENT = {task_name(job.name) for job in JOBS.values() if job.is_frequent}


def sent(redis: Redis) -> list[str]:
    """Return the tasks that were sent, except of jobs that each beat sends every few seconds."""
    messages = cast("list[bytes]", redis.lrange("jobs", 0, -1))
    tasks = [json.loads(message)["headers"]["task"] for message in messages]
    return [task for task in tasks if task not in FREQUENT]


def last_sent(redis: Redis) -> datetime:
    """Return when a beat says that a sync was last sent; the schedule has it from there."""
    meta = cast("bytes", redis.hget("sandbox-broker:beat:sync", "meta"))
    return cast("datetime", json.loads(meta, cls=RedBeatJSONDecoder)["last_run_at"])


def sent_by(port: int) -> float:
    """Return how many syncs a beat says that it has sent; -1 if it does not answer yet."""
    return scrape(port).get('broker_beat_sent_total{job="sync"}', -1.0)


@contextmanager
def two_beats(database_url: str, ports: list[int]) -> Iterator[tuple[Celery, Celery]]:
    """Run a beat that sends a sync each second, and another one that waits for its turn."""
    often = {"SYNC_INTERVAL_SEC": "1"}
    with start_beat(database_url, ports[0], **often) as first:
        until(lambda: sent_by(ports[0]) >= 1, "the first beat to send")
        with start_beat(database_url, ports[1], **often) as second:
            until(lambda: sent_by(ports[1]) >= 0, "the second beat's metrics")
            yield first, second


def test_of_two_beats_one_fires_and_the_other_takes_over_when_it_is_killed(database_url: str, redis: Redis) -> None:
    ports = free_ports(2)
    with two_beats(database_url, ports) as (first, second):
        before = sent_by(ports[0])
        until(lambda: sent_by(ports[0]) >= before + 3, "the first beat to go on")
        assert sent_by(ports[1]) == 0
        assert second.is_running()

        first.signal(signal.SIGKILL)
        first.exit_code()
        due = last_sent(redis) + timedelta(seconds=1)
        assert wait_until(lambda: sent_by(ports[1]) >= 1, TAKE_OVER.seconds), "it takes over in time"
        assert last_sent(redis) - due < TAKE_OVER

    assert set(sent(redis)) == {"broker.sync"}


def test_a_beat_that_was_frozen_while_another_took_its_turn_ends_with_1(database_url: str, redis: Redis) -> None:
    ports = free_ports(2)
    with two_beats(database_url, ports) as (first, second):
        first.signal(signal.SIGSTOP)
        until(lambda: sent_by(ports[1]) >= 1, "the second beat to take over")
        first.signal(signal.SIGCONT)
        assert first.exit_code() == 1
        before = sent_by(ports[1])
        until(lambda: sent_by(ports[1]) > before, "the second beat to go on")
        assert second.is_running()


def test_the_beat_that_sends_tells_once_a_minute_how_many_messages_wait(database_url: str, redis: Redis) -> None:
    redis.rpush("deletions", "one", "two")
    began = time.monotonic()
    ports = free_ports(2)
    with two_beats(database_url, ports) as (first, second):
        line, *more = [line for line in first.lines if line.get("action") == "queues"]
        assert len(more) <= (time.monotonic() - began) / 60
        assert set(line["messages"]) == set(QUEUES)
        assert (line["messages"]["deletions"], line["messages"]["webhooks"]) == (2, 0)
        for port in ports:
            assert scrape(port)['broker_queue_messages{queue="deletions"}'] == 2
        assert not second.has_said("Messages that wait")


def test_a_beat_that_is_told_to_stop_exits_0_and_frees_the_schedule_for_another(database_url: str) -> None:
    ports = free_ports(2)
    with start_beat(database_url, ports[0]) as first, start_beat(database_url, ports[1]) as second:
        until(lambda: any(beat.has_said("Acquired lock") for beat in (first, second)), "one of them to hold the lock")
        until(lambda: sent_by(ports[0]) >= 0 and sent_by(ports[1]) >= 0, "both to run")
        holder, waiting = (first, second) if first.has_said("Acquired lock") else (second, first)
        holder.signal(signal.SIGTERM)
        assert holder.exit_code() == 0
        until(lambda: waiting.has_said("Acquired lock"), "the other to take over")
        waiting.signal(signal.SIGTERM)
        assert waiting.exit_code() == 0


def test_a_beat_that_is_told_to_stop_while_python_drops_exceptions_ends_after_the_tick(database_url: str) -> None:
    with Celery(database_url, "beat", application="tests.worker.told_in_destructor_app", **SELDOM) as beat:
        assert beat.exit_code() == 0
    assert beat.messages[-1] == "beat: Releasing lock"
    assert "Exception ignored" not in "".join(beat.output)


def test_a_beat_that_waits_for_its_turn_stops_at_once(database_url: str) -> None:
    ports = free_ports(2)
    with start_beat(database_url, ports[0]) as holder:
        until(lambda: holder.has_said("Acquired lock"), "the first beat")
        with start_beat(database_url, ports[1]) as waiting:
            until(lambda: sent_by(ports[1]) >= 0, "the second beat")
            waiting.signal(signal.SIGTERM)
            assert waiting.exit_code() == 0


def test_a_beat_without_redis_ends_with_1_and_one_line() -> None:
    with start_beat("redis://:the-password@127.0.0.1:1/0", 0) as beat:
        assert beat.exit_code() == 1

    (line,) = [line for line in beat.lines if line["level"] == "error"]
    assert line["message"].startswith("Beat ends: Redis does not answer")
    assert all(each.startswith("{") for each in beat.output)
    assert "exception" not in line
    assert not any("the-password" in each for each in beat.output)


def test_a_beat_that_loses_its_turn_ends_with_1_and_one_line(database_url: str, redis: Redis) -> None:
    with start_beat(database_url, 0) as beat:
        until(lambda: beat.has_said("Acquired lock"), "beat")
        redis.delete("sandbox-broker:beat::lock")
        assert beat.exit_code() == 1

    (line,) = [line for line in beat.lines if line["level"] == "error"]
    assert "lock was lost" in line["message"]
    assert "exception" not in line


def test_a_beat_that_is_told_to_stop_as_soon_as_it_answers_exits_0_without_a_word(database_url: str) -> None:
    (port,) = free_ports(1)
    with start_beat(database_url, port) as beat:
        until(lambda: bool(scrape(port)), "the metrics")
        beat.signal(signal.SIGTERM)
        assert beat.exit_code() == 0

    assert all(line["level"] == "info" for line in beat.lines)
    assert all(each.startswith("{") for each in beat.output)


def test_a_changed_interval_holds_from_the_next_start(database_url: str, redis: Redis) -> None:
    (port,) = free_ports(1)
    with start_beat(database_url, port) as beat:
        until(lambda: beat.has_said("Acquired lock"), "beat")
        beat.signal(signal.SIGTERM)
        beat.exit_code()
    assert sent(redis) == []

    with start_beat(database_url, port, CLEANUP_INTERVAL_SEC="1") as beat:
        until(lambda: len(sent(redis)) >= 2, "the cleanups")
        assert [line for line in beat.output if not line.startswith("{")] == []

    assert set(sent(redis)) == {"broker.cleanup"}


DAY_SEC = 86_400


def health(port: int) -> tuple[int, str]:
    """Return status and error of a beat's health."""
    status, body = call("GET", f"http://127.0.0.1:{port}/healthz")
    return status, body.get("error", "")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wrong_clock.build(tmp_path_factory.mktemp("wrong-clock"))


@pytest.mark.parametrize("seconds", [DAY_SEC, -DAY_SEC])
def test_a_beat_by_a_wrong_clock_sends_nothing_is_red_and_leaves_the_turn_to_another(
    database_url: str, redis: Redis, ministack_url: str, library: Path, seconds: int
) -> None:
    ports = free_ports(2)
    env = {"SYNC_INTERVAL_SEC": "1", "DDB_ENDPOINT_URL": ministack_url}
    with start_beat(database_url, ports[0], **env, **wrong_clock.ahead(seconds, library)) as wrong:
        until(lambda: wrong.has_said("Beat sends nothing: its clock is wrong"), "the beat to see it")
        until(lambda: sent_by(ports[0]) >= 0, "its metrics")
        assert health(ports[0])[0] == 503
        assert f"{seconds:+d}"[:4] in health(ports[0])[1]
        with start_beat(database_url, ports[1], **env):
            until(lambda: sent_by(ports[1]) >= 2, "the beat by a right clock to send")
            assert health(ports[1]) == (200, "")
        assert sent_by(ports[0]) == 0
        assert wrong.is_running()
    assert "broker.sync" in sent(redis)


def test_a_last_run_in_the_future_counts_as_now_also_after_a_restart(
    database_url: str, redis: Redis, library: Path
) -> None:
    (port,) = free_ports(1)
    often = {"SYNC_INTERVAL_SEC": "1"}
    nowhere = {"DDB_ENDPOINT_URL": "http://127.0.0.1:1"}  # nothing to compare with, as in the releases before
    with start_beat(database_url, port, **often, **nowhere, **wrong_clock.ahead(DAY_SEC, library)):
        until(lambda: sent_by(port) >= 1, "the beat a day ahead to send")
    assert last_sent(redis) > datetime.now(UTC) + timedelta(hours=23)
    redis.delete("jobs", "sandbox-broker:beat::lock")

    with start_beat(database_url, port, **often):
        until(lambda: sent_by(port) >= 2, "the beat by a right clock to go on")
        assert last_sent(redis) < datetime.now(UTC) + timedelta(seconds=1)
        assert health(port) == (200, "")


def test_a_running_beat_corrects_a_schedule_that_was_changed_by_hand(database_url: str, redis: Redis) -> None:
    (port,) = free_ports(1)
    with start_beat(database_url, port, SYNC_INTERVAL_SEC="1") as beat:
        until(lambda: sent_by(port) >= 1, "beat to send")
        meta = json.dumps({"last_run_at": datetime.now(UTC) + timedelta(days=300)}, cls=RedBeatJSONEncoder)
        redis.hset("sandbox-broker:beat:sync", "meta", meta)
        redis.zadd("sandbox-broker:beat::schedule", {"sandbox-broker:beat:sync": datetime.now(UTC).timestamp() * 2})
        before = sent_by(port)
        until(lambda: sent_by(port) >= before + 2, "beat to go on")
        redis.delete("sandbox-broker:beat:sync", "sandbox-broker:beat::schedule")
        before = sent_by(port)
        until(lambda: sent_by(port) >= before + 2, "beat to go on without its schedule")
        assert beat.is_running()


def test_what_is_due_and_not_sent_for_too_long_is_told_until_something_is_sent() -> None:
    now = 100.0
    beat = BeatHealth(60, clock_problem=lambda: None, monotonic=lambda: now)
    beat.beat()
    beat.fall_due()
    now += 40
    beat.fall_due()
    beat.beat()
    assert beat.problem() is None
    now += 21
    beat.beat()
    assert beat.problem() == "a job has been due for 61 s, but no job was sent"
    beat.send()
    assert beat.problem() is None


def test_a_clock_is_told_to_be_wrong_until_it_is_right_also_while_nobody_tells_the_time() -> None:
    clock, told = FakeClock(), FakeClock()
    answers: list[int | None] = [told.now() - 3600, None, told.now()]
    watch = ClockWatch(lambda: answers.pop(0), clock)
    assert watch.problem() is None
    for problem in ("its clock is +3600 s from DynamoDB's", "its clock is +3600 s from DynamoDB's", None):
        watch.compare()
        assert watch.problem() == problem
