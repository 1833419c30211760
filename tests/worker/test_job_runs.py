"""The records of runs in Redis: what the suite says, and what is Redis' own; two releases that share them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.celery_names import DELETIONS_QUEUE
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.core.errors import QueueUnavailable
from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_common.core.runs import KEPT_IDLE_SEC, KEPT_SEC, Conclusion, Runs
from broker_common.core.telemetry import DeleteOutcome
from tests.runs_suite import ALICE, SUCCEEDED, RunsContract, dispatch, found

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis as RedisClient

KEY = "sandbox-broker:runs:run"
OF_THE_EARLIER_RELEASE: dict[str, Any] = {
    "job": "cleanup",
    "state": "running",
    "requested_by": "req-1",
    "request_id": "job-cleanup-1759574954",
    "started_at": 1759574954.25,
    "progressed_at": 1759574955.5,
    "result": None,
    "error": None,
    "counts": {"deleted": 2, "gone": 1},
    "errors": {"gone": "unknown to the provider"},
}
"""A record as the release before this one writes it. It refuses a record with any other member."""


class TestRunsInRedis(RunsContract):
    @pytest.fixture
    def kept(self, redis: RedisClient) -> RedisJobRuns:
        return RedisJobRuns(redis)

    @pytest.fixture
    def queue_a_delete(self, redis: RedisClient) -> Callable[[], None]:
        def queue() -> None:
            redis.rpush(DELETIONS_QUEUE, "a message")

        return queue


@pytest.fixture
def runs(redis: RedisClient) -> Runs:
    return Runs(RedisJobRuns(redis), stall_limit_sec=60)


def test_what_is_kept_is_kept_for_a_day(runs: Runs, redis: RedisClient) -> None:
    dispatch(runs, "1")
    runs.create("other", Job.SYNC, by=ALICE)

    ages = [redis.ttl(key) for key in redis.scan_iter()]
    assert len(ages) == 8
    assert all(KEPT_SEC - 60 < age <= KEPT_SEC for age in ages)


def test_a_run_that_did_nothing_is_kept_for_ten_minutes(runs: Runs, redis: RedisClient) -> None:
    runs.start("run", Job.DELIVER, request_id="job-deliver-1")
    runs.finish("run", Conclusion(state=JobState.SUCCEEDED, message="m", result={}, is_idle=True))
    kept = [redis.ttl(key) for key in redis.scan_iter() if key.endswith(b":run")]
    assert len(kept) == 2
    assert all(KEPT_IDLE_SEC - 60 < age <= KEPT_IDLE_SEC for age in kept)


def test_the_list_of_last_runs_is_bounded_and_leaves_out_what_is_gone(runs: Runs, redis: RedisClient) -> None:
    redis.zadd("sandbox-broker:runs-last:sync", {f"gone-{number}": number + 2e9 for number in range(1_100)})
    redis.zadd("sandbox-broker:runs-last:sync", {"long-ago": 1})
    runs.start("run", Job.SYNC, request_id="job-sync-1")

    assert redis.zcard("sandbox-broker:runs-last:sync") == 1_000
    assert redis.zscore("sandbox-broker:runs-last:sync", "long-ago") is None
    assert runs.read_last([Job.SYNC], limit=100) == []


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"job": "of-a-later-release"}', "\xff"])
def test_a_run_whose_record_cannot_be_read_counts_as_unknown(runs: Runs, redis: RedisClient, record: str) -> None:
    redis.set(KEY, record)
    assert runs.find("run") is None
    assert runs.finish("run", SUCCEEDED) is None
    assert runs.start("run", Job.SYNC, request_id="job-sync-1").state is JobState.RUNNING


@pytest.mark.parametrize(
    "change", [{"job": "of_a_later_release"}, {"state": "asleep"}, {"of_a_later_release": 1}, {"counts": {"new": 1}}]
)
def test_a_record_of_a_later_release_counts_as_unknown(runs: Runs, redis: RedisClient, change: dict[str, Any]) -> None:
    redis.set(KEY, json.dumps(OF_THE_EARLIER_RELEASE | change))
    assert runs.find("run") is None


@pytest.mark.parametrize("asked", ["", "[]", "{}"])
def test_a_run_whose_second_record_cannot_be_read_counts_as_unknown(runs: Runs, redis: RedisClient, asked: str) -> None:
    redis.set(KEY, json.dumps(OF_THE_EARLIER_RELEASE))
    redis.set("sandbox-broker:runs-asked:run", asked)
    assert runs.find("run") is None


def test_a_run_of_the_earlier_release_is_read_and_goes_on_to_its_end(runs: Runs, redis: RedisClient) -> None:
    redis.set(KEY, json.dumps(OF_THE_EARLIER_RELEASE))
    redis.sadd(f"{KEY}:out", "7")
    before = found(runs)
    ended = runs.settle("run", "7", DeleteOutcome.WILL_RETRY, "failed")

    assert (before.principal, before.requested_by, before.queued_at) == ("admin", "req-1", None)
    assert (before.started_at, before.ended_at) == (1759574954.25, None)
    assert ended is not None
    assert ended.event.message == "Deleted 2 sandboxes, 1 failed, 1 unknown to the provider"
    assert runs.read_last([Job.CLEANUP], limit=1) == [found(runs)]
    assert found(runs).principal == "admin"


def test_a_run_that_the_earlier_release_s_schedule_started_names_its_job(runs: Runs, redis: RedisClient) -> None:
    redis.set(KEY, json.dumps(OF_THE_EARLIER_RELEASE | {"requested_by": None}))

    assert found(runs).principal == "job:cleanup"


def test_at_each_step_the_earlier_release_finds_the_record_that_it_would_have_written(
    runs: Runs, redis: RedisClient
) -> None:
    def record() -> dict[str, Any]:
        document: dict[str, Any] = json.loads(redis.get(KEY) or "")
        return document

    runs.create("run", Job.CLEANUP, by=ALICE)
    queued = record()
    dispatch(runs, "1", "2")
    running = record()
    runs.settle("run", "1", DeleteOutcome.GONE, "unknown")
    settled = record()
    runs.settle("run", "2", DeleteOutcome.DELETED, None)

    nothing = dict.fromkeys(("request_id", "started_at", "progressed_at", "result", "error"))
    assert (
        queued == {"job": "cleanup", "state": "queued", "requested_by": "req-1", "counts": {}, "errors": {}} | nothing
    )
    assert set(running) == set(settled) == set(record()) == set(OF_THE_EARLIER_RELEASE)
    assert (settled["counts"], settled["errors"]) == ({"gone": 1}, {"gone": "unknown"})
    assert redis.get("sandbox-broker:runs-open-cleanup") == b"run"


def test_a_run_that_the_earlier_release_carries_on_keeps_who_asked(runs: Runs, redis: RedisClient) -> None:
    runs.create("run", Job.CLEANUP, by=ALICE)
    redis.set(KEY, json.dumps(OF_THE_EARLIER_RELEASE | {"state": "succeeded"}), ex=KEPT_SEC)

    run = found(runs)
    assert (run.principal, run.state, run.ended_at) == ("alice", JobState.SUCCEEDED, 1759574955.5)
    assert runs.read_last([Job.CLEANUP], limit=1) == [run]


@pytest.mark.timeout(10)
def test_without_redis_every_call_says_so() -> None:
    with Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)) as nobody:
        runs = Runs(RedisJobRuns(nobody), stall_limit_sec=1)
        for call in (
            runs.ping,
            runs.find_open_cleanup,
            lambda: runs.find("run"),
            lambda: runs.create("run", Job.SYNC, by=ALICE),
            lambda: runs.discard("run", Job.SYNC),
            lambda: runs.start("run", Job.SYNC, request_id="job-sync-1"),
            lambda: runs.finish("run", Conclusion(state=JobState.FAILED, message="late", error="late")),
            lambda: runs.settle("run", "1", DeleteOutcome.DELETED, None),
            lambda: runs.read_last([Job.SYNC], limit=1),
        ):
            with pytest.raises(QueueUnavailable):
                call()
