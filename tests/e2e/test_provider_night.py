"""What the real provider has been seen to do for a night, with every time of it divided by sixty.

Deletes of 5 to 10 s, sixteen minutes of 500s with HTML bodies, an hour of 401s, a redirect to a login page. Each test
leaves the pool full.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from deploy.dev.processes import wait_until

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

NIGHT = 56
POOL = NIGHT + 10
WORKERS = ("worker-1", "worker-2", "worker-3")
THREADS = 5
CONCURRENCY = 10
MINUTE = 1.0
SETTINGS = {
    "POOL": str(POOL),
    "CSP_MAX_CONCURRENCY": str(CONCURRENCY),
    "MOCK_CSP_DELETE_SECONDS": str(7.5 / 60 * MINUTE),
    # The defaults of production, each divided by sixty.
    "CLEANUP_INTERVAL_SEC": "5",
    "SYNC_INTERVAL_SEC": "10",
    "DELETION_BACKOFF_BASE_SEC": "1",
    "DELETION_BACKOFF_MAX_SEC": "60",
    "CIRCUIT_BREAKER_TIMEOUT_SEC": "1",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
}


def records(stack: Stack) -> list[dict[str, Any]]:
    found, cursor = [], None
    while True:
        page = stack.as_admin("GET", "/sandboxes", params={"limit": 100, "cursor": cursor}).json()
        found += page["sandboxes"]
        cursor = page["cursor"]
        if cursor is None:
            return found


def give_back(stack: Stack, count: int) -> None:
    """Let a class end: so many tracks take a sandbox and give it back."""

    def live(number: int) -> None:
        held = stack.as_track(f"night-{number}", "POST", "/allocate").json()
        mark = f"/sandboxes/{held['sandbox_id']}/mark-for-deletion"
        assert stack.as_track(f"night-{number}", "POST", mark).status_code == 200

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(live, range(count)))


def circuit_states(stack: Stack) -> set[float]:
    """Return what the workers' metric says of the breaker."""
    text = "".join(stack.metrics_of(name) for name in WORKERS)
    return {float(value) for value in re.findall(r"^broker_circuit_state\{[^}]*\} (\S+)$", text, re.MULTILINE)}


@pytest.mark.timeout(300)
def test_after_sixteen_minutes_of_500s_all_are_wiped_and_none_needs_a_person(stack: Stack) -> None:
    stack.switch(fail_deletes_for_seconds=16 * MINUTE, fail_status=500, html_errors=True)
    stack.forget_deletes()
    give_back(stack, NIGHT)
    served: list[int] = []

    def is_over() -> bool:
        served.append(stack.as_track(f"late-{len(served) % 5}", "POST", "/allocate").status_code)
        counts = stack.stats()
        assert counts["deletion_failed"] == 0, records(stack)
        return counts["pending_deletion"] == 0

    assert wait_until(is_over, 100), stack.stats()
    postponed = [record for name in WORKERS for record in stack.records(name) if record.get("outcome") == "postponed"]
    assert any("circuit breaker is open" in record["error"] for record in postponed), "the breaker has never opened"
    assert set(served) <= {200, 201}, served
    stack.switch(html_errors=False)
    log = stack.delete_log()
    assert log["highest_in_flight"] <= CONCURRENCY
    wiped = [each for each in log["deletes"] if each["applied"]]
    assert len(wiped) == len({each["external_id"] for each in wiped}) == NIGHT
    failures = [each for each in log["deletes"] if each["answer"] == 500]
    assert failures
    for number in range(5):  # what was served meanwhile goes back
        held = stack.as_track(f"late-{number}", "POST", "/allocate").json()
        stack.as_track(f"late-{number}", "POST", f"/sandboxes/{held['sandbox_id']}/mark-for-deletion")
    assert wait_until(lambda: stack.stats()["available"] == POOL, 60), stack.stats()


@pytest.mark.timeout(300)
def test_a_locked_door_loses_nothing_and_all_goes_on_when_it_is_open(stack: Stack) -> None:
    before = {each["sandbox_id"] for each in records(stack)}
    stack.forget_deletes()
    stack.switch(unauthorized=True)
    give_back(stack, 8)
    await_failed_runs(stack, naming="401")
    stack.switch(unauthorized=False, redirect=True)
    await_failed_runs(stack, naming="302")
    assert not any(each["applied"] for each in stack.delete_log()["deletes"])
    waiting = records(stack)
    assert {each["sandbox_id"] for each in waiting} == before
    assert {each["status"] for each in waiting} == {"available", "pending_deletion"}
    assert {each["deletion_retry_count"] for each in waiting if each["status"] == "pending_deletion"} == {0}
    # BrokerCircuitOpen is the alert on this (deploy/prometheus, whose own tests show it firing).
    assert wait_until(lambda: max(circuit_states(stack)) >= 1, 20)

    stack.switch(redirect=False)
    assert wait_until(lambda: stack.stats()["pending_deletion"] == 0, 60), stack.stats()
    assert wait_until(lambda: stack.stats()["available"] == POOL, 60), stack.stats()
    assert wait_until(lambda: circuit_states(stack) == {0.0}, 20)
    assert len({each["external_id"] for each in stack.delete_log()["deletes"] if each["applied"]}) == 8


def await_failed_runs(stack: Stack, *, naming: str) -> None:
    """Wait until three runs have failed for a reason."""
    assert wait_until(lambda: sum(naming in error for error in failed_runs(stack)) >= 3, 60), failed_runs(stack)


def failed_runs(stack: Stack) -> list[str]:
    """Return the errors of the runs of sync and cleanup that have failed, the oldest first."""
    jobs = {"background_sync", "background_cleanup"}
    lines = [record for name in WORKERS for record in stack.records(name) if record.get("action") in jobs]
    failed = [record for record in lines if record.get("outcome") == "error"]
    return [str(record.get("error")) for record in sorted(failed, key=lambda record: str(record["timestamp"]))]
