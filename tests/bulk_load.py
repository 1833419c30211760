"""Very many records, put into a table at once. Batch writes carry no conditions; they serve nothing but this."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_items import encode_claim, encode_sandbox
from broker_common.adapters.dynamo_table import SHARDS
from broker_common.core.domain import Claim, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

_BATCH = 25
"""BatchWriteItem's limit."""
_THREADS = 4


def load_records(client: DynamoDBClient, table_name: str, records: Iterable[Sandbox | Claim]) -> None:
    """Write records as they are, whatever was there, in no order."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for unwritten in threads.map(lambda batch: _write(client, table_name, batch), _batches(records)):
            assert not unwritten, "an engine of this machine throttles nothing"


def _batches(records: Iterable[Sandbox | Claim]) -> Iterator[list[Sandbox | Claim]]:
    batch: list[Sandbox | Claim] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(client: DynamoDBClient, table_name: str, batch: list[Sandbox | Claim]) -> Any:
    items = [encode_sandbox(each, SHARDS) if isinstance(each, Sandbox) else encode_claim(each) for each in batch]
    puts: Any = [{"PutRequest": {"Item": item}} for item in items]
    return client.batch_write_item(RequestItems={table_name: puts})["UnprocessedItems"]
