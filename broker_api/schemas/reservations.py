"""The bodies and queries of the calls that book sandboxes for a class."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from broker_api.caller import MAX_LENGTH, find_fault
from broker_api.schemas.parts import (
    MAX_CURSOR,
    RESERVATION_ID,
    StrictInteger,
    enum_field,
    given_number_field,
    number_field,
    optional_text_field,
    optional_time_field,
    plain_field,
    reason_field,
    text_field,
    time_field,
)
from broker_common.core.bookings import MAX_COUNT, MAX_LEAD_SEC, MAX_TRACK_NAMES
from broker_common.core.reservation import OPENS_BEFORE_SEC, ReservationState

DAY_SEC = 24 * 3600
MAX_DAYS = 90
"""How many days a reservation may last, and a curve of the capacity may cover."""
_LATEST = 4_102_444_800
"""The year 2100. A later time was most likely given in milliseconds."""
_STARTS_AT, _ENDS_AT = 1796112000, 1796122800
_NAME, _LAB, _PREFIX = "Networking 101", "networking-101", "lab-"
_CUSTOMER = "Only tracks of this customer may draw; null: tracks of every customer"
_HOLD = "What nobody has drawn so long after `starts_at` becomes available again; null: only at the end"


def _moment_field(example: int, description: str) -> fields.Integer:
    metadata = {"example": example, "description": f"{description}, in Unix seconds"}
    return given_number_field(metadata, low=0, high=_LATEST, required=True)


def _check_prefix(text: str) -> None:
    fault = find_fault(text) if text else None
    if fault is not None:
        raise ValidationError(fault)


def _check_track_names(names: list[str]) -> None:
    if len(names) > MAX_TRACK_NAMES:
        raise ValidationError(f"Must not have more than {MAX_TRACK_NAMES} names.")
    if len(set(names)) < len(names):
        raise ValidationError("Must have each name once.")


class BookingInputSchema(Schema):
    """What to book."""

    @validates_schema
    def _check_times(self, values: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - marshmallow's options
        if values.keys() >= {"starts_at", "ends_at"}:
            length = values["ends_at"] - values["starts_at"]
            if length <= 0:
                raise ValidationError("Must be later than starts_at.", field_name="ends_at")
            if length > MAX_DAYS * DAY_SEC:
                raise ValidationError(f"Must be at most {MAX_DAYS} days after starts_at.", field_name="ends_at")

    name = plain_field({"example": _NAME, "description": "What people call it"}, required=True)
    count = given_number_field(
        {"example": 30, "description": "How many sandboxes to set aside"}, low=1, high=MAX_COUNT, required=True
    )
    starts_at = _moment_field(_STARTS_AT, "When the class starts. Tracks may draw ten minutes earlier")
    ends_at = _moment_field(_ENDS_AT, "When what nobody has drawn becomes available again")
    prefix = fields.String(
        validate=_check_prefix,
        metadata={
            "maxLength": MAX_LENGTH,
            "pattern": "^[ -~]*$",
            "example": _PREFIX,
            "description": "Only sandboxes whose name starts with this; empty: sandboxes of any name",
        },
    )
    track_names = fields.List(
        plain_field({"example": _LAB}),
        validate=_check_track_names,
        metadata={
            "maxItems": MAX_TRACK_NAMES,
            "uniqueItems": True,
            "example": [_LAB],
            "description": "The labs whose tracks may draw, as they name them in `X-Instruqt-Track-ID`. Tracks of other"
            " labs must name the reservation in `X-Reservation-ID`",
        },
    )
    customer = plain_field({"description": _CUSTOMER}, allow_none=True)
    lead_sec = given_number_field(
        {"example": 900, "description": "How long before `starts_at` sandboxes are set aside from; 900 if left out"},
        low=OPENS_BEFORE_SEC,
        high=MAX_LEAD_SEC,
    )
    hold_sec = fields.Integer(
        strict=True,
        allow_none=True,
        validate=validate.Range(min=0, max=MAX_DAYS * DAY_SEC),
        metadata={"description": _HOLD},
    )
    note = reason_field({"description": "For people, one line; else null"}, required=False, allow_none=True)


class CheckInputSchema(BookingInputSchema):
    """What would be booked, or what a reservation would be changed to."""

    reservation_id = plain_field(
        {"description": "The reservation that would be changed to this. What it takes now does not count"},
        allow_none=True,
    )


class ChangeInputSchema(BookingInputSchema):
    """What to change. Fields that are left out stay as they are."""

    version = given_number_field(
        {"example": 1, "description": "The `version` that was read; it must still be the present one"},
        low=0,
        high=2**53,
        required=True,
    )


CHANGEABLE = tuple(BookingInputSchema().fields)


class ReservationSchema(Schema):
    """Sandboxes set aside for a class."""

    reservation_id = text_field(RESERVATION_ID, "Names it, also in the header `X-Reservation-ID`")
    name = text_field(_NAME, "What people call it")
    count = number_field("How many sandboxes it is for", 30)
    starts_at = time_field("When the class starts", _STARTS_AT)
    ends_at = time_field("When what nobody has drawn becomes available again", _ENDS_AT)
    prefix = text_field(_PREFIX, "Only sandboxes whose name starts with this; empty: sandboxes of any name")
    track_names = fields.List(
        fields.String(metadata={"example": _LAB}),
        required=True,
        metadata={"description": "The labs whose tracks may draw without naming it"},
    )
    customer = optional_text_field(None, _CUSTOMER)
    lead_sec = number_field("How long before `starts_at` sandboxes are set aside from", 900)
    hold_sec = fields.Integer(required=True, allow_none=True, metadata={"example": None, "description": _HOLD})
    note = optional_text_field(None, "For people; else null")
    state = enum_field(
        ReservationState,
        {
            "example": ReservationState.SCHEDULED.value,
            "description": "`filling` from `fills_at` on, `open` from `opens_at` to `ends_at`",
        },
        required=True,
    )
    version = number_field("Send it with a change. Only changes and the cancel count it up", 1)
    set_aside = number_field("How many sandboxes are set aside for it now")
    drawn = number_field("How many leases have begun from it")
    short_by = number_field("How many sandboxes it lacks now", 0)
    fills_at = time_field("From when on sandboxes are set aside", _STARTS_AT - 900)
    opens_at = time_field("From when on tracks may draw", _STARTS_AT - 600)
    created_at = time_field("When it was booked", 1795000000)
    created_by = text_field("anna", "The principal that booked it")
    ended_at = optional_time_field("When it ended or was cancelled")


class ReservationQuerySchema(Schema):
    """Which reservations to list."""

    state = enum_field(ReservationState, {"description": "Only reservations in this state"})
    limit = StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=100),
        metadata={"description": "How many reservations a page has at most: 1 to 100"},
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR),
        metadata={"description": "The `cursor` of the page before; send the same `state` with it"},
    )


class ReservationPageSchema(Schema):
    """A page of reservations."""

    reservations = fields.List(fields.Nested(ReservationSchema), required=True)
    count = number_field("How many are in `reservations`", 1)
    cursor = optional_text_field(None, "Send it to read the next page; null on the last page")


class FitSchema(Schema):
    """Whether a reservation could be booked."""

    fits = fields.Boolean(
        required=True, metadata={"example": True, "description": "It could be booked now, just as it was asked for"}
    )
    could_have = number_field("How many sandboxes could be had at most", 64)


class CapacityQuerySchema(Schema):
    """Which time and which sandboxes to look at."""

    @validates_schema
    def _check_range(self, values: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - marshmallow's options
        length = values["until"] - values["since"]
        if length <= 0:
            raise ValidationError("Must be later than from.", field_name="to")
        if length > MAX_DAYS * DAY_SEC:
            raise ValidationError(f"Must be at most {MAX_DAYS} days after from.", field_name="to")

    since = StrictInteger(
        data_key="from",
        required=True,
        validate=validate.Range(min=0, max=_LATEST),
        metadata={"example": _STARTS_AT, "description": "Where the curve begins, in Unix seconds"},
    )
    until = StrictInteger(
        data_key="to",
        required=True,
        validate=validate.Range(min=0, max=_LATEST),
        metadata={"example": _ENDS_AT, "description": f"Where it ends, at most {MAX_DAYS} days later"},
    )
    prefix = plain_field({"description": "Only sandboxes whose name starts with this"})


class CapacityPointSchema(Schema):
    """What can be reserved from a moment on, until the next point."""

    at = time_field("From when on", _STARTS_AT)
    reservable = number_field("How many sandboxes can be reserved in all", 80)
    reserved = number_field("How many of these are booked already", 30)


class CapacitySchema(Schema):
    """The curve of what can be reserved."""

    points = fields.List(
        fields.Nested(CapacityPointSchema),
        required=True,
        metadata={"description": "In the order of time. Each holds until the next one, and the last one until `to`"},
    )
