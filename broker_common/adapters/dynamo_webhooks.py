"""Webhooks on DynamoDB: endpoints, the marks of untold facts, and deliveries.

An endpoint is (`POOL`, `WEBHOOK#<id>`). A delivery is (`WEBHOOK#<endpoint>`, `DELIVERY#<sandbox>#<version>#<kind>`), or
(`WEBHOOK#<endpoint>`, `DELIVERY##<delivery id>`) if it is of no sandbox; it has a TTL. The index has the deliveries of
an endpoint by state: pending ones at `delivery#<endpoint>`, ordered by when they are due; the others at
`delivered#<endpoint>` and `exhausted#<endpoint>`, ordered by when they ended. `dynamo_facts` has the marks.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import fields
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_conditions import unless_newer
from broker_common.adapters.dynamo_facts import (
    UNTOLD,
    decode_fact,
    fact_key,
    mark_key,
    marked_key,
    untold_key,
)
from broker_common.adapters.dynamo_fields import Item, encode, encode_all, fields_of, read_cursor, read_fields
from broker_common.adapters.dynamo_items import ENDPOINT, POOL, TTL, order_of
from broker_common.adapters.dynamo_table import INDEX
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core import schema
from broker_common.core.errors import InvalidInput, UnreadableRecord
from broker_common.core.parallel import for_each
from broker_common.core.sandbox import ORDER_LIMIT
from broker_common.core.store import Conflict
from broker_common.core.webhook import Delivery, DeliveryState, Endpoint, Secret
from broker_common.core.webhook_store import DeliveryPage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from broker_common.core.facts import Fact, PoolFact

KEPT_SEC = 14 * 24 * 3600
"""How long a delivery is kept after its last change."""
_THREADS = 8
_BATCH = 100
_PENDING_PAGE = 10
"""Deliveries in one page of those of a sandbox: mostly one is pending, and the rest has ended."""
_DELIVERY = "DELIVERY#"
_OF_SANDBOX = re.compile(r"(.+):(\d{1,16}):(\w+)", re.ASCII | re.DOTALL)
"""The id of the delivery of a sandbox's fact: its sandbox, version and kind."""
_PLACES = {
    DeliveryState.PENDING: "delivery#",
    DeliveryState.DELIVERED: "delivered#",
    DeliveryState.EXHAUSTED: "exhausted#",
}
_ENDPOINT_FIELDS = fields_of(
    {
        "endpoint_id": str,
        "url": str,
        "kinds": str,
        "secrets": str,
        "version": int,
        "created_at": int,
        "created_by": str,
    },
    {
        "description": str,
        "failing_since": int,
        "probe_at": int,
        "disabled_at": int,
        "disabled_reason": str,
        "schema": int,
    },
)
_DELIVERY_FIELDS = fields_of(
    {
        "endpoint_id": str,
        "delivery_id": str,
        "kind": str,
        "version": int,
        "payload": str,
        "fact_at": int,
        "created_at": int,
        "state": DeliveryState,
        "tries": int,
    },
    {
        "sandbox_id": str,
        "next_try_at": int,
        "attempt_id": str,
        "last_try_at": int,
        "last_status": int,
        "last_answer": str,
        "delivered_at": int,
        "schema": int,
    },
)
_COMPARED = ("state", "tries", "next_try_at", "attempt_id", "last_try_at", "delivered_at")
"""The fields that `write_delivery` compares. `state` is a word that DynamoDB reserves."""


class DynamoWebhooks(DynamoBase):
    """`WebhookRecords` on one DynamoDB table."""

    # -- endpoints

    def read_endpoints(self) -> list[Endpoint]:
        """Implement the port: a consistent query of a part of the pool's records."""
        items = self._query(
            ConsistentRead=True,
            KeyConditionExpression="PK = :pool AND begins_with(SK, :endpoint)",
            ExpressionAttributeValues={":pool": POOL, ":endpoint": {"S": ENDPOINT}},
        )
        return [each for item in items if (each := self._readable(_decode_endpoint, item))]

    def read_endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Implement the port: a consistent read."""
        item = self._get(_endpoint_key(endpoint_id))
        return self._read(_decode_endpoint, item) if item else None

    def write_endpoint(self, before: Endpoint | None, after: Endpoint | None, *, fact: PoolFact | None = None) -> None:
        """Implement the port: one TransactWriteItems over the endpoint and the fact."""
        known = after or before
        if known is None:
            raise ValueError("an endpoint is added, changed or removed")
        write: Item = {
            "TableName": self._table,
            "ConditionExpression": "attribute_not_exists(PK)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if before is not None:
            values = {":version": encode(before.version)}
            conditions = [
                "version = :version",
                _is_still("failing_since", before.failing_since, values),
                _is_still("probe_at", before.probe_at, values),
                _is_still("disabled_at", before.disabled_at, values),
            ]
            write["ConditionExpression"] = " AND ".join(conditions)
            write = unless_newer(write | {"ExpressionAttributeValues": values})
        if after is None:
            action: Item = {"Delete": {**write, "Key": _endpoint_key(known.endpoint_id)}}
        else:
            action = {"Put": {**write, "Item": {**_endpoint_key(after.endpoint_id), **_encode_endpoint(after)}}}
        try:
            failed = self._transact(action, *([] if fact is None else self._put_pool_fact(fact)))
        finally:
            self._audience.forget()
        if failed is not None:
            item = failed[0].get("Item")
            if (self._read(_decode_endpoint, item) if item else None) != after:
                raise Conflict(f"endpoint {known.endpoint_id} was changed by another writer", current=None)

    # -- untold facts

    def find_untold(self, *, limit: int) -> list[Fact | PoolFact]:
        """Implement the port: queries of the index, then consistent queries of the partitions that have marks."""
        marks = merge(*map(self._marks_of, range(self._shards)), key=order_of)
        facts: list[Fact | PoolFact] = []
        # A page may have only marks of facts that cannot be read, or marks that are gone, which the index still shows.
        while not facts and (page := list(islice(marks, limit))):
            facts = self._read_untold(dict.fromkeys(mark["PK"]["S"] for mark in page), limit)
        return facts

    def _read_untold(self, partitions: Iterable[str], limit: int) -> list[Fact | PoolFact]:
        found = for_each(self._untold_of, partitions, threads=_THREADS)
        keys = [key for each in found for key in each][:limit]
        items = {(item["PK"]["S"], item["SK"]["S"]): item for item in self._get_items(keys)}
        stored = [items.get((key["PK"]["S"], key["SK"]["S"])) for key in keys]
        return [fact for item in stored if item and (fact := self._readable(decode_fact, item))]

    def told(self, fact: Fact | PoolFact) -> None:
        """Implement the port: the mark is deleted."""
        self._transport.write("delete_item", TableName=self._table, Key=mark_key(fact_key(fact)))

    def oldest_untold(self) -> int | None:
        """Implement the port: the first mark of each shard in the index."""
        firsts = (next(self._marks_of(shard, limit=1), None) for shard in range(self._shards))
        return min((order_of(mark) // 1000 for mark in firsts if mark), default=None)

    def _marks_of(self, shard: int, *, limit: int = _BATCH) -> Iterator[Item]:
        return self._query(
            IndexName=INDEX,
            Limit=limit,
            KeyConditionExpression="status_key = :untold",
            ExpressionAttributeValues={":untold": {"S": untold_key(shard)}},
            ProjectionExpression="PK, SK, status_order",
        )

    def _untold_of(self, partition: str) -> list[Item]:
        """Return the keys of the untold facts in a partition of the table, in order."""
        marks = self._query(
            ConsistentRead=True,
            KeyConditionExpression="PK = :partition AND begins_with(SK, :untold)",
            ExpressionAttributeValues={":partition": {"S": partition}, ":untold": {"S": UNTOLD}},
            ProjectionExpression="PK, SK",
        )
        return [marked_key(mark) for mark in marks]

    # -- deliveries

    def add_delivery(self, delivery: Delivery) -> bool:
        """Implement the port: a put on the condition that there is none."""
        try:
            self._transport.write(
                "put_item",
                TableName=self._table,
                Item=_encode_delivery(delivery),
                ConditionExpression="attribute_not_exists(PK)",
            )
        except ConditionFailed:
            return False
        return True

    def read_due_deliveries(self, endpoint_id: str, *, until: int, limit: int) -> list[Delivery]:
        """Implement the port: a range query of the index; then consistent reads, page by page."""
        keys = self._query(
            IndexName=INDEX,
            Limit=min(limit, _BATCH),
            KeyConditionExpression="status_key = :pending AND status_order <= :until",
            ExpressionAttributeValues={
                ":pending": {"S": _PLACES[DeliveryState.PENDING] + endpoint_id},
                ":until": {"N": str(min(until, ORDER_LIMIT - 1))},
            },
            ProjectionExpression="PK, SK",
        )
        due: list[Delivery] = []
        # What the index shows as due may have been sent just now, so the first page may have too few.
        while len(due) < limit and (page := list(islice(keys, min(limit, _BATCH)))):
            found = self._read_deliveries(page)
            due += [each for each in found if each.next_try_at is not None and each.next_try_at <= until]
        return sorted(due, key=lambda each: each.next_try_at or 0)[:limit]

    def read_pending(self, endpoint_id: str, sandbox_id: str) -> list[Delivery]:
        """Implement the port: a consistent query, backwards, up to the first one that has ended."""
        items = self._query(
            ConsistentRead=True,
            ScanIndexForward=False,
            Limit=_PENDING_PAGE,
            # DynamoDB reads the same items by `begins_with`, but DynamoDB Local then looks at the whole partition.
            KeyConditionExpression="PK = :endpoint AND SK BETWEEN :first AND :last",
            ExpressionAttributeValues={
                ":endpoint": _partition(endpoint_id),
                ":first": {"S": f"{_DELIVERY}{sandbox_id}#0"},
                ":last": {"S": f"{_DELIVERY}{sandbox_id}#:"},  # a version is digits, and ":" comes after "9"
            },
        )
        pending: list[Delivery] = []
        for item in items:
            delivery = self._readable(_decode_delivery, item)
            if delivery is None or delivery.sandbox_id != sandbox_id:
                continue  # the id of another sandbox may begin with this one and a "#"
            if delivery.state is not DeliveryState.PENDING:
                break
            pending.append(delivery)
        return pending[::-1]

    def read_delivery(self, endpoint_id: str, delivery_id: str) -> Delivery | None:
        """Implement the port: a consistent read."""
        item = self._get(_delivery_key(endpoint_id, delivery_id))
        return self._read(_decode_delivery, item) if item else None

    def write_delivery(self, before: Delivery, after: Delivery) -> None:
        """Implement the port: a put on the condition that nobody has written since."""
        values: Item = {}
        conditions = [_is_still(name, getattr(before, name), values, f"#{name}") for name in _COMPARED]
        put = {
            "TableName": self._table,
            "Item": _encode_delivery(after),
            "ConditionExpression": " AND ".join(conditions),
            "ExpressionAttributeNames": {f"#{name}": name for name in _COMPARED},
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        try:
            self._transport.write("put_item", **unless_newer(put))
        except ConditionFailed as failed:
            item = failed.answer.get("Item")
            if (self._read(_decode_delivery, item) if item else None) != after:
                raise Conflict(f"delivery {before.delivery_id} was changed by another writer", current=None) from failed

    def list_deliveries(
        self, endpoint_id: str, *, state: DeliveryState | None, limit: int, cursor: str | None
    ) -> DeliveryPage:
        """Implement the port: queries of the index, backwards; then consistent reads."""
        places = [_PLACES[each] + endpoint_id for each in ([state] if state else DeliveryState)]
        part, start = _decode_cursor(cursor, places) if cursor is not None else (0, None)
        keys: list[Item] = []
        while part < len(places) and len(keys) < limit:
            request: Item = {
                "TableName": self._table,
                "IndexName": INDEX,
                "Limit": limit - len(keys),
                "ScanIndexForward": False,
                "KeyConditionExpression": "status_key = :place",
                "ExpressionAttributeValues": {":place": {"S": places[part]}},
                "ProjectionExpression": "PK, SK, status_key, status_order",
            }
            if start:
                request["ExclusiveStartKey"] = start
            answer = self._transport.read("query", **request)
            keys += answer["Items"]
            start = answer.get("LastEvaluatedKey")
            part += 0 if start else 1
        found = self._read_deliveries(keys)
        deliveries = tuple(each for each in found if state in {None, each.state})
        return DeliveryPage(deliveries, _encode_cursor(places[part], start) if part < len(places) else None)

    def _read_deliveries(self, keys: Iterable[Item]) -> list[Delivery]:
        """Return the deliveries that exist for these keys of the index, in this order."""
        # A delivery that changes its state meanwhile may be found at two places.
        wanted = list(dict.fromkeys((key["PK"]["S"], key["SK"]["S"]) for key in keys))
        items = self._get_items([{"PK": {"S": pk}, "SK": {"S": sk}} for pk, sk in wanted])
        by_key = {(item["PK"]["S"], item["SK"]["S"]): item for item in items}
        stored = map(by_key.get, wanted)
        return [each for item in stored if item and (each := self._readable(_decode_delivery, item))]


def _is_still(name: str, value: str | int | None, values: Item, expression: str | None = None) -> str:
    """Build the condition that a field has a value. Adds the value to `values`."""
    expression = expression or name
    if value is None:
        return f"attribute_not_exists({expression})"
    values[f":{name}_was"] = encode(value)
    return f"{expression} = :{name}_was"


def _endpoint_key(endpoint_id: str) -> Item:
    return {"PK": POOL, "SK": {"S": f"{ENDPOINT}{endpoint_id}"}}


def _partition(endpoint_id: str) -> Item:
    return {"S": f"{ENDPOINT}{endpoint_id}"}


def _delivery_key(endpoint_id: str, delivery_id: str) -> Item:
    named = _OF_SANDBOX.fullmatch(delivery_id)
    sort = f"{named[1]}#{int(named[2]):020}#{named[3]}" if named else f"#{delivery_id}"
    return {"PK": _partition(endpoint_id), "SK": {"S": _DELIVERY + sort}}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _encode_endpoint(endpoint: Endpoint) -> Item:
    flat = {each.name: getattr(endpoint, each.name) for each in fields(Endpoint)}
    flat["kinds"] = _json(endpoint.kinds)
    flat["secrets"] = _json([[each.value, each.valid_until] for each in endpoint.secrets])
    return {**encode_all(flat), "schema": encode(schema.WRITTEN)}


def _decode_endpoint(item: Item) -> Endpoint:
    try:
        values = read_fields(item, _ENDPOINT_FIELDS)
        kinds = _list_of(values["kinds"], "kinds", lambda each: isinstance(each, str))
        secrets = _list_of(values["secrets"], "secrets", _is_secret)
    except ValueError as error:
        raise UnreadableRecord(f"endpoint {item['SK']['S'].removeprefix(ENDPOINT)!r}", str(error)) from None
    values.pop("schema", None)
    values |= {
        "kinds": tuple(kinds),
        "secrets": tuple(Secret(value=value, valid_until=valid_until) for value, valid_until in secrets),
    }
    return Endpoint(**values)


def _list_of(text: str, name: str, is_right: Callable[[Any], bool]) -> list[Any]:
    """Return the list in a JSON text; raises `ValueError` with a message that shows nothing of it."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(map(is_right, found)):
        raise ValueError(f"{name} is not such a list as this release writes")
    return found


def _is_secret(shown: object) -> bool:
    match shown:
        case [str(), int() | None]:
            return True
    return False


def _encode_delivery(delivery: Delivery) -> Item:
    order = {
        DeliveryState.PENDING: delivery.next_try_at,
        DeliveryState.DELIVERED: delivery.delivered_at,
        DeliveryState.EXHAUSTED: delivery.last_try_at,
    }[delivery.state]
    changed_at = max(delivery.created_at, delivery.last_try_at or 0, delivery.next_try_at or 0)
    return {
        **_delivery_key(delivery.endpoint_id, delivery.delivery_id),
        **encode_all({each.name: getattr(delivery, each.name) for each in fields(Delivery)}),
        "status_key": {"S": _PLACES[delivery.state] + delivery.endpoint_id},
        "status_order": encode(order if order is not None else delivery.created_at),
        TTL: encode(changed_at + KEPT_SEC),
        "schema": encode(schema.WRITTEN),
    }


def _decode_delivery(item: Item) -> Delivery:
    try:
        values = read_fields(item, _DELIVERY_FIELDS)
    except ValueError as error:
        raise UnreadableRecord(f"delivery {item['PK']['S']}/{item['SK']['S']}", str(error)) from error
    values.pop("schema", None)
    return Delivery(**values)


def _encode_cursor(place: str, start: Item | None) -> str:
    """Return an opaque cursor for a listing that continues at a place of the index, after the key `start`."""
    after = [start["SK"]["S"], start["status_order"]["N"]] if start else None
    return base64.urlsafe_b64encode(_json(["deliveries", place, after]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str, places: list[str]) -> tuple[int, Item | None]:
    """Return the position in `places` and the key to start after; raises `InvalidInput` for any other text."""
    try:
        match read_cursor(cursor):
            case ["deliveries", str(place), None] if place in places:
                return places.index(place), None
            case ["deliveries", str(place), [str(sort), str(order)]] if (
                place in places and order.isascii() and order.isdigit() and int(order) < ORDER_LIMIT and sort
            ):
                return places.index(place), {
                    "PK": _partition(place.partition("#")[2]),
                    "SK": {"S": sort},
                    "status_key": {"S": place},
                    "status_order": {"N": order},
                }
    except ValueError:
        pass
    raise InvalidInput("cursor: was not given by this listing")
