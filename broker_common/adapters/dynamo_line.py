"""The line on DynamoDB: a place and its pointer are written and deleted together."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_conditions import only_of_place, unless_newer, unless_taken
from broker_common.adapters.dynamo_fields import Item, encode
from broker_common.adapters.dynamo_items import claim_key
from broker_common.adapters.dynamo_places import (
    LINE,
    decode_held,
    decode_place,
    encode_place,
    encode_pointer,
    place_key,
    renewable,
)
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core.store import ClaimHeld, JoinAnswer, Joined, PlaceHeld

if TYPE_CHECKING:
    from broker_common.core.line import Place

LINE_PAGE = 2000
"""Places in one page of a query: about 600 KB."""


class DynamoLine(DynamoBase):
    """`Line` on one DynamoDB table."""

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        """Implement the port: a consistent query of the line, page by page until there are enough places."""
        items = self._query(
            ConsistentRead=True,
            Limit=LINE_PAGE if limit is None else min(limit, LINE_PAGE),
            KeyConditionExpression="PK = :line",
            ExpressionAttributeValues={":line": {"S": LINE}},
        )
        places = (place for item in items if (place := self._readable(decode_place, item)))
        return list(islice(places, limit))

    def read_place(self, track_id: str, idempotency_key: str) -> Place | None:
        """Implement the port: consistent reads of the pointer and of the place."""
        item = self._get(claim_key(track_id, idempotency_key))
        held = self._read(decode_held, item) if item else None
        found = self._get(place_key(held.place_id)) if isinstance(held, PlaceHeld) else None
        return self._read(decode_place, found) if found else None

    def read_places(self, track_id: str) -> list[Place]:
        """Implement the port: a consistent query of the track's partition, and reads of its places."""
        held = [self._readable(decode_held, item) for item in self._query_claims(track_id)]
        keys = [place_key(each.place_id) for each in held if isinstance(each, PlaceHeld)]
        places = [self._readable(decode_place, item) for item in self._get_items(keys)]
        return sorted((each for each in places if each), key=lambda each: each.place_id)

    def join(self, place: Place) -> JoinAnswer:
        """Implement the port: one TransactWriteItems over the pointer and the place."""
        held = self._put(place)
        if isinstance(held, PlaceHeld) and held.place_id != place.place_id and not self._get(place_key(held.place_id)):
            # Nobody came back to that place, and DynamoDB has removed it. Its pointer is kept for longer.
            held = self._put(place, instead_of=held.place_id)
        return held or Joined()

    def renew(self, place: Place) -> bool:
        """Implement the port: an update of the place."""
        changes = renewable(place)
        to_set = [f"#{name} = :{name}" for name, value in changes.items() if value is not None]
        to_remove = [f"#{name}" for name, value in changes.items() if value is None]
        update = {
            "TableName": self._table,
            "Key": place_key(place.place_id),
            "UpdateExpression": "SET " + ", ".join(to_set) + (" REMOVE " + ", ".join(to_remove) if to_remove else ""),
            "ConditionExpression": "attribute_exists(PK)",
            "ExpressionAttributeNames": {f"#{name}": name for name in changes},
            "ExpressionAttributeValues": {
                f":{name}": encode(value) for name, value in changes.items() if value is not None
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            self._transport.write("update_item", **unless_newer(update))
        except ConditionFailed as failed:
            self._check(failed.answer.get("Item"))
            return False
        return True

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        """Implement the port: one TransactWriteItems over the place and its pointer."""
        condition, values = "attribute_exists(PK)", {}
        if unless_renewed:
            condition, values = "back_by = :back_by", {":back_by": encode(place.back_by)}
        delete = {
            "Delete": unless_newer(
                {
                    "TableName": self._table,
                    "Key": place_key(place.place_id),
                    "ConditionExpression": condition,
                    "ExpressionAttributeValues": values,
                    "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                }
            )
        }
        failed = self._transact(delete, self._remove_pointer(place))
        if failed is not None and failed[0]["Code"] != "ConditionalCheckFailed":
            failed = self._transact(delete)  # the claim's key has a claim or another place, which stays
        if failed is not None:
            self._check(failed[0].get("Item"))
        return failed is None

    def _put(self, place: Place, *, instead_of: str | None = None) -> ClaimHeld | PlaceHeld | None:
        """Write a place and its pointer, also over the pointer to `instead_of`. Return what is in the way, if any."""
        pointer = unless_taken({"TableName": self._table, "Item": encode_pointer(place)}, place_id=instead_of)
        failed = self._transact({"Put": pointer}, {"Put": {"TableName": self._table, "Item": encode_place(place)}})
        return self._held(failed[0]) if failed is not None else None

    def _remove_pointer(self, place: Place) -> Item:
        key = claim_key(place.track_id, place.idempotency_key)
        return {"Delete": unless_newer(only_of_place({"TableName": self._table, "Key": key}, place.place_id))}

    def _check(self, item: Item | None) -> None:
        """Raise `UnreadableRecord` if a write failed because its place cannot be read."""
        if item:
            self._read(decode_place, item)
