"""The calls of an operator that show the pool at a glance: the overview, and the samples of the minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.blueprint import Blueprint, refuse_surplus
from broker_api.errors import RequestInvalid
from broker_api.jobs import shown_run
from broker_api.limits import bulk_store_call, store_call
from broker_api.runtime import services
from broker_api.schemas.overview import DEFAULT_LENGTH_SEC, OverviewSchema, SamplesQuerySchema, SamplesSchema
from broker_common.core.principals import Role
from broker_common.core.samples import KEPT_SEC, MOST_SAMPLES, shortest_step, sum_up
from broker_common.core.sandbox import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker_common.core.reservation import Reservation
    from broker_common.core.samples import Sample
    from broker_common.core.webhook import Endpoint

blueprint = Blueprint("overview", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/overview", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminOverview", errors=("SERVICE_UNAVAILABLE",))
@blueprint.response(200, OverviewSchema, description="The state of the broker")
@store_call
def overview() -> dict[str, Any]:
    """Read what to look at first: pool, line, reservations, webhooks, pauses, jobs, breaker, and recent allocates."""
    found, now = services().overviews.read(), services().clock.now()
    return {
        "counts": counts_of(found.count.by_status),
        "counted_at": found.count.began_at,
        "oldest_pending_deletion_at": found.count.oldest_pending_deletion,
        "last_sync_at": found.last_sync_at,
        "line": {"waiting": found.count.waiting, "longest_waiting_since": found.count.longest_waiting_since},
        "allocates": found.allocates,
        "allocates_since": found.allocates_since,
        "reservations": [_shown_reservation(each, now) for each in found.reservations],
        "webhooks": _count_endpoints(found.endpoints),
        "pauses": found.pauses,
        "pauses_error": found.pauses_error,
        "jobs": None if found.jobs is None else [shown_run(run) for run in found.jobs],
        "jobs_error": found.jobs_error,
        "breaker": found.breaker,
        "breaker_error": found.breaker_error,
    }


@blueprint.route("/samples", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminReadSamples", errors=("SERVICE_UNAVAILABLE",))
@blueprint.arguments(SamplesQuerySchema(), location="query")
@blueprint.response(200, SamplesSchema, description="The samples")
@bulk_store_call
def read_samples(query: dict[str, int]) -> dict[str, Any]:
    """Read the pool's counts, the line's length and the allocates by outcome over a time."""
    since, until = _range_of(query)
    fitting = shortest_step(until - since)
    step = query.get("step", fitting)
    if step < fitting:
        raise RequestInvalid(
            {"step": [f"Gives more than {MOST_SAMPLES} samples: use {fitting} or more, or a shorter time."]}
        )
    samples = sum_up(services().store.read_samples(since=since, until=until), step_sec=step)
    return {"samples": [_shown_sample(each) for each in samples], "count": len(samples), "step": step}


def _range_of(query: dict[str, int]) -> tuple[int, int]:
    """Return the time that a query names. Raises `RequestInvalid` if it begins after now."""
    now = services().clock.now()
    if "since" not in query:
        until = query.get("until", now)
        return max(0, until - DEFAULT_LENGTH_SEC), until
    since = query["since"]
    until = query.get("until", max(since, min(now, since + KEPT_SEC)))
    if until <= since:
        raise RequestInvalid({"from": ["Must be earlier than now."]})
    return since, until


def _shown_sample(sample: Sample) -> dict[str, Any]:
    return {
        "at": sample.at,
        "counts": None if sample.by_status is None else counts_of(sample.by_status),
        "waiting": sample.waiting,
        "allocates": sample.allocates,
    }


def _shown_reservation(reservation: Reservation, now: int) -> dict[str, Any]:
    names = ("reservation_id", "name", "starts_at", "ends_at", "count", "set_aside", "drawn")
    shown = {name: getattr(reservation, name) for name in names}
    return shown | {"state": reservation.state_at(now), "short_by": reservation.short_by_at(now)}


def _count_endpoints(endpoints: Sequence[Endpoint]) -> dict[str, int]:
    enabled = [each for each in endpoints if each.disabled_at is None]
    return {
        "endpoints": len(endpoints),
        "failing": sum(each.failing_since is not None for each in enabled),
        "disabled": len(endpoints) - len(enabled),
    }


def counts_of(by_status: Mapping[Status, int]) -> dict[str, int]:
    """Return the counts of the statuses that are in the pool, and their `total`."""
    counts = {status.value: by_status[status] for status in Status if status is not Status.DELETED}
    return counts | {"total": sum(counts.values())}
