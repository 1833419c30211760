"""How records look in the table: keys, items and cursors, in DynamoDB's own JSON.

A sandbox is (`SBX#<id>`, `META`), a claim (`TRACK#<track>`, `CLAIM#<key>`), an account (`ACCOUNT#<key>`, `ACCOUNT`);
the pool's own records are (`POOL`, …).
The index partitions each status into shards by a hash of the sandbox id, and orders them by `status_order`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import fields
from typing import Any

from broker_common.core.domain import ORDER_LIMIT, Candidate, Claim, DeletionReason, Sandbox, Status
from broker_common.core.errors import InvalidInput, InvalidTransition, UnreadableRecord
from broker_common.core.ports import Pauses, Watermark

Item = dict[str, Any]
"""An item, key or set of values."""

SYNC_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "SYNC"}}
PAUSE_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "PAUSE"}}


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


def decode(value: Item) -> str | int | bool:
    """Return the value of an attribute."""
    ((kind, content),) = value.items()
    return int(content) if kind == "N" else content


class BadField(ValueError):
    """A field of one of the pool's own records is missing, or not what it must be; the message names it."""


def read_integer(item: Item, name: str) -> int:
    """Return a field that is a whole number; raises `BadField`."""
    try:
        return int(item[name]["N"])
    except (KeyError, TypeError, ValueError):
        raise BadField(f"{name} must be a whole number") from None


def read_text(item: Item, name: str) -> str:
    """Return a field that is a text; raises `BadField`."""
    text = item[name].get("S")
    if not isinstance(text, str):
        raise BadField(f"{name} must be a text")
    return text


def encode_sandbox(sandbox: Sandbox, shards: int) -> Item:
    """Return a sandbox's whole item; fields that are None are left out."""
    item = {each.name: encode(value) for each in fields(Sandbox) if (value := getattr(sandbox, each.name)) is not None}
    part = status_key(sandbox.status, shard_of(sandbox.sandbox_id, shards))
    return {**sandbox_key(sandbox.sandbox_id), **item, "status_key": {"S": part}}


def encode_account(sandbox: Sandbox) -> Item:
    """Return the whole item that says which sandbox has an account."""
    return {**account_item_key(sandbox.account_key), "sandbox_id": {"S": sandbox.sandbox_id}}


def decode_sandbox(item: Item) -> Sandbox:
    """Return the sandbox of an item; attributes that this version does not know are ignored.

    Raises `UnreadableRecord`, for example for a status that only a later version knows.
    """
    try:
        values: dict[str, Any] = {each.name: decode(item[each.name]) for each in fields(Sandbox) if each.name in item}
        values["status"] = Status(values["status"])
        if "deletion_reason" in values:
            values["deletion_reason"] = DeletionReason(values["deletion_reason"])
        return Sandbox(**values)
    except (InvalidTransition, KeyError, TypeError, ValueError) as error:
        raise UnreadableRecord(f"the record {item.get('PK', {}).get('S')!r} cannot be read: {error}") from error


def encode_claim(claim: Claim) -> Item:
    """Return a claim's whole item."""
    item = {each.name: encode(value) for each in fields(Claim) if (value := getattr(claim, each.name)) is not None}
    return {**claim_key(claim.track_id, claim.idempotency_key), **item}


def decode_claim(item: Item) -> Claim:
    """Return the claim of an item."""
    values: dict[str, Any] = {each.name: decode(item[each.name]) for each in fields(Claim) if each.name in item}
    return Claim(**values)


def decode_candidate(item: Item) -> Candidate:
    """Return the candidate of an item of the index."""
    sfdc_account_id = item.get("sfdc_account_id")
    return Candidate(
        sandbox_id=sandbox_id_of(item),
        version=int(item["version"]["N"]),
        name=item["name"]["S"],
        external_id=item["external_id"]["S"],
        sfdc_account_id=sfdc_account_id["S"] if sfdc_account_id else None,
    )


def encode_watermark(watermark: Watermark) -> Item:
    """Return the watermark's whole item."""
    return {**SYNC_KEY, "synced_at": encode(watermark.synced_at), "accounts": encode(watermark.accounts)}


def decode_watermark(item: Item) -> Watermark:
    """Return the watermark of an item; raises `BadField`."""
    return Watermark(read_integer(item, "synced_at"), read_integer(item, "accounts"))


def synced_at_of(item: Item) -> int:
    """Return when the watermark of an item says that a sync succeeded; 0 where that cannot be read."""
    try:
        return read_integer(item, "synced_at")
    except BadField:
        return 0


def decode_pauses(item: Item | None) -> Pauses:
    """Return the pauses of an item; what it does not name is not paused. Raises `BadField`."""
    known = {each.name for each in fields(Pauses)}
    given = {name: value for name, value in (item or {}).items() if name in known}
    for name, value in given.items():
        if "BOOL" not in value:
            raise BadField(f"{name} must be a boolean")
    return Pauses(**{name: value["BOOL"] for name, value in given.items()})


def encode_cursor(status: Status | None, part: str, start: Item | None) -> str:
    """Return an opaque cursor for a listing of `status` that goes on in index partition `part` after `start`."""
    after = [sandbox_id_of(start), int(start["status_order"]["N"])] if start else None
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
    if at is not None and isinstance(sandbox_id, str) and type(order) is int and 0 <= order < ORDER_LIMIT:
        return at, index_key(sandbox_id, parts[at], order)
    raise InvalidInput("cursor: was not given by this listing")
