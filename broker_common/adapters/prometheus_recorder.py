"""The recorders that count and time telemetry for Prometheus: one for the API, one for jobs.

Each registers only the metrics that its own process can change. All label values exist from the start, so that a rate
over a counter does not miss its first step. Series are kept by their labels, because `labels` is slow.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from broker_common.core.job_registry import JOBS
from broker_common.core.telemetry import (
    AccountRefused,
    AccountSkipped,
    ActionsStopped,
    AllocateEnded,
    AllocateOutcome,
    AllocationExpired,
    DeleteContradicted,
    DeleteEnded,
    DeleteOutcome,
    DeliveryEnded,
    DeliveryOutcome,
    ExtendOutcome,
    ExtensionEnded,
    JobEnded,
    JobOutcome,
    MarkEnded,
    MarkOutcome,
    PoolSynced,
    ProviderCalled,
    RateChecked,
    RateOutcome,
    RecordUnreadable,
    RefusalReason,
    ServicesOutcome,
    ServicesRemovalEnded,
    StopReason,
    StoreCalled,
    WaitEnded,
    WaitOutcome,
    WebhooksLagged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry

    from broker_common.core.jobs import Jobs
    from broker_common.core.telemetry import Event, StoreOutcome

Outcome = TypeVar("Outcome", AllocateOutcome, MarkOutcome, ExtendOutcome, JobOutcome, DeliveryOutcome, ServicesOutcome)

LATENCY_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0)
WAIT_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""A line moves in seconds, or as slowly as labs end."""
_UNREADABLE = "unreadable"
"""The reason for an account whose entry in the list does not parse."""
_JOB_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STORE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MOST_LABELS = 256
"""More than there are operations of DynamoDB that are called, with each outcome."""
_PROVIDER_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)


class PrometheusApiRecorder:
    """Counts and times what the API does for tracks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._allocations = _counter(
            registry, "broker_allocate_total", "Total number of sandbox allocation requests", AllocateOutcome
        )
        self._conflicts = Counter(
            "broker_allocate_conflicts", "Candidates that other requests took first", registry=registry
        )
        self._idempotent_hits = Counter(
            "broker_allocate_idempotent_hits",
            "Allocate requests of a track that already held the sandbox",
            registry=registry,
        )
        latency = Histogram(
            "broker_allocation_latency_seconds",
            "Sandbox allocation latency in seconds",
            ["outcome"],
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self._latency = {outcome: latency.labels(outcome) for outcome in AllocateOutcome}
        waits = Histogram(
            "broker_line_wait_seconds",
            "How long tracks waited in the line, in seconds",
            ["outcome"],
            buckets=WAIT_BUCKETS,
            registry=registry,
        )
        self._waits = {outcome: waits.labels(outcome) for outcome in WaitOutcome}
        self._marks = _counter(registry, "broker_deletion_marked_total", "Marks for deletion", MarkOutcome)
        self._extensions = _counter(registry, "broker_extensions_total", "Requests to extend a lease", ExtendOutcome)
        # A track's next allocate may itself expire the track's old lease.
        self._expired = _expired(registry)
        self._stopped = _stopped(registry)
        self._store_calls = _store_calls(registry)
        self._unreadable = _unreadable(registry)
        self._limited = Counter("broker_rate_limited_total", "Requests refused by the rate limit", registry=registry)
        self._unchecked = Counter(
            "broker_rate_limit_unchecked_total",
            "Requests that passed uncounted, because Redis was away",
            registry=registry,
        )

    def record(self, event: Event) -> None:
        """Count an event."""
        match event:
            case AllocateEnded():
                self._count_allocate(event)
            case WaitEnded():
                self._waits[event.outcome].observe(event.seconds)
            case MarkEnded():
                self._marks[event.outcome].inc()
            case ExtensionEnded():
                self._extensions[event.outcome].inc()
            case AllocationExpired():
                self._expired.inc()
            case ActionsStopped():
                self._stopped[event.reason].inc()
            case StoreCalled():
                self._store_calls(event.operation, event.outcome).observe(event.seconds)
            case RecordUnreadable():
                self._unreadable.inc()
            case RateChecked():
                (self._limited if event.outcome is RateOutcome.LIMITED else self._unchecked).inc()
            case _:
                pass

    def _count_allocate(self, event: AllocateEnded) -> None:
        self._allocations[event.outcome].inc()
        self._latency[event.outcome].observe(event.seconds)
        if event.conflicts:
            self._conflicts.inc(event.conflicts)
        if event.outcome is AllocateOutcome.IDEMPOTENT:
            self._idempotent_hits.inc()


class PrometheusJobRecorder:
    """Counts and times what jobs do."""

    def __init__(self, registry: CollectorRegistry, jobs: Jobs = JOBS) -> None:
        self._runs = {
            job.name: _counter(registry, job.counter, f"{job.title} job outcomes", JobOutcome)
            for job in jobs.values()
            if job.counter is not None
        }
        self._synced = Counter(
            "broker_sync_sandboxes_synced_total", "Sandboxes seen at the provider by syncs", registry=registry
        )
        self._stale = Counter("broker_sync_sandboxes_stale_total", "Sandboxes marked stale by syncs", registry=registry)
        self._braked = Counter(
            "broker_sync_braked_total",
            "Syncs that marked nothing stale, because too many accounts were missing",
            registry=registry,
        )
        self._refused = Counter(
            "broker_sync_accounts_refused_total",
            "Listed accounts that a sync could not add, counted in each sync",
            ["reason"],
            registry=registry,
        )
        for reason in (*RefusalReason, _UNREADABLE):
            self._refused.labels(reason)
        self._tombstones_listed = Counter(
            "broker_sync_tombstones_listed_total",
            "Deleted sandboxes whose account is still listed, counted in each sync",
            registry=registry,
        )
        self._contradicted = Counter(
            "broker_deletions_contradicted_total",
            "Deletes answered with 404 although a later sync saw the account as active",
            registry=registry,
        )
        self._deleted = Counter(
            "broker_cleanup_deleted_total", "Sandboxes whose wipe the provider confirmed", registry=registry
        )
        self._failed = Counter(
            "broker_cleanup_failed_total", "Attempts to delete a sandbox that failed", registry=registry
        )
        self._expired = _expired(registry)
        self._stopped = _stopped(registry)
        self._store_calls = _store_calls(registry)
        self._unreadable = _unreadable(registry)
        self._deliveries = _counter(
            registry, "broker_webhook_deliveries_total", "Tries to deliver facts to webhooks", DeliveryOutcome
        )
        # The process whose run was the last knows best.
        self._webhook_lag = Gauge(
            "broker_webhook_lag_seconds",
            "Age of the oldest fact that was not yet told to all endpoints that work",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._services = _counter(
            registry,
            "broker_csp_services_cleanup_total",
            "Removals of the services that students left in an account, before its delete",
            ServicesOutcome,
        )
        self._provider_calls = Histogram(
            "broker_csp_request_seconds",
            "Duration of calls to the provider, in seconds",
            ["operation", "outcome"],
            buckets=_PROVIDER_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "broker_job_duration_seconds",
            "Duration of job runs that were not skipped, in seconds",
            ["job"],
            buckets=_JOB_BUCKETS,
            registry=registry,
        )
        for job in jobs:
            self._duration.labels(job)
        # The process that ends a run sets it. The latest value counts, even if that process has ended.
        self._last_success = Gauge(
            "broker_job_last_success_timestamp_seconds",
            "When a run of the job last succeeded, in Unix seconds",
            ["job"],
            multiprocess_mode="max",
            registry=registry,
        )

    def record(self, event: Event) -> None:  # noqa: C901, PLR0912 - one case an event
        """Count an event."""
        match event:
            case JobEnded():
                self._record_run(event)
            case PoolSynced():
                self._synced.inc(event.synced)
                self._stale.inc(event.stale)
                self._braked.inc(event.braked)
                self._tombstones_listed.inc(event.tombstones_listed)
            case AccountSkipped():
                self._refused.labels(_UNREADABLE).inc()
            case AccountRefused():
                self._refused.labels(event.reason.value).inc()
            case DeleteContradicted():
                self._contradicted.inc()
                self._failed.inc()
            case DeleteEnded():
                if event.outcome is DeleteOutcome.DELETED:
                    self._deleted.inc()
                elif event.outcome.is_failure:
                    self._failed.inc()
            case ServicesRemovalEnded():
                self._services[event.outcome].inc()
            case DeliveryEnded():
                self._deliveries[event.outcome].inc()
            case WebhooksLagged():
                self._webhook_lag.set(event.seconds)
            case AllocationExpired():
                self._expired.inc()
            case ActionsStopped():
                self._stopped[event.reason].inc()
            case StoreCalled():
                self._store_calls(event.operation, event.outcome).observe(event.seconds)
            case RecordUnreadable():
                self._unreadable.inc()
            case ProviderCalled():
                self._provider_calls.labels(event.operation, event.outcome.value).observe(event.seconds)
            case _:
                pass

    def _record_run(self, event: JobEnded) -> None:
        if event.job in self._runs:
            self._runs[event.job][event.outcome].inc()
        if event.outcome is not JobOutcome.SKIPPED:
            self._duration.labels(event.job).observe(event.seconds)
        if event.outcome is JobOutcome.SUCCESS:
            self._last_success.labels(event.job).set_to_current_time()


def _counter(
    registry: CollectorRegistry,
    name: str,
    what: str,
    outcomes: Iterable[Outcome],
) -> dict[Outcome, Counter]:
    counter = Counter(name, what, ["outcome"], registry=registry)
    return {outcome: counter.labels(outcome) for outcome in outcomes}


def _expired(registry: CollectorRegistry) -> Counter:
    return Counter("broker_expiry_marked_total", "Leases that the broker has expired", registry=registry)


def _stopped(registry: CollectorRegistry) -> dict[StopReason, Counter]:
    stopped = Counter(
        "broker_actions_stopped_total",
        "Checks of the store that found this process's clock wrong, or another table than the known one",
        ["reason"],
        registry=registry,
    )
    return {reason: stopped.labels(reason) for reason in StopReason}


def _unreadable(registry: CollectorRegistry) -> Counter:
    return Counter(
        "broker_unreadable_records_total",
        "Stored records that could not be read: each counts once a minute in each process that reads it",
        registry=registry,
    )


def _store_calls(registry: CollectorRegistry) -> Callable[[str, StoreOutcome], Histogram]:
    calls = Histogram(
        "broker_dynamodb_request_seconds",
        "Duration of calls to DynamoDB, in seconds",
        ["operation", "outcome"],
        buckets=_STORE_BUCKETS,
        registry=registry,
    )
    return lru_cache(_MOST_LABELS)(calls.labels)
