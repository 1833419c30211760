"""The calls of an operator that book sandboxes for a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.auth import actor
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.caller import idempotency_key
from broker_api.errors import RequestInvalid
from broker_api.limits import bulk_store_call, store_call
from broker_api.openapi import RESERVATION_ID, answered_with
from broker_api.runtime import services
from broker_api.schemas.parts import example_of
from broker_api.schemas.reservations import (
    CHANGEABLE,
    BookingInputSchema,
    CapacityQuerySchema,
    CapacitySchema,
    ChangeInputSchema,
    CheckInputSchema,
    FitSchema,
    ReservationPageSchema,
    ReservationQuerySchema,
    ReservationSchema,
)
from broker_common.core.bookings import Wanted
from broker_common.core.errors import InvalidInput
from broker_common.core.principals import Role
from broker_common.core.reservation import ReservationState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_common.core.bookings import Fit
    from broker_common.core.capacity import CapacityPoint
    from broker_common.core.reservation import Reservation


_STORED = ReservationSchema().fields.keys() - {"state", "short_by"}

blueprint = Blueprint("reservations", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/reservations", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(
    operationId="adminBook",
    parameters=["booking_key"],
    errors=("CAPACITY_NOT_AVAILABLE", "IDEMPOTENCY_MISMATCH", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.arguments(BookingInputSchema())
@blueprint.response(201, ReservationSchema, description="The reservation, which is booked")
@blueprint.alt_response(
    200,
    schema=ReservationSchema,
    description="The reservation that was booked with this idempotency key, as it is now",
    headers=answered_with("Idempotent-Replayed"),
    success=True,
)
@bulk_store_call
def book(body: dict[str, Any]) -> dict[str, Any] | tuple[dict[str, Any], int, dict[str, str]]:
    """Book sandboxes for a class."""
    booked = services().bookings.book(_wanted(body), by=actor(), idempotency_key=idempotency_key())
    shown = _shown(booked.reservation)
    return (shown, 200, {"Idempotent-Replayed": "true"}) if booked.replayed else shown


@blueprint.route("/reservations/check", methods=["POST"], role=Role.OPERATOR)
@blueprint.doc(
    operationId="adminCheckBooking",
    errors=("RESERVATION_NOT_FOUND", "RESERVATION_NOT_OPEN", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.arguments(CheckInputSchema())
@blueprint.response(200, FitSchema, description="Whether it fits, and how many sandboxes could be had")
@bulk_store_call
def check(body: dict[str, Any]) -> Fit:
    """Say what booking would say, or the change of a reservation, and change nothing."""
    reservation_id = body.pop("reservation_id", None)
    return services().bookings.check(_wanted(body), reservation_id=reservation_id)


@blueprint.route("/reservations", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminListReservations", errors=("SERVICE_UNAVAILABLE",))
@blueprint.arguments(ReservationQuerySchema(), location="query")
@blueprint.response(200, ReservationPageSchema, description="A page of reservations")
@store_call
def list_reservations(query: dict[str, Any]) -> dict[str, Any]:
    """List reservations, the next ones first."""
    try:
        page = services().bookings.list(state=query.get("state"), limit=query["limit"], cursor=query.get("cursor"))
    except InvalidInput as error:
        raise RequestInvalid({"cursor": ["Is not from a listing of the same state."]}) from error
    return {
        "reservations": [_shown(each) for each in page.reservations],
        "count": len(page.reservations),
        "cursor": page.cursor,
    }


@blueprint.route("/reservations/<reservation_id>", methods=["GET"], role=Role.VIEWER, parameters=[RESERVATION_ID])
@blueprint.doc(operationId="adminReadReservation", errors=("RESERVATION_NOT_FOUND", "SERVICE_UNAVAILABLE"))
@blueprint.response(200, ReservationSchema, description="The reservation as it is now")
@store_call
def read(reservation_id: str) -> dict[str, Any]:
    """Read a reservation."""
    require_plain("reservation_id", reservation_id)
    return _shown(services().bookings.get(reservation_id))


@blueprint.route("/reservations/<reservation_id>", methods=["PATCH"], role=Role.OPERATOR, parameters=[RESERVATION_ID])
@blueprint.doc(
    operationId="adminChangeReservation",
    errors=(
        *("RESERVATION_NOT_FOUND", "CAPACITY_NOT_AVAILABLE", "RESERVATION_NOT_OPEN", "VERSION_MISMATCH"),
        *("SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
    ),
)
@blueprint.arguments(ChangeInputSchema(partial=CHANGEABLE), example={"count": 35, "version": 1})
@blueprint.response(200, ReservationSchema, description="The reservation after the change")
@bulk_store_call
def change(body: dict[str, Any], reservation_id: str) -> dict[str, Any]:
    """Change a reservation that has not ended."""
    require_plain("reservation_id", reservation_id)
    version = body.pop("version")
    return _shown(services().bookings.change(reservation_id, _in_core(body), version=version, by=actor()))


@blueprint.route("/reservations/<reservation_id>", methods=["DELETE"], role=Role.OPERATOR, parameters=[RESERVATION_ID])
@blueprint.doc(
    operationId="adminCancelReservation",
    errors=("RESERVATION_NOT_FOUND", "RESERVATION_NOT_OPEN", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.response(
    200,
    ReservationSchema,
    description="The reservation, which is cancelled",
    example=example_of(ReservationSchema(), state=ReservationState.CANCELLED.value, version=2, ended_at=1796000000),
)
@store_call
def cancel(reservation_id: str) -> dict[str, Any]:
    """Cancel a reservation, and make available what is set aside for it."""
    require_plain("reservation_id", reservation_id)
    return _shown(services().bookings.cancel(reservation_id, by=actor()))


@blueprint.route("/capacity", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminReadCapacity", errors=("SERVICE_UNAVAILABLE",))
@blueprint.arguments(CapacityQuerySchema(), location="query")
@blueprint.response(200, CapacitySchema, description="The curve")
@bulk_store_call
def read_capacity(query: dict[str, Any]) -> dict[str, Sequence[CapacityPoint]]:
    """Read how many sandboxes can be reserved, and how many are, over a time."""
    return {"points": services().bookings.capacity(**query)}


def _wanted(body: dict[str, Any]) -> Wanted:
    return Wanted(**_in_core(body))


def _in_core(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields as the core takes them."""
    return body | ({"track_names": tuple(body["track_names"])} if "track_names" in body else {})


def _shown(reservation: Reservation) -> dict[str, Any]:
    fields = {name: getattr(reservation, name) for name in _STORED}
    now = services().bookings.now()
    return fields | {"state": reservation.state_at(now), "short_by": reservation.short_by_at(now)}
