"""A real Prometheus beside a running broker: every query of the description, of our rules and of the dashboard.

What was driven is counted here, and the queries must give just that.
"""

from __future__ import annotations

import math
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests
import yaml

from broker_common.adapters.dynamo_items import status_key
from broker_common.core.sandbox import Status
from deploy.dev.processes import Program, free_ports, wait_until
from tests.backends import running
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.observability.deployed import PROMETHEUS, panels, rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POOL = 20
REPLAYS, REFUSED = 4, 3
WAITED = 1
"""Tracks that waited in line and were served."""
MARKED = 6
WIPED = MARKED - 1
LEFT = WIPED - WAITED
SERVED_FIRST = POOL + WAITED
REQUESTS = SERVED_FIRST + REPLAYS + REFUSED
"""Without those that were told to wait, which no share counts."""
WINDOW_SEC = 300
SETTINGS = {
    "POOL": str(POOL),
    "API_WORKERS": "2",
    "MOCK_CSP_DELETE_SECONDS": "0.05",
    "AUTO_EXPIRY_INTERVAL_SEC": "3",  # so that beat sends something
}
SERVED = "broker:allocate_served_per_request:ratio_rate5m"
WINDOWS = ("5m", "30m", "1h", "6h", "3d")
SUCCESS = "broker:allocate_success_per_request:ratio_rate5m"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A broker after its traffic, with a Prometheus that has seen all of it."""

    stack: Stack
    address: str
    conflicts: int
    stats: dict[str, int]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values that a query gives now."""
        return query(self.address, expression)

    def value(self, expression: str) -> float:
        """Return the value of a query that gives one."""
        ((_, value),) = self.query(expression)
        return value


def get(address: str, path: str, **parameters: str) -> Any:
    answer = requests.get(f"http://{address}/api/v1/{path}", params=parameters, timeout=10).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def query(address: str, expression: str) -> list[tuple[dict[str, str], float]]:
    result = get(address, "query", query=expression)["result"]
    return [(found["metric"], float(found["value"][1])) for found in result]


def metrics_urls(stack: Stack) -> dict[str, str]:
    return {
        "broker-api": f"{stack.api_url}/metrics",
        "broker-console": f"{stack.console_url}/metrics",
        "broker-worker": f"{stack.plan.url('METRICS_PORT')}/metrics",
        "broker-beat": f"{stack.plan.url('BEAT_METRICS_PORT')}/metrics",
        "broker-flower": f"{stack.plan.flower_url}/metrics",
    }


def prometheus_program(binary: str, stack: Stack, scratch: Path) -> Program:
    """Return Prometheus with the configuration of `deploy/`, except its addresses and intervals."""
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(PROMETHEUS / name) for name in configuration["rule_files"]]
    for job in configuration["scrape_configs"]:
        urls = [metrics_urls(stack)[job["job_name"]]]
        if job["job_name"] == "broker-worker":
            urls += [stack.plan.url(port) for port in ("DELETIONS_METRICS_PORT", "WEBHOOKS_METRICS_PORT")]
        for target, url in zip(job["static_configs"], urls, strict=True):
            target["targets"] = [url.split("/")[2]]
    written = scratch / "prometheus.yml"
    written.write_text(yaml.safe_dump(configuration))
    port = free_ports(1)[0]
    return Program(
        name="prometheus",
        command=(
            binary,
            f"--config.file={written}",
            f"--storage.tsdb.path={scratch / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ),
        env={},
        ready_url=f"http://127.0.0.1:{port}/-/ready",
    )


def shows(address: str, expression: str, expected: float) -> bool:
    """Tell whether a query gives just this value."""
    return [value for _, value in query(address, expression)] == [expected]


def see(address: str, expression: str, expected: float) -> None:
    """Wait until a query gives a value."""
    assert wait_until(lambda: shows(address, expression, expected), 20), (
        expression,
        query(address, expression),
        expected,
    )


def allocate(stack: Stack, track: str, **more: str) -> requests.Response:
    """Allocate on a connection of its own, which any of the API's processes may take; `more` are headers."""
    headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track, "Connection": "close", **more}
    return requests.post(f"{stack.api_url}/v1/allocate", headers=headers, timeout=30)


def table_of(stack: Stack) -> Any:
    """Return the broker's table, to write past the broker."""
    dynamodb = boto3.resource(
        "dynamodb",
        region_name="us-east-1",
        endpoint_url=stack.plan.env["DDB_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    return dynamodb.Table(stack.plan.settings.ddb_table_name)


def let_expire(stack: Stack, held: dict[str, Any], track: str) -> None:
    """Write into the table that an allocation was made five hours ago, and wait for the job."""
    times = "SET allocated_at = :at, expires_at = :until"
    for key, change in (
        ({"PK": f"SBX#{held['sandbox_id']}", "SK": "META"}, f"{times}, status_order = :until"),
        ({"PK": f"TRACK#{track}", "SK": f"CLAIM#{track}"}, times),
    ):
        table_of(stack).update_item(
            Key=key,
            UpdateExpression=change,
            ExpressionAttributeValues={":at": held["allocated_at"] - 5 * 3600, ":until": held["expires_at"] - 5 * 3600},
        )
    path = f"/sandboxes/{held['sandbox_id']}"
    assert wait_until(lambda: stack.as_admin("GET", path).json()["status"] == "pending_deletion", 20)


@contextmanager
def ghost(stack: Stack) -> Iterator[None]:
    """Let the index offer a sandbox that is gone, as it does for a moment after each allocation."""
    key = {"PK": "SBX#ghost", "SK": "NOT-A-RECORD"}
    free = {"status_key": status_key(Status.AVAILABLE, 0), "status_order": 0, "version": 1}
    table_of(stack).put_item(Item={**key, **free, "name": "ghost", "external_id": "ghost"})
    yield
    table_of(stack).delete_item(Key=key)


def drive(stack: Stack, address: str) -> None:
    """Do a bit of everything, after Prometheus has seen the full pool, and every counter at its start."""
    for job in metrics_urls(stack):
        see(address, f'min(up{{job="{job}"}})', 1)
    see(address, "sum(broker_allocate_conflicts)", 0)
    see(address, "sum(broker_sync_total)", 1)
    see(address, "broker:pool_available:max", POOL)

    tracks = [f"track-{number}" for number in range(POOL)]
    with ghost(stack):
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda track: allocate(stack, track), tracks))
        assert [answer.status_code for answer in answers] == [201] * POOL, [answer.text for answer in answers]
        assert [allocate(stack, track).status_code for track in tracks[:REPLAYS]] == [200] * REPLAYS
        assert [allocate(stack, f"late-{number}").status_code for number in range(REFUSED)] == [409] * REFUSED
    held = [answer.json() for answer in answers]

    waits = partial(allocate, stack, "waits", Prefer="wait=1")
    assert waits().status_code == 202
    # The line is counted every 15 s, and its age is that of a track which is not late.
    assert wait_until(
        lambda: waits().status_code == 202 and shows(address, "broker_line_oldest_seconds > bool 0", 1), 60
    )
    assert shows(address, "broker_line_length", 1)

    for track, one in list(zip(tracks, held, strict=True))[:MARKED]:
        assert stack.as_track(track, "POST", f"/sandboxes/{one['sandbox_id']}/mark-for-deletion").status_code == 200
    path = f"/sandboxes/{held[0]['sandbox_id']}/mark-for-deletion"
    assert stack.as_track(tracks[0], "POST", path).status_code == 200
    assert stack.as_track("a-stranger", "POST", path).status_code == 403
    stack.switch(fail_next_deletes=1)
    stack.run_job("cleanup")
    assert wait_until(lambda: waits().status_code == 201, 20)
    let_expire(stack, held[-1], tracks[-1])

    stack.switch(empty_list=True)
    assert stack.run_job("sync")["state"] == "failed"
    stack.switch(empty_list=False)
    assert stack.run_job("sync")["state"] == "succeeded"
    stack.run_job("purge-stale")
    stack.run_job("watch")


@pytest.fixture(scope="module")
def watched(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Yield a broker that was driven, once Prometheus has seen the end of it and applied its rules to that."""
    scratch = tmp_path_factory.mktemp("watched")
    with (
        Stack(
            tmp_path_factory.mktemp("stack"), SETTINGS, with_flower=True, with_console=True, with_webhooks=True
        ) as stack,
        ExitStack() as after_sync,
    ):
        stack.run_job("sync")  # a pool that is filled while it is watched would not seem to shrink later
        address = after_sync.enter_context(running(prometheus_program(prometheus, stack, scratch)))
        drive(stack, address)
        see(address, 'sum(broker_allocate_total{outcome!="waiting"})', REQUESTS)
        see(address, "sum(broker_deletion_marked_total)", MARKED + 2)
        see(address, "sum(broker_cleanup_deleted_total)", WIPED)
        see(address, 'broker_line_wait_seconds_count{outcome="served"}', WAITED)
        assert wait_until(lambda: shows(address, "broker_line_length", 0), 60)
        see(address, 'sum(broker_sync_total{outcome!="skipped"})', 3)
        see(address, "sum(broker_expiry_marked_total)", 1)
        see(address, "sum(broker_beat_sent_total) > bool 1", 1)
        stats = stack.as_admin("GET", "/stats").json()
        see(address, "broker_pool_pending_deletion", stats["pending_deletion"])
        now = time.time()
        see(address, f"timestamp(broker:pool_total:max) > bool {now + 2}", 1)
        text = requests.get(f"{stack.api_url}/metrics", timeout=10).text
        (conflicts,) = re.findall(r"^broker_allocate_conflicts_total (\S+)$", text, re.MULTILINE)
        yield Watched(stack=stack, address=address, conflicts=int(float(conflicts)), stats=stats)


def per_second(count: float) -> Any:
    """Return what rate() makes of so many within its window, give or take what it adds at the window's ends."""
    return pytest.approx(count / WINDOW_SEC, rel=0.35)


def between(low: float, high: float) -> Callable[[float], bool]:
    return lambda value: low <= value <= high


def test_the_descriptions_pool_queries_tell_the_pool(watched: Watched) -> None:
    assert watched.value("broker_pool_available") == watched.stats["available"] == LEFT
    used = watched.value("(broker_pool_allocated / broker_pool_total) * 100")
    assert used == pytest.approx(watched.stats["allocated"] / watched.stats["total"] * 100)
    assert used == 70


def test_the_descriptions_success_rate_is_always_1_and_ours_is_the_share_that_was_driven(watched: Watched) -> None:
    theirs = """rate(broker_allocate_total{outcome="success"}[5m]) /
rate(broker_allocate_total[5m])"""
    assert watched.value(theirs) == 1
    assert watched.value(SUCCESS) == pytest.approx(SERVED_FIRST / REQUESTS)
    assert watched.value(SERVED) == pytest.approx((SERVED_FIRST + REPLAYS) / REQUESTS)


def test_the_descriptions_latency_queries_tell_quantiles(watched: Watched) -> None:
    p50 = """histogram_quantile(0.50,
  rate(broker_allocation_latency_seconds_bucket[5m]))"""
    p99 = """histogram_quantile(0.99,
  rate(broker_allocation_latency_seconds_bucket[5m]))"""
    halves, most = ({found["outcome"]: value for found, value in watched.query(one)} for one in (p50, p99))
    for outcome in ("success", "idempotent", "no_sandboxes"):
        assert 0 < halves[outcome] <= most[outcome] <= 1
    assert math.isnan(most["error"])


def test_the_descriptions_conflicts_per_allocation_answer_by_a_rule(watched: Watched) -> None:
    assert watched.conflicts > 0  # who looked for the last one met the ghost
    theirs = """rate(broker_allocate_conflicts[5m]) /
rate(broker_allocate_total{outcome="success"}[5m])"""
    assert watched.value(theirs) == pytest.approx(watched.conflicts / SERVED_FIRST, rel=0.2)
    ours = watched.value("broker:allocate_conflicts_per_success:ratio_rate5m")
    assert ours == pytest.approx(watched.conflicts / SERVED_FIRST)
    assert watched.value("sum(broker_allocate_idempotent_hits)") == REPLAYS


def test_the_descriptions_job_queries_tell_what_jobs_did(watched: Watched) -> None:
    theirs = """rate(broker_sync_total{outcome="success"}[1h]) /
rate(broker_sync_total[1h])"""
    # A worker that runs no jobs has no rate of success.
    assert [value for _, value in watched.query(theirs) if not math.isnan(value)] == [1]
    assert watched.value("broker:sync_success_per_run:ratio_rate1h") == pytest.approx(1 / 2, rel=0.1)
    assert watched.value("sum(rate(broker_cleanup_deleted_total[5m]))") == per_second(WIPED)
    expired = {
        found["job"]: value for found, value in watched.query("sum by (job) (rate(broker_expiry_marked_total[1h]))")
    }
    assert expired["broker-worker"] == pytest.approx(1 / 3600, rel=0.35)
    assert expired["broker-api"] == 0


def test_every_recording_rule_gives_the_value_that_was_driven(watched: Watched) -> None:
    counts = {f"broker:pool_{status}:max": between(count, count) for status, count in watched.stats.items()}
    latency = between(0, 1)
    expected: dict[str, Callable[[float], bool]] = {
        **counts,
        "broker_allocate_conflicts": between(watched.conflicts, watched.conflicts),
        "broker_allocate_idempotent_hits": between(REPLAYS, REPLAYS),
        "broker:oldest_pending_deletion_seconds:max": between(1, 120),
        "broker:pool_available_per_total:ratio": between(0.2, 0.2),
        "broker:pool_allocated_per_total:ratio": between(0.7, 0.7),
        "broker:pool_exhaustion_seconds:deriv30m": between(0, 600),
        "state:broker_reservations:max": between(0, 0),
        "broker:reservation_short_by:max": between(0, 0),
        "broker:line_length:max": between(0, 0),
        "broker:line_oldest_seconds:max": between(0, 0),
        "outcome:broker_line_wait:rate5m": between(0, WAITED / WINDOW_SEC * 1.35),
        "broker:line_wait_seconds:p50_rate30m": between(0, 60),
        "broker:line_wait_seconds:p95_rate30m": between(0, 60),
        "outcome:broker_allocate:rate5m": between(0, SERVED_FIRST / WINDOW_SEC * 1.35),
        SUCCESS: between(0.74, 0.76),
        SERVED: between(0.88, 0.90),
        "broker:allocate_conflicts_per_success:ratio_rate5m": between(0.01, 10),
        **{f"broker:allocate_errors_per_request:ratio_rate{over}": between(0, 0) for over in WINDOWS},
        "broker:allocate_errors:increase6h": between(0, 0),
        "outcome_le:broker_allocation_latency_seconds_bucket:rate5m": between(0, SERVED_FIRST / WINDOW_SEC * 1.35),
        "outcome:broker_allocation_latency_seconds:p50_rate5m": latency,
        "outcome:broker_allocation_latency_seconds:p99_rate5m": latency,
        "endpoint_status:http_requests:rate5m": between(0, 100),
        "endpoint:broker_request_latency_seconds:p99_rate5m": latency,
        "broker:sync_success_per_run:ratio_rate1h": between(0.45, 0.55),
        "broker:cleanup_deleted:rate5m": between(0.01, 0.02),
        "broker:cleanup_failed:rate5m": between(0.003, 0.005),
        "broker:cleanup_failed_per_attempt:ratio_rate30m": between(0.16, 0.18),
        "broker:expiry_marked:rate1h": between(0.0002, 0.0004),
        "job:broker_job_duration_seconds:mean_rate1h": between(0.001, 60),
        "job:broker_job_last_success_timestamp_seconds:max": between(time.time() - 120, time.time()),
        "job:broker_job_overdue_seconds:threshold": between(180, 93600),
        "broker:webhook_lag_seconds:max": between(0, 30),
        "operation_outcome:broker_csp_request:rate5m": between(0, 0.1),
        "operation:broker_csp_request_seconds:p99_rate5m": between(0.001, 30),
        "name:broker_circuit_state:max": between(0, 0),
        "job_operation_outcome:broker_dynamodb_request:rate5m": between(0, 100),
        "job:broker_dynamodb_failures_per_request:ratio_rate5m": between(0, 0.2),
        "job_operation:broker_dynamodb_request_seconds:p99_rate5m": between(0.0005, 1),
    }
    assert expected.keys() == {rule["record"] for rule in rules("record")}
    for record, is_right in expected.items():
        values = [value for _, value in watched.query(record)]
        told = [value for value in values if not math.isnan(value)]  # a quantile of nothing is not a number
        assert told, record
        assert all(map(is_right, told)), (record, values)


def test_jobs_keep_their_names_beside_those_of_the_scrape(watched: Watched) -> None:
    names = {found["job"] for found, _ in watched.query("job:broker_job_last_success_timestamp_seconds:max")}
    assert names == {"sync", "cleanup", "expire", "reserve", "deliver", "watch", "purge_stale"}
    sent = {found["job"]: value for found, value in watched.query("broker_beat_sent_total")}
    assert sent["expire"] > 1


def test_rules_are_evaluated_and_alerts_fire_for_what_was_driven(watched: Watched) -> None:
    groups = get(watched.address, "rules")["groups"]
    assert [rule for group in groups for rule in group["rules"] if rule["health"] != "ok"] == []
    active = {
        rule["name"] for group in groups for rule in group["rules"] if rule.get("state", "inactive") != "inactive"
    }
    assert "BrokerTracksRefused" in active
    calm = {"BrokerPoolNearlyEmpty", "BrokerApiNotScraped", "BrokerWorkerNotScraped", "BrokerBeatNotScraped"}
    calm |= {
        "BrokerFlowerNotScraped",
        "BrokerConsoleNotScraped",
        "BrokerInstanceNotScraped",
        "BrokerJobOverdue",
        "BrokerCircuitOpen",
    }
    calm |= {
        "BrokerLineOld",
        "BrokerLineLong",
        "BrokerAllocateErrorBudgetFastBurn",
        "BrokerPoolCountsMissing",
        "BrokerSyncBraked",
    }
    assert active & calm == set()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel_shows_something(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        values = [value for _, value in watched.query(target["expr"])]
        assert any(math.isfinite(value) for value in values), target["expr"]
        assert not any(math.isinf(value) for value in values), target["expr"]


def test_the_first_row_shows_what_tracks_met(watched: Watched) -> None:
    shown = {panel["title"]: panel["targets"][0]["expr"] for panel in panels()}
    assert watched.value(shown["Available sandboxes"]) == LEFT
    assert watched.value(shown["Served"]) == pytest.approx((SERVED_FIRST + REPLAYS) / REQUESTS)
    assert 0 < watched.value(shown["p99 of allocates"]) <= 1
    assert watched.value(shown["Refused in 5 min"]) == pytest.approx(REFUSED, rel=0.35)
    assert watched.value(shown["Errors in 5 min"]) == 0


@pytest.mark.parametrize(
    ("process", "remarks"),
    [
        # The contract's name for a gauge.
        ("broker-api", 'broker_pool_total non-counter metrics should not have "_total" suffix\n'),
        ("broker-console", ""),
        ("broker-worker", ""),
        ("broker-beat", ""),
    ],
)
def test_promtool_finds_nothing_wrong_with_what_a_process_exposes(
    watched: Watched, promtool: str, process: str, remarks: str
) -> None:
    text = requests.get(metrics_urls(watched.stack)[process], timeout=10).content
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.stderr.decode() == remarks
    assert text.count(b"# TYPE ") > 5


def test_promtool_can_read_what_flower_exposes(watched: Watched, promtool: str) -> None:
    text = requests.get(metrics_urls(watched.stack)["broker-flower"], timeout=10).content
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode in {0, 3}  # 3: remarks on style, which are Flower's
    assert b"flower_events_total" in text
