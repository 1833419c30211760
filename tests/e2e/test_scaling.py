"""API and workers are scaled apart: two instances of the API, and one, two, four workers under a flood of deletions.

The provider here ends a call, the oldest one, only while a given number of them is under way. So a broker that has
fewer calls at once than its workers could make stands still, however fast or slow the machine is.
`make bench ARGS="--only scaling"` shows the same as deletions a minute.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from deploy.dev.processes import free_ports, wait_until
from tests.e2e.stack import TRACK_TOKEN, Stack, with_deletion_workers
from tests.long.bench.load import Generator, allocations, new_tracks

if TYPE_CHECKING:
    from pathlib import Path

WAITING = 120
"""Deletions: far more than are made before the last step is over."""
TRACKS = 16
"""That allocate at each step, half of them at each instance of the API."""
THREADS, LIMIT = 1, 3
NOBODY = LIMIT + 1
"""So many calls there cannot be: nothing ends while the provider waits for them."""
WORKERS = ("worker-1", "worker-2", "worker-3", "worker-4")
SETTINGS = {
    "POOL": str(WAITING + 3 * TRACKS),
    "API_WORKERS": "1",
    "MOCK_CSP_DELETE_SECONDS": "0.4",
    "CSP_MAX_CONCURRENCY": str(LIMIT),
    "CSP_TIMEOUT_READ_SEC": "60",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    # Long enough for a busy machine: a 503 must come from the flood.
    "REQUEST_DEADLINE_SEC": "10",
    "SYNC_INTERVAL_SEC": "86400",
    "CLEANUP_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
}


@pytest.mark.timeout(300)
def test_workers_add_calls_up_to_the_provider_s_limit_while_both_apis_serve_every_track(tmp_path: Path) -> None:
    (second_port,) = free_ports(1)
    services = with_deletion_workers(WORKERS, threads=THREADS, further_apis={"api-2": second_port})
    calls_at_once: dict[int, set[int]] = {}
    answers: Counter[int] = Counter()
    with Stack(tmp_path, SETTINGS, services=services, later=WORKERS[1:]) as stack, Generator() as generator:
        api_ports = [stack.plan.number("API_PORT"), second_port]
        assert stack.run_job("sync")["state"] == "succeeded"
        held = generator.allocate(api_ports[0], TRACK_TOKEN, WAITING, clients=4)
        generator.give_back(api_ports[0], TRACK_TOKEN, held, clients=4)
        hold_deletes(stack, NOBODY)
        job_id = stack.as_admin("POST", "/cleanup").json()["job_id"]
        for workers in (1, 2, 4):
            stack.start(*WORKERS[workers // 2 : workers] if workers > 1 else ())
            expected = min(workers * THREADS, LIMIT)
            assert wait_until(lambda: stack.delete_log()["in_flight"] == expected, 60), stack.delete_log()["in_flight"]  # noqa: B023
            hold_deletes(stack, expected)
            for port in api_ports:
                answers += generator.send(port, allocations(TRACK_TOKEN, new_tracks(TRACKS // 2)), clients=2).statuses
            assert wait_until(lambda: len(ended(stack)) > 4 * LIMIT, 60), stack.delete_log()
            hold_deletes(stack, NOBODY)
            calls_at_once[workers] = {delete["held_with"] for delete in ended(stack)}
            assert stack.delete_log()["highest_in_flight"] == expected
        assert stack.stats()["pending_deletion"] > LIMIT, "the flood lasted until here"
        hold_deletes(stack, 0)
        assert wait_until(lambda: stack.as_admin("GET", f"/jobs/{job_id}").json()["state"] == "succeeded", 60)
        run = stack.as_admin("GET", f"/jobs/{job_id}").json()
        for name in (*WORKERS, "worker-jobs", "api", "api-2", "beat"):
            stack.kill(name)  # the test's end need not wait for theirs

    assert calls_at_once == {1: {1}, 2: {2}, 4: {LIMIT}}
    assert answers == {201: 3 * TRACKS}
    assert run["result"]["deleted"] == WAITING


def hold_deletes(stack: Stack, until: int) -> None:
    """Have deletes end only while so many are under way (0: freely); unless nothing is to end, count from here on."""
    if until != NOBODY:
        stack.forget_deletes()
    stack.switch(hold_deletes_until=until)


def ended(stack: Stack) -> list[dict[str, Any]]:
    return [delete for delete in stack.delete_log()["deletes"] if delete["ended_at"] is not None]
