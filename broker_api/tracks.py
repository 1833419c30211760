"""The calls of a track: allocate, read, list, mark for deletion."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from broker_api.auth import actor, known_principal
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.caller import caller, require_caller
from broker_api.errors import RequestInvalid
from broker_api.limits import store_call
from broker_api.openapi import SANDBOX_ID, answered_with
from broker_api.runtime import services
from broker_api.schemas.tracks import (
    AllocationSchema,
    HeldSandboxesSchema,
    HeldSandboxSchema,
    MarkedSchema,
    MarkInputSchema,
)
from broker_common.core.allocation import AllocateRequest
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Claim, Sandbox

blueprint = Blueprint("tracks", __name__)
blueprint.before_request(require_caller)
blueprint.before_request(refuse_surplus)

Answer = TypeVar("Answer")

_TRACK = ["track_id", "track_id_alias"]


def _refuse_others_first(view: Callable[..., Answer]) -> Callable[..., Answer]:
    """Check that the calling track may read the sandbox before its malformed body is refused."""

    @wraps(view)
    def checked(sandbox_id: str) -> Answer:
        try:
            return view(sandbox_id=sandbox_id)
        except RequestInvalid:
            _read(sandbox_id)
            raise

    return checked


@store_call
def _read(sandbox_id: str) -> Sandbox:
    require_plain("sandbox_id", sandbox_id)
    return services().leases.read(track_id=caller().track_id, sandbox_id=sandbox_id)


@blueprint.route("/allocate", methods=["POST"], role=Role.TRACK)
@blueprint.doc(
    operationId="allocate",
    parameters=[*_TRACK, "track_name", "name_prefix", "idempotency_key", "reservation_to_draw_from"],
    errors=(
        *("RESERVATION_NOT_FOUND", "NO_SANDBOXES_AVAILABLE", "RESERVATION_NOT_OPEN"),
        *("SERVICE_UNAVAILABLE", "PAUSED", "TABLE_CHANGED"),
    ),
)
@blueprint.response(201, AllocationSchema, description="A newly allocated sandbox")
@blueprint.alt_response(
    200,
    schema=AllocationSchema,
    description="The sandbox that this track holds already under this idempotency key",
    headers=answered_with("Idempotent-Replayed"),
    success=True,
)
@store_call
def allocate() -> Claim | tuple[Claim, int, dict[str, str]]:
    """Allocate a sandbox to the calling track."""
    track = caller()
    allocation = services().allocator.allocate(
        AllocateRequest(
            track_id=track.track_id,
            idempotency_key=track.idempotency_key,
            prefix=track.prefix,
            track_name=track.track_name,
            customer=known_principal().customer,
            reservation_id=track.reservation_id,
        ),
        by=actor(),
    )
    if allocation.replayed:
        return allocation.claim, 200, {"Idempotent-Replayed": "true"}
    return allocation.claim


@blueprint.route("/sandboxes", methods=["GET"], role=Role.TRACK)
@blueprint.doc(
    operationId="listHeldSandboxes",
    parameters=_TRACK,
    errors=("SERVICE_UNAVAILABLE",),
)
@blueprint.response(200, HeldSandboxesSchema, description="The held sandboxes; an empty list if there are none")
@store_call
def list_held() -> dict[str, Any]:
    """List the sandboxes that the calling track holds."""
    held = services().leases.list_held(track_id=caller().track_id)
    return {"sandboxes": held, "count": len(held)}


@blueprint.route("/sandboxes/<sandbox_id>", methods=["GET"], role=Role.TRACK, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="readSandbox",
    parameters=_TRACK,
    errors=("NOT_SANDBOX_OWNER", "SANDBOX_NOT_FOUND", "SERVICE_UNAVAILABLE"),
)
@blueprint.response(200, HeldSandboxSchema, description="The sandbox as it is now")
def read(sandbox_id: str) -> Sandbox:
    """Read a sandbox that the calling track holds, or held last."""
    return _read(sandbox_id)


@blueprint.route(
    "/sandboxes/<sandbox_id>/mark-for-deletion", methods=["POST"], role=Role.TRACK, parameters=[SANDBOX_ID]
)
@blueprint.doc(
    operationId="markForDeletion",
    parameters=_TRACK,
    errors=("NOT_SANDBOX_OWNER", "SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "SERVICE_UNAVAILABLE"),
)
@_refuse_others_first
@blueprint.arguments(MarkInputSchema(), required=False)
@blueprint.response(200, MarkedSchema, description="Taken back. A late repetition shows the status of that moment")
@store_call
def mark_for_deletion(body: dict[str, str], sandbox_id: str) -> Sandbox:
    """Give a sandbox back, to be wiped."""
    require_plain("sandbox_id", sandbox_id)
    ending = services().leases.mark_for_deletion(
        track_id=caller().track_id, sandbox_id=sandbox_id, by=actor(), lease_id=body.get("lease_id")
    )
    return ending.sandbox
