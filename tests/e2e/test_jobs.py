"""Jobs and operator calls, with real workers, a real scheduler and a provider that misbehaves on request."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = {
    "POOL": "30",
    "MOCK_CSP_DELETE_SECONDS": "0.05",
    "CIRCUIT_BREAKER_TIMEOUT_SEC": "0.2",
    "CIRCUIT_BREAKER_THRESHOLD": "100",
    "DELETION_BACKOFF_BASE_SEC": "0",
    "DELETION_RETRY_MAX_ATTEMPTS": "3",
}


@pytest.fixture(autouse=True)
def well_behaved_provider(request: pytest.FixtureRequest) -> None:
    """Have every test begin, and leave the next one, with a provider that works and a pool that is free."""
    if "stack" not in request.fixturenames:
        return
    stack: Stack = request.getfixturevalue("stack")
    switch(stack)
    stack.as_admin("POST", "/pause", json=dict.fromkeys(("allocate", "sync", "cleanup", "expire"), False))

    def is_free() -> bool:
        stack.as_admin("POST", "/bulk-retry")
        stack.run_job("cleanup")
        stack.run_job("sync")
        return stack.stats()["available"] == 30

    assert wait_until(is_free, 60), stack.stats()


def switch(stack: Stack, **switches: Any) -> None:
    """Set the provider's switches; those not named are as at its start."""
    answer = requests.put(f"{stack.csp_url}/_mock/switches", json={"delete_seconds": 0.05} | switches, timeout=10)
    assert answer.status_code == 200, answer.text


def record_of(stack: Stack, sandbox_id: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.as_admin("GET", f"/sandboxes/{sandbox_id}").json()
    return found


def deletes_of(stack: Stack, external_id: str) -> int:
    return sum(delete["external_id"] == external_id for delete in stack.delete_log()["deletes"])


def allocate(stack: Stack, track: str) -> dict[str, Any]:
    answer = stack.as_track(track, "POST", "/allocate")
    assert answer.status_code in {200, 201}, answer.text
    found: dict[str, Any] = answer.json()
    return found


def mark(stack: Stack, track: str, sandbox: dict[str, Any]) -> None:
    answer = stack.as_track(track, "POST", f"/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion")
    assert answer.status_code == 200, answer.text


def given_back(stack: Stack, *tracks: str) -> list[dict[str, Any]]:
    sandboxes = [allocate(stack, track) for track in tracks]
    for track, sandbox in zip(tracks, sandboxes, strict=True):
        mark(stack, track, sandbox)
    return sandboxes


def test_a_cleanup_is_closed_by_its_last_delete_with_the_sums(stack: Stack) -> None:
    given_back(stack, "a", "b", "c", "d")
    switch(stack, fail_next_deletes=1)
    run = stack.run_job("cleanup")
    assert run["state"] == "succeeded"
    assert (run["result"]["deleted"], run["result"]["will_retry"]) == (3, 1)
    # The worker records the end of the run first, and logs it then.
    sums = "Deleted 3 sandboxes, 1 failed"
    assert wait_until(lambda: sums in {record.get("message") for record in stack.records("worker-deletions")}, 10)


def test_the_last_runs_say_who_asked_for_each(stack: Stack) -> None:
    asked = stack.run_job("expire", headers={"X-Request-ID": "the-request-of-an-operator"})
    listed = stack.as_admin("GET", "/jobs", params={"job": "expire", "limit": 1})
    assert listed.status_code == 200
    (run,) = listed.json()["runs"]
    assert run["job_id"] == asked["job_id"]
    assert (run["principal"], run["requested_by"]) == ("admin", "the-request-of-an-operator")
    assert run["queued_at"] <= run["started_at"] <= run["ended_at"] <= time.time() + 1

    def lines() -> list[dict[str, Any]]:
        return [
            each for each in stack.records("worker-jobs") if each.get("requested_by") == "the-request-of-an-operator"
        ]

    assert wait_until(lambda: bool(lines()), 10)
    assert [(line["action"], line["principal"]) for line in lines()] == [("auto_expiry", "admin")]


def test_a_failing_delete_is_tried_again_and_in_the_end_left_to_a_person(stack: Stack) -> None:
    switch(stack, fail_next_deletes=3, html_errors=True)
    (sandbox,) = given_back(stack, "unlucky")

    def gave_up() -> bool:
        stack.run_job("cleanup")
        return str(record_of(stack, sandbox["sandbox_id"])["status"]) == "deletion_failed"

    assert wait_until(gave_up, 30)
    record = record_of(stack, sandbox["sandbox_id"])
    assert record["deletion_retry_count"] == 3
    assert "500" in record["deletion_last_error"]
    assert record["dirty"] is True
    retried = stack.as_admin("POST", f"/sandboxes/{sandbox['sandbox_id']}/retry-deletion")
    assert (retried.status_code, retried.json()["status"]) == (200, "pending_deletion")
    stack.run_job("cleanup")
    assert record_of(stack, sandbox["sandbox_id"])["status"] == "available"


def test_a_permanent_refusal_is_left_to_a_person_at_once(stack: Stack) -> None:
    switch(stack, fail_next_deletes=1, fail_status=422)
    (sandbox,) = given_back(stack, "refused")
    stack.run_job("cleanup")
    record = record_of(stack, sandbox["sandbox_id"])
    assert (record["status"], record["dirty"]) == ("deletion_failed", True)


def test_an_expired_provider_token_counts_no_attempt_and_fails_the_job_with_its_reason(stack: Stack) -> None:
    (sandbox,) = given_back(stack, "locked-out")
    switch(stack, unauthorized=True)
    run = stack.run_job("cleanup")
    assert run["state"] == "failed"
    assert "401" in run["error"]
    record = record_of(stack, sandbox["sandbox_id"])
    assert (record["status"], record["deletion_retry_count"]) == ("pending_deletion", 0)


def test_a_login_page_is_not_taken_for_a_wipe(stack: Stack) -> None:
    (sandbox,) = given_back(stack, "logged-out")
    switch(stack, login_page=True)
    run = stack.run_job("cleanup")
    assert run["state"] == "failed"
    record = record_of(stack, sandbox["sandbox_id"])
    assert (record["status"], record["dirty"]) == ("pending_deletion", True)


def test_a_delete_whose_answer_is_lost_leaves_the_sandbox_to_a_later_sync(stack: Stack) -> None:
    switch(stack, drop_next_deletes=1, drop_when="after")
    (sandbox,) = given_back(stack, "in-doubt")
    stack.run_job("cleanup")
    assert record_of(stack, sandbox["sandbox_id"])["status"] == "pending_deletion"
    stack.run_job("cleanup")
    assert record_of(stack, sandbox["sandbox_id"])["status"] == "stale"
    stack.run_job("sync")
    assert record_of(stack, sandbox["sandbox_id"])["status"] == "available"


@pytest.mark.parametrize("trouble", [{"empty_list": True}, {"truncated_list": True}, {"login_page": True}])
def test_a_list_that_cannot_be_believed_changes_nothing(stack: Stack, trouble: dict[str, Any]) -> None:
    switch(stack, **trouble)
    run = stack.run_job("sync")
    assert run["state"] == "failed"
    assert run["error"]
    assert stack.stats()["available"] == 30


@pytest.mark.parametrize("paging", ["offset", "link", "limit", "number"])
def test_every_page_of_the_list_is_read(stack: Stack, paging: str) -> None:
    switch(stack, paging=paging, page_size=7)
    run = stack.run_job("sync")
    assert (run["state"], run["result"]["synced"]) == ("succeeded", 30)
    assert stack.stats()["available"] == 30


def test_one_malformed_account_is_skipped_and_the_rest_goes_on(stack: Stack) -> None:
    switch(stack, malformed_account=True)
    run = stack.run_job("sync")
    assert run["state"] == "succeeded"
    assert run["result"]["skipped"] == 1


def test_no_label_keeps_an_account_out_of_the_pool(tmp_path: Path) -> None:
    labels: list[tuple[Any, Any]] = [
        ("a\xa0\u3000\u200d\u200f\U0001f600", 42),
        ("a\x85\u2028\x1b", "=1+1"),
        (None, ["x"]),
    ]
    with Stack(tmp_path, SETTINGS) as stack:
        url = f"{stack.csp_url}/_mock/accounts"
        ids = [
            str(requests.post(url, json={"name": name, "sfdc_account_id": sfdc}, timeout=10).json()["csp_id"])
            for name, sfdc in labels
        ]
        run = stack.run_job("sync")
        assert (run["state"], run["result"]["added"], run["result"]["skipped"]) == ("succeeded", 33, 0)
        seen = [stack.as_admin("GET", f"/sandboxes/{each}").json() for each in ids]
    assert [(each["name"], each["sfdc_account_id"]) for each in seen] == [
        ("a\xa0\u3000\u200d\u200f\U0001f600", "42"),
        ("a���", "=1+1"),
        (ids[2], None),
    ]


def test_too_many_missing_accounts_brake_the_sync_unless_it_is_forced(tmp_path: Path) -> None:
    with Stack(tmp_path, SETTINGS) as stack:
        stack.run_job("sync")
        accounts = requests.get(f"{stack.csp_url}/_mock/accounts", timeout=10).json()["accounts"]
        active = [each for each in accounts if (each["account_type"], each["state"]) == ("sandbox", "active")]
        for account in active[:20]:
            requests.delete(f"{stack.csp_url}/_mock/accounts/{account['csp_id']}", timeout=10)
        braked = stack.run_job("sync")
        assert braked["state"] == "failed"
        assert "20 of 30" in braked["error"]
        assert stack.stats()["stale"] == 0
        forced = stack.run_job("sync", json={"force": True})
        assert (forced["state"], forced["result"]["stale"]) == ("succeeded", 20)
        assert stack.stats()["stale"] == 20
        deleted = stack.as_admin("POST", "/bulk-delete?status=stale")
        assert deleted.json()["deleted"] == 20
        assert stack.stats()["total"] == 10


def test_an_operator_releases_an_allocation_by_its_lease(stack: Stack) -> None:
    sandbox = allocate(stack, "absent")
    path = f"/sandboxes/{sandbox['sandbox_id']}/release"
    wrong = stack.as_admin("POST", path, json={"lease_id": "another"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (409, "LEASE_MISMATCH")
    released = stack.as_admin("POST", path, json={"lease_id": sandbox["lease_id"]})
    assert (released.status_code, released.json()["status"]) == (200, "pending_deletion")
    assert stack.as_track("absent", "GET", "/sandboxes").json()["sandboxes"] == []


def test_a_quarantined_sandbox_is_not_given_out_until_it_was_wiped(stack: Stack) -> None:
    some = stack.as_admin("GET", "/sandboxes?status=available&limit=1").json()["sandboxes"][0]
    set_aside = stack.as_admin("POST", f"/sandboxes/{some['sandbox_id']}/quarantine", json={"reason": "looks odd"})
    assert (set_aside.status_code, set_aside.json()["status"]) == (200, "deletion_failed")
    assert set_aside.json()["deletion_last_error"] == "looks odd"
    none = stack.as_track("picky", "POST", "/allocate", headers={"X-Sandbox-Name-Prefix": some["name"]})
    assert none.status_code == 409
    again = stack.as_admin("POST", f"/sandboxes/{some['sandbox_id']}/quarantine", json={"reason": "again"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "INVALID_TRANSITION")


def test_a_pause_is_obeyed_by_every_process_within_five_seconds(stack: Stack) -> None:
    held = allocate(stack, "early-bird")
    paused = stack.as_admin("POST", "/pause", json={"allocate": True, "cleanup": True})
    shown = paused.json()
    assert {(each["operation"], each["by"]) for each in shown.pop("paused")} == {
        ("allocate", "admin"),
        ("cleanup", "admin"),
    }
    assert shown == {"allocate": True, "sync": False, "cleanup": True, "expire": False}
    asked_at = time.monotonic()

    def is_refused_everywhere() -> bool:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: stack.as_track(f"late-{number}", "POST", "/allocate"), range(8)))
        for number in range(8):
            for sandbox in stack.as_track(f"late-{number}", "GET", "/sandboxes").json()["sandboxes"]:
                mark(stack, f"late-{number}", sandbox)
        return {answer.status_code for answer in answers} == {503}

    assert wait_until(is_refused_everywhere, 5), time.monotonic() - asked_at
    refused = stack.as_track("late", "POST", "/allocate")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "PAUSED")
    assert "Retry-After" in refused.headers
    assert allocate(stack, "early-bird") == held, "a replay still answers"
    mark(stack, "early-bird", held)
    assert stack.run_job("cleanup")["state"] == "skipped"
    assert record_of(stack, held["sandbox_id"])["status"] == "pending_deletion"
    assert stack.as_admin("GET", "/pause").json()["allocate"] is True


def test_a_job_can_be_waited_for(stack: Stack) -> None:
    waited = stack.as_admin("POST", "/sync", headers={"Prefer": "wait=30"})
    assert waited.status_code == 200
    assert waited.json()["state"] == "succeeded"
    assert waited.json()["result"]["synced"] == 30
    looked_up = stack.as_admin("GET", f"/jobs/{waited.json()['job_id']}")
    assert looked_up.json() == waited.json()


def test_an_unknown_job_is_not_found(stack: Stack) -> None:
    answer = stack.as_admin("GET", "/jobs/nope")
    assert answer.status_code == 404


def test_a_run_that_starts_while_the_same_job_runs_is_skipped(stack: Stack) -> None:
    switch(stack, list_seconds=3)
    first = stack.as_admin("POST", "/sync").json()["job_id"]
    assert wait_until(lambda: stack.as_admin("GET", f"/jobs/{first}").json()["state"] == "running", 10)
    second = stack.run_job("sync")
    assert second["state"] == "skipped"
    assert wait_until(lambda: stack.as_admin("GET", f"/jobs/{first}").json()["state"] == "succeeded", 20)


def test_a_worker_that_is_told_to_stop_finishes_the_delete_under_way(stack: Stack) -> None:
    switch(stack, delete_seconds=2)
    (sandbox,) = given_back(stack, "last-one")
    before = deletes_of(stack, sandbox["external_id"])
    stack.as_admin("POST", "/cleanup")
    assert wait_until(lambda: deletes_of(stack, sandbox["external_id"]) > before, 10)
    stack.kill("worker-deletions", signal.SIGTERM)
    assert wait_until(lambda: not stack.is_running("worker-deletions"), 30)
    assert stack.exit_code("worker-deletions") == 0
    assert record_of(stack, sandbox["sandbox_id"])["status"] == "available"
    stack.start("worker-deletions")


def test_a_pool_of_three_thousand_is_synced_given_out_and_listed(tmp_path: Path) -> None:
    with Stack(tmp_path, {"POOL": "3000"}) as stack:
        job_id = stack.as_admin("POST", "/sync").json()["job_id"]

        def state() -> str:
            return str(stack.as_admin("GET", f"/jobs/{job_id}").json()["state"])

        assert wait_until(lambda: state() not in {"queued", "running"}, 110)
        assert state() == "succeeded"
        assert stack.stats()["available"] == 3000
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda number: stack.as_track(f"track-{number}", "POST", "/allocate"), range(40)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["sandbox_id"] for answer in answers}) == 40
        first = stack.as_admin("GET", "/sandboxes?status=available&limit=100").json()
        second = stack.as_admin("GET", f"/sandboxes?status=available&limit=100&cursor={first['cursor']}").json()
        ids = {sandbox["sandbox_id"] for sandbox in first["sandboxes"] + second["sandboxes"]}
        assert len(ids) == 200
