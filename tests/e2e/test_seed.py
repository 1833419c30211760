"""The tests of the original description (2 to 5), with process commands for its container commands."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import wait_until
from tests.e2e.stack import MAKE_RUN_WORKERS

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

SETTINGS = {"SYNC_INTERVAL_SEC": "2", "CLEANUP_INTERVAL_SEC": "2", "AUTO_EXPIRY_INTERVAL_SEC": "2"}
FIVE_HOURS = 5 * 3600


def jobs_logged(stack: Stack, prefix: str) -> list[dict[str, Any]]:
    return [
        record
        for record in stack.records(*MAKE_RUN_WORKERS)
        if re.fullmatch(rf"{prefix}-\d+", str(record.get("request_id"))) and "outcome" in record
    ]


def metric(stack: Stack, name: str) -> float:
    text = requests.get(f"http://127.0.0.1:{stack.plan.env['METRICS_PORT']}/metrics", timeout=10).text
    values = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(values[0]) if values else 0.0


def test_seed_test_2_health_checks_answer(stack: Stack) -> None:
    alive = requests.get(f"{stack.api_url}/healthz", timeout=10)
    assert (alive.status_code, alive.json().keys()) == (200, {"status", "timestamp"})
    assert alive.json()["status"] == "healthy"
    ready = requests.get(f"{stack.api_url}/readyz", timeout=10)
    assert ready.status_code == 200
    assert ready.json()["status"] == "ready"
    assert ready.json()["checks"]["dynamodb"] == "ok"
    assert isinstance(ready.json()["timestamp"], int)


@pytest.mark.parametrize(
    ("prefix", "action"),
    [
        ("job-sync", "background_sync"),
        ("job-cleanup", "background_cleanup"),
        ("job-expiry", "auto_expiry"),
    ],
)
def test_seed_test_3_background_jobs_run_on_schedule(stack: Stack, prefix: str, action: str) -> None:
    assert wait_until(lambda: len(jobs_logged(stack, prefix)) >= 2, 30), [
        stack.output(name) for name in MAKE_RUN_WORKERS
    ]
    last = jobs_logged(stack, prefix)[-1]
    assert (last["action"], last["outcome"]) == (action, "success")
    assert last["latency_ms"] >= 0
    assert last["message"]


def test_seed_test_5_a_forgotten_sandbox_is_expired(stack: Stack) -> None:
    before = metric(stack, "broker_expiry_marked_total")
    given = stack.as_track("test-track", "POST", "/allocate").json()
    assert stack.as_admin("GET", f"/sandboxes/{given['sandbox_id']}").json()["status"] == "allocated"
    earlier = {
        ":allocated": {"N": str(given["allocated_at"] - FIVE_HOURS)},
        ":expires": {"N": str(given["expires_at"] - FIVE_HOURS)},
    }
    table, name = stack.dynamodb(), stack.plan.settings.ddb_table_name
    table.update_item(
        TableName=name,
        Key={"PK": {"S": f"SBX#{given['sandbox_id']}"}, "SK": {"S": "META"}},
        UpdateExpression="SET allocated_at = :allocated, expires_at = :expires, status_order = :expires",
        ExpressionAttributeValues=earlier,
    )
    table.update_item(
        TableName=name,
        Key={"PK": {"S": "TRACK#test-track"}, "SK": {"S": "CLAIM#test-track"}},
        UpdateExpression="SET allocated_at = :allocated, expires_at = :expires",
        ExpressionAttributeValues=earlier,
    )

    def record() -> dict[str, Any]:
        found: dict[str, Any] = stack.as_admin("GET", f"/sandboxes/{given['sandbox_id']}").json()
        return found

    assert wait_until(lambda: record()["status"] != "allocated", 30), record()
    assert record()["deletion_reason"] == "expired"
    assert record()["last_lease_id"] == given["lease_id"]
    assert wait_until(lambda: metric(stack, "broker_expiry_marked_total") == before + 1, 10)
    assert wait_until(
        lambda: any(
            job["message"] == "Marked 1 sandboxes for auto-expiry" and job["outcome"] == "success"
            for job in jobs_logged(stack, "job-expiry")
        ),
        10,
    )
    again = stack.as_track("test-track", "POST", "/allocate")
    assert again.status_code == 201
    assert again.json()["lease_id"] != given["lease_id"]


def test_seed_test_4_a_stopping_worker_says_so_and_ends_cleanly(stack: Stack) -> None:
    stack.kill("worker-jobs", signal.SIGTERM)
    assert wait_until(lambda: not stack.is_running("worker-jobs"), 30)
    assert stack.exit_code("worker-jobs") == 0
    said = [str(record.get("message")) for record in stack.records("worker-jobs")]
    lines = [line for line in said if line.startswith("[Scheduler]")]
    assert lines == [
        "[Scheduler] Received shutdown signal, stopping jobs...",
        "[Scheduler] Sync job stopped",
        "[Scheduler] Cleanup job stopped",
        "[Scheduler] Auto-expiry job stopped",
        "[Scheduler] Reserve job stopped",
        "[Scheduler] Deliver job stopped",
        "[Scheduler] Watch job stopped",
    ]
    stack.start("worker-jobs")
