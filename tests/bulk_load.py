"""Load many records into a table by batch writes, which have no conditions: for tests only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_facts import encode_fact, encode_mark
from broker_common.adapters.dynamo_items import encode_account, encode_claim, encode_sandbox
from broker_common.adapters.dynamo_places import encode_place, encode_pointer
from broker_common.adapters.dynamo_table import SHARDS
from broker_common.core.facts import Fact
from broker_common.core.line import Place
from broker_common.core.sandbox import Claim, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item

_BATCH = 25
"""The limit of BatchWriteItem."""
_FACT_DAYS = 30
_THREADS = 4


def load_records(client: DynamoDBClient, table_name: str, records: Iterable[Sandbox | Claim | Place | Fact]) -> None:
    """Write records over existing ones, in no order. Facts are written as untold."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for unwritten in threads.map(lambda batch: _write(client, table_name, batch), _batches(records)):
            assert not unwritten, "a local engine does not throttle"


def _batches(records: Iterable[Sandbox | Claim | Place | Fact]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in chain.from_iterable(map(_items, records)):
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _items(record: Sandbox | Claim | Place | Fact) -> list[Item]:
    if isinstance(record, Claim):
        return [encode_claim(record)]
    if isinstance(record, Place):
        return [encode_place(record), encode_pointer(record)]
    if isinstance(record, Fact):
        item = encode_fact(record, shards=SHARDS, days=_FACT_DAYS)
        return [item, encode_mark(item)]
    return [encode_sandbox(record, SHARDS), encode_account(record)]


def _write(client: DynamoDBClient, table_name: str, items: list[Item]) -> Any:
    puts: Any = [{"PutRequest": {"Item": item}} for item in items]
    return client.batch_write_item(RequestItems={table_name: puts})["UnprocessedItems"]
