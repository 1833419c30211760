"""The contract of the runs of jobs for every store of their records and locks: each run ends once.

That holds although messages come twice, late, or not at all. A subclass names its store by fixtures.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_common.core.principals import Actor
from broker_common.core.runs import Conclusion, Runs
from broker_common.core.telemetry import DeleteOutcome, JobOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.runs import JobLocks, JobRun, JobRuns

SUCCEEDED = Conclusion(state=JobState.SUCCEEDED, message="Synced 1 sandboxes", result={"synced": 1})
ALICE = Actor(principal="alice", request_id="req-1")


def dispatch(runs: Runs, *sandbox_ids: str) -> None:
    runs.start("run", Job.CLEANUP, request_id="job-cleanup-1")
    assert runs.dispatch("run", sandbox_ids) == list(sandbox_ids)


def found(runs: Runs, job_id: str = "run") -> JobRun:
    run = runs.find(job_id)
    assert run is not None
    return run


class RunsContract:
    """Needs the fixtures `kept` (the records) and `queue_a_delete` (puts a delete into the queue)."""

    @pytest.fixture
    def runs(self, kept: JobRuns) -> Runs:
        return Runs(kept, stall_limit_sec=60)

    @pytest.fixture
    def hasty(self, kept: JobRuns) -> Runs:
        """Return runs for which every open cleanup is stalled at once."""
        return Runs(kept, stall_limit_sec=-1)

    def test_a_run_is_found_at_each_step(self, runs: Runs) -> None:
        assert runs.find("run") is None
        runs.create("run", Job.SYNC, by=ALICE)
        queued = found(runs)
        started = runs.start("run", Job.SYNC, request_id="job-sync-1")
        running = found(runs)
        runs.finish("run", SUCCEEDED)
        ended = found(runs)

        assert (queued.job, queued.state, queued.request_id) == (Job.SYNC, JobState.QUEUED, None)
        assert running == started == replace(queued, **_changed(running, "state", "request_id", "started_at"))
        assert (running.state, running.request_id) == (JobState.RUNNING, "job-sync-1")
        assert (ended.state, ended.result, ended.error) == (JobState.SUCCEEDED, {"synced": 1}, None)

    def test_a_run_that_was_asked_for_names_who_asked_and_by_which_request_at_each_step(self, runs: Runs) -> None:
        runs.create("run", Job.SYNC, by=ALICE)
        seen = [found(runs), runs.start("run", Job.SYNC, request_id="job-sync-1")]
        runs.finish("run", SUCCEEDED)

        assert {(run.principal, run.requested_by) for run in [*seen, found(runs)]} == {("alice", "req-1")}
        assert seen[1].actor == Actor(principal="alice", request_id="job-sync-1")

    def test_a_scheduled_run_names_its_job_as_the_one_who_asked(self, runs: Runs) -> None:
        run = runs.start("run", Job.PURGE_STALE, request_id="job-purge-stale-1")

        assert (run.principal, run.requested_by, run.queued_at) == ("job:purge_stale", None, None)
        assert found(runs) == run

    def test_a_run_tells_when_it_was_asked_for_began_and_ended(self, runs: Runs) -> None:
        runs.create("run", Job.SYNC, by=ALICE)
        queued = found(runs)
        running = runs.start("run", Job.SYNC, request_id="job-sync-1")
        runs.finish("run", SUCCEEDED)
        ended = found(runs)

        assert (queued.started_at, queued.ended_at, running.ended_at) == (None, None, None)
        assert ended.queued_at == queued.queued_at
        assert ended.queued_at is not None
        assert ended.started_at is not None
        assert ended.ended_at is not None
        assert ended.queued_at <= ended.started_at <= ended.ended_at

    def test_a_run_ends_once(self, runs: Runs) -> None:
        runs.start("run", Job.SYNC, request_id="job-sync-1")
        ended = runs.finish("run", SUCCEEDED)

        assert ended is not None
        assert (ended.event.outcome, ended.event.message) == (JobOutcome.SUCCESS, "Synced 1 sandboxes")
        assert ended.event.seconds >= 0
        assert runs.finish("run", Conclusion(state=JobState.FAILED, message="late", error="late")) is None
        assert found(runs).state is JobState.SUCCEEDED

    def test_a_run_that_nobody_knows_does_not_end(self, runs: Runs) -> None:
        assert runs.finish("forgotten", SUCCEEDED) is None

    def test_a_run_that_is_delivered_again_keeps_its_start_and_its_end(self, runs: Runs) -> None:
        first = runs.start("run", Job.SYNC, request_id="job-sync-1")
        again = runs.start("run", Job.SYNC, request_id="job-sync-2")
        runs.finish("run", SUCCEEDED)
        after = runs.start("run", Job.SYNC, request_id="job-sync-3")

        assert again == first
        assert (after.state, after.request_id, after.result) == (JobState.SUCCEEDED, "job-sync-1", {"synced": 1})

    def test_a_run_that_could_not_be_queued_is_forgotten(self, runs: Runs) -> None:
        runs.create("run", Job.SYNC, by=ALICE)
        runs.discard("run", Job.SYNC)

        assert runs.find("run") is None
        assert runs.read_last([Job.SYNC], limit=10) == []

    def test_the_last_runs_are_listed_newest_first_of_the_jobs_that_are_asked_for(self, runs: Runs) -> None:
        for job_id, job in (("a", Job.SYNC), ("b", Job.EXPIRE), ("c", Job.SYNC), ("d", Job.CLEANUP)):
            runs.start(job_id, job, request_id=f"job-{job_id}")
        runs.finish("a", SUCCEEDED)

        def listed(*jobs: Job, limit: int = 10) -> list[str]:
            return [run.job_id for run in runs.read_last(jobs, limit=limit)]

        assert listed(*Job) == ["d", "c", "b", "a"]
        assert listed(*Job, limit=2) == ["d", "c"]
        assert listed(Job.SYNC) == ["c", "a"]
        assert listed(Job.SYNC, limit=1) == ["c"]
        assert listed(Job.PURGE_STALE) == []
        assert runs.read_last([Job.SYNC], limit=2)[1] == found(runs, "a")

    def test_of_many_deletes_that_report_at_once_and_twice_one_closes_the_run_with_the_true_sum(
        self, runs: Runs
    ) -> None:
        ids = [str(number) for number in range(40)]
        dispatch(runs, *ids)

        with ThreadPoolExecutor(8) as threads:
            ended = list(threads.map(lambda each: runs.settle("run", each, DeleteOutcome.DELETED, None), ids * 2))

        closing = [each for each in ended if each is not None]
        assert len(closing) == 1
        assert closing[0].event.message == "Deleted 40 sandboxes, 0 failed"
        assert (found(runs).result or {})["deleted"] == 40

    def test_a_cleanup_that_is_delivered_again_dispatches_only_what_has_not_reported(self, runs: Runs) -> None:
        dispatch(runs, "1", "2", "3")
        runs.settle("run", "2", DeleteOutcome.DELETED, None)

        assert runs.dispatch("run", ["2", "3", "4"]) == ["1", "3"]

    def test_a_cleanup_that_has_ended_dispatches_nothing(self, runs: Runs) -> None:
        dispatch(runs, "1")
        runs.settle("run", "1", DeleteOutcome.DELETED, None)

        assert runs.dispatch("run", ["2"]) == []
        assert runs.dispatch("forgotten", ["2"]) == []

    def test_a_cleanup_that_finds_nothing_dispatches_nothing(self, runs: Runs) -> None:
        dispatch(runs)

        assert runs.find_open_cleanup() is None

    def test_a_cleanup_is_open_until_its_last_delete_has_reported(self, runs: Runs) -> None:
        before = runs.find_open_cleanup()
        dispatch(runs, "1")
        meanwhile = runs.find_open_cleanup()
        runs.settle("run", "1", DeleteOutcome.GONE, None)

        assert (before, meanwhile, runs.find_open_cleanup()) == (None, "run", None)

    def test_a_cleanup_that_made_progress_lately_is_not_stalled(self, runs: Runs) -> None:
        dispatch(runs, "1")

        assert runs.end_stalled_cleanup("run") is None

    def test_a_cleanup_whose_deletes_still_wait_in_the_queue_is_not_stalled(
        self, hasty: Runs, queue_a_delete: Callable[[], None]
    ) -> None:
        dispatch(hasty, "1")
        queue_a_delete()

        assert hasty.end_stalled_cleanup("run") is None

    def test_a_stalled_cleanup_ends_as_partial_and_a_late_delete_changes_nothing(self, hasty: Runs) -> None:
        dispatch(hasty, "1", "2")
        hasty.settle("run", "1", DeleteOutcome.DELETED, None)
        ended = hasty.end_stalled_cleanup("run")

        assert ended is not None
        assert ended.event.message == "Deleted 1 sandboxes, 0 failed"
        assert hasty.settle("run", "2", DeleteOutcome.DELETED, None) is None
        assert hasty.end_stalled_cleanup("run") is None
        result = found(hasty).result or {}
        assert (result["deleted"], result["partial"]) == (1, True)

    def test_a_delete_of_an_unknown_run_closes_nothing(self, runs: Runs) -> None:
        assert runs.settle("forgotten", "1", DeleteOutcome.DELETED, None) is None

    def test_records_that_can_be_written_are_said_to_be(self, runs: Runs) -> None:
        runs.ping()


class LocksContract:
    """Needs the fixture `locks`."""

    def test_a_second_owner_does_not_get_in_until_the_first_has_left(self, locks: JobLocks) -> None:
        with locks.hold(Job.SYNC, owner="a") as first, locks.hold(Job.SYNC, owner="b") as second:
            assert (first, second) == (True, False)
        with locks.hold(Job.SYNC, owner="b") as later:
            assert later

    def test_each_job_has_its_own_lock(self, locks: JobLocks) -> None:
        with locks.hold(Job.SYNC, owner="a"), locks.hold(Job.EXPIRE, owner="b") as other:
            assert other

    def test_the_owner_of_a_run_that_was_cut_off_enters_again(self, locks: JobLocks) -> None:
        with locks.hold(Job.SYNC, owner="a"), locks.hold(Job.SYNC, owner="a") as again:
            assert again

    def test_one_who_did_not_get_in_releases_nothing(self, locks: JobLocks) -> None:
        with locks.hold(Job.SYNC, owner="a"):
            with locks.hold(Job.SYNC, owner="b"):
                pass
            with locks.hold(Job.SYNC, owner="c") as third:
                assert not third


def _changed(run: JobRun, *names: str) -> dict[str, Any]:
    return {name: getattr(run, name) for name in (*names, "progressed_at")}
