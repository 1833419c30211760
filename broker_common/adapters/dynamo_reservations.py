"""Reservations on DynamoDB: their records, and the counters that the transactions of sandboxes change.

One that was not archived is (`POOL`, `RESERVATION#<id>`); (`POOL`, `BOOKINGS`) has the version of all of them together.
An archived one is (`RESERVATION#<id>`, `RESERVATION`), has a TTL, and is in the index at `reservation#ended`.

`lacking` is stored beside the counters, because conditions of DynamoDB have no arithmetic.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_conditions import unless_newer
from broker_common.adapters.dynamo_fields import Item, encode, encode_all, fields_of, read_cursor, read_fields
from broker_common.adapters.dynamo_items import TTL, reserved_key
from broker_common.adapters.dynamo_table import INDEX
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core import schema
from broker_common.core.errors import InvalidInput, UnreadableRecord
from broker_common.core.ids import new_id
from broker_common.core.reservation import MAX_TEXT, Reservation, ReservationStage, is_same
from broker_common.core.sandbox import ORDER_LIMIT
from broker_common.core.store import Conflict, OpenReservations, ReservationPage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.facts import Change, PoolFact
    from broker_common.core.sandbox import Candidate

KEPT_SEC = 90 * 24 * 3600
"""How long a reservation is kept after its end."""
_BOOKINGS_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "BOOKINGS"}}
_PREFIX = "RESERVATION#"
_ENDED = "reservation#ended"
"""The index's place of archived reservations."""
_FIELDS = fields_of(
    {
        "reservation_id": str,
        "name": str,
        "count": int,
        "starts_at": int,
        "ends_at": int,
        "track_names": str,
        "lead_sec": int,
        "stage": ReservationStage,
        "version": int,
        "set_aside": int,
        "drawn": int,
        "created_at": int,
        "created_by": str,
    },
    {
        "prefix": str,
        "customer": str,
        "hold_sec": int,
        "note": str,
        "opened_at": int,
        "ended_at": int,
        "request_hash": str,
        "schema": int,
    },
)
_VERSION = fields_of({"version": int}, {})
_MOST_OF_IN = 100
"""How many operands DynamoDB allows after `IN`."""
_COUNTERS = {"set_aside", "drawn", "lacking"}


def draw(table: str, candidate: Candidate, *, at: int) -> list[Item]:
    """Build the write by which a lease that begins at `at` is drawn from the reservation of its sandbox, if any."""
    if candidate.reservation_id is None:
        return []
    return [
        _count(
            table,
            candidate.reservation_id,
            {"set_aside": "-", "drawn": "+"},
            "stage = :booked AND set_aside > :zero AND opens_at <= :at AND ends_at > :at",
            {":booked": encode(ReservationStage.BOOKED), ":at": encode(at)},
        )
    ]


def counters(table: str, change: Change) -> list[Item]:
    """Build the write by which the counters of a reservation follow a change of a sandbox, if they do."""
    before = change.before.reservation_id if change.before else None
    after = change.after.reservation_id if change.after else None
    if before == after:
        return []
    if before is not None and after is not None:
        raise ValueError(f"sandbox {change.sandbox_id}: it leaves one reservation before it is set aside for another")
    if after is not None:
        at = change.result.updated_at
        fits, prefixes = _fits(change.result.name)
        return [
            _count(
                table,
                after,
                {"set_aside": "+", "lacking": "-"},
                f"stage = :booked AND lacking > :zero AND fills_at <= :at AND held_until > :at AND ({fits})",
                {":booked": encode(ReservationStage.BOOKED), ":at": encode(at), **prefixes},
            )
        ]
    return [
        _count(
            table,
            str(before),
            {"set_aside": "-", "lacking": "+"},
            "set_aside > :zero",
            {},
        )
    ]


def _fits(name: str) -> tuple[str, Item]:
    """Build the condition that a sandbox's name starts with the reservation's prefix, and its values."""
    values = {f":p{length}": encode(name[:length]) for length in range(1, min(len(name), MAX_TEXT) + 1)}
    names = list(values)
    lists = [", ".join(names[first : first + _MOST_OF_IN]) for first in range(0, len(names), _MOST_OF_IN)]
    return " OR ".join(["attribute_not_exists(prefix)", *map("prefix IN ({})".format, lists)]), values


def _count(table: str, reservation_id: str, changes: Mapping[str, str], condition: str, values: Item) -> Item:
    # Ministack computes the new values of a record that is gone before it looks at the condition.
    counted = [f"{name} = if_not_exists({name}, :zero) {sign} :one" for name, sign in changes.items()]
    update = {
        "TableName": table,
        "Key": _key(reservation_id),
        "UpdateExpression": "SET " + ", ".join(counted),
        "ConditionExpression": condition,
        "ExpressionAttributeValues": {":one": encode(1), ":zero": encode(0), **values},
    }
    return {"Update": unless_newer(update)}


class DynamoOpenReservations(DynamoBase):
    """Reads of the reservations that were not archived, for the parts of the store that need them."""

    def read_booked(self) -> tuple[Reservation, ...]:
        """Implement the port: a consistent query."""
        items = self._query(
            ConsistentRead=True,
            KeyConditionExpression="PK = :pool AND begins_with(SK, :reservation)",
            ExpressionAttributeValues={":pool": _BOOKINGS_KEY["PK"], ":reservation": {"S": _PREFIX}},
        )
        return tuple(each for item in items if (each := self._readable(_decode, item)))

    def _reserved_places(self) -> list[str]:
        """Return the index's partition keys where reserved sandboxes may be, in order."""
        now = self._clock.now()
        ids = (each.reservation_id for each in self.read_booked() if each.set_aside or each.is_filled_at(now))
        return sorted(map(reserved_key, ids))


class DynamoReservations(DynamoOpenReservations):
    """`ReservationRecords` on one DynamoDB table."""

    def read_reservations(self) -> OpenReservations:
        """Implement the port: a consistent read of the version, then a consistent query of the reservations."""
        item = self._get(_BOOKINGS_KEY)
        version = self._read(_decode_version, item) if item else 0
        return OpenReservations(version, self.read_booked())

    def read_reservation(self, reservation_id: str) -> Reservation | None:
        """Implement the port: consistent reads of both places where the record may be."""
        # It may be archived between the two reads, but never comes back.
        for key in (_key(reservation_id), _archive_key(reservation_id)):
            if item := self._get(key):
                return self._read(_decode, item)
        return None

    def write_reservation(
        self, before: Reservation | None, after: Reservation, *, version: int, fact: PoolFact | None = None
    ) -> None:
        """Implement the port: one TransactWriteItems over the reservation, the bookings' version, and the fact."""
        if before is None:
            put = {
                "TableName": self._table,
                "Item": {**_key(after.reservation_id), **_encode(after)},
                "ConditionExpression": "attribute_not_exists(PK)",
            }
            write: Item = {"Put": put}
        else:
            write = {"Update": unless_newer(self._change_of(before, after))}
        facts = [] if fact is None else self._put_pool_fact(fact)
        self._write_or_conflict(after, write, self._next_version(version), *facts)

    def mark_opened(self, reservation: Reservation, fact: PoolFact) -> None:
        """Implement the port: one TransactWriteItems over the reservation and the fact."""
        update = {
            "TableName": self._table,
            "Key": _key(reservation.reservation_id),
            "UpdateExpression": "SET opened_at = :at",
            "ConditionExpression": "stage = :booked AND version = :version AND attribute_not_exists(opened_at)",
            "ExpressionAttributeValues": {
                ":version": encode(reservation.version),
                ":at": encode(reservation.opened_at or fact.at),
                ":booked": encode(ReservationStage.BOOKED),
            },
        }
        self._write_or_conflict(None, {"Update": unless_newer(update)}, *self._put_pool_fact(fact))

    def archive_reservation(self, reservation: Reservation) -> None:
        """Implement the port: one TransactWriteItems that deletes one record and puts the other."""
        ended_at = reservation.ended_at or reservation.ends_at
        archived = {
            **_encode(reservation),
            **_archive_key(reservation.reservation_id),
            "status_key": {"S": _ENDED},
            "status_order": encode(ended_at),
            TTL: encode(ended_at + KEPT_SEC),
        }
        delete = {
            "TableName": self._table,
            "Key": _key(reservation.reservation_id),
            "ConditionExpression": "stage = :stage AND set_aside = :zero AND drawn = :drawn",
            "ExpressionAttributeValues": {
                ":stage": encode(reservation.stage),
                ":zero": encode(0),
                ":drawn": encode(reservation.drawn),
            },
        }
        put = {"TableName": self._table, "Item": archived}
        try:
            self._write_or_conflict(None, {"Delete": unless_newer(delete)}, {"Put": put})
        except Conflict:
            if self._get(_archive_key(reservation.reservation_id)) is None:
                raise

    def list_archived(self, *, limit: int, cursor: str | None) -> ReservationPage:
        """Implement the port: a query of the index, backwards; then consistent reads."""
        request: Item = {
            "TableName": self._table,
            "IndexName": INDEX,
            "Limit": limit,
            "ScanIndexForward": False,
            "KeyConditionExpression": "status_key = :ended",
            "ExpressionAttributeValues": {":ended": {"S": _ENDED}},
            "ProjectionExpression": "PK, SK, status_key, status_order",
        }
        if cursor is not None:
            request["ExclusiveStartKey"] = _decode_cursor(cursor)
        answer = self._transport.read("query", **request)
        keys = [{"PK": item["PK"], "SK": item["SK"]} for item in answer["Items"]]
        items = {item["PK"]["S"]: item for item in self._get_items(keys)}
        found = [items[key["PK"]["S"]] for key in keys if key["PK"]["S"] in items]
        reservations = tuple(each for item in found if (each := self._readable(_decode, item)))
        last = answer.get("LastEvaluatedKey")
        return ReservationPage(reservations, _encode_cursor(last) if last else None)

    def _change_of(self, before: Reservation, after: Reservation) -> Item:
        """Build an update of the fields that differ, on condition that nobody else has changed or ended it."""
        old, new = _flatten(before), _flatten(after)
        changed = {name: new[name] for name in new if new[name] != old[name] and name not in _COUNTERS}
        to_set = [f"#{name} = :{name}" for name, value in changed.items() if value is not None]
        to_remove = [f"#{name}" for name, value in changed.items() if value is None]
        values = {f":{name}": encode(value) for name, value in changed.items() if value is not None}
        condition = "version = :version_was AND stage = :stage_was"
        values |= {":version_was": encode(before.version), ":stage_was": encode(before.stage)}
        if after.count != before.count:
            to_set.append("lacking = lacking + :more")
            values[":more"] = encode(after.count - before.count)
        if after.starts_at != before.starts_at:
            condition += " AND " + _is_still(before, "opened_at", values)
        if after.count < before.count:
            condition += " AND lacking >= :fewer"
            values[":fewer"] = encode(before.count - after.count)
        return {
            "TableName": self._table,
            "Key": _key(before.reservation_id),
            "UpdateExpression": "SET " + ", ".join(to_set) + (" REMOVE " + ", ".join(to_remove) if to_remove else ""),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {f"#{name}": name for name in changed},
            "ExpressionAttributeValues": values,
        }

    def _next_version(self, version: int) -> Item:
        condition = "attribute_not_exists(PK) OR version = :was" if version == 0 else "version = :was"
        update = {
            "TableName": self._table,
            "Key": _BOOKINGS_KEY,
            "UpdateExpression": "SET version = :next",
            "ConditionExpression": condition,
            "ExpressionAttributeValues": {":was": encode(version), ":next": encode(version + 1)},
        }
        return {"Update": unless_newer(update)}

    def _write_or_conflict(self, after: Reservation | None, *actions: Item) -> None:
        """Send a transaction. Raises `Conflict` if a condition fails, unless the stored record is as `after` already.

        Then it was our own write, whose answer was lost.
        """
        try:
            self._transport.write(
                "transact_write_items", ClientRequestToken=new_id(self._rng), TransactItems=list(actions)
            )
        except ConditionFailed as failed:
            stored = self.read_reservation(after.reservation_id) if after is not None else None
            if after is None or stored is None or not is_same(stored, after):
                raise Conflict("the reservations were changed by another writer", current=None) from failed


def _is_still(before: Reservation, name: str, values: Item) -> str:
    """Build the condition that a field is as it was read. Adds its value to `values`."""
    value = _flatten(before)[name]
    if value is None:
        return f"attribute_not_exists({name})"
    values[f":{name}_was"] = encode(value)
    return f"{name} = :{name}_was"


def _key(reservation_id: str) -> Item:
    return {"PK": {"S": "POOL"}, "SK": {"S": f"{_PREFIX}{reservation_id}"}}


def _archive_key(reservation_id: str) -> Item:
    return {"PK": {"S": f"{_PREFIX}{reservation_id}"}, "SK": {"S": "RESERVATION"}}


def _flatten(reservation: Reservation) -> dict[str, Any]:
    return {
        "reservation_id": reservation.reservation_id,
        "name": reservation.name,
        "count": reservation.count,
        "starts_at": reservation.starts_at,
        "ends_at": reservation.ends_at,
        "prefix": reservation.prefix or None,
        "track_names": json.dumps(reservation.track_names, separators=(",", ":"), ensure_ascii=False),
        "customer": reservation.customer,
        "lead_sec": reservation.lead_sec,
        "hold_sec": reservation.hold_sec,
        "note": reservation.note,
        "stage": reservation.stage,
        "version": reservation.version,
        "set_aside": reservation.set_aside,
        "drawn": reservation.drawn,
        "created_at": reservation.created_at,
        "created_by": reservation.created_by,
        "opened_at": reservation.opened_at,
        "ended_at": reservation.ended_at,
        "request_hash": reservation.request_hash,
        # What the conditions of the counters need.
        "lacking": reservation.lacking,
        "fills_at": reservation.fills_at,
        "opens_at": reservation.opens_at,
        "held_until": reservation.held_until,
    }


def _encode(reservation: Reservation) -> Item:
    return {**encode_all(_flatten(reservation)), "schema": encode(schema.WRITTEN)}


def _decode(item: Item) -> Reservation:
    name = f"reservation {item['PK']['S']}/{item['SK']['S']}"
    try:
        values = read_fields(item, _FIELDS)
        labs = json.loads(values.pop("track_names"))
    except ValueError as error:
        raise UnreadableRecord(name, str(error)) from error
    if not isinstance(labs, list) or not all(isinstance(each, str) for each in labs):
        raise UnreadableRecord(name, "track_names is not a list of texts")
    values.pop("schema", None)
    return Reservation(track_names=tuple(labs), **values)


def _decode_version(item: Item) -> int:
    try:
        version: int = read_fields(item, _VERSION)["version"]
    except ValueError as error:
        raise UnreadableRecord("the version of the bookings", str(error)) from error
    return version


def _encode_cursor(last: Item) -> str:
    text = json.dumps(["reservations", last["PK"]["S"], last["status_order"]["N"]], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> Item:
    try:
        match read_cursor(cursor):
            case ["reservations", str(partition), str(order)] if (
                partition.startswith(_PREFIX) and order.isascii() and order.isdigit() and int(order) < ORDER_LIMIT
            ):
                return {
                    **_archive_key(partition.removeprefix(_PREFIX)),
                    "status_key": {"S": _ENDED},
                    "status_order": {"N": order},
                }
    except ValueError:
        pass
    raise InvalidInput("cursor: was not given by a listing of reservations")
