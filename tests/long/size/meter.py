"""A meter of a client's calls of DynamoDB."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class Meter:
    """Counts the calls of a client of boto3, and their cost by DynamoDB's own report, by operation."""

    def __init__(self, client: DynamoDBClient) -> None:
        self._lock = threading.Lock()
        self.clear()
        client.meta.events.register("provide-client-params.dynamodb", self._ask)
        client.meta.events.register("after-call.dynamodb", self._count)

    def clear(self) -> None:
        """Reset all counters."""
        self.calls: Counter[str] = Counter()
        self.scanned: Counter[str] = Counter()
        """The items that a query or scan has read, returned or not."""
        self.units: Counter[str] = Counter()
        """Twice the capacity units: an eventually consistent read of up to 4 KB takes half a unit."""

    @staticmethod
    def _ask(params: dict[str, Any], model: Any, **_: Any) -> None:
        if "ReturnConsumedCapacity" in model.input_shape.members:  # DescribeTable costs nothing
            params["ReturnConsumedCapacity"] = "TOTAL"

    def _count(self, model: Any, parsed: dict[str, Any], **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        tables = consumed if isinstance(consumed, list) else [consumed]
        with self._lock:
            self.calls[model.name] += 1
            self.scanned[model.name] += parsed.get("ScannedCount", 0)
            self.units[model.name] += sum(round(2 * each["CapacityUnits"]) for each in tables)
