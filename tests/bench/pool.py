"""Pools of realistic sandboxes, put into a table in bulk.

Batch writes carry no conditions; they serve nothing but this.
"""

from __future__ import annotations

import uuid
from random import Random
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_items import encode_sandbox
from broker_common.adapters.dynamo_table import SHARDS
from broker_common.core.domain import ORDER_LIMIT, Account, Sandbox, new_sandbox
from broker_common.core.parallel import for_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_dynamodb import DynamoDBClient

_BATCH = 25
"""BatchWriteItem's limit."""
_THREADS = 4
_SYNCED_AT = 1_750_000_000


def make_pool(count: int, *, first: int = 0) -> list[Sandbox]:
    """Make available sandboxes as a sync makes them, numbered from `first`, of the provider's usual names and ids.

    The same call makes the same sandboxes.
    """
    rng = Random(first)
    return [
        new_sandbox(
            Account(
                sandbox_id=str(2_000_000 + number),
                external_id=f"identity/accounts/{uuid.UUID(int=rng.getrandbits(128), version=4)}",
                name=f"lab-adventure-{number:06}",
                sfdc_account_id=f"0018B{number:013X}",
            ),
            order=rng.randrange(ORDER_LIMIT),
            now=_SYNCED_AT,
            version=_SYNCED_AT * 1000,
        )
        for number in range(first, first + count)
    ]


def load_pool(client: DynamoDBClient, table: str, sandboxes: Sequence[Sandbox]) -> None:
    """Put sandboxes into a table, whatever is there."""
    load_items(client, table, [encode_sandbox(each, SHARDS) for each in sandboxes])


def load_items(client: DynamoDBClient, table: str, items: Sequence[Any]) -> None:
    """Put items into a table, whatever is there."""

    def put(start: int) -> None:
        requests: Any = [{"PutRequest": {"Item": item}} for item in items[start : start + _BATCH]]
        answer = client.batch_write_item(RequestItems={table: requests})
        assert not answer["UnprocessedItems"], "DynamoDB Local throttles nothing"

    for_each(put, range(0, len(items), _BATCH), threads=_THREADS)
