"""Usage on DynamoDB: one item for each ended lease, (`USAGE#<date of the end, UTC>`, `<lease_id>`), with a TTL.

The transaction that ends a lease puts its item. The transaction that writes a wipe adds `wiped_at` to it, and makes an
item with nothing else where there is none: then an earlier release ended the lease, and a report skips the item. None
of these writes has a condition, so none can fail and prevent the change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_fields import Item, encode, encode_all, fields_of, read_fields
from broker_common.adapters.dynamo_items import TTL
from broker_common.core import schema
from broker_common.core.errors import UnreadableRecord
from broker_common.core.sandbox import DeletionReason
from broker_common.core.usage import UsageLine, ended_by, wiped_by
from broker_common.core.utc import DAY_SEC, day_of, days_between

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.facts import Change

_USAGE = "USAGE#"
_LINE_FIELDS = fields_of(
    {"allocated_at": int, "ended_at": int, "ending": DeletionReason},
    {"track_name": str, "customer": str, "wiped_at": int, "schema": int},
)


class DynamoUsage(DynamoBase):
    """`UsageRecords` on one DynamoDB table."""

    def read_usage(self, *, since: int, until: int) -> Iterator[UsageLine]:
        """Implement the port: a consistent query for each day."""
        for day in days_between(since, until):
            for item in self._query(
                ConsistentRead=True,
                KeyConditionExpression="PK = :day",
                ExpressionAttributeValues={":day": {"S": f"{_USAGE}{day}"}},
            ):
                line = self._readable(_decode_line, item) if "ended_at" in item else None
                if line is not None and since <= line.ended_at < until:
                    yield line


def usage_writes(table: str, change: Change, *, days: int) -> list[Item]:
    """Build the writes to the usage items that belong to a change. The items are kept for `days` whole days."""
    ended, wiped = ended_by(change), wiped_by(change)
    if ended is not None:
        return [{"Put": {"TableName": table, "Item": encode_line(ended, days=days)}}]
    if wiped is None:
        return []
    return [
        {
            "Update": {
                "TableName": table,
                "Key": _key(wiped.lease_id, wiped.ended_at),
                # The first wipe counts: a later one follows an operator's retry.
                "UpdateExpression": "SET wiped_at = if_not_exists(wiped_at, :wiped_at), #ttl = :ttl",
                "ExpressionAttributeNames": {"#ttl": TTL},
                "ExpressionAttributeValues": {
                    ":wiped_at": encode(wiped.wiped_at),
                    ":ttl": encode(_kept_until(wiped.ended_at, days)),
                },
            }
        }
    ]


def _key(lease_id: str, ended_at: int) -> Item:
    return {"PK": {"S": f"{_USAGE}{day_of(ended_at)}"}, "SK": {"S": lease_id}}


def _kept_until(ended_at: int, days: int) -> int:
    """Return until when a line is kept: a day longer, so that a report may begin with a whole day."""
    return ended_at + (days + 1) * DAY_SEC


def encode_line(line: UsageLine, *, days: int) -> Item:
    """Return a line's whole item; it is kept for `days` whole days."""
    flat = {
        "track_name": line.track_name,
        "customer": line.customer,
        "allocated_at": line.allocated_at,
        "ended_at": line.ended_at,
        "ending": line.ending,
        "wiped_at": line.wiped_at,
    }
    return {
        **_key(line.lease_id, line.ended_at),
        **encode_all(flat),
        TTL: encode(_kept_until(line.ended_at, days)),
        "schema": encode(schema.WRITTEN),
    }


def _decode_line(item: Item) -> UsageLine:
    lease_id = item["SK"]["S"]
    try:
        values = read_fields(item, _LINE_FIELDS)
    except ValueError as error:
        raise UnreadableRecord(f"the usage of lease {lease_id!r}", str(error)) from error
    return UsageLine(lease_id=lease_id, **{name: value for name, value in values.items() if name != "schema"})
