"""Shared by the parts of the store on DynamoDB: reads of items, and reports of unreadable ones."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from broker_common.adapters.dynamo_audience import Audience
from broker_common.adapters.dynamo_facts import encode_fact, encode_mark, encode_pool_fact
from broker_common.adapters.dynamo_items import ENDPOINT, POOL, claim_key, decode_sandbox
from broker_common.adapters.dynamo_places import decode_held
from broker_common.adapters.dynamo_table import SHARDS
from broker_common.adapters.dynamo_transport import ConditionFailed, DynamoTransport
from broker_common.core.deadline import Backoff, deadline_in
from broker_common.core.errors import OutcomeUnknown, StoreUnavailable, UnreadableRecord
from broker_common.core.ids import new_id
from broker_common.core.telemetry import RecordUnreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.core.facts import Fact, PoolFact
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.sandbox import Sandbox
    from broker_common.core.store import ClaimHeld, PlaceHeld

_BATCH = 100
"""BatchGetItem's limit."""
PAGE = 1000
"""Items in one page of a query or scan: about 400 KB, which DynamoDB answers in time; 1 MB may take too long."""
HISTORY_DAYS = 90
_REPORT_AGAIN_SEC = 60.0
_MOST_REPORTED = 1000
"""Unreadable records that are remembered as reported. Beyond this number, all are reported again."""

Source = TypeVar("Source")
Record = TypeVar("Record")


class DynamoBase:
    """One table as a process reads it; safe to use from many threads."""

    def __init__(
        self,
        client: DynamoDBClient,
        table_name: str,
        *,
        clock: Clock,
        rng: Random,
        recorder: Recorder,
        shards: int = SHARDS,
        timeout_sec: float = 1.0,
        history_days: int = HISTORY_DAYS,
    ) -> None:
        """Use `client` as `make_client` makes it, with the same `timeout_sec`; keep facts for `history_days`."""
        self._table = table_name
        self._clock = clock
        self._rng = rng
        self._shards = shards
        self._history_days = history_days
        self._timeout_sec = timeout_sec
        self._recorder = recorder
        self._reported_at: dict[str, float] = {}
        self._reporting = threading.Lock()
        self._transport = DynamoTransport(
            client, table_name, clock=clock, rng=rng, recorder=recorder, timeout_sec=timeout_sec
        )
        self._audience = Audience(self._has_endpoints, clock)

    def _get(self, key: Mapping[str, Any]) -> Item | None:
        answer = self._transport.read("get_item", TableName=self._table, Key=key, ConsistentRead=True)
        item: Item | None = answer.get("Item")
        return item

    def _get_items(self, keys: Sequence[Item], *, consistent: bool = True) -> list[Item]:
        """Return the items that exist for these keys, in any order.

        A read that is not `consistent` costs half as much, and may show an item as it was a second ago.
        """
        found: list[Item] = []
        wanted = list(keys)
        backoff = Backoff(self._clock, self._rng, base=0.025, limit=1.0)
        while wanted:
            request = {self._table: {"Keys": wanted[:_BATCH], "ConsistentRead": consistent}}
            answer = self._transport.read("batch_get_item", RequestItems=request)
            found += answer["Responses"].get(self._table, [])
            unread = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            wanted = unread + wanted[_BATCH:]
            if unread:
                backoff.pause(StoreUnavailable("the table is throttled"))
        return found

    def _sandbox(self, item: Item) -> Sandbox:
        return self._read(self._decode, item)

    def _decode(self, item: Item) -> Sandbox:
        return decode_sandbox(item, self._shards)

    def _read(self, decode: Callable[[Source], Record], item: Source) -> Record:
        """Decode an item; reports an unreadable one, and raises `UnreadableRecord`."""
        try:
            return decode(item)
        except UnreadableRecord as error:
            self._report(error)
            raise

    def _readable(self, decode: Callable[[Item], Record], item: Item) -> Record | None:
        """Decode an item; reports an unreadable one, and returns None so that other records are not affected."""
        try:
            return self._read(decode, item)
        except UnreadableRecord:
            return None

    def _report(self, error: UnreadableRecord) -> None:
        """Record that a record cannot be read, at most once a minute."""
        now = self._clock.monotonic()
        with self._reporting:
            if now - self._reported_at.get(error.message, -math.inf) < _REPORT_AGAIN_SEC:
                return
            if len(self._reported_at) >= _MOST_REPORTED:
                self._reported_at.clear()
            self._reported_at[error.message] = now
        self._recorder.record(
            RecordUnreadable(error=error.message, sandbox_id=error.sandbox_id, track_id=error.track_id)
        )

    def _put_fact(self, fact: Fact) -> list[Item]:
        """Build the writes of a fact: the fact, and its mark if it must be told to somebody."""
        item = encode_fact(fact, shards=self._shards, days=self._history_days)
        put = {"TableName": self._table, "Item": item, "ConditionExpression": "attribute_not_exists(PK)"}
        return [{"Put": put}, *self._mark_untold(item)]

    def _put_pool_fact(self, fact: PoolFact) -> list[Item]:
        """Build the writes of a fact of the pool: the fact, and its mark if it must be told to somebody."""
        item = encode_pool_fact(fact, shards=self._shards, days=self._history_days)
        return [{"Put": {"TableName": self._table, "Item": item}}, *self._mark_untold(item)]

    def _mark_untold(self, item: Item) -> list[Item]:
        if self._audience.is_absent():
            return []
        return [{"Put": {"TableName": self._table, "Item": encode_mark(item)}}]

    def _has_endpoints(self) -> bool:
        """Count endpoints, up to one. While the table is in trouble, this takes little of a request's time."""
        with deadline_in(1.5 * self._timeout_sec, self._clock):
            answer = self._transport.read(
                "query",
                TableName=self._table,
                ConsistentRead=True,
                Limit=1,
                Select="COUNT",
                KeyConditionExpression="PK = :pool AND begins_with(SK, :endpoint)",
                ExpressionAttributeValues={":pool": POOL, ":endpoint": {"S": ENDPOINT}},
            )
        return bool(answer["Count"])

    def _query_claims(self, track_id: str) -> Iterator[Item]:
        """Read the claims of a track, and the pointers to its places."""
        any_of_them = claim_key(track_id, "")
        return self._query(
            ConsistentRead=True,
            KeyConditionExpression="PK = :track AND begins_with(SK, :claim)",
            ExpressionAttributeValues={":track": any_of_them["PK"], ":claim": any_of_them["SK"]},
        )

    def _held(self, reason: Item) -> ClaimHeld | PlaceHeld:
        """Return what made a put at a claim's key fail, by the result of the put."""
        if not reason.get("Item"):
            raise OutcomeUnknown("DynamoDB reports a claim, but does not return it")
        return self._read(decode_held, reason["Item"])

    def _transact(self, *actions: Item) -> list[Item] | None:
        """Send a TransactWriteItems; returns None if it was applied, or each item's result if a condition failed."""
        try:
            self._transport.write(
                "transact_write_items", ClientRequestToken=new_id(self._rng), TransactItems=list(actions)
            )
        except ConditionFailed as failed:
            reasons: list[Item] = failed.answer["CancellationReasons"]
            return reasons
        return None

    def _query(self, **request: Any) -> Iterator[Item]:  # noqa: ANN401 - DynamoDB's own JSON
        return self._pages("query", **request)

    def _pages(self, operation: str, **request: Any) -> Iterator[Item]:  # noqa: ANN401 - DynamoDB's own JSON
        request = {"TableName": self._table, "Limit": PAGE, **request}
        while True:
            answer = self._transport.read(operation, **request)
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
