"""`CSP_DELETES_PER_MINUTE` over two worker processes: together they keep the pace, and all is wiped in the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import wait_until
from tests.e2e.stack import TRACK_TOKEN, Stack, with_deletion_workers
from tests.long.bench.load import Generator

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = ("worker-1", "worker-2")
WAITING = 12
PER_MINUTE = 60
SETTINGS = {
    "POOL": str(WAITING),
    "CSP_DELETES_PER_MINUTE": str(PER_MINUTE),
    "MOCK_CSP_DELETE_SECONDS": "0",
    "API_WORKERS": "1",
    "SYNC_INTERVAL_SEC": "86400",
    "CLEANUP_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
}


@pytest.mark.timeout(300)
def test_two_workers_together_delete_no_faster_than_the_pace_and_none_is_left_over(tmp_path: Path) -> None:
    services = with_deletion_workers(WORKERS, threads=WAITING)
    with Stack(tmp_path, SETTINGS, services=services) as stack, Generator() as generator:
        assert stack.run_job("sync")["state"] == "succeeded"
        port = stack.plan.number("API_PORT")
        held = generator.allocate(port, TRACK_TOKEN, WAITING, clients=4)
        generator.give_back(port, TRACK_TOKEN, held, clients=4)
        asked_at = time.time()
        job_id = stack.as_admin("POST", "/cleanup").json()["job_id"]
        run = f"/jobs/{job_id}"
        assert wait_until(lambda: stack.as_admin("GET", run).json()["state"] == "succeeded", 120), stack.stats()
        result = stack.as_admin("GET", run).json()["result"]
        deletes = [each["started_at"] - asked_at for each in stack.delete_log()["deletes"]]
        counts = stack.stats()
        for name in (*WORKERS, "worker-jobs", "api", "beat"):
            stack.kill(name)  # the test's end need not wait for theirs

    assert (result["deleted"], result["failed"], result["postponed"]) == (WAITING, 0, 0)
    assert counts["available"] == WAITING
    # No delete can come before its time, however slow the machine is.
    earliest = [number * 60 / PER_MINUTE for number in range(WAITING)]
    assert [each >= least for each, least in zip(sorted(deletes), earliest, strict=True)] == [True] * WAITING, deletes
