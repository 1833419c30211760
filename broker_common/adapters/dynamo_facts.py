"""How facts look in the table, and the cursors of histories and of the feed.

A sandbox's fact is (`SBX#<id>`, `FACT#<version>#<kind>`), a fact of the pool is (`POOLFACTS#<date>`, `<ms>#<id>`). The
index has all of them at `fact#<shard>`, ordered by version, which is about the time in milliseconds. Facts have a TTL.

A fact that was not told to the endpoints of webhooks yet has a mark beside it: the same key with `UNTOLD#`, at
`untold#<shard>` of the index. The fact itself never moves in the index, so a reader of the feed cannot miss it there.
"""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_fields import Item, encode, fields_of, read_cursor, read_fields
from broker_common.adapters.dynamo_items import TTL, sandbox_id_of, sandbox_key, shard_of
from broker_common.core import schema
from broker_common.core.errors import InvalidInput, UnreadableRecord
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.sandbox import ORDER_LIMIT, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_DAY_SEC = 24 * 3600
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999. Later times cannot be shown as dates."""
_POOL_FACTS = "POOLFACTS#"
FACTS = "FACT#"
"""What the sort keys of a sandbox's facts begin with."""
UNTOLD = "UNTOLD#"
"""What the sort keys of the marks of untold facts begin with."""
_REMOVED = "REMOVED"
_FACT_FIELDS = fields_of(
    {"kind": FactKind, "at": int, "version": int, "principal": str},
    {
        "request_id": str,
        "track_id": str,
        "lease_id": str,
        "status": Status,
        "status_before": Status,
        "details": str,
        "schema": int,
    },
)
_POOL_FACT_FIELDS = fields_of(
    {"kind": PoolFactKind, "at": int, "principal": str}, {"request_id": str, "details": str, "schema": int}
)
_VERSION = fields_of({"version": int}, {})


def facts_key(shard: int) -> str:
    """Return the index's partition key of the facts of a shard."""
    return f"fact#{shard}"


def untold_key(shard: int) -> str:
    """Return the index's partition key of the marks of a shard's untold facts."""
    return f"untold#{shard}"


def encode_fact(fact: Fact, *, shards: int, days: int) -> Item:
    """Return a fact's whole item; it is kept for `days`."""
    flat = {
        "kind": fact.kind,
        "at": fact.at,
        "version": fact.version,
        "principal": fact.principal,
        "request_id": fact.request_id,
        "track_id": fact.track_id,
        "lease_id": fact.lease_id,
        "status": fact.status,
        "status_before": fact.status_before,
    }
    return {
        **fact_key(fact),
        **_common(flat, fact.details, at=fact.at, days=days),
        "status_key": {"S": facts_key(shard_of(fact.sandbox_id, shards))},
        "status_order": encode(fact.version),
    }


def encode_pool_fact(fact: PoolFact, *, shards: int, days: int) -> Item:
    """Return the whole item of a fact of the pool; it is kept for `days`."""
    flat = {"kind": fact.kind, "at": fact.at, "principal": fact.principal, "request_id": fact.request_id}
    return {
        **fact_key(fact),
        **_common(flat, fact.details, at=fact.at, days=days),
        "status_key": {"S": facts_key(shard_of(fact.fact_id, shards))},
        "status_order": encode(fact.at * 1000),
    }


def fact_key(fact: Fact | PoolFact) -> Item:
    """Return the key of a fact's item."""
    if isinstance(fact, Fact):
        return {"PK": sandbox_key(fact.sandbox_id)["PK"], "SK": {"S": f"{FACTS}{fact.version:020}#{fact.kind}"}}
    day = time.strftime("%Y-%m-%d", time.gmtime(fact.at))
    return {"PK": {"S": _POOL_FACTS + day}, "SK": {"S": f"{fact.at * 1000:015}#{fact.fact_id}"}}


def mark_key(key: Item) -> Item:
    """Return the key of the mark of an untold fact, given the fact's key."""
    return {"PK": key["PK"], "SK": {"S": UNTOLD + key["SK"]["S"].removeprefix(FACTS)}}


def marked_key(mark: Item) -> Item:
    """Return the key of the fact that a mark belongs to."""
    begins = "" if mark["PK"]["S"].startswith(_POOL_FACTS) else FACTS
    return {"PK": mark["PK"], "SK": {"S": begins + mark["SK"]["S"].removeprefix(UNTOLD)}}


def encode_mark(item: Item) -> Item:
    """Return the whole item that marks a fact as untold, given the fact's item; it is kept as long as the fact."""
    shard = int(item["status_key"]["S"].rpartition("#")[2])
    kept = {name: item[name] for name in ("status_order", TTL, "schema")}
    return {**mark_key(item), **kept, "status_key": {"S": untold_key(shard)}}


def encode_removed(fact: Fact, *, days: int) -> Item:
    """Return the item with the version at which a sandbox's record was removed; it is kept as long as its facts."""
    return {
        **removed_key(fact.sandbox_id),
        "version": encode(fact.version),
        TTL: encode(fact.at + days * _DAY_SEC),
        "schema": encode(schema.WRITTEN),
    }


def removed_key(sandbox_id: str) -> Item:
    """Return the key of the item that `encode_removed` makes for a sandbox."""
    return {**sandbox_key(sandbox_id), "SK": {"S": _REMOVED}}


def decode_removed(item: Item) -> int:
    """Return the version in an item of `encode_removed`; 0 if it cannot be read."""
    try:
        version: int = read_fields(item, _VERSION)["version"]
    except ValueError:
        return 0
    return version


def decode_fact(item: Item) -> Fact | PoolFact:
    """Return the fact of an item; raises `UnreadableRecord`, for example for a kind that a later release knows."""
    try:
        if item["PK"]["S"].startswith(_POOL_FACTS):
            values = read_fields(item, _POOL_FACT_FIELDS)
            fact_id = item["SK"]["S"].partition("#")[2]
            return PoolFact(fact_id=fact_id, **_without_schema(values))
        values = read_fields(item, _FACT_FIELDS)
        return Fact(sandbox_id=sandbox_id_of(item), **_without_schema(values))
    except ValueError as error:
        raise UnreadableRecord(f"fact {item['PK']['S']}/{item['SK']['S']}", str(error)) from error


def encode_history_cursor(item: Item) -> str:
    """Return an opaque cursor from which a history continues after this fact."""
    return _encode_cursor(["history", item["PK"]["S"], item["SK"]["S"]])


def decode_history_cursor(cursor: str, sandbox_id: str) -> Item:
    """Return the key to continue after; raises `InvalidInput` if no history of this sandbox gave the cursor."""
    match _decode_cursor(cursor):
        case ["history", partition, str(sort)] if {"S": partition} == sandbox_key(sandbox_id)["PK"] and sort.startswith(
            FACTS
        ):
            return {"PK": {"S": partition}, "SK": {"S": sort}}
    raise InvalidInput("cursor: was not given by a history of this sandbox")


Mark = Item | None
"""The index key of the last fact that was read from a shard; None if no fact was read."""


_FEED = {False: "feed", True: "newest"}
"""What the cursors of a feed begin with, by whether it has the newest facts first."""


def encode_feed_cursor(since: int, marks: Sequence[Mark], *, newest_first: bool) -> str:
    """Return an opaque cursor from which a feed continues after these marks, one for each shard."""
    shown = [[mark["status_order"]["N"], mark["PK"]["S"], mark["SK"]["S"]] if mark else None for mark in marks]
    return _encode_cursor([_FEED[newest_first], since, shown])


def decode_feed_cursor(cursor: str, shards: int, *, newest_first: bool) -> tuple[int, list[Mark]]:
    """Return the feed's first time and the mark of each shard.

    Raises `InvalidInput` if no feed in this order gave the cursor.
    """
    match _decode_cursor(cursor):
        case [str(feed), int(since), list(shown)] if (
            feed == _FEED[newest_first] and len(shown) == shards and 0 <= since < ORDER_LIMIT
        ):
            marks = [_mark(shard, each, since) for shard, each in enumerate(shown)]
            if all(mark is not None or each is None for mark, each in zip(marks, shown, strict=True)):
                return since, marks
    raise InvalidInput("cursor: was not given by this feed")


def _mark(shard: int, shown: object, since: int) -> Mark:
    match shown:
        case [str(order), str(partition), str(sort)] if (
            order.isascii() and order.isdigit() and since * 1000 <= int(order) < ORDER_LIMIT and partition and sort
        ):
            return {
                "PK": {"S": partition},
                "SK": {"S": sort},
                "status_key": {"S": facts_key(shard)},
                "status_order": {"N": order},
            }
    return None


def _common(flat: Mapping[str, Any], details: Mapping[str, Any], *, at: int, days: int) -> Item:
    item = {name: encode(value) for name, value in flat.items() if value is not None}
    if details:
        item["details"] = encode(json.dumps(dict(details), separators=(",", ":"), ensure_ascii=False))
    return {**item, TTL: encode(at + days * _DAY_SEC), "schema": encode(schema.WRITTEN)}


def _without_schema(values: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in values.items() if name != "schema"}
    details = json.loads(found.get("details", "{}"))
    if not isinstance(details, dict):
        raise ValueError("details is not an object")  # noqa: TRY004 - as for every other field
    if found["at"] > _LAST_SECOND:
        raise ValueError("at is no time before the year 10000")
    return {**found, "details": details}


def _encode_cursor(content: object) -> str:
    text = json.dumps(content, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> object:
    try:
        return read_cursor(cursor)
    except ValueError:
        return None
