"""A hundred wipes at once in one process: while the provider hangs, while the worker stops, and after it was killed."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import wait_until
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.long.bench.load import Generator

if TYPE_CHECKING:
    from pathlib import Path

WORKER = "worker-deletions"
AT_ONCE = 100
NOBODY = AT_ONCE + 1
"""So many calls there cannot be: nothing ends while the provider waits for them."""
SETTINGS = {
    "POOL": str(AT_ONCE),
    "CSP_MAX_CONCURRENCY": str(AT_ONCE),
    "CIRCUIT_BREAKER_THRESHOLD": "10000",
    "DELETION_BACKOFF_BASE_SEC": "0",
    "MOCK_CSP_HOLD_DELETES_UNTIL": str(NOBODY),
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "REQUEST_DEADLINE_SEC": "10",
    "API_WORKERS": "1",
    "SYNC_INTERVAL_SEC": "86400",
    "CLEANUP_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
}
PATIENCE_SEC = 60


def begin(stack: Stack) -> str:
    """Have all sandboxes given back, and a cleanup wipe them; returns its run once all are at the provider at once."""
    assert stack.run_job("sync")["state"] == "succeeded"
    port = stack.plan.number("API_PORT")
    with Generator() as generator:
        held = generator.allocate(port, TRACK_TOKEN, AT_ONCE, clients=4)
        generator.give_back(port, TRACK_TOKEN, held, clients=4)
    job_id: str = stack.as_admin("POST", "/cleanup").json()["job_id"]
    assert wait_until(lambda: stack.delete_log()["in_flight"] == AT_ONCE, PATIENCE_SEC), stack.delete_log()["in_flight"]
    return job_id


def result_of(stack: Stack, job_id: str) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        found: dict[str, Any] = stack.as_admin("GET", f"/jobs/{job_id}").json()
        return found

    assert wait_until(lambda: run()["state"] != "running", PATIENCE_SEC), run()
    result: dict[str, Any] = run()["result"]
    return result


def release(stack: Stack) -> None:
    """Have the provider answer the calls that are under way, ten at a time: the embedded engine serves one at a time."""
    for left in range(AT_ONCE - 10, -1, -10):
        stack.switch(hold_deletes_until=left + 1 if left else 0, delete_seconds=0)
        assert wait_until(lambda: stack.delete_log()["in_flight"] <= left, PATIENCE_SEC)  # noqa: B023 - called at once


def times_asked(stack: Stack) -> set[int]:
    """Return how often the provider was asked to wipe an account."""
    return set(Counter(delete["external_id"] for delete in stack.delete_log()["deletes"]).values())


@pytest.mark.timeout(300)
def test_a_provider_that_never_answers_holds_a_hundred_threads_only_until_their_deadline(tmp_path: Path) -> None:
    with Stack(tmp_path, {**SETTINGS, "CSP_TIMEOUT_READ_SEC": "8"}) as stack:
        pid = stack.pid(WORKER)
        assert result_of(stack, begin(stack))["will_retry"] == AT_ONCE
        stack.switch(hold_deletes_until=0, delete_seconds=0)
        assert wait_until(lambda: stack.run_job("cleanup")["result"].get("deleted") == AT_ONCE, PATIENCE_SEC)

        assert (stack.pid(WORKER), stack.is_running(WORKER)) == (pid, True)
        health = requests.get(f"{stack.plan.url('DELETIONS_METRICS_PORT')}/healthz", timeout=10)
        assert health.status_code == 200
        counts = dict(re.findall(r"^(broker_cleanup_\w+_total) (\S+)$", stack.metrics_of(WORKER), re.MULTILINE))
        assert float(counts["broker_cleanup_deleted_total"]) == AT_ONCE
        assert float(counts["broker_cleanup_failed_total"]) == AT_ONCE
        assert "Connection pool is full" not in stack.output(WORKER)


@pytest.mark.timeout(300)
def test_a_worker_that_is_told_to_stop_finishes_a_hundred_wipes(tmp_path: Path) -> None:
    with Stack(tmp_path, {**SETTINGS, "CSP_TIMEOUT_READ_SEC": "60"}) as stack:
        job_id = begin(stack)
        stack.kill(WORKER, signal.SIGTERM)
        said = "[Scheduler] Received shutdown signal, stopping jobs..."
        assert wait_until(lambda: said in stack.output(WORKER), PATIENCE_SEC)
        release(stack)
        assert wait_until(lambda: not stack.is_running(WORKER), PATIENCE_SEC)

        assert stack.exit_code(WORKER) == 0
        result = result_of(stack, job_id)
        assert result["deleted"] == AT_ONCE, (result, stack.output(WORKER))
        assert times_asked(stack) == {1}
        assert stack.stats()["available"] == AT_ONCE


@pytest.mark.timeout(400)
def test_after_a_sigkill_no_wipe_waits_longer_than_two_cleanups(tmp_path: Path) -> None:
    # The stall limit of a cleanup is 50 s here, and the visibility timeout 11 minutes.
    settings = SETTINGS | {"CSP_TIMEOUT_CONNECT_SEC": "1", "CSP_TIMEOUT_READ_SEC": "4", "CLEANUP_INTERVAL_SEC": "50"}
    with Stack(tmp_path, settings, later=("beat",)) as stack:
        begin(stack)
        stack.kill(WORKER)
        killed_at = time.time()
        stack.switch(hold_deletes_until=0, delete_seconds=0)
        stack.start(WORKER, "beat")
        assert wait_until(lambda: stack.stats()["pending_deletion"] == 0, 180), stack.stats()

        runs = stack.as_admin("GET", "/jobs", params={"job": "cleanup"}).json()["runs"]
        after = [run for run in runs if run["started_at"] > killed_at]
        assert 1 <= len(after) <= 2, after
        assert times_asked(stack) == {2}
        # The outcome of the first call is unknown, so only a sync makes them available.
        assert stack.run_job("sync")["state"] == "succeeded"
        assert stack.stats()["available"] == AT_ONCE
