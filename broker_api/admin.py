"""The calls of an operator on sandboxes, on the pool, and on what is paused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.auth import actor, known_principal
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import bulk_store_call, store_call
from broker_api.openapi import SANDBOX_ID, link_to
from broker_api.runtime import services
from broker_api.schemas import (
    SEARCHES,
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
    WhoAmISchema,
    example_of,
)
from broker_common.core.errors import InvalidInput
from broker_common.core.principals import Role
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.search import Query, SortField

if TYPE_CHECKING:
    from broker_common.core.store import Pauses

blueprint = Blueprint("admin", __name__, description="What an operator may do")
blueprint.before_request(refuse_surplus)

_FIRST = {"sandbox_id": "$response.body#/sandboxes/0/sandbox_id"}
_SAME = {"sandbox_id": "$response.body#/sandbox_id"}
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
_READ_AGAIN = {200: {"links": link_to("adminReadSandbox", _SAME)}}


@blueprint.route("/sandboxes", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminListSandboxes",
    errors=("SERVICE_UNAVAILABLE",),
    responses={
        200: {
            "links": link_to("adminReadSandbox", _FIRST)
            | link_to("adminQuarantine", _FIRST)
            | link_to("adminRetryDeletion", _FIRST)
            | link_to("adminRelease", _FIRST, {"lease_id": "$response.body#/sandboxes/0/lease_id"})
            | link_to("adminListSandboxes", {"cursor": "$response.body#/cursor", "status": "$request.query.status"})
        }
    },
)
@blueprint.arguments(SandboxQuerySchema(), location="query")
@blueprint.response(200, SandboxPageSchema, description="A page of sandboxes")
def list_sandboxes(query: dict[str, Any]) -> dict[str, Any]:
    """List sandboxes, by status or by the track that holds them; or find them by name or lab, sorted.

    A page may be shorter than `limit`; it is the last one only if its `cursor` is null. Sandboxes whose record cannot
    be read are named in `unreadable`. With `name`, `track_name` or `sort` the answer comes from a copy of the pool that
    is at most five seconds old.
    """
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
        raise RequestInvalid({"cursor": ["Was not given by a listing with the same filters and order."]}) from error
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
        raise RequestInvalid({"cursor": [f"Was not given by a listing of the same {same}."]}) from error
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
    """Read a sandbox with every field.

    Also one that is `deleted`: its tombstone is kept until a sync has not seen the account again. One whose record
    cannot be read answers 503, and says which field is wrong.
    """
    require_plain("sandbox_id", sandbox_id)
    return services().inventory.read(sandbox_id)


@blueprint.route("/whoami", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminWhoAmI")
@blueprint.response(200, WhoAmISchema, description="Who you are to the broker")
def whoami() -> dict[str, Any]:
    """Tell whose token this is, and what it may do.

    It touches nothing: it answers also while the store is away.
    """
    found = known_principal()
    return {"principal": found.name, "roles": sorted(found.roles), "customer": found.customer}


@blueprint.route("/stats", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminStats", errors=("SERVICE_UNAVAILABLE",))
@blueprint.response(200, StatsSchema, description="The counts")
@store_call
def stats() -> dict[str, int | None]:
    """Count the pool's sandboxes by status.

    It counts the whole index. To ask every few seconds, read the gauges of `/metrics`.
    """
    store = services().store
    counts = {status.value: count for status, count in store.count().items() if status is not Status.DELETED}
    times = {
        "oldest_pending_deletion_at": store.oldest_pending_deletion(),
        "last_sync_at": services().inventory.last_sync(),
    }
    return counts | {"total": sum(counts.values())} | times


@blueprint.route("/sandboxes/<sandbox_id>/release", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminRelease",
    errors=("SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "SERVICE_UNAVAILABLE"),
    responses=_READ_AGAIN,
)
@blueprint.arguments(ReleaseInputSchema())
@blueprint.response(
    200,
    SandboxSchema,
    description="Waits to be wiped",
    example=example_of(SandboxSchema(), **_ENDED, deletion_reason=DeletionReason.RELEASED.value),
)
@store_call
def release(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """End an allocation for its track.

    The sandbox goes to be wiped, as if its track had given it back. May be repeated.
    """
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().leases.release(sandbox_id=sandbox_id, lease_id=body["lease_id"], by=actor()).sandbox)


@blueprint.route("/sandboxes/<sandbox_id>/quarantine", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminQuarantine",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
    responses={200: {"links": link_to("adminRetryDeletion", _SAME) | link_to("adminLiftQuarantine", _SAME)}},
)
@blueprint.arguments(QuarantineInputSchema())
@blueprint.response(
    200,
    SandboxSchema,
    description="Set aside, or to be set aside once it is wiped",
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
    """Set a sandbox aside for a person.

    One that nobody uses is `deletion_failed` at once, until an operator has it wiped (`retry-deletion`) or removes it
    (`bulk-delete`). One that is held, or waits to be wiped, gets a flag: its track keeps it, it is wiped, and only then
    it is `deletion_failed`.
    """
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.quarantine(sandbox_id, reason=body["reason"], by=actor()))


@blueprint.route("/sandboxes/<sandbox_id>/quarantine", methods=["DELETE"], role=Role.OPERATOR, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminLiftQuarantine",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE"),
    responses=_READ_AGAIN,
)
@blueprint.response(200, SandboxSchema, description="Goes the usual way once it is wiped")
@store_call
def lift_quarantine(sandbox_id: str) -> Sandbox:
    """Let a sandbox that was to be set aside go the usual way.

    For one that is held or waits to be wiped. One that is `deletion_failed` already leaves that by `retry-deletion`.
    May be repeated.
    """
    require_plain("sandbox_id", sandbox_id)
    return _answer(services().operations.lift_quarantine(sandbox_id, by=actor()))


@blueprint.route(
    "/sandboxes/<sandbox_id>/retry-deletion", methods=["POST"], role=Role.OPERATOR, parameters=[SANDBOX_ID]
)
@blueprint.doc(
    operationId="adminRetryDeletion",
    errors=("SANDBOX_NOT_FOUND", "INVALID_TRANSITION", "SERVICE_UNAVAILABLE"),
    responses=_READ_AGAIN,
)
@blueprint.response(
    200,
    SandboxSchema,
    description="Waits to be wiped",
    example=example_of(SandboxSchema(), **_ENDED, deletion_reason=DeletionReason.RETRIED.value),
)
@store_call
def retry_deletion(sandbox_id: str) -> Sandbox:
    """Send a sandbox whose deletion failed back to be wiped.

    Its attempts are counted from zero again, and the next cleanup takes it.
    """
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
    """Send every sandbox whose deletion failed back to be wiped.

    Those that were put aside by an operator, too. May take up to 30 seconds; repeated, it goes on.
    """
    started = services().clock.monotonic()
    return {"retried": services().operations.bulk_retry(by=actor()), "duration_ms": _milliseconds_since(started)}


@blueprint.route("/bulk-delete", methods=["POST"], role=Role.ADMIN)
@blueprint.doc(operationId="adminBulkDelete", errors=("SERVICE_UNAVAILABLE", "TABLE_CHANGED"))
@blueprint.arguments(BulkDeleteQuerySchema(), location="query")
@blueprint.response(200, BulkDeletedSchema, description="How many were removed")
@bulk_store_call
def bulk_delete(query: dict[str, str]) -> dict[str, int]:
    """Remove all records of one status.

    Only records: the provider is not asked to delete anything. Of a dirty sandbox a tombstone is left, so that no sync
    takes it for a new one. May take up to 30 seconds; repeated, it goes on.
    """
    started = services().clock.monotonic()
    result = services().purger.bulk_delete(Status(query["status"]), by=actor())
    return {"deleted": result.removed, "duration_ms": _milliseconds_since(started)}


@blueprint.route("/pause", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminReadPauses",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.response(200, PausesSchema, description="What is paused")
@store_call
def read_pauses() -> Pauses:
    """Tell what is paused.

    What is paused stays so until an operator resumes it, whatever is restarted meanwhile.
    """
    return services().store.read_pauses()


@blueprint.route("/pause", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(
    operationId="adminSetPauses",
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.arguments(PausesInputSchema(), required=False)
@blueprint.response(200, PausesSchema, description="What is paused now")
@store_call
def set_pauses(body: dict[str, bool]) -> Pauses:
    """Pause or resume operations.

    Every process obeys within five seconds; what is under way is finished. A paused allocate answers 503 `PAUSED`, but
    to tracks that hold a sandbox; a paused job is skipped.
    """
    return services().pauses.set(body, by=actor())


def _answer(sandbox: Sandbox) -> Sandbox:
    (shown,) = services().inventory.show([sandbox])
    return shown


def _milliseconds_since(started: float) -> int:
    return round((services().clock.monotonic() - started) * 1000)
