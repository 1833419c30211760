"""The calls of an operator on sandboxes, on the pool, and on what is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.auth import require_admin_token
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import bulk_store_call, store_call
from broker_api.openapi import ADMIN_SECURITY, SANDBOX_ID, errors, leads_to
from broker_api.runtime import services
from broker_api.schemas import (
    BulkDeletedSchema,
    BulkDeleteQuerySchema,
    BulkRetriedSchema,
    PausesInputSchema,
    PausesSchema,
    QuarantineInputSchema,
    ReleaseInputSchema,
    SandboxPageSchema,
    SandboxQuerySchema,
    SandboxSchema,
    StatsSchema,
)
from broker_common.core.domain import Sandbox, Status
from broker_common.core.errors import InvalidInput

if TYPE_CHECKING:
    from broker_common.core.ports import Pauses

blueprint = Blueprint("admin", __name__, description="What an operator may do")
blueprint.before_request(require_admin_token)
blueprint.before_request(refuse_surplus)

_REQUEST = ["request_id"]
_FIRST = {"sandbox_id": "$response.body#/sandboxes/0/sandbox_id"}
_SAME = {"sandbox_id": "$response.body#/sandbox_id"}
_READ_AGAIN = {200: {"links": leads_to("adminReadSandbox", _SAME)}}


@blueprint.route("/sandboxes", methods=["GET"])
@blueprint.doc(
    operationId="adminListSandboxes",
    security=ADMIN_SECURITY,
    responses=errors("SERVICE_UNAVAILABLE")
    | {
        200: {
            "links": leads_to("adminReadSandbox", _FIRST)
            | leads_to("adminQuarantine", _FIRST)
            | leads_to("adminRetryDeletion", _FIRST)
            | leads_to("adminRelease", _FIRST, {"lease_id": "$response.body#/sandboxes/0/lease_id"})
            | leads_to("adminListSandboxes", {"cursor": "$response.body#/cursor", "status": "$request.query.status"})
        }
    },
)
@blueprint.arguments(SandboxQuerySchema(), location="query")
@blueprint.response(200, SandboxPageSchema)
@store_call
def list_sandboxes(query: dict[str, Any]) -> dict[str, Any]:
    """List sandboxes, by status or by the track that holds them.

    A page may be shorter than `limit`; it is the last one only if its `cursor` is null.
    """
    status, limit, cursor = query.get("status"), query["limit"], query.get("cursor")
    inventory, by_track = services().inventory, "track_id" in query
    try:
        if by_track:
            page = inventory.list_of_track(query["track_id"], status, limit=limit, cursor=cursor)
        else:
            page = inventory.list_sandboxes(status, limit=limit, cursor=cursor)
    except InvalidInput as error:
        same = "track" if by_track else "status"
        raise RequestInvalid({"cursor": [f"Was not given by a listing of the same {same}."]}) from error
    return {"sandboxes": page.sandboxes, "count": len(page.sandboxes), "cursor": page.cursor}


@blueprint.route("/sandboxes/<sandbox_id>", methods=["GET"], parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminReadSandbox",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("SANDBOX_NOT_FOUND", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, SandboxSchema)
@store_call
def read(sandbox_id: str) -> Sandbox:
    """Read a sandbox, tombstones included."""
    require_plain("sandbox_id", sandbox_id)
    return services().inventory.read(sandbox_id)


@blueprint.route("/stats", methods=["GET"])
@blueprint.doc(
    operationId="adminStats", security=ADMIN_SECURITY, parameters=_REQUEST, responses=errors("SERVICE_UNAVAILABLE")
)
@blueprint.response(200, StatsSchema)
@store_call
def stats() -> dict[str, int]:
    """Count the pool's sandboxes by status."""
    counts = {status.value: count for status, count in services().store.count().items() if status is not Status.DELETED}
    return counts | {"total": sum(counts.values())}


@blueprint.route("/sandboxes/<sandbox_id>/release", methods=["POST"], parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminRelease",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE") | _READ_AGAIN,
)
@blueprint.arguments(ReleaseInputSchema())
@blueprint.response(200, SandboxSchema)
@store_call
def release(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """End an allocation for its track."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().custody.release(sandbox_id=sandbox_id, lease_id=body["lease_id"]).sandbox)


@blueprint.route("/sandboxes/<sandbox_id>/quarantine", methods=["POST"], parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminQuarantine",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE")
    | {200: {"links": leads_to("adminRetryDeletion", _SAME)}},
)
@blueprint.arguments(QuarantineInputSchema())
@blueprint.response(200, SandboxSchema)
@store_call
def quarantine(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """Put an available or stale sandbox aside for a person."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.quarantine(sandbox_id, reason=body["reason"]))


@blueprint.route("/sandboxes/<sandbox_id>/retry-deletion", methods=["POST"], parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminRetryDeletion",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE")
    | _READ_AGAIN,
)
@blueprint.response(200, SandboxSchema)
@store_call
def retry_deletion(sandbox_id: str) -> Sandbox:
    """Send a sandbox whose deletion failed back to be wiped."""
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.retry_deletion(sandbox_id))


@blueprint.route("/bulk-retry", methods=["POST"])
@blueprint.doc(
    operationId="adminBulkRetry",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, BulkRetriedSchema)
@bulk_store_call
def bulk_retry() -> dict[str, int]:
    """Send every sandbox whose deletion failed back to be wiped."""
    started = services().clock.monotonic()
    return {"retried": services().operations.bulk_retry(), "duration_ms": _milliseconds_since(started)}


@blueprint.route("/bulk-delete", methods=["POST"])
@blueprint.doc(
    operationId="adminBulkDelete", security=ADMIN_SECURITY, responses=errors("PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE")
)
@blueprint.arguments(BulkDeleteQuerySchema(), location="query")
@blueprint.response(200, BulkDeletedSchema)
@bulk_store_call
def bulk_delete(query: dict[str, str]) -> dict[str, int]:
    """Remove all records of one status; the provider is not asked."""
    started = services().clock.monotonic()
    result = services().purger.bulk_delete(Status(query["status"]))
    return {"deleted": result.removed, "duration_ms": _milliseconds_since(started)}


@blueprint.route("/pause", methods=["GET"])
@blueprint.doc(
    operationId="adminReadPauses",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, PausesSchema)
@store_call
def read_pauses() -> Pauses:
    """Tell what is paused."""
    return services().store.read_pauses()


@blueprint.route("/pause", methods=["POST"])
@blueprint.doc(
    operationId="adminSetPauses",
    security=ADMIN_SECURITY,
    parameters=_REQUEST,
    responses=errors("PAYLOAD_TOO_LARGE", "SERVICE_UNAVAILABLE"),
)
@blueprint.arguments(PausesInputSchema(), required=False, example={"allocate": True})
@blueprint.response(200, PausesSchema)
@store_call
def set_pauses(body: dict[str, bool]) -> Pauses:
    """Pause or resume operations; every process obeys within five seconds."""
    return services().pauses.set(body)


def _answer(sandbox: Sandbox) -> Sandbox:
    (shown,) = services().inventory.show([sandbox])
    return shown


def _milliseconds_since(started: float) -> int:
    return round((services().clock.monotonic() - started) * 1000)
