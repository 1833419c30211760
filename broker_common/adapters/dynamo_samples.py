"""The records of the job `watch` on DynamoDB: samples, the level of the pool, and the leases that end soon.

A sample is (`SAMPLES#<date>`, `<hour>:<minute>`) in UTC, and has a TTL. The level is (`POOL`, `LEVEL`).
"""

from __future__ import annotations

import time
from datetime import datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_conditions import unless_newer
from broker_common.adapters.dynamo_fields import Item, encode, encode_all, fields_of, read_fields
from broker_common.adapters.dynamo_items import TTL, sandbox_id_of, status_keys
from broker_common.adapters.dynamo_table import INDEX
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core import schema
from broker_common.core.errors import UnreadableRecord
from broker_common.core.parallel import for_each
from broker_common.core.samples import KEPT_SEC, MINUTE_SEC, PoolLevel, Sample, minute_of
from broker_common.core.sandbox import Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import AllocateOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from broker_common.core.facts import PoolFact

_DAY_SEC = 24 * 3600
_SAMPLES = "SAMPLES#"
_LEVEL_KEY: Item = {"PK": {"S": "POOL"}, "SK": {"S": "LEVEL"}}
_THREADS = 8
_AT_ONCE = 100
"""How many samples are read by their keys, in one call. More are read by a query of each date."""
_COUNTED = tuple(status for status in Status if status is not Status.DELETED)
_ADDED = {outcome: f"allocates_{outcome}" for outcome in AllocateOutcome}
_FIELDS = fields_of(
    {},
    {**dict.fromkeys(_COUNTED, int), "waiting": int, **dict.fromkeys(_ADDED.values(), int), "schema": int},
)
_LEVEL_FIELDS = fields_of({"is_low": bool, "counted_at": int}, {"schema": int})
_VERSION = fields_of({"version": int}, {})


class DynamoSamples(DynamoBase):
    """`WatchRecords` on one DynamoDB table."""

    def write_sample(self, sample: Sample) -> None:
        """Implement the port: an update of the fields of the counts."""
        by_status = sample.by_status or {}
        counts = {status.value: by_status.get(status, 0) for status in _COUNTED}
        update = self._update_of(sample.at, set_to={**counts, "waiting": sample.waiting or 0}, added={})
        try:
            self._transport.write("update_item", **update)
        except ConditionFailed:
            return  # a later release has written this sample

    def add_allocates(self, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
        """Implement the port: one TransactWriteItems, which DynamoDB applies once, however often it is sent."""
        added = {_ADDED[outcome]: count for outcome, count in allocates.items()}
        self._transact({"Update": self._update_of(minute, set_to={}, added=added)})

    def read_samples(self, *, since: int, until: int) -> list[Sample]:
        """Implement the port: one batch of consistent reads, or a consistent query of each date."""
        first = minute_of(since + MINUTE_SEC - 1)
        minutes = range(first, until, MINUTE_SEC)
        if len(minutes) <= _AT_ONCE:
            samples = self._samples(self._get_items([_key(minute) for minute in minutes]))
        else:
            dates = range(first - first % _DAY_SEC, until, _DAY_SEC)
            samples = list(chain(*for_each(partial(self._read_date, first, until), dates, threads=_THREADS)))
        return sorted(samples, key=lambda each: each.at)

    def _read_date(self, first: int, until: int, date: int) -> list[Sample]:
        begin, end = _key(max(first, date)), _key(min(until, date + _DAY_SEC) - 1)
        # Page by page: an item takes five times as much memory as its sample.
        return self._samples(
            self._query(
                ConsistentRead=True,
                KeyConditionExpression="PK = :date AND SK BETWEEN :begin AND :end",
                ExpressionAttributeValues={":date": begin["PK"], ":begin": begin["SK"], ":end": end["SK"]},
            )
        )

    def _samples(self, items: Iterable[Item]) -> list[Sample]:
        return [each for item in items if (each := self._readable(_decode, item)) is not None]

    def read_ending(self, *, until: int) -> Iterator[tuple[str, int]]:
        """Implement the port: a range query for each place of the index."""
        for place in status_keys(Status.ALLOCATED, self._shards):
            for item in self._query(
                IndexName=INDEX,
                KeyConditionExpression="status_key = :status AND status_order <= :until",
                ExpressionAttributeValues={":status": {"S": place}, ":until": encode(until)},
                ProjectionExpression="PK, version",
            ):
                yield sandbox_id_of(item), _version_of(item)

    def read_level(self) -> PoolLevel:
        """Implement the port: a consistent read."""
        item = self._get(_LEVEL_KEY)
        return self._read(_decode_level, item) if item else PoolLevel()

    def write_level(self, before: PoolLevel, after: PoolLevel, fact: PoolFact) -> None:
        """Implement the port: one TransactWriteItems over the level and the fact."""
        is_unwritten = "attribute_not_exists(PK) OR " if before == PoolLevel() else ""
        put = {
            "TableName": self._table,
            "Item": {
                **_LEVEL_KEY,
                **encode_all({"is_low": after.is_low, "counted_at": after.counted_at, "schema": schema.WRITTEN}),
            },
            "ConditionExpression": f"{is_unwritten}is_low = :low AND counted_at = :counted_at",
            "ExpressionAttributeValues": {":low": encode(before.is_low), ":counted_at": encode(before.counted_at)},
        }
        failed = self._transact({"Put": unless_newer(put)}, *self._put_pool_fact(fact))
        if failed is not None and self.read_level() != after:
            raise Conflict("another run has just told the pool's level", current=None)

    def _update_of(self, minute: int, *, set_to: Mapping[str, int], added: Mapping[str, int]) -> Item:
        """Build the update of a sample, which is made if there is none. Other fields stay as they are."""
        fixed = {TTL: minute + KEPT_SEC, "schema": schema.WRITTEN, **set_to}
        values: dict[str, Any] = {f":{name}": encode(value) for name, value in {**fixed, **added}.items()}
        # A sample that the next release has written keeps its number.
        kept = "#schema = if_not_exists(#schema, :schema)"
        changes = "SET " + ", ".join([kept, *(f"#{name} = :{name}" for name in fixed if name != "schema")])
        if added:
            changes += " ADD " + ", ".join(f"#{name} :{name}" for name in added)
        return unless_newer(
            {
                "TableName": self._table,
                "Key": _key(minute),
                "UpdateExpression": changes,
                "ExpressionAttributeNames": {f"#{name}": name for name in (*fixed, *added)},
                "ExpressionAttributeValues": values,
            }
        )


def _key(moment: int) -> Item:
    at = time.gmtime(moment)
    return {"PK": {"S": _SAMPLES + time.strftime("%Y-%m-%d", at)}, "SK": {"S": time.strftime("%H:%M", at)}}


def _decode(item: Item) -> Sample:
    """Return the sample of an item; raises `UnreadableRecord`."""
    date, minute = item["PK"]["S"], item["SK"]["S"]
    try:
        at = int(datetime.fromisoformat(f"{date.removeprefix(_SAMPLES)}T{minute}:00Z").timestamp())
        values = read_fields(item, _FIELDS)
    except ValueError as error:
        raise UnreadableRecord(f"the sample {date}/{minute}", str(error)) from error
    is_counted = Status.AVAILABLE in values
    return Sample(
        at=at,
        by_status={status: values.get(status, 0) for status in _COUNTED} if is_counted else None,
        waiting=values.get("waiting", 0) if is_counted else None,
        allocates={outcome: values[name] for outcome, name in _ADDED.items() if name in values},
    )


def _decode_level(item: Item) -> PoolLevel:
    try:
        values = read_fields(item, _LEVEL_FIELDS)
    except ValueError as error:
        raise UnreadableRecord("the record of the pool's level", str(error)) from error
    return PoolLevel(is_low=values["is_low"], counted_at=values["counted_at"])


def _version_of(item: Item) -> int:
    try:
        version: int = read_fields(item, _VERSION)["version"]
    except ValueError:
        return 0
    return version
