"""Starting jobs, waiting for them, and reading their runs."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import pytest

from broker_api.runtime import runtime_of
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.principals import Actor
from tests.api.harness import Api, Untouchable, assert_error, body_of, error_of, make_api
from tests.api.test_waiting import APPLIED, IGNORED, MALFORMED
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Callable

STARTS = [(f"/v1/admin/{job.path}", job.name) for job in JOBS.values()]
ASKED_FOR = {"principal": "admin", "requested_by": "req-1", "queued_at": START}
FINAL = [JobState.SUCCEEDED, JobState.FAILED, JobState.SKIPPED]


@pytest.mark.parametrize(("path", "job"), STARTS)
def test_a_job_is_enqueued_under_the_caller_s_name_and_request_id(api: Api, path: str, job: str) -> None:
    answer = api.admin("POST", path, headers={"X-Request-ID": "req-1"})
    assert answer.status_code == 202
    assert body_of(answer) == {"job_id": "job-1", "status_url": "/v1/admin/jobs/job-1"}
    assert "Preference-Applied" not in answer.headers
    ((enqueued, by, flags),) = api.queue.enqueued
    assert (enqueued, by) == (job, Actor(principal="admin", request_id="req-1"))
    assert not any(flags.values())


@pytest.mark.parametrize("force", [True, False])
def test_a_sync_may_be_forced(api: Api, force: bool) -> None:
    assert api.admin("POST", "/v1/admin/sync", json={"force": force}).status_code == 202
    assert [flags for _, _, flags in api.queue.enqueued] == [{"force": force}]


@pytest.mark.parametrize(("path", "_job"), STARTS)
def test_a_queue_that_is_down_answers_503(api: Api, path: str, _job: str) -> None:
    api.queue.down = True
    assert_error(api.admin("POST", path, headers={"Prefer": "wait=5"}), 503, "QUEUE_UNAVAILABLE")
    assert api.clock.monotonic() == 0


@pytest.mark.parametrize(("path", "job"), STARTS)
@pytest.mark.parametrize("state", FINAL)
def test_a_caller_who_waits_is_answered_with_the_run_once_it_has_ended(
    api: Api, path: str, job: str, state: JobState
) -> None:
    api.queue.states = deque([None, JobState.QUEUED, JobState.RUNNING, state])
    api.queue.result = {"synced": 3}
    answer = api.admin("POST", path, headers={"Prefer": "wait=10", "X-Request-ID": "req-1"})
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert body_of(answer) == {
        "job_id": "job-1",
        "job": job,
        "state": state.value,
        "result": {"synced": 3},
        **ASKED_FOR,
        "started_at": START + 1,
        "ended_at": START + 2,
    }
    assert api.clock.monotonic() < 10


@pytest.mark.parametrize(("asked", "waited"), [("wait=10", 10), ("wait=600", 30), ("wait=0", 0)])
def test_a_caller_waits_no_longer_than_asked_and_at_most_thirty_seconds(api: Api, asked: str, waited: int) -> None:
    api.queue.states = deque([JobState.RUNNING])
    answer = api.admin("POST", "/v1/admin/sync", headers={"Prefer": asked})
    assert answer.status_code == 202
    assert answer.headers["Preference-Applied"] == f"wait={waited}"
    assert body_of(answer)["job_id"] == "job-1"
    assert api.clock.monotonic() == pytest.approx(waited)


@pytest.mark.parametrize(("prefer", "seconds"), APPLIED)
def test_a_wait_is_found_among_other_preferences(api: Api, prefer: str, seconds: int) -> None:
    api.queue.states = deque([JobState.SUCCEEDED])
    answer = api.admin("POST", "/v1/admin/sync", headers={"Prefer": prefer})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, f"wait={seconds}")


@pytest.mark.parametrize("prefer", IGNORED)
def test_other_preferences_are_ignored(api: Api, prefer: str) -> None:
    api.queue.states = deque([JobState.SUCCEEDED])
    answer = api.admin("POST", "/v1/admin/sync", headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize("prefer", MALFORMED)
def test_a_malformed_wait_is_refused_by_name_and_starts_nothing(shared_api: Api, prefer: str) -> None:
    error = assert_error(
        shared_api.admin("POST", "/v1/admin/sync", headers={"Prefer": prefer}), 400, "VALIDATION_ERROR"
    )
    assert list(error["details"]) == ["Prefer"]
    assert shared_api.queue.enqueued == []


def test_a_queue_that_goes_down_while_a_caller_waits_does_not_undo_the_start(api: Api) -> None:
    find = api.queue.find

    def find_once_then_down(job_id: str) -> object:
        api.queue.down = True
        return find(job_id)

    api.queue.find = find_once_then_down  # type: ignore[method-assign, assignment] # the queue goes down here
    assert body_of(api.admin("POST", "/v1/admin/sync", headers={"Prefer": "wait=5"}), 202)["job_id"] == "job-1"


def test_nobody_waits_while_the_process_is_about_to_stop(api: Api) -> None:
    api.queue.states = deque([JobState.RUNNING])
    runtime_of(api.app).draining = True
    answer = api.admin("POST", "/v1/admin/sync", headers={"Prefer": "wait=30"})
    assert answer.status_code == 202
    assert api.clock.monotonic() == 0


def test_callers_who_wait_hold_half_of_the_threads_at_most_and_the_rest_is_answered_at_once() -> None:
    api = make_api(API_THREADS="5")
    api.queue.states = deque([JobState.RUNNING])
    inside, go_on = threading.Semaphore(0), threading.Event()
    answers: list[int] = []

    def wait_in_place_of_sleep(_seconds: float) -> None:
        inside.release()
        assert go_on.wait(30)
        api.queue.states = deque([JobState.SUCCEEDED])

    api.clock.sleep = wait_in_place_of_sleep  # type: ignore[method-assign, assignment] # holds the waiting callers
    start: Callable[[], None] = lambda: answers.append(  # noqa: E731 - it is the threads' work
        api.admin("POST", "/v1/admin/sync", headers={"Prefer": "wait=5"}).status_code
    )
    waiting = [threading.Thread(target=start) for _ in range(2)]
    for thread in waiting:
        thread.start()
    for _ in waiting:
        assert inside.acquire(timeout=30)
    refused = api.admin("POST", "/v1/admin/sync", headers={"Prefer": "wait=5"})
    go_on.set()
    for thread in waiting:
        thread.join(30)
    assert refused.status_code == 202
    assert "Preference-Applied" not in refused.headers
    assert answers == [200, 200]


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.RUNNING])
def test_a_run_that_has_not_ended_has_no_result(api: Api, state: JobState) -> None:
    api.admin("POST", "/v1/admin/cleanup", headers={"X-Request-ID": "req-1"})
    api.queue.states = deque([state])
    api.queue.result = {"deleted": 1}
    answer = api.admin("GET", "/v1/admin/jobs/job-1")
    assert answer.status_code == 200
    began = {"started_at": START + 1} if state is JobState.RUNNING else {}
    assert body_of(answer) == {"job_id": "job-1", "job": "cleanup", "state": state.value, **ASKED_FOR, **began}


def test_a_failed_run_says_why(api: Api) -> None:
    api.admin("POST", "/v1/admin/purge-stale")
    api.queue.states = deque([JobState.FAILED])
    api.queue.error = "too many are missing"
    run = body_of(api.admin("GET", "/v1/admin/jobs/job-1"))
    assert (run["job"], run["state"], run["error"]) == ("purge_stale", "failed", "too many are missing")


@pytest.mark.parametrize("job_id", ["job-1", "nonsense", "job-0"])
def test_a_run_that_is_not_known_answers_404(shared_api: Api, job_id: str) -> None:
    assert_error(shared_api.admin("GET", f"/v1/admin/jobs/{job_id}"), 404, "JOB_NOT_FOUND")


@pytest.mark.parametrize("path", ["/v1/admin/jobs/job-1", "/v1/admin/jobs"], ids=["one", "all"])
def test_runs_cannot_be_read_while_the_queue_is_down(api: Api, path: str) -> None:
    api.queue.down = True
    assert_error(api.admin("GET", path), 503, "QUEUE_UNAVAILABLE")


@pytest.fixture
def asked(api: Api) -> Api:
    """Return an API that was asked for a sync, a cleanup, and another sync."""
    for path in ("sync", "cleanup", "sync"):
        assert api.admin("POST", f"/v1/admin/{path}").status_code == 202
    return api


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["job-3", "job-2", "job-1"]),
        ("?job=sync", ["job-3", "job-1"]),
        ("?job=cleanup&limit=1", ["job-2"]),
        ("?limit=2", ["job-3", "job-2"]),
        ("?job=expire&limit=100", []),
    ],
)
def test_the_last_runs_of_one_job_or_of_all_are_listed_newest_first(asked: Api, query: str, found: list[str]) -> None:
    body = body_of(asked.admin("GET", f"/v1/admin/jobs{query}"), 200)
    assert [run["job_id"] for run in body["runs"]] == found
    assert body["count"] == len(found)


def test_a_listed_run_is_what_is_read_of_it_alone(asked: Api) -> None:
    asked.queue.states = deque([JobState.SUCCEEDED])
    asked.queue.result = {"synced": 3}
    (run,) = body_of(asked.admin("GET", "/v1/admin/jobs?limit=1"))["runs"]
    assert run == body_of(asked.admin("GET", "/v1/admin/jobs/job-3"))
    assert (run["principal"], run["result"]) == ("admin", {"synced": 3})


def test_twenty_runs_are_listed_if_nothing_is_said(api: Api) -> None:
    for _ in range(25):
        api.admin("POST", "/v1/admin/expire")
    assert body_of(api.admin("GET", "/v1/admin/jobs"))["count"] == 20


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *((f"job={each}", "job") for each in ("nonsense", "purge-stale", "")),
        *((f"limit={each}", "limit") for each in ("0", "101", "-1", "many", "1&limit=2")),
        ("cursor=x", "cursor"),
    ],
)
def test_a_listing_of_runs_names_the_parameter_that_is_wrong(shared_api: Api, query: str, field: str) -> None:
    answer = shared_api.admin("GET", f"/v1/admin/jobs?{query}")
    assert answer.status_code == 400
    assert error_of(answer)["details"].keys() == {field}


def test_jobs_are_started_and_found_while_the_store_is_away() -> None:
    api = make_api(around=lambda _: Untouchable())
    assert api.admin("POST", "/v1/admin/sync").status_code == 202
    assert api.admin("GET", "/v1/admin/jobs/job-1").status_code == 200
    assert api.admin("GET", "/v1/admin/jobs").status_code == 200
