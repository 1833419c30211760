"""The calls of a track: allocate, wait in line, read, list, mark for deletion."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from flask import jsonify

from broker_api.auth import actor, known_principal
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.caller import caller, require_caller
from broker_api.errors import RequestInvalid
from broker_api.holding import Holding
from broker_api.limits import held_call, store_call
from broker_api.openapi import SANDBOX_ID, answered_with
from broker_api.preferences import preferred_wait, wait_applied
from broker_api.runtime import runtime, services
from broker_api.schemas.line import OwnPlacesSchema, WaitingSchema
from broker_api.schemas.tracks import (
    AllocationInputSchema,
    AllocationSchema,
    ExtendedSchema,
    ExtendInputSchema,
    HeldSandboxesSchema,
    HeldSandboxSchema,
    MarkedSchema,
    MarkInputSchema,
)
from broker_common.core.allocation import AllocateRequest
from broker_common.core.principals import Role
from broker_common.core.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Response

    from broker_common.core.leases import Extension
    from broker_common.core.sandbox import Claim, Sandbox

blueprint = Blueprint("tracks", __name__)
blueprint.before_request(require_caller)
blueprint.before_request(refuse_surplus)

Answer = TypeVar("Answer")

_TRACK = ["track_id", "track_id_alias"]
_WAITING = WaitingSchema()


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
    parameters=[*_TRACK, "track_name", "name_prefix", "idempotency_key", "prefer_line", "reservation_to_draw_from"],
    errors=(
        *("RESERVATION_NOT_FOUND", "NO_SANDBOXES_AVAILABLE", "RESERVATION_NOT_OPEN"),
        *("SERVICE_UNAVAILABLE", "PAUSED", "TABLE_CHANGED", "UPGRADE_UNFINISHED"),
    ),
)
@blueprint.response(
    201, AllocationSchema, description="A newly allocated sandbox", headers=answered_with("Preference-Applied")
)
@blueprint.alt_response(
    202,
    schema=WaitingSchema,
    description="The track waits in line. Send the same request again after `Retry-After` to go on waiting",
    headers=answered_with("Retry-After", "Preference-Applied"),
    success=True,
)
@blueprint.alt_response(
    200,
    schema=AllocationSchema,
    description="The sandbox that this track holds already under this idempotency key",
    headers=answered_with("Idempotent-Replayed", "Preference-Applied"),
    success=True,
)
@blueprint.arguments(AllocationInputSchema(), required=False)
@held_call
def allocate(body: dict[str, int]) -> tuple[Claim | Response, int, dict[str, str]]:
    """Allocate a sandbox to the calling track."""
    track, wait_sec, duration_sec = caller(), preferred_wait(), body.get("duration_sec")
    if duration_sec is not None:
        _check_duration(duration_sec)
    asked = AllocateRequest(
        track_id=track.track_id,
        idempotency_key=track.idempotency_key,
        prefix=track.prefix,
        track_name=track.track_name,
        duration_sec=duration_sec,
        customer=known_principal().customer,
        wait_sec=wait_sec,
        reservation_id=track.reservation_id,
    )
    with Holding() as holding:
        result = services().allocator.allocate(asked, by=actor(), may_hold=holding.may_hold)
    applied = wait_applied(wait_sec)
    if isinstance(result, Waiting):
        return jsonify(_WAITING.dump(result)), 202, {"Retry-After": str(result.retry_after)} | applied
    if result.replayed:
        return result.claim, 200, {"Idempotent-Replayed": "true"} | applied
    return result.claim, 201, applied


@blueprint.route("/waiting", methods=["GET"], role=Role.TRACK)
@blueprint.doc(operationId="listWaiting", parameters=_TRACK, errors=("SERVICE_UNAVAILABLE",))
@blueprint.response(200, OwnPlacesSchema, description="The places; an empty list if there are none")
@store_call
def list_waiting() -> dict[str, Any]:
    """List the calling track's places in the line."""
    places = services().line.places_of(caller().track_id)
    return {"places": places, "count": len(places)}


@blueprint.route("/waiting", methods=["DELETE"], role=Role.TRACK)
@blueprint.doc(operationId="giveUpWaiting", parameters=[*_TRACK, "idempotency_key"], errors=("SERVICE_UNAVAILABLE",))
@blueprint.empty_response(description="The track does not wait under this key, or does no longer")
@store_call
def give_up_waiting() -> None:
    """Give up the calling track's place in the line."""
    track = caller()
    services().line.give_up(track.track_id, track.idempotency_key)


def _check_duration(duration_sec: int) -> None:
    longest = runtime().settings.policy.max_lab_duration_sec
    if duration_sec > longest:
        raise RequestInvalid({"duration_sec": [f"Must be at most {longest} (MAX_LAB_DURATION_HOURS)."]})


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


@blueprint.route("/sandboxes/<sandbox_id>/extend", methods=["POST"], role=Role.TRACK, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="extend",
    parameters=_TRACK,
    errors=(
        *("NOT_SANDBOX_OWNER", "SANDBOX_NOT_FOUND", "LEASE_MISMATCH", "ALLOCATION_ENDED", "DURATION_LIMIT"),
        *("SERVICE_UNAVAILABLE", "TABLE_CHANGED"),
    ),
)
@_refuse_others_first
@blueprint.arguments(ExtendInputSchema())
@blueprint.response(200, ExtendedSchema, description="The lease, which lasts at least as long as asked")
@store_call
def extend(body: dict[str, Any], sandbox_id: str) -> Extension:
    """Have a lease last longer."""
    require_plain("sandbox_id", sandbox_id)
    return services().leases.extend(track_id=caller().track_id, sandbox_id=sandbox_id, by=actor(), **body)


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
