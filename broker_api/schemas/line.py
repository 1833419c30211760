"""The bodies and queries of the calls about the line of waiting tracks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, pre_dump, validate

from broker_api.schemas.parts import (
    PLACE_ID,
    StrictInteger,
    number_field,
    optional_number_field,
    optional_text_field,
    optional_time_field,
    text_field,
    time_field,
)

if TYPE_CHECKING:
    from broker_common.core.waiting import ListedPlace, Waiting

_MAX_LISTED = 1000
_POSITION = "Its position in the line, from 1 on"
_JOINED_AT = "When the track joined the line"
_KEPT_UNTIL = "Until when the place is kept if the track does not repeat its request"
_PREFIX = "From the header `X-Sandbox-Name-Prefix`; empty if any name will do"


class OutlookSchema(Schema):
    """Why there is no sandbox for the track. The numbers are those of the whole pool, and some seconds old."""

    available = optional_number_field("Sandboxes that are free, for other names or for tracks ahead", 0)
    reserved = optional_number_field("Sandboxes that are set aside for reservations", 20)
    waiting = number_field("Tracks that wait in line", 3)
    pending_deletion = optional_number_field("Sandboxes that wait for their wipe", 4)
    next_due_at = optional_time_field("An estimate of when the next sandbox comes back", 1759575300)


class WaitingSchema(Schema):
    """The place in the line of a track that waits."""

    @pre_dump
    def _flatten(self, waiting: Waiting, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        return {"state": "waiting", "details": waiting.details, **_standing(waiting)}

    state = text_field("waiting", "Always `waiting`")
    position = number_field(_POSITION, 3)
    waiting = number_field("How many tracks wait", 3)
    joined_at = time_field(_JOINED_AT)
    place_kept_until = time_field(_KEPT_UNTIL, 1759575558)
    expected_by = optional_time_field("An estimate of when so many sandboxes have come back", 1759575600)
    details = fields.Nested(OutlookSchema, required=True, metadata={"description": "Why there is no sandbox yet"})


class OwnPlaceSchema(Schema):
    """A place of the calling track."""

    @pre_dump
    def _flatten(self, waiting: Waiting, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        place = waiting.place
        return {"idempotency_key": place.idempotency_key, "name_prefix": place.wish.prefix, **_standing(waiting)}

    idempotency_key = text_field("track-4711", "The key of the allocate that waits")
    name_prefix = text_field("", _PREFIX)
    position = number_field(_POSITION, 3)
    waiting = number_field("How many tracks wait", 3)
    joined_at = time_field(_JOINED_AT)
    place_kept_until = time_field(_KEPT_UNTIL, 1759575558)
    expected_by = optional_time_field("An estimate of when so many sandboxes have come back", 1759575600)


class OwnPlacesSchema(Schema):
    """The places of the calling track."""

    places = fields.List(fields.Nested(OwnPlaceSchema), required=True, metadata={"description": "In their order"})
    count = number_field("How many are in `places`", 1)


class PlaceSchema(Schema):
    """A place in the line."""

    @pre_dump
    def _flatten(self, listed: ListedPlace, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        place = listed.place
        return {
            "place_id": place.place_id,
            "position": listed.position,
            "track_id": place.track_id,
            "idempotency_key": place.idempotency_key,
            "track_name": place.track_name,
            "customer": place.customer,
            "name_prefix": place.wish.prefix,
            "joined_at": place.joined_at,
            "back_by": place.back_by,
            "place_kept_until": listed.kept_until,
            "late": listed.is_late,
        }

    place_id = text_field(PLACE_ID, "Names the place")
    position = number_field(_POSITION, 1)
    track_id = text_field("track-4711", "The track that waits")
    idempotency_key = text_field("track-4711", "The key of its allocate")
    track_name = optional_text_field("intro-to-dns", "From the header `X-Instruqt-Track-ID`; else null")
    customer = optional_text_field(None, "The customer of its token; else null")
    name_prefix = text_field("", _PREFIX)
    joined_at = time_field(_JOINED_AT)
    back_by = time_field("When the track should be back", 1759574958)
    place_kept_until = time_field(_KEPT_UNTIL, 1759575558)
    late = fields.Boolean(
        required=True,
        metadata={
            "example": False,
            "description": "The track is more than 5 s late. It is passed over until it is back",
        },
    )


class LineSchema(Schema):
    """The line, or its begin."""

    places = fields.List(fields.Nested(PlaceSchema), required=True, metadata={"description": "In their order"})
    count = number_field("How many are in `places`", 1)
    waiting = number_field("How many tracks wait in all", 1)


class LineQuerySchema(Schema):
    """How much of the line to list."""

    limit = StrictInteger(
        load_default=100,
        validate=validate.Range(1, _MAX_LISTED),
        metadata={"description": "How many places, from the first one on"},
    )


def _standing(waiting: Waiting) -> dict[str, Any]:
    return {
        "position": waiting.position,
        "waiting": waiting.waiting,
        "joined_at": waiting.place.joined_at,
        "place_kept_until": waiting.kept_until,
        "expected_by": waiting.expected_by,
    }
