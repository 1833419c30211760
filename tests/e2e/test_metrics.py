"""What operators see of the API: its counts over all its processes, the pool's gauges, and its health."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {"API_WORKERS": "3"}
POOL_GAUGES = {
    *("broker_pool_available", "broker_pool_allocated", "broker_pool_pending_deletion", "broker_pool_stale"),
    *("broker_pool_deletion_failed", "broker_pool_total", "broker_oldest_pending_deletion_seconds"),
}
OF_TRACKS = {
    *("broker_allocate_total", "broker_allocate_conflicts_total", "broker_allocate_idempotent_hits_total"),
    *("broker_allocation_latency_seconds_bucket", "broker_deletion_marked_total"),
    *("broker_request_latency_seconds_bucket", "http_requests_total"),
}
OF_JOBS = {
    *("broker_sync_total", "broker_sync_sandboxes_synced_total", "broker_sync_sandboxes_stale_total"),
    *("broker_cleanup_total", "broker_cleanup_deleted_total", "broker_cleanup_failed_total"),
    *("broker_expiry_total", "broker_job_duration_seconds_bucket", "broker_job_last_success_timestamp_seconds"),
    "broker_csp_request_seconds_bucket",
}
OF_BOTH = {"broker_expiry_marked_total", "broker_dynamodb_request_seconds_bucket"}
FOLLOW_SEC = 20
"""How long a condition is polled: gauges follow within seconds, on a machine that is busy with nothing else."""


def scrape(stack: Stack) -> str:
    """Return the API's metrics, each time over a new connection, so from any of its processes."""
    answer = requests.get(f"{stack.api_url}/metrics", timeout=30)
    assert answer.status_code == 200
    return answer.text


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(text: str) -> set[str]:
    return {name for name, _ in samples(text)}


def value(stack: Stack, name: str, **labels: str) -> float | None:
    return samples(scrape(stack)).get((name, frozenset(labels.items())))


def worker_metrics(stack: Stack) -> str:
    return stack.metrics_of("worker-jobs")


def pool(stack: Stack) -> dict[str, float | None]:
    shown = samples(scrape(stack))
    return {
        status: shown.get((f"broker_pool_{status}", frozenset()))
        for status in ("available", "allocated", "pending_deletion", "total")
    }


def shows(stack: Stack, expected: dict[str, float]) -> bool:
    """Tell whether every process of the API soon shows these gauges: nine scrapes in a row meet each of the three."""
    return wait_until(lambda: all(pool(stack).items() >= expected.items() for _ in range(9)), FOLLOW_SEC)


def children(pid: int) -> set[int]:
    return {int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def ready(stack: Stack) -> tuple[int, dict[str, Any]]:
    answer = requests.get(f"{stack.api_url}/readyz", timeout=30)
    return answer.status_code, answer.json()


@contextmanager
def hanging(stack: Stack, name: str) -> Iterator[None]:
    stack.kill(name, signal.SIGSTOP)
    try:
        yield
    finally:
        stack.kill(name, signal.SIGCONT)


def test_seed_test_1_the_metrics_endpoint(tmp_path: Path) -> None:
    with Stack(tmp_path, {"POOL": "6"}) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        for track in ("one", "two"):
            assert stack.as_track(track, "POST", "/allocate").status_code == 201
        expected = [
            "# HELP broker_allocate_total Total number of sandbox allocation requests",
            "# TYPE broker_allocate_total counter",
            'broker_allocate_total{outcome="success"} 2.0',
            "# HELP broker_pool_available Number of sandboxes currently available",
            "# TYPE broker_pool_available gauge",
            "broker_pool_available 4.0",
            "# HELP broker_pool_allocated Number of sandboxes currently allocated",
            "# TYPE broker_pool_allocated gauge",
            "broker_pool_allocated 2.0",
            "# HELP broker_allocation_latency_seconds Sandbox allocation latency in seconds",
            "# TYPE broker_allocation_latency_seconds histogram",
        ]
        lines = scrape(stack).splitlines()
        assert [line for line in expected if line not in lines] == []
        # The client library sorts labels, so that here le comes first.
        counts = {
            sample["le"]: count
            for (name, labels), count in samples("\n".join(lines) + "\n").items()
            if name == "broker_allocation_latency_seconds_bucket" and (sample := dict(labels))["outcome"] == "success"
        }
        assert list(counts) == ["0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.25", "0.5", "0.75", "1.0", "+Inf"]
        assert list(counts.values()) == sorted(counts.values())
        assert counts["+Inf"] == 2


def test_the_pools_gauges_follow_tracks_and_jobs(stack: Stack) -> None:
    assert wait_until(lambda: pool(stack)["total"] is not None, FOLLOW_SEC)
    before = {status: number or 0 for status, number in pool(stack).items()}
    held = [stack.as_track(track, "POST", "/allocate").json()["sandbox_id"] for track in ("gauge-1", "gauge-2")]
    after = {"available": before["available"] - 2, "allocated": before["allocated"] + 2, "total": before["total"]}
    assert shows(stack, after), (before, pool(stack))
    for track, sandbox_id in zip(("gauge-1", "gauge-2"), held, strict=True):
        assert stack.as_track(track, "POST", f"/sandboxes/{sandbox_id}/mark-for-deletion").status_code == 200
    assert shows(stack, {"pending_deletion": before["pending_deletion"] + 2}), (before, pool(stack))
    assert stack.run_job("cleanup")["state"] == "succeeded"
    assert shows(stack, before), (before, pool(stack))


def test_the_counts_of_all_processes_add_up_also_of_those_that_were_killed(stack: Stack) -> None:
    labels = {"method": "GET", "endpoint": "/v1/sandboxes", "status": "200"}
    requests_made = 30

    def counted() -> float:
        return value(stack, "http_requests_total", **labels) or 0

    def call() -> None:
        headers = {"Authorization": "Bearer the-track-token", "X-Track-ID": "counted"}
        for _ in range(requests_made):  # each over a connection of its own
            assert requests.get(f"{stack.api_url}/v1/sandboxes", headers=headers, timeout=30).status_code == 200

    master = stack.pid("api")
    start, first = counted(), children(master)
    assert len(first) == 3
    call()
    assert counted() == start + requests_made
    one = min(first)
    os.kill(one, signal.SIGKILL)
    assert wait_until(lambda: one not in children(master) and len(children(master)) == 3, 30)
    assert counted() == start + requests_made
    for each in first - {one}:
        os.kill(each, signal.SIGKILL)
    assert wait_until(lambda: not first & children(master) and len(children(master)) == 3, 30)
    call()
    assert counted() == start + 2 * requests_made
    assert (value(stack, "broker_request_latency_seconds_count", method="GET", endpoint="/v1/sandboxes") or 0) >= (
        start + 2 * requests_made
    )
    assert not any(name == "pid" for _, sample in samples(scrape(stack)) for name, _ in sample)


def test_what_jobs_count_is_on_the_worker_and_what_tracks_count_on_the_api(stack: Stack) -> None:
    assert stack.run_job("sync")["state"] == "succeeded"
    on_api, on_worker = names(scrape(stack)), names(worker_metrics(stack))
    assert on_api >= OF_TRACKS | OF_BOTH
    assert on_worker >= OF_JOBS | OF_BOTH
    assert not on_api & OF_JOBS
    assert not on_worker & OF_TRACKS
    assert wait_until(lambda: names(scrape(stack)) >= POOL_GAUGES, FOLLOW_SEC)


def test_a_scrape_may_ask_for_some_series_only(stack: Stack) -> None:
    for name in ("broker_allocate_total", "http_requests_total"):
        answer = requests.get(f"{stack.api_url}/metrics", params={"name[]": name}, timeout=30)
        assert answer.status_code == 200
        assert names(answer.text) == {name}
    answer = requests.get(f"{stack.api_url}/metrics?name[]=", timeout=30)
    assert answer.status_code == 200
    assert names(answer.text) >= OF_TRACKS


def test_a_scrape_answers_while_the_store_hangs(stack: Stack) -> None:
    assert wait_until(lambda: names(scrape(stack)) >= POOL_GAUGES, FOLLOW_SEC)
    with hanging(stack, "dynamodb"):
        assert names(scrape(stack)) >= OF_TRACKS
        assert wait_until(lambda: not names(scrape(stack)) & POOL_GAUGES, FOLLOW_SEC), "nobody knows them now"
    assert wait_until(lambda: names(scrape(stack)) >= POOL_GAUGES, FOLLOW_SEC)


def test_the_api_is_not_ready_while_its_store_hangs_and_is_alive(stack: Stack) -> None:
    with hanging(stack, "dynamodb"):
        status, body = ready(stack)
        assert (status, body["status"]) == (503, "not_ready")
        assert body["checks"]["dynamodb"].startswith("error: ")
        assert requests.get(f"{stack.api_url}/healthz", timeout=30).status_code == 200
    assert wait_until(lambda: ready(stack)[0] == 200, FOLLOW_SEC)


def test_the_api_is_not_ready_while_its_table_is_missing(stack: Stack) -> None:
    stack.dynamodb().delete_table(TableName=stack.plan.settings.ddb_table_name)
    status, body = ready(stack)
    assert (status, body["status"]) == (503, "not_ready")
    assert body["checks"]["dynamodb"].startswith("error: ")
    stack.create_table()
    stack.accept_table()
    assert wait_until(lambda: ready(stack)[0] == 200, FOLLOW_SEC)
    assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", FOLLOW_SEC)


def test_the_gauges_are_absent_and_readiness_red_while_the_store_is_away(stack: Stack) -> None:
    stack.kill("dynamodb")
    assert ready(stack)[0] == 503
    assert wait_until(lambda: not names(scrape(stack)) & POOL_GAUGES, FOLLOW_SEC)
    assert names(scrape(stack)) >= OF_TRACKS
    stack.start("dynamodb")
    stack.create_table()
    stack.accept_table()
    assert wait_until(lambda: ready(stack)[0] == 200, FOLLOW_SEC)
    assert wait_until(lambda: stack.run_job("sync")["state"] == "succeeded", FOLLOW_SEC)
    assert shows(stack, {"available": 20, "allocated": 0, "total": 20})
