"""What each event counts, times and logs."""

from __future__ import annotations

import pytest
import structlog
from prometheus_client import CollectorRegistry

from broker_common.adapters.log_recorder import LogRecorder
from broker_common.adapters.prometheus_recorder import PrometheusApiRecorder, PrometheusJobRecorder
from broker_common.adapters.recorders import Recorders
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.telemetry import (
    AccountRefused,
    AccountSkipped,
    AllocateEnded,
    AllocateOutcome,
    AllocationExpired,
    AllocationReleased,
    DeleteContradicted,
    DeleteEnded,
    DeleteOutcome,
    DeliveryEnded,
    DeliveryOutcome,
    EndpointDisabled,
    Event,
    ExtendOutcome,
    ExtensionEnded,
    ItemFailed,
    JobEnded,
    JobOutcome,
    MarkEnded,
    MarkOutcome,
    PoolSynced,
    ProviderCalled,
    ProviderOutcome,
    RateChecked,
    RateOutcome,
    RecordUnreadable,
    RefusalReason,
    ServicesOutcome,
    ServicesRemovalEnded,
    StoreCalled,
    StoreOutcome,
    SyncProgressed,
    WaitEnded,
    WaitOutcome,
    WebhooksLagged,
)
from tests.fakes import RecordingRecorder

EVENTS: list[Event] = [
    *(AllocateEnded(outcome=each, seconds=0.02, conflicts=2, track_id="t") for each in AllocateOutcome),
    *(WaitEnded(outcome=each, seconds=90, track_id="t") for each in WaitOutcome),
    *(MarkEnded(outcome=each, track_id="t", sandbox_id="1") for each in MarkOutcome),
    *(ExtensionEnded(outcome=each, sandbox_id="1") for each in ExtendOutcome),
    AllocationReleased(sandbox_id="1", lease_id="l", track_id="t"),
    AllocationExpired(sandbox_id="1", lease_id="l", track_id="t"),
    AccountSkipped(reason="no id"),
    ItemFailed(job=Job.EXPIRE, sandbox_id="1", error="the store is away"),
    *(AccountRefused(reason=each, sandbox_id="1", held_by="2") for each in RefusalReason),
    DeleteContradicted(sandbox_id="1", lease_id="l", attempts=3, error="404"),
    SyncProgressed(change="added", done=5000, total=20000),
    PoolSynced(synced=15, stale=2),
    RecordUnreadable(error="sandbox '1' cannot be read: name is missing", sandbox_id="1"),
    *(DeleteEnded(outcome=each, sandbox_id="1") for each in DeleteOutcome),
    *(ServicesRemovalEnded(outcome=each, sandbox_id="1", removed=2, left=1) for each in ServicesOutcome),
    *(DeliveryEnded(outcome=each, endpoint_id="e", delivery_id="d", seconds=0.1) for each in DeliveryOutcome),
    EndpointDisabled(endpoint_id="e", reason="it has failed for five days"),
    *(JobEnded(job=job, outcome=each, seconds=1, message="m") for job in JOBS for each in JobOutcome),
]


FAILED_DELETES = (DeleteOutcome.WILL_RETRY, DeleteOutcome.GAVE_UP, DeleteOutcome.MISCONFIGURED)


def changes(recorder_type: type[PrometheusApiRecorder | PrometheusJobRecorder], *events: Event) -> dict[str, float]:
    """Record the events, and return the samples that moved, buckets left out."""
    registry = CollectorRegistry()
    recorder = recorder_type(registry)
    before = samples(registry)
    for event in events:
        recorder.record(event)
    return {name: value for name, value in samples(registry).items() if value != before.get(name, 0)}


def samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        ",".join([sample.name, *sample.labels.values()]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


@pytest.mark.parametrize("outcome", AllocateOutcome)
def test_an_allocate_is_counted_and_timed_by_its_outcome(outcome: AllocateOutcome) -> None:
    moved = changes(PrometheusApiRecorder, AllocateEnded(outcome=outcome, seconds=0.02, conflicts=2, track_id="t"))
    hits = {"broker_allocate_idempotent_hits_total": 1} if outcome is AllocateOutcome.IDEMPOTENT else {}
    assert moved == {
        f"broker_allocate_total,{outcome.value}": 1,
        "broker_allocate_conflicts_total": 2,
        f"broker_allocation_latency_seconds_count,{outcome.value}": 1,
        f"broker_allocation_latency_seconds_sum,{outcome.value}": 0.02,
        **hits,
    }


@pytest.mark.parametrize("outcome", WaitOutcome)
def test_a_wait_is_timed_by_its_outcome(outcome: WaitOutcome) -> None:
    assert changes(PrometheusApiRecorder, WaitEnded(outcome=outcome, seconds=90, track_id="t")) == {
        f"broker_line_wait_seconds_count,{outcome.value}": 1,
        f"broker_line_wait_seconds_sum,{outcome.value}": 90,
    }


def test_a_wait_of_a_second_and_one_of_most_of_an_hour_can_be_told_apart_from_others() -> None:
    registry = CollectorRegistry()
    recorder = PrometheusApiRecorder(registry)
    for seconds in (0.5, 3, 50, 3000, 7000):
        recorder.record(WaitEnded(outcome=WaitOutcome.SERVED, seconds=seconds, track_id="t"))

    def up_to(limit: str) -> float | None:
        return registry.get_sample_value("broker_line_wait_seconds_bucket", {"outcome": "served", "le": limit})

    assert [up_to(limit) for limit in ("1.0", "5.0", "60.0", "1800.0", "3600.0", "+Inf")] == [1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize("outcome", MarkOutcome)
def test_a_mark_is_counted_by_its_outcome(outcome: MarkOutcome) -> None:
    moved = changes(PrometheusApiRecorder, MarkEnded(outcome=outcome, track_id="t", sandbox_id="1"))
    assert moved == {f"broker_deletion_marked_total,{outcome.value}": 1}


@pytest.mark.parametrize("outcome", ExtendOutcome)
def test_an_extension_is_counted_by_its_outcome(outcome: ExtendOutcome) -> None:
    moved = changes(PrometheusApiRecorder, ExtensionEnded(outcome=outcome, track_id="t", sandbox_id="1"))
    assert moved == {f"broker_extensions_total,{outcome.value}": 1}


def test_the_latency_has_the_buckets_of_the_contract() -> None:
    registry = CollectorRegistry()
    PrometheusApiRecorder(registry)
    name = "broker_allocation_latency_seconds_bucket"
    buckets = {s.labels["le"] for m in registry.collect() for s in m.samples if s.name == name}
    expected = ["0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.25", "0.5", "0.75", "1.0", "+Inf"]
    assert buckets == set(expected)


@pytest.mark.parametrize("recorder_type", [PrometheusApiRecorder, PrometheusJobRecorder])
@pytest.mark.parametrize(
    ("event", "counter"),
    [
        (AllocationExpired(sandbox_id="1", lease_id="l", track_id="t"), "broker_expiry_marked_total"),
        (RecordUnreadable(error="it cannot be read", sandbox_id="1"), "broker_unreadable_records_total"),
    ],
    ids=["expired allocation", "unreadable record"],
)
def test_what_may_happen_in_each_process_is_counted_by_each(
    recorder_type: type[PrometheusApiRecorder | PrometheusJobRecorder], event: Event, counter: str
) -> None:
    assert changes(recorder_type, event) == {counter: 1}


def test_a_sync_counts_what_it_saw() -> None:
    moved = changes(PrometheusJobRecorder, PoolSynced(synced=15, stale=2, tombstones_listed=3, braked=True))
    assert moved == {
        "broker_sync_sandboxes_synced_total": 15,
        "broker_sync_sandboxes_stale_total": 2,
        "broker_sync_tombstones_listed_total": 3,
        "broker_sync_braked_total": 1,
    }


def test_an_account_that_cannot_be_read_is_counted_among_those_that_are_refused() -> None:
    event = AccountSkipped(reason="no id")
    assert changes(PrometheusJobRecorder, event) == {"broker_sync_accounts_refused_total,unreadable": 1}
    assert logged(event)["log_level"] == "warning"


@pytest.mark.parametrize("reason", RefusalReason)
def test_an_account_that_is_refused_is_counted_by_its_reason_and_logged_as_an_error(reason: RefusalReason) -> None:
    event = AccountRefused(reason=reason, sandbox_id="1", held_by="2")
    assert changes(PrometheusJobRecorder, event) == {f"broker_sync_accounts_refused_total,{reason.value}": 1}
    line = logged(event)
    assert (line["log_level"], line["error"], line["held_by"]) == ("error", reason.value, "2")


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (DeliveryOutcome.DELIVERED, "debug"),
        (DeliveryOutcome.FAILED, "warning"),
        (DeliveryOutcome.EXHAUSTED, "error"),
        (DeliveryOutcome.DISABLED, "error"),
    ],
)
def test_a_try_to_deliver_is_counted_by_its_outcome_and_logged_as_loud_as_what_happened(
    outcome: DeliveryOutcome, level: str
) -> None:
    event = DeliveryEnded(outcome=outcome, endpoint_id="e", delivery_id="d", seconds=0.1, error="timed out after 15 s")
    assert changes(PrometheusJobRecorder, event) == {f"broker_webhook_deliveries_total,{outcome.value}": 1}
    line = logged(event)
    assert (line["log_level"], line["action"], line["outcome"]) == (level, "send_webhook", outcome.value)
    assert (line["endpoint_id"], line["delivery_id"], line["latency_ms"]) == ("e", "d", 100.0)


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (ServicesOutcome.NONE, "info"),
        (ServicesOutcome.REMOVED, "info"),
        (ServicesOutcome.SHADOW, "info"),
        (ServicesOutcome.PARTIAL, "warning"),
        (ServicesOutcome.FAILED, "warning"),
        (ServicesOutcome.SKIPPED, "warning"),
    ],
)
def test_a_removal_of_services_is_counted_by_its_outcome_and_logged_with_how_many_are_left(
    outcome: ServicesOutcome, level: str
) -> None:
    event = ServicesRemovalEnded(outcome=outcome, sandbox_id="1", lease_id="l", removed=2, left=3, error="HTTP 500")
    assert changes(PrometheusJobRecorder, event) == {f"broker_csp_services_cleanup_total,{outcome.value}": 1}
    line = logged(event)
    assert (line["log_level"], line["action"], line["outcome"]) == (level, "remove_services", outcome.value)
    assert (line["sandbox_id"], line["lease_id"], line["removed"], line["left"]) == ("1", "l", 2, 3)


def test_the_lag_of_webhooks_is_shown_and_not_logged() -> None:
    assert changes(PrometheusJobRecorder, WebhooksLagged(seconds=7)) == {"broker_webhook_lag_seconds": 7}
    with structlog.testing.capture_logs() as lines:
        LogRecorder().record(WebhooksLagged(seconds=7))
    assert lines == []


def test_an_endpoint_that_is_disabled_is_logged_as_an_error_with_the_reason() -> None:
    line = logged(EndpointDisabled(endpoint_id="e", reason="it has failed for five days"))
    assert (line["log_level"], line["endpoint_id"], line["error"]) == ("error", "e", "it has failed for five days")


def test_a_run_that_did_nothing_is_logged_for_debugging_only() -> None:
    event = JobEnded(job=Job.DELIVER, outcome=JobOutcome.SUCCESS, seconds=1, message="m", is_idle=True)
    assert logged(event)["log_level"] == "debug"
    assert "is_idle" not in logged(event)


def test_a_delete_that_the_list_contradicts_is_counted_as_failed_and_logged_as_an_error() -> None:
    event = DeleteContradicted(sandbox_id="1", lease_id="l", attempts=3, error="404")
    assert changes(PrometheusJobRecorder, event) == {
        "broker_deletions_contradicted_total": 1,
        "broker_cleanup_failed_total": 1,
    }
    assert (logged(event)["log_level"], logged(event)["attempts"]) == ("error", 3)


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (DeleteOutcome.DELETED, "broker_cleanup_deleted_total"),
        *((each, "broker_cleanup_failed_total") for each in FAILED_DELETES),
        *((each, None) for each in (DeleteOutcome.GONE, DeleteOutcome.POSTPONED, DeleteOutcome.NOT_DUE)),
    ],
)
def test_a_delete_is_counted_as_deleted_failed_or_not_at_all(outcome: DeleteOutcome, name: str | None) -> None:
    moved = changes(PrometheusJobRecorder, DeleteEnded(outcome=outcome, sandbox_id="1"))
    assert moved == ({} if name is None else {name: 1})


@pytest.mark.parametrize("outcome", JobOutcome)
@pytest.mark.parametrize(
    ("job", "counter"),
    [
        (Job.SYNC, "broker_sync_total"),
        (Job.CLEANUP, "broker_cleanup_total"),
        (Job.EXPIRE, "broker_expiry_total"),
        (Job.PURGE_STALE, None),
    ],
)
def test_a_run_is_counted_by_its_outcome_and_timed_unless_it_was_skipped(
    job: Job, counter: str | None, outcome: JobOutcome
) -> None:
    moved = changes(PrometheusJobRecorder, JobEnded(job=job, outcome=outcome, seconds=2, message="m"))
    succeeded_at = moved.pop(f"broker_job_last_success_timestamp_seconds,{job.value}", None)
    assert (succeeded_at is not None) == (outcome is JobOutcome.SUCCESS)
    counted = {} if counter is None else {f"{counter},{outcome.value}": 1}
    timed = {
        f"broker_job_duration_seconds_count,{job.value}": 1,
        f"broker_job_duration_seconds_sum,{job.value}": 2,
    }
    assert moved == counted | ({} if outcome is JobOutcome.SKIPPED else timed)


def logged(event: Event) -> dict[str, object]:
    with structlog.testing.capture_logs() as lines:
        LogRecorder().record(event)
    (line,) = lines
    return dict(line)


@pytest.mark.parametrize("event", EVENTS, ids=repr)
def test_every_event_is_one_line_that_names_its_action(event: Event) -> None:
    line = logged(event)
    assert line["action"]
    assert line["event"]
    assert None not in line.values()


def test_a_job_s_line_is_the_seed_s() -> None:
    event = JobEnded(
        job=Job.SYNC, outcome=JobOutcome.SUCCESS, seconds=0.234, message="Synced 15 sandboxes, marked 2 as stale"
    )
    assert logged(event) == {
        "log_level": "info",
        "event": "Synced 15 sandboxes, marked 2 as stale",
        "action": "background_sync",
        "outcome": "success",
        "latency_ms": 234.0,
    }


@pytest.mark.parametrize("outcome", WaitOutcome)
def test_the_line_of_a_wait_says_how_it_ended_whose_it_was_and_how_many_seconds_it_took(outcome: WaitOutcome) -> None:
    assert logged(WaitEnded(outcome=outcome, seconds=90, track_id="t")) == {
        "log_level": "info",
        "event": "Wait in line ended",
        "action": "wait",
        "outcome": outcome.value,
        "track_id": "t",
        "seconds": 90,
    }


def test_the_line_of_an_allocate_that_waits_is_a_usual_answer() -> None:
    line = logged(AllocateEnded(outcome=AllocateOutcome.WAITING, seconds=0.02, conflicts=0, track_id="t"))
    assert line == {
        "log_level": "info",
        "event": "Allocate ended",
        "action": "allocate",
        "outcome": "waiting",
        "track_id": "t",
        "latency_ms": 20.0,
        "conflicts": 0,
    }


@pytest.mark.parametrize(
    ("outcome", "code", "level"),
    [
        (AllocateOutcome.SUCCESS, None, "info"),
        (AllocateOutcome.NO_SANDBOXES, "NO_SANDBOXES_AVAILABLE", "info"),
        (AllocateOutcome.ERROR, "PAUSED", "info"),
        (AllocateOutcome.ERROR, "SERVICE_UNAVAILABLE", "warning"),
        (AllocateOutcome.ERROR, "INTERNAL_ERROR", "error"),
        (AllocateOutcome.ERROR, None, "error"),
    ],
)
def test_an_allocate_s_line_is_as_loud_as_what_happened(outcome: AllocateOutcome, code: str | None, level: str) -> None:
    line = logged(AllocateEnded(outcome=outcome, seconds=0, conflicts=0, track_id="t", code=code))
    assert line["log_level"] == level
    assert line.get("code") == code


@pytest.mark.parametrize(
    ("outcome", "code", "level"),
    [
        (MarkOutcome.REPEATED, None, "info"),
        (MarkOutcome.NOT_OWNER, "NOT_SANDBOX_OWNER", "info"),
        (MarkOutcome.ERROR, "LEASE_MISMATCH", "info"),
        (MarkOutcome.ERROR, "SERVICE_UNAVAILABLE", "warning"),
        (MarkOutcome.ERROR, None, "error"),
    ],
)
def test_a_mark_s_line_is_as_loud_as_what_happened(outcome: MarkOutcome, code: str | None, level: str) -> None:
    assert logged(MarkEnded(outcome=outcome, track_id="t", sandbox_id="1", code=code))["log_level"] == level


@pytest.mark.parametrize(
    ("outcome", "code", "level"),
    [
        (ExtendOutcome.SUCCESS, None, "info"),
        (ExtendOutcome.UNCHANGED, None, "info"),
        (ExtendOutcome.LIMIT, "DURATION_LIMIT", "info"),
        (ExtendOutcome.ERROR, "LEASE_MISMATCH", "info"),
        (ExtendOutcome.ERROR, "SERVICE_UNAVAILABLE", "warning"),
        (ExtendOutcome.ERROR, None, "error"),
    ],
)
def test_an_extensions_line_is_as_loud_as_what_happened(outcome: ExtendOutcome, code: str | None, level: str) -> None:
    line = logged(ExtensionEnded(outcome=outcome, track_id="t", sandbox_id="1", lease_id="l", code=code))
    assert (line["log_level"], line["action"], line["outcome"]) == (level, "extend", outcome.value)
    assert (line["track_id"], line["sandbox_id"], line["lease_id"]) == ("t", "1", "l")


@pytest.mark.parametrize(
    "event",
    [
        StoreCalled(operation="GetItem", outcome=StoreOutcome.SUCCESS, seconds=0.001),
        ProviderCalled(operation="list", outcome=ProviderOutcome.SUCCESS, seconds=0.1),
        RateChecked(outcome=RateOutcome.LIMITED),
    ],
    ids=repr,
)
def test_what_happens_many_times_a_second_is_no_line(event: Event) -> None:
    with structlog.testing.capture_logs() as lines:
        LogRecorder().record(event)
    assert lines == []


def test_a_recorder_that_fails_keeps_nothing_from_the_others_and_raises_nothing() -> None:
    class Broken:
        def record(self, event: Event) -> None:
            raise RuntimeError("full")

    working = RecordingRecorder()
    event = PoolSynced(synced=1, stale=0)
    with structlog.testing.capture_logs() as lines:
        Recorders([Broken(), working]).record(event)
    assert working.events == [event]
    assert [line["log_level"] for line in lines] == ["error"]
