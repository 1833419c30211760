"""Tables with very many records, and a meter on what a client asks of DynamoDB."""

from __future__ import annotations

import threading
from collections import Counter
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


def load(client: DynamoDBClient, table_name: str, records: Iterable[Sandbox | Claim]) -> None:
    """Write records as they are, whatever was there, in no order."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for unwritten in threads.map(lambda batch: _write(client, table_name, batch), _batches(records)):
            assert not unwritten


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


class Meter:
    """Counts a client's calls and what DynamoDB itself says that they cost, by operation."""

    def __init__(self, client: DynamoDBClient) -> None:
        self._lock = threading.Lock()
        self.clear()
        events: Any = client.meta.events  # the stubs take handlers for mute, while this one's answer counts
        events.register("provide-client-params.dynamodb", self._ask)
        events.register("after-call.dynamodb", self._count)

    def clear(self) -> None:
        """Start from nothing."""
        self.calls: Counter[str] = Counter()
        self.scanned: Counter[str] = Counter()
        """Items that a query or scan read, returned or not."""
        self.units: Counter[str] = Counter()
        """Capacity units, times two: an eventually consistent read of up to 4 KB takes half a unit."""

    @staticmethod
    def _ask(params: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {**params, "ReturnConsumedCapacity": "TOTAL"}

    def _count(self, model: Any, parsed: dict[str, Any], **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        tables = consumed if isinstance(consumed, list) else [consumed]
        with self._lock:
            self.calls[model.name] += 1
            self.scanned[model.name] += parsed.get("ScannedCount", 0)
            self.units[model.name] += sum(round(2 * each["CapacityUnits"]) for each in tables)
