"""Workers and beat are stopped, killed and started, and jobs asked for twice, while deletions are under way.

Each test leaves the pool as it was.
"""

from __future__ import annotations

import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from broker_common.adapters.celery_names import JOBS_QUEUE
from deploy.dev.processes import wait_until

if TYPE_CHECKING:
    from tests.e2e.stack import Stack

POOL = 120
WORKERS = ("worker-1", "worker-2", "worker-3")
THREADS = 3
SETTINGS = {
    "POOL": str(POOL),
    "MOCK_CSP_DELETE_SECONDS": "0.3",
    # A call that was cut off is tried again when no trace of it can be left; here that is soon.
    "CSP_TIMEOUT_CONNECT_SEC": "0.5",
    "CSP_TIMEOUT_READ_SEC": "2",
    "CLEANUP_INTERVAL_SEC": "2",
    "SYNC_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "REQUEST_DEADLINE_SEC": "10",
}


def give_back(stack: Stack, count: int) -> None:
    """Have tracks allocate sandboxes, and then all mark them; from here on the provider's log counts."""
    stack.forget_deletes()

    def allocate(number: int) -> tuple[str, str]:
        track_id = f"track-{number}"
        given = stack.as_track(track_id, "POST", "/allocate")
        assert given.status_code == 201, given.text
        return track_id, given.json()["sandbox_id"]

    def mark(held: tuple[str, str]) -> None:
        track_id, sandbox_id = held
        marked = stack.as_track(track_id, "POST", f"/sandboxes/{sandbox_id}/mark-for-deletion")
        assert marked.status_code == 200, marked.text

    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(allocate, range(count)))
        list(pool.map(mark, held))


def deletes(stack: Stack) -> Counter[str]:
    """Return how often the provider was asked to delete each account."""
    return Counter(delete["external_id"] for delete in stack.delete_log()["deletes"])


def stop(stack: Stack, name: str) -> None:
    """Tell a process to stop, and see it end well."""
    stack.kill(name, signal.SIGTERM)
    assert wait_until(lambda: not stack.is_running(name), 60), f"{name} does not end"
    assert stack.exit_code(name) == 0


def job_state(stack: Stack, job_id: str) -> str:
    state: str = stack.as_admin("GET", f"/jobs/{job_id}").json()["state"]
    return state


@pytest.mark.timeout(400)
def test_nothing_is_lost_while_workers_and_beat_come_and_go(stack: Stack) -> None:
    stop(stack, "beat")  # until all have given back: one run must have them all
    give_back(stack, POOL)
    job_id = stack.as_admin("POST", "/cleanup").json()["job_id"]
    assert wait_until(lambda: deletes(stack).total() >= 20, 60)
    stack.kill("worker-1")
    assert stack.stats()["pending_deletion"] > POOL / 2, "it happened in the middle"
    stack.start("beat")
    stop(stack, "worker-2")
    stack.start("worker-1")
    stop(stack, "worker-3")
    stack.start("worker-2")
    stop(stack, "beat")
    stack.start("beat")
    stack.start("worker-3")
    assert wait_until(lambda: stack.stats()["pending_deletion"] == 0, 120), stack.stats()

    asked = deletes(stack)
    assert len(asked) == POOL
    assert max(asked.values()) <= 2
    again = [account for account, times in asked.items() if times > 1]
    assert len(again) <= THREADS, "only what was under way in the worker that was killed is asked for again"
    # A worker that is killed between its outcome and its report leaves nothing to wipe. Its run ends as stalled.
    assert wait_until(lambda: job_state(stack, job_id) in {"succeeded", "failed"}, 120), job_state(stack, job_id)
    # What was under way there, whether it had gone out or not, waits for a sync that sees it.
    assert stack.stats()["stale"] <= THREADS
    stack.run_job("sync")
    assert stack.stats()["available"] == POOL


def test_a_schedule_that_fires_twice_does_its_work_once(stack: Stack) -> None:
    stop(stack, "beat")  # what it would send is sent here, twice
    give_back(stack, 30)
    with Celery(broker=stack.plan.env["REDIS_URL"], set_as_current=False) as beats:
        sent = [beats.send_task("broker.cleanup", queue=JOBS_QUEUE, ignore_result=True).id for _ in range(2)]

    def runs() -> list[dict[str, Any]]:
        return [stack.as_admin("GET", f"/jobs/{job_id}").json() for job_id in sent]

    assert wait_until(lambda: all(run.get("state") in {"succeeded", "skipped"} for run in runs()), 60), runs()
    assert sorted((run.get("result") or {}).get("deleted", 0) for run in runs()) == [0, 30], runs()
    assert list(deletes(stack).values()) == [1] * 30
    assert stack.stats()["available"] == POOL
    stack.start("beat")
