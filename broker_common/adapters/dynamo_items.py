"""How records look in the table: keys, items and cursors, in DynamoDB's own JSON.

A sandbox is (`SBX#<id>`, `META`), a claim (`TRACK#<track>`, `CLAIM#<key>`), an account (`ACCOUNT#<key>`, `ACCOUNT`);
the pool's own records are (`POOL`, …). `dynamo_facts` has the facts, `dynamo_places` the line, `dynamo_fields` the
attributes.
The index splits each status into shards by a hash of the sandbox id, and orders each shard by `status_order`.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_fields import Item, encode, encode_all, fields_of, read_cursor, read_fields
from broker_common.core import schema
from broker_common.core.errors import InvalidInput, InvalidTransition, StoreUnavailable, UnreadableRecord
from broker_common.core.flat import (
    CLAIM_FIELDS,
    OPTIONAL_CLAIM_FIELDS,
    OPTIONAL_SANDBOX_FIELDS,
    SANDBOX_FIELDS,
    claim_of,
    flatten,
    flatten_claim,
    sandbox_of,
)
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Claim, Sandbox, Status
from broker_common.core.store import PAUSABLE, CountRecord, Pause, Pauses, PoolCount, Watermark

if TYPE_CHECKING:
    from collections.abc import Mapping

POOL: Item = {"S": "POOL"}
"""The partition of the pool's own records."""
ENDPOINT = "WEBHOOK#"
"""What the sort keys of the endpoints of webhooks begin with, among the pool's records."""
SYNC_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "SYNC"}}
PAUSE_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "PAUSE"}}
COUNTS_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "COUNTS"}}
ELSEWHERE = "elsewhere"
"""The part of a listing for sandboxes that have no place in the index where this release looks."""
_COOLING = f"{Status.PENDING_DELETION}/cooling#0"
"""The index's place of wiped sandboxes that cool down, apart from those that wait for their wipe."""
RESERVED = f"{Status.RESERVED}/"
"""What the index's places of reserved sandboxes begin with."""
TTL = "ttl"
"""The attribute by which DynamoDB removes facts and abandoned places. Sandboxes and claims never have it."""

_SCHEMA: Mapping[str, type] = {"schema": int}
SANDBOX_ATTRIBUTES = fields_of(SANDBOX_FIELDS, {**OPTIONAL_SANDBOX_FIELDS, **_SCHEMA})
_REQUESTED_AT = fields_of({}, {"deletion_requested_at": int})
_CLAIM_FIELDS = fields_of(CLAIM_FIELDS, {**OPTIONAL_CLAIM_FIELDS, **_SCHEMA})
_CANDIDATE_FIELDS = fields_of({"version": int, "name": str, "external_id": str}, {"sfdc_account_id": str})
_WATERMARK_FIELDS = fields_of({"synced_at": int, "accounts": int}, {"accounts_checked_at": int, **_SCHEMA})
_PAUSES_FIELDS = fields_of(
    {},
    {
        **dict.fromkeys(PAUSABLE, bool),
        **{f"{name}_by": str for name in PAUSABLE},
        **{f"{name}_since": int for name in PAUSABLE},
        **_SCHEMA,
    },
)
_SCHEMA_FIELD = fields_of({}, _SCHEMA)
_RIGHT_FIELDS = fields_of({"turn": str, "counter": str, "counting_until": int}, _SCHEMA)
_COUNT_FIELDS = fields_of(
    {**{status: int for status in Status if status is not Status.RESERVED}, "began_at": int, "counted_by": str},
    {
        "oldest_pending_deletion": int,
        "waiting": int,
        "longest_waiting_since": int,
        "returns_at": str,
        Status.RESERVED: int,  # an earlier release has no reserved sandboxes
    },
)


def shard_of(sandbox_id: str, shards: int) -> int:
    """Return the shard of a sandbox, which is the same in every process and version of Python."""
    return zlib.crc32(sandbox_id.encode()) % shards


def status_key(status: Status, shard: int) -> str:
    """Return the index's partition key."""
    return f"{status}#{shard}"


def status_keys(status: Status, shards: int) -> list[str]:
    """Return all partition keys of the index that sandboxes of a status may have.

    Those of reserved sandboxes follow from the reservations instead: see `reserved_key`.
    """
    if status is Status.RESERVED:
        return []
    keys = [status_key(status, shard) for shard in range(shards)]
    return [*keys, _COOLING] if status is Status.PENDING_DELETION else keys


def reserved_key(reservation_id: str) -> str:
    """Return the index's partition key of the sandboxes that are set aside for a reservation."""
    return f"{RESERVED}{reservation_id}#0"


def place_of(sandbox: Sandbox, shards: int) -> str:
    """Return the index's partition key of a sandbox."""
    if sandbox.reservation_id is not None:
        return reserved_key(sandbox.reservation_id)
    if sandbox.is_cooling:
        return _COOLING
    return status_key(sandbox.status, shard_of(sandbox.sandbox_id, shards))


def sandbox_key(sandbox_id: str) -> Item:
    """Return the key of a sandbox's record."""
    return {"PK": {"S": f"SBX#{sandbox_id}"}, "SK": {"S": "META"}}


def claim_key(track_id: str, idempotency_key: str) -> Item:
    """Return the key of a claim's record."""
    return {"PK": {"S": f"TRACK#{track_id}"}, "SK": {"S": f"CLAIM#{idempotency_key}"}}


def account_item_key(key: str) -> Item:
    """Return the key of an account's record, given the account's own key."""
    return {"PK": {"S": f"ACCOUNT#{key}"}, "SK": {"S": "ACCOUNT"}}


def account_key_of(item: Item) -> str:
    """Return the account's own key, given its record or the record's key."""
    key: str = item["PK"]["S"]
    return key.removeprefix("ACCOUNT#")


def index_key(sandbox_id: str, status_key: str, order: int) -> Item:
    """Return the key from which a query of the index continues after this sandbox."""
    return {**sandbox_key(sandbox_id), "status_key": {"S": status_key}, "status_order": {"N": str(order)}}


def sandbox_id_of(item: Item) -> str:
    """Return the sandbox id of an item or key."""
    key: str = item["PK"]["S"]
    return key.removeprefix("SBX#")


def encode_sandbox(sandbox: Sandbox, shards: int) -> Item:
    """Return a sandbox's whole item; fields that are None are left out."""
    return {
        **sandbox_key(sandbox.sandbox_id),
        **encode_all(flatten(sandbox)),
        "status_key": {"S": place_of(sandbox, shards)},
        "schema": encode(schema.WRITTEN),
    }


def encode_account(sandbox: Sandbox) -> Item:
    """Return the whole item of the record that says which sandbox an account belongs to."""
    return {
        **account_item_key(sandbox.account_key),
        "sandbox_id": {"S": sandbox.sandbox_id},
        "schema": encode(schema.WRITTEN),
    }


def decode_sandbox(item: Item, shards: int) -> Sandbox:
    """Return the sandbox of an item; ignores attributes that this release does not know.

    Raises `UnreadableRecord`, for example for a status that only a later release knows. The result can be written
    again: its key, version and place in the index are those that the conditions of writes name.
    """
    sandbox_id = sandbox_id_of(item)
    try:
        return _sandbox_of(item, sandbox_id, shards)
    except (InvalidTransition, ValueError) as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def _sandbox_of(item: Item, sandbox_id: str, shards: int) -> Sandbox:
    sandbox = sandbox_of(read_fields(item, SANDBOX_ATTRIBUTES))
    if sandbox.sandbox_id != sandbox_id:
        raise ValueError("sandbox_id is not that of its key")
    if item.get("status_key") != {"S": place_of(sandbox, shards)}:
        raise ValueError("status_key does not follow from its status")
    return sandbox


def encode_claim(claim: Claim) -> Item:
    """Return a claim's whole item."""
    key = claim_key(claim.lease.track_id, claim.lease.idempotency_key)
    return {**key, **encode_all(flatten_claim(claim)), "schema": encode(schema.WRITTEN)}


def decode_claim(item: Item) -> Claim:
    """Return the claim of an item; raises `UnreadableRecord`."""
    track_id = item["PK"]["S"].removeprefix("TRACK#")
    try:
        return _claim_of(item)
    except ValueError as error:
        raise UnreadableRecord(f"a claim of track {track_id!r}", str(error), track_id=track_id) from error


def _claim_of(item: Item) -> Claim:
    claim = claim_of(read_fields(item, _CLAIM_FIELDS))
    if claim_key(claim.lease.track_id, claim.lease.idempotency_key) != {name: item.get(name) for name in ("PK", "SK")}:
        raise ValueError("track_id and idempotency_key are not those of its key")
    return claim


def decode_candidate(item: Item, reservation_id: str | None) -> Candidate:
    """Return the candidate that an item of the index describes; raises `UnreadableRecord`.

    `reservation_id` follows from the item's place in the index.
    """
    sandbox_id = sandbox_id_of(item)
    try:
        return Candidate(sandbox_id=sandbox_id, reservation_id=reservation_id, **read_fields(item, _CANDIDATE_FIELDS))
    except ValueError as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def decode_requested_at(item: Item) -> int | None:
    """Return when the deletion of an item of the index was requested, if at all; raises `UnreadableRecord`."""
    sandbox_id = sandbox_id_of(item)
    try:
        return read_fields(item, _REQUESTED_AT).get("deletion_requested_at")
    except ValueError as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def order_of(item: Item) -> int:
    """Return the `status_order` of an item or key of the index; rounds up a fraction that was entered by hand."""
    try:
        return math.ceil(Decimal(item["status_order"]["N"]))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise StoreUnavailable("DynamoDB did not answer: a key of the index without its order") from error


def decode_watermark(item: Item) -> Watermark:
    """Return the watermark of an item; raises `UnreadableRecord`."""
    try:
        values = read_fields(item, _WATERMARK_FIELDS)
    except ValueError as error:
        raise UnreadableRecord("the record of the last sync", str(error)) from error
    return Watermark(
        synced_at=values["synced_at"],
        accounts=values["accounts"],
        accounts_checked_at=values.get("accounts_checked_at"),
    )


def synced_at_of(item: Item) -> int:
    """Return the time of the last successful sync by a watermark's item; 0 if it cannot be read."""
    try:
        return decode_watermark(item).synced_at
    except UnreadableRecord:
        return 0


def decode_pauses(item: Item | None) -> Pauses:
    """Return the pauses of an item; anything that it does not name is not paused. Raises `UnreadableRecord`."""
    try:
        values = read_fields(item or {}, _PAUSES_FIELDS)
    except ValueError as error:
        raise UnreadableRecord("the record of what is paused", str(error)) from error
    return Pauses(
        **{
            name: Pause(by=values.get(f"{name}_by"), since=values.get(f"{name}_since"))
            for name in PAUSABLE
            if values.get(name)
        }
    )


def encode_counts(record: CountRecord) -> Item:
    """Return the whole item of the record of counts."""
    values: dict[str, Any] = {
        "turn": record.turn,
        "counter": record.counter,
        "counting_until": record.counting_until,
    }
    if record.count is not None:
        values |= {status.value: number for status, number in record.count.by_status.items()}
        values["oldest_pending_deletion"] = record.count.oldest_pending_deletion
        values["began_at"] = record.count.began_at
        values["counted_by"] = record.count.counted_by
        values["waiting"] = record.count.waiting
        values["longest_waiting_since"] = record.count.longest_waiting_since
        values["returns_at"] = ",".join(map(str, record.count.returns)) or None
    return {**COUNTS_KEY, **encode_all(values), "schema": encode(schema.WRITTEN)}


def decode_counts(item: Item) -> CountRecord:
    """Return the record of counts of an item, without a count if nobody has counted yet; raises `UnreadableRecord`."""
    try:
        right = read_fields(item, _RIGHT_FIELDS)
        values = read_fields(item, _COUNT_FIELDS) if "began_at" in item else {}
        returns = tuple(map(int, values["returns_at"].split(","))) if "returns_at" in values else ()
    except ValueError as error:
        raise UnreadableRecord("the record of counts", str(error)) from error
    count = None
    if values:
        count = PoolCount(
            by_status={status: values.get(status, 0) for status in Status},
            oldest_pending_deletion=values.get("oldest_pending_deletion"),
            began_at=values["began_at"],
            counted_by=values["counted_by"],
            waiting=values.get("waiting", 0),
            longest_waiting_since=values.get("longest_waiting_since"),
            returns=returns,
        )
    return CountRecord(
        turn=right["turn"], count=count, counter=right["counter"], counting_until=right["counting_until"]
    )


def check_schema_of_counts(item: Item) -> None:
    """Raise `UnreadableRecord` if the record of counts has a schema that no write of this release replaces."""
    try:
        read_fields(item, _SCHEMA_FIELD)
    except ValueError as error:
        raise UnreadableRecord("the record of counts", str(error)) from error


def turn_of(item: Item) -> str | None:
    """Return the `turn` of the record of counts, even if the rest cannot be read; None if it is not a text."""
    turn: str | None = item.get("turn", {}).get("S")
    return turn


def encode_cursor(status: Status | None, part: str, start: Item | None) -> str:
    """Return an opaque cursor for a listing of `status` that continues in `part` after `start`, a key of that part."""
    after = [sandbox_id_of(start), order_of(start) if "status_order" in start else None] if start else None
    text = json.dumps([status, part, after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def merge_reserved(places: list[str], cursor: str | None) -> list[str]:
    """Return the places of reserved sandboxes in order, with that of the cursor, whose reservation may be over."""
    try:
        _, part, _ = read_cursor(cursor) if cursor is not None else (None, None, None)
    except (ValueError, TypeError):
        part = None
    if isinstance(part, str) and part.startswith(RESERVED):
        return sorted({*places, part})
    return places


def decode_cursor(cursor: str, status: Status | None, parts: list[str]) -> tuple[int, Item | None]:
    """Return the position in `parts` and the key to start after; raises `InvalidInput` for any other text."""
    try:
        of, part, after = read_cursor(cursor)
        at = parts.index(part) if of == status else None
        sandbox_id, order = (None, None) if after is None else after
    except (ValueError, TypeError):
        at, sandbox_id, order = None, None, None
    if at is not None and sandbox_id is None and order is None:
        return at, None
    if at is not None and isinstance(sandbox_id, str):
        if parts[at] == ELSEWHERE and order is None:
            return at, sandbox_key(sandbox_id)
        if parts[at] != ELSEWHERE and type(order) is int and 0 <= order < ORDER_LIMIT:
            return at, index_key(sandbox_id, parts[at], order)
    raise InvalidInput("cursor: was not given by this listing")
