"""How records look in the table: keys, items and cursors, in DynamoDB's own JSON.

A sandbox is (`SBX#<id>`, `META`), a claim (`TRACK#<track>`, `CLAIM#<key>`), an account (`ACCOUNT#<key>`, `ACCOUNT`);
the pool's own records are (`POOL`, …); facts stand in `dynamo_facts`.
The index partitions each status into shards by a hash of the sandbox id, and orders them by `status_order`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

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
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Claim, DeletionReason, Sandbox, Status
from broker_common.core.store import PAUSABLE, Pause, Pauses, Watermark

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Item = dict[str, Any]
"""An item, key or set of values."""

SYNC_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "SYNC"}}
PAUSE_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "PAUSE"}}
ELSEWHERE = "elsewhere"
"""The part of a listing that has what stands nowhere in the index where this release looks."""
_COOLING = f"{Status.PENDING_DELETION}/cooling#0"
"""Where a wiped sandbox rests in the index: apart from those whose deletion is waited for."""
TTL = "ttl"
"""The attribute by which DynamoDB removes facts. Sandboxes and claims never have it."""


def shard_of(sandbox_id: str, shards: int) -> int:
    """Return the shard of a sandbox: the same in every process and version of Python."""
    return zlib.crc32(sandbox_id.encode()) % shards


def status_key(status: Status, shard: int) -> str:
    """Return the index's partition key."""
    return f"{status}#{shard}"


def status_keys(status: Status, shards: int) -> list[str]:
    """Return all places of the index at which sandboxes of a status stand."""
    keys = [status_key(status, shard) for shard in range(shards)]
    return [*keys, _COOLING] if status is Status.PENDING_DELETION else keys


def place_of(sandbox: Sandbox, shards: int) -> str:
    """Return the index's partition key of a sandbox."""
    if sandbox.is_cooling:
        return _COOLING
    return status_key(sandbox.status, shard_of(sandbox.sandbox_id, shards))


def sandbox_key(sandbox_id: str) -> Item:
    """Return a sandbox's key."""
    return {"PK": {"S": f"SBX#{sandbox_id}"}, "SK": {"S": "META"}}


def claim_key(track_id: str, idempotency_key: str) -> Item:
    """Return a claim's key."""
    return {"PK": {"S": f"TRACK#{track_id}"}, "SK": {"S": f"CLAIM#{idempotency_key}"}}


def account_item_key(key: str) -> Item:
    """Return the key of an account's record, given what tells the account from others."""
    return {"PK": {"S": f"ACCOUNT#{key}"}, "SK": {"S": "ACCOUNT"}}


def account_key_of(item: Item) -> str:
    """Return what tells an account from others, given its record or key."""
    key: str = item["PK"]["S"]
    return key.removeprefix("ACCOUNT#")


def index_key(sandbox_id: str, status_key: str, order: int) -> Item:
    """Return the key at which an index query that ended with this sandbox goes on."""
    return {**sandbox_key(sandbox_id), "status_key": {"S": status_key}, "status_order": {"N": str(order)}}


def sandbox_id_of(item: Item) -> str:
    """Return the sandbox id of an item or key."""
    key: str = item["PK"]["S"]
    return key.removeprefix("SBX#")


def encode(value: str | int | bool) -> Item:
    """Return a value in DynamoDB's JSON."""
    if isinstance(value, bool):
        return {"BOOL": value}
    return {"S": str(value)} if isinstance(value, str) else {"N": str(value)}


def encode_sandbox(sandbox: Sandbox, shards: int) -> Item:
    """Return a sandbox's whole item; fields that are None are left out."""
    return {
        **sandbox_key(sandbox.sandbox_id),
        **_encode_all(flatten(sandbox)),
        "status_key": {"S": place_of(sandbox, shards)},
        "schema": encode(schema.WRITTEN),
    }


def encode_account(sandbox: Sandbox) -> Item:
    """Return the whole item that says which sandbox has an account."""
    return {
        **account_item_key(sandbox.account_key),
        "sandbox_id": {"S": sandbox.sandbox_id},
        "schema": encode(schema.WRITTEN),
    }


def decode_sandbox(item: Item, shards: int) -> Sandbox:
    """Return the sandbox of an item; attributes that this release does not know are ignored.

    Raises `UnreadableRecord`, for example for a status that only a later release knows. What it returns can be written:
    its key, its version and its place in the index are those that the conditions of writes name.
    """
    sandbox_id = sandbox_id_of(item)
    try:
        return _sandbox_of(item, sandbox_id, shards)
    except (InvalidTransition, ValueError) as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def _sandbox_of(item: Item, sandbox_id: str, shards: int) -> Sandbox:
    sandbox = sandbox_of(read_fields(item, _SANDBOX_FIELDS))
    if sandbox.sandbox_id != sandbox_id:
        raise ValueError("sandbox_id is not that of its key")
    if item.get("status_key") != {"S": place_of(sandbox, shards)}:
        raise ValueError("status_key does not follow from its status")
    return sandbox


def encode_claim(claim: Claim) -> Item:
    """Return a claim's whole item."""
    key = claim_key(claim.lease.track_id, claim.lease.idempotency_key)
    return {**key, **_encode_all(flatten_claim(claim)), "schema": encode(schema.WRITTEN)}


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


def decode_candidate(item: Item) -> Candidate:
    """Return the candidate of an item of the index; raises `UnreadableRecord`."""
    sandbox_id = sandbox_id_of(item)
    try:
        return Candidate(sandbox_id=sandbox_id, **read_fields(item, _CANDIDATE_FIELDS))
    except ValueError as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def decode_requested_at(item: Item) -> int | None:
    """Return when the deletion of an item of the index was asked for; raises `UnreadableRecord`."""
    sandbox_id = sandbox_id_of(item)
    try:
        return read_fields(item, _REQUESTED_AT).get("deletion_requested_at")
    except ValueError as error:
        raise UnreadableRecord(f"sandbox {sandbox_id!r}", str(error), sandbox_id=sandbox_id) from error


def order_of(item: Item) -> int:
    """Return the `status_order` of an item or key of the index, rounded up where a hand gave it a fraction."""
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
    return Watermark(synced_at=values["synced_at"], accounts=values["accounts"])


def synced_at_of(item: Item) -> int:
    """Return when the watermark of an item says that a sync succeeded; 0 where that cannot be read."""
    try:
        return decode_watermark(item).synced_at
    except UnreadableRecord:
        return 0


def decode_pauses(item: Item | None) -> Pauses:
    """Return the pauses of an item; what it does not name is not paused. Raises `UnreadableRecord`."""
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


def encode_cursor(status: Status | None, part: str, start: Item | None) -> str:
    """Return an opaque cursor for a listing of `status` that goes on in `part` after `start`, a key of that part."""
    after = [sandbox_id_of(start), order_of(start) if "status_order" in start else None] if start else None
    text = json.dumps([status, part, after], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, status: Status | None, parts: list[str]) -> tuple[int, Item | None]:
    """Return the position in `parts` and the key to start after; raises `InvalidInput` for anything not ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        of, part, after = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        at = parts.index(part) if of == status else None
        sandbox_id, order = (None, None) if after is None else after
    except (ValueError, TypeError, binascii.Error, RecursionError):
        at, sandbox_id, order = None, None, None
    if at is not None and sandbox_id is None and order is None:
        return at, None
    if at is not None and isinstance(sandbox_id, str):
        if parts[at] == ELSEWHERE and order is None:
            return at, sandbox_key(sandbox_id)
        if parts[at] != ELSEWHERE and type(order) is int and 0 <= order < ORDER_LIMIT:
            return at, index_key(sandbox_id, parts[at], order)
    raise InvalidInput("cursor: was not given by this listing")


# -- what fields a record has

_TAGS = {str: "S", int: "N", bool: "BOOL"}
_NOUNS = {"S": "a text", "N": "a whole number that is not negative", "BOOL": "true or false"}


@dataclass(frozen=True, slots=True)
class Field:
    """An attribute of a record: its name, what its values are, and whether it may be missing."""

    name: str
    kind: type
    is_required: bool = True

    @property
    def tag(self) -> str:
        """DynamoDB's name of its type."""
        return _TAGS.get(self.kind, "S")


def fields_of(required: Mapping[str, type], optional: Mapping[str, type]) -> tuple[Field, ...]:
    """Return the attributes of a record: those that it must have, and those that it may have."""
    return (
        *(Field(name, kind) for name, kind in required.items()),
        *(Field(name, kind, is_required=False) for name, kind in optional.items()),
    )


_SCHEMA: Mapping[str, type] = {"schema": int}
_SANDBOX_FIELDS = fields_of(SANDBOX_FIELDS, {**OPTIONAL_SANDBOX_FIELDS, **_SCHEMA})
_REQUESTED_AT = fields_of({}, {"deletion_requested_at": int})
_CLAIM_FIELDS = fields_of(CLAIM_FIELDS, {**OPTIONAL_CLAIM_FIELDS, **_SCHEMA})
_CANDIDATE_FIELDS = fields_of({"version": int, "name": str, "external_id": str}, {"sfdc_account_id": str})
_WATERMARK_FIELDS = fields_of({"synced_at": int, "accounts": int}, _SCHEMA)
_PAUSES_FIELDS = fields_of(
    {},
    {
        **dict.fromkeys(PAUSABLE, bool),
        **{f"{name}_by": str for name in PAUSABLE},
        **{f"{name}_since": int for name in PAUSABLE},
        **_SCHEMA,
    },
)


def read_fields(item: Item, expected: Iterable[Field]) -> dict[str, Any]:
    """Return the values of these attributes.

    Raises `ValueError` for the first that is missing, of another type, or not known to this release.
    """
    values: dict[str, Any] = {}
    for each in expected:
        attribute = item.get(each.name)
        if attribute is None:
            if each.is_required:
                raise ValueError(f"{each.name} is missing")
            continue
        content = attribute.get(each.tag)
        if each.tag == "N":
            content = _whole(content, exactly=each.name == "version")
        elif type(content) is not (bool if each.tag == "BOOL" else str):
            content = None
        if content is None:
            raise ValueError(f"{each.name} is not {_NOUNS[each.tag]}")
        values[each.name] = _known(content, each.kind, each.name) if issubclass(each.kind, StrEnum) else content
    if values.get("schema", schema.WRITTEN) > schema.KNOWN:
        raise ValueError(f"schema is {values['schema']}, newer than this release knows")
    return values


def _known(value: str, kind: type[StrEnum], name: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} is not one that this release knows") from None


def _encode_all(flat: Mapping[str, Any]) -> Item:
    return {name: encode(value) for name, value in flat.items() if value is not None}


def _whole(content: object, *, exactly: bool) -> int | None:
    """Return a number's whole part, or None if it is not one of ours.

    Conditions of writes name the version, so that it must be stored just as it is written.
    """
    if not isinstance(content, str):
        return None
    number = int(content) if content.isascii() and content.isdigit() else _floor(content)
    return number if 0 <= number < ORDER_LIMIT and (not exactly or content == str(number)) else None


def _floor(content: str) -> int:
    try:
        return math.floor(Decimal(content))
    except (ArithmeticError, ValueError):
        return -1


_RESERVED = {"#status": "status", "#name": "name", "#schema": "schema"}
"""Our attributes that are reserved words of DynamoDB, by their names in an expression.

Source: "Reserved words in DynamoDB" in its guide.
"""


def expression_name(name: str) -> str:
    """Return what an expression calls the attribute `name`: a placeholder if it is a reserved word."""
    return f"#{name}" if f"#{name}" in _RESERVED else name


def _allocatable() -> str:
    """Return the condition that a record is available and clean, and that `decode_sandbox` can read all of it."""
    reasons = ", ".join(f":{reason.name}" for reason in DeletionReason)
    special = {
        "status": "#status = :available",
        "sandbox_id": "sandbox_id = :sandbox_id",
        "dirty": "dirty = :clean",
        "deletion_reason": f"deletion_reason IN ({reasons})",
    }
    usual = {
        "N": "{0} BETWEEN :zero AND :highest",
        "S": "attribute_type({0}, :text)",
        "BOOL": "attribute_type({0}, :bool)",
    }
    # A lease that ended has both.
    both = "attribute_exists(last_lease_id) AND attribute_exists(last_track_id)"
    neither = "attribute_not_exists(last_lease_id) AND attribute_not_exists(last_track_id)"
    terms = [f"({both} OR {neither})"]
    for each in _SANDBOX_FIELDS:
        if each.name == "schema":
            continue  # every update has this condition
        name = expression_name(each.name)
        term = special.get(each.name) or usual[each.tag].format(name)
        terms.append(term if each.is_required else f"(attribute_not_exists({name}) OR {term})")
    return " AND ".join(terms)


_ALLOCATABLE = _allocatable()
_ALLOCATABLE_VALUES = {
    ":available": encode(Status.AVAILABLE),
    ":clean": encode(False),  # noqa: FBT003 - the value itself
    ":zero": encode(0),
    ":highest": encode(ORDER_LIMIT - 1),
    ":text": encode("S"),
    ":bool": encode("BOOL"),
    **{f":{reason.name}": encode(reason) for reason in DeletionReason},
}


def unless_newer(write: Item) -> Item:
    """Return a write with the further condition that its record is of no newer schema than this release knows."""
    return write | {
        "ConditionExpression": f"({write['ConditionExpression']})"
        " AND (attribute_not_exists(#schema) OR #schema BETWEEN :zero AND :known)",
        "ExpressionAttributeNames": write.get("ExpressionAttributeNames", {}) | {"#schema": "schema"},
        "ExpressionAttributeValues": write["ExpressionAttributeValues"]
        | {":zero": encode(0), ":known": encode(schema.KNOWN)},
    }


def only_if_allocatable(update: Item, sandbox_id: str) -> Item:
    """Return the update with the further condition that the record is available and clean, and can be read.

    The index shows little of a record: what it shows may be in order where the record is not.
    """
    return update | {
        "ConditionExpression": f"{update['ConditionExpression']} AND {_ALLOCATABLE}",
        "ExpressionAttributeNames": _RESERVED | update["ExpressionAttributeNames"],
        "ExpressionAttributeValues": update["ExpressionAttributeValues"]
        | _ALLOCATABLE_VALUES
        | {":sandbox_id": encode(sandbox_id)},
    }
