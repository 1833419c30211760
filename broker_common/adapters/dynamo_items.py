"""How records look in the table: keys, items and cursors, in DynamoDB's own JSON.

A sandbox is (`SBX#<id>`, `META`), a claim (`TRACK#<track>`, `CLAIM#<key>`), an account (`ACCOUNT#<key>`, `ACCOUNT`);
the pool's own records are (`POOL`, …).
The index partitions each status into shards by a hash of the sandbox id, and orders them by `status_order`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from broker_common.core.domain import ORDER_LIMIT, Candidate, Claim, DeletionReason, Sandbox, Status
from broker_common.core.errors import InvalidInput, InvalidTransition, StoreUnavailable, UnreadableRecord
from broker_common.core.ports import Pauses, Watermark

if TYPE_CHECKING:
    from collections.abc import Iterable
    from enum import StrEnum

Item = dict[str, Any]
"""An item, key or set of values."""

SYNC_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "SYNC"}}
PAUSE_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "PAUSE"}}
ELSEWHERE = "elsewhere"
"""The part of a listing that has what stands nowhere in the index where this release looks."""


def shard_of(sandbox_id: str, shards: int) -> int:
    """Return the shard of a sandbox: the same in every process and version of Python."""
    return zlib.crc32(sandbox_id.encode()) % shards


def status_key(status: Status, shard: int) -> str:
    """Return the index's partition key."""
    return f"{status}#{shard}"


def sandbox_key(sandbox_id: str) -> Item:
    """Return a sandbox's key."""
    return {"PK": {"S": f"SBX#{sandbox_id}"}, "SK": {"S": "META"}}


def claim_key(track_id: str, idempotency_key: str) -> Item:
    """Return a claim's key."""
    return {"PK": {"S": f"TRACK#{track_id}"}, "SK": {"S": f"CLAIM#{idempotency_key}"}}


def account_item_key(key: str) -> Item:
    """Return the key of an account's record, given what tells the account from others."""
    return {"PK": {"S": f"ACCOUNT#{key}"}, "SK": {"S": "ACCOUNT"}}


def account_key_of(item: Item) -> str | None:
    """Return what tells an account from others, given its record; None if the item is anything else."""
    key: str = item["PK"]["S"]
    return key.removeprefix("ACCOUNT#") if item["SK"]["S"] == "ACCOUNT" else None


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
    item = {each.name: encode(value) for each in fields(Sandbox) if (value := getattr(sandbox, each.name)) is not None}
    part = status_key(sandbox.status, shard_of(sandbox.sandbox_id, shards))
    return {**sandbox_key(sandbox.sandbox_id), **item, "status_key": {"S": part}}


def encode_account(sandbox: Sandbox) -> Item:
    """Return the whole item that says which sandbox has an account."""
    return {**account_item_key(sandbox.account_key), "sandbox_id": {"S": sandbox.sandbox_id}}


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
    values = read_fields(item, _SANDBOX_FIELDS)
    for name, kind in (("status", Status), ("deletion_reason", DeletionReason)):
        if name in values:
            values[name] = _known(values[name], kind, name)
    if values["sandbox_id"] != sandbox_id:
        raise ValueError("sandbox_id is not that of its key")
    if item.get("status_key") != {"S": status_key(values["status"], shard_of(sandbox_id, shards))}:
        raise ValueError("status_key does not follow from its status")
    missing = sorted(_LEASE_FIELDS - values.keys()) if values["status"] is Status.ALLOCATED else []
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    return Sandbox(**values)


def _known(value: str, kind: type[StrEnum], name: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} is not one that this release knows") from None


def encode_claim(claim: Claim) -> Item:
    """Return a claim's whole item."""
    item = {each.name: encode(value) for each in fields(Claim) if (value := getattr(claim, each.name)) is not None}
    return {**claim_key(claim.track_id, claim.idempotency_key), **item}


def decode_claim(item: Item) -> Claim:
    """Return the claim of an item; raises `UnreadableRecord`."""
    track_id = item["PK"]["S"].removeprefix("TRACK#")
    try:
        return _claim_of(item)
    except ValueError as error:
        raise UnreadableRecord(f"a claim of track {track_id!r}", str(error), track_id=track_id) from error


def _claim_of(item: Item) -> Claim:
    claim = Claim(**read_fields(item, _CLAIM_FIELDS))
    if claim_key(claim.track_id, claim.idempotency_key) != {name: item.get(name) for name in ("PK", "SK")}:
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


def encode_watermark(watermark: Watermark) -> Item:
    """Return the watermark's whole item."""
    return {**SYNC_KEY, "synced_at": encode(watermark.synced_at), "accounts": encode(watermark.accounts)}


def decode_watermark(item: Item) -> Watermark:
    """Return the watermark of an item; raises `UnreadableRecord`."""
    try:
        return Watermark(**read_fields(item, _WATERMARK_FIELDS))
    except ValueError as error:
        raise UnreadableRecord("the record of the last sync", str(error)) from error


def synced_at_of(item: Item) -> int:
    """Return when the watermark of an item says that a sync succeeded; 0 where that cannot be read."""
    try:
        return decode_watermark(item).synced_at
    except UnreadableRecord:
        return 0


def decode_pauses(item: Item | None) -> Pauses:
    """Return the pauses of an item; what it does not name is not paused. Raises `UnreadableRecord`."""
    try:
        return Pauses(**read_fields(item or {}, _PAUSES_FIELDS))
    except ValueError as error:
        raise UnreadableRecord("the record of what is paused", str(error)) from error


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

_TAGS = {str: "S", int: "N", bool: "BOOL", Status: "S", DeletionReason: "S"}
_NOUNS = {"S": "a text", "N": "a whole number that is not negative", "BOOL": "true or false"}


@dataclass(frozen=True, slots=True)
class _Field:
    """An attribute of a record: its name, DynamoDB's name of its type, and whether it may be missing."""

    name: str
    tag: str
    is_required: bool


def fields_of(record: type) -> tuple[_Field, ...]:
    """Return the attributes that a record of this dataclass has; those with a default may be missing."""
    hints = get_type_hints(record)
    return tuple(
        _Field(each.name, _TAGS[(get_args(hints[each.name]) or (hints[each.name],))[0]], each.default is MISSING)
        for each in fields(record)
    )


_SANDBOX_FIELDS = fields_of(Sandbox)
_REQUESTED_AT = tuple(each for each in _SANDBOX_FIELDS if each.name == "deletion_requested_at")
_CLAIM_FIELDS = fields_of(Claim)
_CANDIDATE_FIELDS = tuple(each for each in fields_of(Candidate) if each.name != "sandbox_id")
_WATERMARK_FIELDS = fields_of(Watermark)
_PAUSES_FIELDS = fields_of(Pauses)
_LEASE_FIELDS = {"lease_id", "allocated_to_track", "idempotency_key", "allocated_at", "expires_at"}


def read_fields(item: Item, expected: Iterable[_Field]) -> dict[str, Any]:
    """Return the values of these attributes; raises `ValueError` for the first that is missing or of another type."""
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
        values[each.name] = content
    return values


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
    terms = []
    for each in _SANDBOX_FIELDS:
        name = f"#{each.name}" if f"#{each.name}" in _ALLOCATABLE_NAMES else each.name
        term = special.get(each.name) or usual[each.tag].format(name)
        terms.append(term if each.is_required else f"(attribute_not_exists({name}) OR {term})")
    return " AND ".join(terms)


_ALLOCATABLE_NAMES = {"#status": "status", "#name": "name"}
"""Those of our attributes that are reserved words of DynamoDB's."""
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


def only_if_allocatable(update: Item, sandbox_id: str) -> Item:
    """Return the update with the further condition that the record is available and clean, and can be read.

    The index shows little of a record: what it shows may be in order where the record is not.
    """
    return update | {
        "ConditionExpression": f"{update['ConditionExpression']} AND {_ALLOCATABLE}",
        "ExpressionAttributeNames": _ALLOCATABLE_NAMES | update["ExpressionAttributeNames"],
        "ExpressionAttributeValues": update["ExpressionAttributeValues"]
        | _ALLOCATABLE_VALUES
        | {":sandbox_id": encode(sandbox_id)},
    }
