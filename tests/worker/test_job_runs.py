"""The records of runs: each ends once, whatever is delivered twice, lost, or late."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from broker_common.adapters.redis_job_runs import KEPT_SEC, Ended, RedisJobRuns
from broker_common.core.errors import QueueUnavailable
from broker_common.core.jobs import Job, JobRun, JobState
from broker_common.core.runs import Conclusion
from broker_common.core.telemetry import DeleteOutcome, JobOutcome
from tests.worker.conftest import until

if TYPE_CHECKING:
    from redis import Redis as RedisClient

SUCCEEDED = Conclusion(state=JobState.SUCCEEDED, message="Synced 1 sandboxes", result={"synced": 1})


@pytest.fixture
def runs(redis: RedisClient) -> RedisJobRuns:
    return RedisJobRuns(redis, stall_limit_sec=60)


def hand_out(runs: RedisJobRuns, *sandbox_ids: str) -> None:
    runs.start("run", Job.CLEANUP, request_id="job-cleanup-1")
    assert runs.hand_out("run", sandbox_ids) == list(sandbox_ids)


def test_a_run_is_found_at_each_step(runs: RedisJobRuns) -> None:
    assert runs.find("run") is None
    runs.create("run", Job.SYNC, requested_by="req-1")
    queued = runs.find("run")
    run = runs.start("run", Job.SYNC, request_id="job-sync-1")
    running = runs.find("run")
    runs.finish("run", SUCCEEDED)

    assert queued == JobRun(job_id="run", job=Job.SYNC, state=JobState.QUEUED)
    assert (run.requested_by, run.request_id) == ("req-1", "job-sync-1")
    assert running == JobRun(job_id="run", job=Job.SYNC, state=JobState.RUNNING)
    assert runs.find("run") == JobRun(job_id="run", job=Job.SYNC, state=JobState.SUCCEEDED, result={"synced": 1})


def test_a_record_is_kept_for_a_day(runs: RedisJobRuns, redis: RedisClient) -> None:
    hand_out(runs, "1")

    ages = [redis.ttl(key) for key in redis.scan_iter()]
    assert ages
    assert all(KEPT_SEC - 60 < age <= KEPT_SEC for age in ages)


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"job": "of-a-later-release"}', "\xff"])
def test_a_run_whose_record_cannot_be_read_counts_as_unknown(
    runs: RedisJobRuns, redis: RedisClient, record: str
) -> None:
    redis.set("sandbox-broker:runs:run", record)
    assert runs.find("run") is None
    assert runs.finish("run", SUCCEEDED) is None
    assert runs.start("run", Job.SYNC, request_id="job-sync-1").state is JobState.RUNNING


def test_a_run_ends_once(runs: RedisJobRuns) -> None:
    runs.start("run", Job.SYNC, request_id="job-sync-1")
    ended = runs.finish("run", SUCCEEDED)

    assert ended is not None
    assert (ended.event.outcome, ended.event.message) == (JobOutcome.SUCCESS, "Synced 1 sandboxes")
    assert ended.event.seconds >= 0
    assert runs.finish("run", Conclusion(state=JobState.FAILED, message="late", error="late")) is None
    found = runs.find("run")
    assert found is not None
    assert found.state is JobState.SUCCEEDED


def test_a_run_that_is_delivered_again_keeps_its_start_and_its_end(runs: RedisJobRuns) -> None:
    first = runs.start("run", Job.SYNC, request_id="job-sync-1")
    again = runs.start("run", Job.SYNC, request_id="job-sync-2")
    runs.finish("run", SUCCEEDED)
    after = runs.start("run", Job.SYNC, request_id="job-sync-3")

    assert again == first
    assert (after.state, after.request_id, after.result) == (JobState.SUCCEEDED, "job-sync-1", {"synced": 1})


def test_of_many_deletes_that_report_at_once_and_twice_one_closes_the_run_with_the_true_sum(
    runs: RedisJobRuns,
) -> None:
    ids = [str(number) for number in range(40)]
    hand_out(runs, *ids)

    with ThreadPoolExecutor(8) as threads:
        ended = list(threads.map(lambda each: runs.settle("run", each, DeleteOutcome.DELETED, None), ids * 2))

    closing = [each for each in ended if each is not None]
    assert len(closing) == 1
    assert closing[0].event.message == "Deleted 40 sandboxes, 0 failed"
    found = runs.find("run")
    assert found is not None
    assert found.result is not None
    assert found.result["deleted"] == 40


def test_a_cleanup_that_is_delivered_again_hands_out_only_what_has_not_reported(runs: RedisJobRuns) -> None:
    hand_out(runs, "1", "2", "3")
    runs.settle("run", "2", DeleteOutcome.DELETED, None)

    assert runs.hand_out("run", ["2", "3", "4"]) == ["1", "3"]


def test_a_cleanup_is_open_until_its_last_delete_has_reported(runs: RedisJobRuns) -> None:
    before = runs.find_open_cleanup()
    hand_out(runs, "1")
    meanwhile = runs.find_open_cleanup()
    runs.settle("run", "1", DeleteOutcome.GONE, None)

    assert (before, meanwhile, runs.find_open_cleanup()) == (None, "run", None)


def test_a_cleanup_that_made_progress_lately_is_not_stalled(runs: RedisJobRuns) -> None:
    hand_out(runs, "1")

    assert runs.end_stalled_cleanup("run") is None


def test_a_cleanup_whose_deletes_still_wait_in_the_queue_is_not_stalled(redis: RedisClient) -> None:
    runs = RedisJobRuns(redis, stall_limit_sec=0)
    hand_out(runs, "1")
    redis.rpush("deletions", "a message")

    assert runs.end_stalled_cleanup("run") is None


def test_a_stalled_cleanup_ends_as_partial_and_a_late_delete_changes_nothing(redis: RedisClient) -> None:
    runs = RedisJobRuns(redis, stall_limit_sec=0)
    hand_out(runs, "1", "2")
    runs.settle("run", "1", DeleteOutcome.DELETED, None)
    ended: list[Ended] = []

    def has_ended() -> bool:
        ended.extend(filter(None, [runs.end_stalled_cleanup("run")]))
        return bool(ended)

    until(has_ended, "the clock to move on")

    assert ended[0].event.message == "Deleted 1 sandboxes, 0 failed"
    assert runs.settle("run", "2", DeleteOutcome.DELETED, None) is None
    found = runs.find("run")
    assert found is not None
    assert found.result is not None
    assert (found.result["deleted"], found.result["partial"]) == (1, True)


def test_a_delete_of_an_unknown_run_closes_nothing(runs: RedisJobRuns) -> None:
    assert runs.settle("forgotten", "1", DeleteOutcome.DELETED, None) is None


@pytest.mark.timeout(10)
def test_without_redis_every_call_says_so() -> None:
    with Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0)) as nobody:
        runs = RedisJobRuns(nobody, stall_limit_sec=1)
        for call in (
            runs.ping,
            runs.find_open_cleanup,
            lambda: runs.find("run"),
            lambda: runs.create("run", Job.SYNC, requested_by="req-1"),
            lambda: runs.start("run", Job.SYNC, request_id="job-sync-1"),
            lambda: runs.settle("run", "1", DeleteOutcome.DELETED, None),
        ):
            with pytest.raises(QueueUnavailable):
                call()
