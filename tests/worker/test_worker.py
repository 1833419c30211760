"""What a real worker does with runs, deletes, bad messages and signals."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from tests.worker.conftest import ASKING, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.worker.conftest import Celery, Desk


def test_a_run_that_was_asked_for_ends_with_its_result_and_one_line_that_names_the_caller(
    worker: Celery, desk: Desk
) -> None:
    run = desk.run(Job.SYNC)

    assert (run.state, run.error) == (JobState.SUCCEEDED, None)
    assert run.result is not None
    assert run.result["synced"] == 3
    until(lambda: worker.has_said("Synced 3 sandboxes, marked 0 as stale"), "the run's sentence")
    (line,) = [line for line in worker.lines if line["message"].startswith("Synced")]
    assert (line["action"], line["outcome"], line["requested_by"]) == ("background_sync", "success", "req-1")
    assert line["principal"] == "alice"
    assert line["request_id"].startswith("job-sync-")
    assert line["latency_ms"] >= 0


def test_force_reaches_the_sync(worker: Celery, desk: Desk) -> None:
    desk.run(Job.SYNC, force=True)
    desk.run(Job.SYNC)

    assert [call["force"] for call in desk.calls("sync")] == [True, False]


def test_a_job_is_done_by_who_asked_for_it(worker: Celery, desk: Desk) -> None:
    desk.run(Job.SYNC)
    desk.set_due("sbx-0")
    desk.run(Job.CLEANUP)

    assert {call["principal"] for call in [*desk.calls("sync"), *desk.calls("sbx-0")]} == {ASKING.principal}


def test_a_scheduled_run_makes_a_record_of_its_own(worker: Celery, desk: Desk) -> None:
    run = desk.await_end(desk.send("broker.expire", queue="jobs"))
    assert (run.state, run.principal, run.requested_by) == (JobState.SUCCEEDED, "job:expire", None)
    (line,) = [line for line in worker.lines if line.get("action") == "auto_expiry"]
    assert (line["principal"], line.get("requested_by")) == ("job:expire", None)


def test_a_run_that_has_ended_is_not_done_again_when_its_message_comes_again(worker: Celery, desk: Desk) -> None:
    job_id = desk.ask(Job.SYNC)
    desk.await_end(job_id)
    desk.send("broker.sync", queue="jobs", task_id=job_id)

    until(lambda: sum(f"[{job_id}] succeeded" in said for said in worker.messages) == 2, "the message to be settled")
    assert len(desk.calls("sync")) == 1


def test_a_run_that_fails_says_why_without_a_traceback_and_the_worker_goes_on(worker: Celery, desk: Desk) -> None:
    desk.script(sync="brake")
    run = desk.run(Job.SYNC)
    desk.release("sync")

    assert (run.state, run.error) == (JobState.FAILED, "too many are missing")
    assert desk.run(Job.SYNC).state is JobState.SUCCEEDED
    assert not any("exception" in line for line in worker.lines)


def test_a_bug_fails_the_run_with_a_general_reason_and_is_logged_with_its_traceback(worker: Celery, desk: Desk) -> None:
    desk.script(sync="crash")
    run = desk.run(Job.SYNC)
    desk.release("sync")

    assert run.state is JobState.FAILED
    assert "a bug" not in (run.error or "")
    assert desk.run(Job.SYNC).state is JobState.SUCCEEDED
    assert any("ValueError: a bug" in line.get("exception", "") for line in worker.lines)


def test_a_paused_job_is_skipped_and_says_so(worker: Celery, desk: Desk) -> None:
    desk.redis.set("pauses", json.dumps({"sync": True}))

    run = desk.run(Job.SYNC)

    assert (run.state, run.error) == (JobState.SKIPPED, "paused by an operator")
    assert desk.calls("sync") == []
    assert desk.run(Job.EXPIRE).state is JobState.SUCCEEDED


def test_a_run_that_starts_while_the_same_job_runs_is_skipped(worker: Celery, desk: Desk) -> None:
    desk.script(sync="hold")
    first = desk.ask(Job.SYNC)
    desk.await_calls("sync")

    second = desk.run(Job.SYNC)
    desk.release("sync")

    assert (second.state, second.error) == (JobState.SKIPPED, "the same job is running already")
    assert desk.await_end(first).state is JobState.SUCCEEDED
    assert len(desk.calls("sync")) == 1


def test_a_cleanup_is_closed_by_its_last_delete(worker: Celery, desk: Desk) -> None:
    desk.set_due("1", "2", "3", "4")
    desk.script(**{"2": "will_retry", "3": "gone", "4": "hold"})
    job_id = desk.ask(Job.CLEANUP)
    desk.await_calls("4")
    for sandbox_id in ("1", "2", "3"):
        desk.await_calls(sandbox_id)
    before = desk.runs.find(job_id)
    desk.release("4")

    run = desk.await_end(job_id)

    assert before is not None
    assert before.state is JobState.RUNNING
    assert run.state is JobState.SUCCEEDED
    assert run.result == {
        "deleted": 2,
        "gone": 1,
        "will_retry": 1,
        "gave_up": 0,
        "misconfigured": 0,
        "postponed": 0,
        "not_due": 0,
        "rested": 0,
        "failed": 1,
    }
    until(lambda: worker.has_said("Deleted 2 sandboxes, 1 failed"), "the run's sentence")
    (line,) = [line for line in worker.lines if line["message"].startswith("Deleted ")]
    assert (line["action"], line["outcome"]) == ("background_cleanup", "success")
    assert line["request_id"].startswith("job-cleanup-")
    assert "sandbox_id" not in line
    deletes = [each for each in worker.lines if each["message"] == "Delete ended"]
    assert [each["request_id"] for each in deletes] == [line["request_id"]] * 4
    assert [each["principal"] for each in deletes] == ["alice"] * 4


def test_a_delete_that_the_earlier_release_sent_is_done_in_the_name_of_its_job(worker: Celery, desk: Desk) -> None:
    desk.runs.start("run", Job.CLEANUP, request_id="job-cleanup-1")
    desk.runs.dispatch("run", ["1"])
    message = {"sandbox_id": "1", "run_id": "run"}
    desk.send("broker.delete_sandbox", queue="deletions", kwargs=message, headers={"run_request_id": "job-cleanup-1"})

    assert desk.await_end("run").state is JobState.SUCCEEDED
    (line,) = [line for line in worker.lines if line["message"] == "Delete ended"]
    assert (line["principal"], line["request_id"]) == ("job:cleanup", "job-cleanup-1")


def test_a_cleanup_is_skipped_while_deletes_of_the_one_before_wait(worker: Celery, desk: Desk) -> None:
    desk.set_due("1", "2", "3")
    desk.script(**{"1": "hold"})
    first = desk.ask(Job.CLEANUP)
    desk.await_calls("1")

    second = desk.run(Job.CLEANUP)
    desk.release("1")

    assert second.state is JobState.SKIPPED
    assert first in (second.error or "")
    assert desk.await_end(first).state is JobState.SUCCEEDED


def test_a_cleanup_that_lost_deletes_is_closed_as_partial_by_the_next(worker: Celery, desk: Desk) -> None:
    desk.runs.start("lost", Job.CLEANUP, request_id="job-cleanup-1")
    desk.runs.dispatch("lost", ["1", "2"])

    def next_goes_on() -> bool:
        return desk.run(Job.CLEANUP).state is JobState.SUCCEEDED

    until(next_goes_on, "the stall limit to pass")
    lost = desk.runs.find("lost")
    assert lost is not None
    assert lost.result is not None
    assert lost.result["partial"] is True
    closing = next(line for line in worker.lines if line["message"] == "Deleted 0 sandboxes, 0 failed")
    assert closing["request_id"] == "job-cleanup-1"


def test_a_delete_that_finds_no_call_slot_goes_back_to_the_queue(worker: Celery, desk: Desk) -> None:
    desk.set_due("1")
    desk.script(**{"1": "busy"})
    job_id = desk.ask(Job.CLEANUP)
    desk.await_calls("1", 3)
    desk.release("1")

    run = desk.await_end(job_id)

    assert run.result is not None
    assert run.result["deleted"] == 1


def test_a_bug_in_one_delete_is_counted_and_the_rest_go_on(worker: Celery, desk: Desk) -> None:
    desk.set_due("1", "2")
    desk.script(**{"1": "crash"})

    run = desk.run(Job.CLEANUP)

    assert run.result is not None
    assert (run.result["will_retry"], run.result["deleted"]) == (1, 1)


def test_a_run_whose_process_is_killed_is_delivered_again_and_goes_on_as_the_same_run(
    worker: Celery, desk: Desk
) -> None:
    desk.script(sync="hold")
    job_id = desk.ask(Job.SYNC)
    (call,) = desk.await_calls("sync")
    os.kill(call["pid"], signal.SIGKILL)
    desk.await_calls("sync", 2)
    desk.release("sync")

    assert desk.await_end(job_id).state is JobState.SUCCEEDED


def test_on_sigterm_what_has_begun_is_finished_and_nothing_else_is_begun(
    start_worker: Callable[[], AbstractContextManager[Celery]], desk: Desk
) -> None:
    desk.set_due("1", "2", "3", "4")
    desk.script(**dict.fromkeys(("1", "2", "3", "4"), "hold"))
    with start_worker() as worker:
        job_id = desk.ask(Job.CLEANUP)
        until(lambda: desk.redis.llen("calls") == 2, "both processes to be busy")
        worker.signal(signal.SIGTERM)
        until(lambda: worker.has_said("[Scheduler] Received shutdown signal, stopping jobs..."), "the first line")
        assert not worker.has_said("stopped")
        desk.release("1", "2", "3", "4")

        assert worker.exit_code() == 0
        assert worker.messages[-6:] == [
            "[Scheduler] Sync job stopped",
            "[Scheduler] Cleanup job stopped",
            "[Scheduler] Auto-expiry job stopped",
            "[Scheduler] Reserve job stopped",
            "[Scheduler] Deliver job stopped",
            "[Scheduler] Watch job stopped",
        ]
        assert desk.redis.llen("calls") == 2
        assert desk.redis.llen("deletions") == 2

    with start_worker():
        run = desk.await_end(job_id)
    assert run.result is not None
    assert run.result["deleted"] == 4
