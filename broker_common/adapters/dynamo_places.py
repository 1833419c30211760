"""How places in the line look in the table.

A place is (`LINE`, `<place_id>`). Its pointer, which has only the place's id, is at the key of the claim that its track
may get: (`TRACK#<track>`, `CLAIM#<key>`). So a claim and a place never coexist, and an allocation needs no other read
for that. DynamoDB removes a place some time after nobody came back to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_fields import encode, encode_all, fields_of, read_fields
from broker_common.adapters.dynamo_items import TTL, claim_key, decode_claim
from broker_common.core import schema
from broker_common.core.errors import UnreadableRecord
from broker_common.core.line import Place, Wish, new_place_id
from broker_common.core.store import ClaimHeld, PlaceHeld

if TYPE_CHECKING:
    from broker_common.adapters.dynamo_fields import Item

LINE = "LINE"
"""The partition key of all places."""
_DAY_SEC = 24 * 3600
_POINTER_DAYS = 90
_SEPARATOR = ","
_PLACE_FIELDS = fields_of(
    {"track_id": str, "idempotency_key": str, "prefix": str, "round": int, "joined_at": int, "back_by": int},
    {"reservations": str, "customer": str, "track_name": str, "schema": int},
)
_POINTER_FIELDS = fields_of({"place_id": str}, {"schema": int})


def place_key(place_id: str) -> Item:
    """Return the key of a place."""
    return {"PK": {"S": LINE}, "SK": {"S": place_id}}


def encode_place(place: Place) -> Item:
    """Return a place's whole item."""
    flat = {
        "track_id": place.track_id,
        "idempotency_key": place.idempotency_key,
        "prefix": place.wish.prefix,
        "round": place.round,
        "joined_at": place.joined_at,
        "customer": place.customer,
        "track_name": place.track_name,
        **renewable(place),
    }
    return {**place_key(place.place_id), **encode_all(flat), "schema": encode(schema.WRITTEN)}


def renewable(place: Place) -> dict[str, int | str | None]:
    """Return the attributes of a place that its renewal changes; None for one that is removed."""
    return {
        "back_by": place.back_by,
        TTL: place.back_by + _DAY_SEC,
        "reservations": _SEPARATOR.join(place.wish.reservations) or None,
    }


def decode_place(item: Item) -> Place:
    """Return the place of an item; raises `UnreadableRecord`."""
    try:
        return _place_of(item)
    except ValueError as error:
        track_id = item.get("track_id", {}).get("S")
        raise UnreadableRecord(f"place {item['SK']['S']!r}", str(error), track_id=track_id) from error


def _place_of(item: Item) -> Place:
    values = read_fields(item, _PLACE_FIELDS)
    place_id: str = item["SK"]["S"]
    if not place_id.startswith(new_place_id(values["round"], values["joined_at"], "")):
        raise ValueError("round and joined_at are not those of its key")
    reservations = values.get("reservations")
    return Place(
        place_id=place_id,
        track_id=values["track_id"],
        idempotency_key=values["idempotency_key"],
        wish=Wish(prefix=values["prefix"], reservations=tuple(reservations.split(_SEPARATOR)) if reservations else ()),
        round=values["round"],
        joined_at=values["joined_at"],
        back_by=values["back_by"],
        customer=values.get("customer"),
        track_name=values.get("track_name"),
    )


def encode_pointer(place: Place) -> Item:
    """Return the whole item at a claim's key that says that its track waits at a place."""
    return {
        **claim_key(place.track_id, place.idempotency_key),
        "place_id": encode(place.place_id),
        TTL: encode(place.joined_at + _POINTER_DAYS * _DAY_SEC),
        "schema": encode(schema.WRITTEN),
    }


def decode_held(item: Item) -> ClaimHeld | PlaceHeld:
    """Return the claim that the item at a claim's key is, or the place that it points to; raises `UnreadableRecord`."""
    if "place_id" not in item or "lease_id" in item:
        return ClaimHeld(decode_claim(item))
    try:
        return PlaceHeld(read_fields(item, _POINTER_FIELDS)["place_id"])
    except ValueError as error:
        track_id = item["PK"]["S"].removeprefix("TRACK#")
        raise UnreadableRecord(f"a place of track {track_id!r}", str(error), track_id=track_id) from error
