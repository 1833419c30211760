"""The calls of an operator on sandboxes, on the pool, and on paused operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.auth import actor, known_principal
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import bulk_store_call, store_call
from broker_api.openapi import SANDBOX_ID
from broker_api.overview import counts_of
from broker_api.runtime import services
from broker_api.schemas.parts import example_of
from broker_api.schemas.pool import PausesInputSchema, PausesSchema, StatsSchema, WhoAmISchema
from broker_api.schemas.sandboxes import (
    SEARCHES,
    BulkDeletedSchema,
    BulkDeleteQuerySchema,
    BulkRetriedSchema,
    QuarantineInputSchema,
    ReleaseInputSchema,
    SandboxPageSchema,
    SandboxQuerySchema,
    SandboxSchema,
)
from broker_api.schemas.tracks import ExtendedSchema, ExtendInputSchema
from broker_common.core.errors import InvalidInput
from broker_common.core.principals import Role
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.search import Query, SortField

if TYPE_CHECKING:
    from broker_common.core.leases import Extension
    from broker_common.core.store import Pauses

blueprint = Blueprint("admin", __name__)
blueprint.before_request(refuse_surplus)

_UNUSED = {"dirty": False, "allocated_at": None, "expires_at": None, "track_name": None} | dict.fromkeys(
    ("lease_id", "idempotency_key", "allocated_to_track")
)
_ENDED = {
    "status": Status.PENDING_DELETION.value,
    "lease_id": None,
    "idempotency_key": None,
    "allocated_to_track": None,
    "last_track_id": "track-4711",
    "last_lease_id": example_of(ReleaseInputSchema())["lease_id"],
    "deletion_requested_at": 1759580000,
    "next_attempt_at": 1759580000,
    "updated_at": 1759580000,
}


@blueprint.route("/sandboxes", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminListSandboxes",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.arguments(SandboxQuerySchema(), location="query")
@blueprint.response(200, SandboxPageSchema, description="A page of sandboxes")
def list_sandboxes(query: dict[str, Any]) -> dict[str, Any]:
    """List sandboxes by status or track, or find them by name or lab, sorted."""
    return _find(query) if SEARCHES & query.keys() else _list(query)


@bulk_store_call
def _find(query: dict[str, Any]) -> dict[str, Any]:
    order = query.get("sort", SortField.SANDBOX_ID.value)
    wanted = Query(
        status=query.get("status"),
        name=query.get("name"),
        track_name=query.get("track_name"),
        track_id=query.get("track_id"),
        sort=SortField(order.removeprefix("-")),
        descending=order.startswith("-"),
    )
    try:
        found = services().search.find(wanted, limit=query["limit"], cursor=query.get("cursor"))
    except InvalidInput as error:
        raise RequestInvalid({"cursor": ["Is not from a listing with the same filters and order."]}) from error
    return {
        "sandboxes": found.sandboxes,
        "count": len(found.sandboxes),
        "unreadable": found.unreadable,
        "cursor": found.cursor,
        "total": found.total,
        "snapshot_age_sec": round(found.age_sec, 3),
    }


@store_call
def _list(query: dict[str, Any]) -> dict[str, Any]:
    status, limit, cursor = query.get("status"), query["limit"], query.get("cursor")
    inventory, by_track = services().inventory, "track_id" in query
    try:
        if by_track:
            page = inventory.list_of_track(query["track_id"], status, limit=limit, cursor=cursor)
        else:
            page = inventory.list_sandboxes(status, limit=limit, cursor=cursor)
    except InvalidInput as error:
        same = "track" if by_track else "status"
        raise RequestInvalid({"cursor": [f"Is not from a listing of the same {same}."]}) from error
    return {
        "sandboxes": page.sandboxes,
        "count": len(page.sandboxes),
        "unreadable": page.unreadable,
        "cursor": page.cursor,
    }


@blueprint.route("/sandboxes/<sandbox_id>", methods=["GET"], role=Role.VIEWER, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminReadSandbox",
    errors=("SANDBOX_NOT_FOUND", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, SandboxSchema, description="The sandbox as it is now")
@store_call
def read(sandbox_id: str) -> Sandbox:
    """Read a sandbox with every field."""
    require_plain("sandbox_id", sandbox_id)
    return services().inventory.read(sandbox_id)


@blueprint.route("/whoami", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminWhoAmI")
@blueprint.response(200, WhoAmISchema, description="The principal of the token")
def whoami() -> dict[str, Any]:
    """Read whose token this is, and what it may do."""
    found = known_principal()
    return {"principal": found.name, "roles": sorted(found.roles), "customer": found.customer}


@blueprint.route("/stats", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminStats", errors=("SERVICE_UNAVAILABLE",))
@blueprint.response(200, StatsSchema, description="The counts")
@store_call
def stats() -> dict[str, int]:
    """Count the pool's sandboxes by status."""
    return counts_of(services().store.count())


@blueprint.route("/sandboxes/<sandbox_id>/release", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminRelease",
    errors=("SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "SERVICE_UNAVAILABLE"),
)
@blueprint.arguments(ReleaseInputSchema())
@blueprint.response(
    200,
    SandboxSchema,
    description="The sandbox, which waits to be wiped",
    example=example_of(SandboxSchema(), **_ENDED, deletion_reason=DeletionReason.RELEASED.value),
)
@store_call
def release(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """End an allocation on behalf of its track."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().leases.release(sandbox_id=sandbox_id, lease_id=body["lease_id"], by=actor()).sandbox)


@blueprint.route("/sandboxes/<sandbox_id>/extend", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminExtend",
    errors=(
        *("SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "ALLOCATION_ENDED", "DURATION_LIMIT"),
        *("SERVICE_UNAVAILABLE", "TABLE_CHANGED"),
    ),
)
@blueprint.arguments(ExtendInputSchema())
@blueprint.response(200, ExtendedSchema, description="The lease, which lasts at least as long as asked")
@store_call
def extend(body: dict[str, Any], sandbox_id: str) -> Extension:
    """Have a track's lease last longer."""
    require_plain("sandbox_id", sandbox_id)
    return services().leases.extend_for_operator(sandbox_id=sandbox_id, by=actor(), **body)


@blueprint.route("/sandboxes/<sandbox_id>/quarantine", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminQuarantine",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.arguments(QuarantineInputSchema())
@blueprint.response(
    200,
    SandboxSchema,
    description="Set aside, or marked to be set aside after its wipe",
    example=example_of(
        SandboxSchema(),
        **_UNUSED,
        status=Status.DELETION_FAILED.value,
        deletion_reason=DeletionReason.QUARANTINED.value,
        deletion_last_error=example_of(QuarantineInputSchema())["reason"],
    ),
)
@store_call
def quarantine(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """Set a sandbox aside, so that a person can look at it."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.quarantine(sandbox_id, reason=body["reason"], by=actor()))


@blueprint.route("/sandboxes/<sandbox_id>/quarantine", methods=["DELETE"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminLiftQuarantine",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, SandboxSchema, description="The sandbox, which goes the usual way after its wipe")
@store_call
def lift_quarantine(sandbox_id: str) -> Sandbox:
    """Lift the quarantine of a sandbox that is not set aside yet."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.lift_quarantine(sandbox_id, by=actor()))


@blueprint.route(
    "/sandboxes/<sandbox_id>/retry-deletion", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID]
)
@blueprint.doc(
    operationId="adminRetryDeletion",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(
    200,
    SandboxSchema,
    description="The sandbox, which waits to be wiped",
    example=example_of(SandboxSchema(), **_ENDED, deletion_reason=DeletionReason.RETRIED.value),
)
@store_call
def retry_deletion(sandbox_id: str) -> Sandbox:
    """Send a sandbox whose deletion failed back to be wiped."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.retry_deletion(sandbox_id, by=actor()))


@blueprint.route("/bulk-retry", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(
    operationId="adminBulkRetry",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.response(200, BulkRetriedSchema, description="How many were sent")
@bulk_store_call
def bulk_retry() -> dict[str, int]:
    """Send every sandbox whose deletion failed back to be wiped."""
    started = services().clock.monotonic()
    return {"retried": services().operations.bulk_retry(by=actor()), "duration_ms": _milliseconds_since(started)}


@blueprint.route("/bulk-delete", methods=["POST"], role=Role.ADMIN)
@blueprint.doc(operationId="adminBulkDelete", errors=("SERVICE_UNAVAILABLE", "TABLE_CHANGED"))
@blueprint.arguments(BulkDeleteQuerySchema(), location="query")
@blueprint.response(200, BulkDeletedSchema, description="How many were removed")
@bulk_store_call
def bulk_delete(query: dict[str, str]) -> dict[str, int]:
    """Remove all records of one status."""
    started = services().clock.monotonic()
    result = services().purger.bulk_delete(Status(query["status"]), by=actor())
    return {"deleted": result.removed, "duration_ms": _milliseconds_since(started)}


@blueprint.route("/pause", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminReadPauses",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.response(200, PausesSchema, description="The pauses")
@store_call
def read_pauses() -> Pauses:
    """Read which operations are paused."""
    return services().store.read_pauses()


@blueprint.route("/pause", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(
    operationId="adminSetPauses",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.arguments(PausesInputSchema(), required=False)
@blueprint.response(200, PausesSchema, description="The pauses after the change")
@store_call
def set_pauses(body: dict[str, bool]) -> Pauses:
    """Pause or resume operations."""
    return services().pauses.set(body, by=actor())


def _answer(sandbox: Sandbox) -> Sandbox:
    (shown,) = services().inventory.show([sandbox])
    return shown


def _milliseconds_since(started: float) -> int:
    return round((services().clock.monotonic() - started) * 1000)
