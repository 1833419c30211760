"""The pool's own records on DynamoDB: watermark, pauses, counts, and the layout, which identifies the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_conditions import unless_newer
from broker_common.adapters.dynamo_fields import Item, encode
from broker_common.adapters.dynamo_items import (
    COUNTS_KEY,
    PAUSE_KEY,
    SYNC_KEY,
    check_schema_of_counts,
    decode_counts,
    decode_pauses,
    decode_watermark,
    encode_counts,
    status_keys,
    synced_at_of,
    turn_of,
)
from broker_common.adapters.dynamo_reservations import DynamoOpenReservations
from broker_common.adapters.dynamo_table import INDEX, LAYOUT_KEY, Layout, decode_layout, index_problem
from broker_common.adapters.dynamo_time import time_of
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core import schema
from broker_common.core.errors import LayoutMismatch, StoreMisconfigured, UnreadableRecord
from broker_common.core.ids import new_id
from broker_common.core.sandbox import Status
from broker_common.core.store import PAUSABLE, Conflict, CountRecord, Pauses, TableState, Watermark

if TYPE_CHECKING:
    from broker_common.core.facts import PoolFact


_DESCRIBED_FOR_SEC = 60.0
NEXT_PING_SEC = 10.0
"""Less than a table needs to be deleted and restored: for that, AWS takes minutes. An emulator can be faster."""


@dataclass(frozen=True, slots=True)
class _Ping:
    """A ping that succeeded: when it began by both clocks, and what it knew of the table."""

    monotonic: float
    at: int
    identity: str | None
    described_at: float
    description: Item

    def counts_at(self, monotonic: float, now: int) -> bool:
        """Tell whether the description still counts. While a machine sleeps, one of its clocks may stand still."""
        is_recent = monotonic - self.monotonic <= NEXT_PING_SEC and abs(now - self.at) <= NEXT_PING_SEC
        return is_recent and monotonic - self.described_at <= _DESCRIBED_FOR_SEC


class DynamoPoolState(DynamoOpenReservations):
    """`PoolState` on one DynamoDB table."""

    _last_ping: _Ping | None = None
    """The last one, if it succeeded."""

    def read_watermark(self) -> Watermark | None:
        """Implement the port: a consistent read."""
        item = self._get(SYNC_KEY)
        return self._readable(decode_watermark, item) if item else None

    def write_watermark(self, watermark: Watermark) -> None:
        """Implement the port: an update on the condition that time goes forward."""
        values = {":now": encode(watermark.synced_at), ":accounts": encode(watermark.accounts)}
        change = "SET synced_at = :now, accounts = :accounts"
        if watermark.accounts_checked_at is None:
            change += " REMOVE accounts_checked_at"
        else:
            change += ", accounts_checked_at = :checked"
            values[":checked"] = encode(watermark.accounts_checked_at)
        update = {
            "TableName": self._table,
            "Key": SYNC_KEY,
            "UpdateExpression": change,
            "ConditionExpression": "attribute_not_exists(PK) OR synced_at <= :now",
            "ExpressionAttributeValues": values,
        }
        try:
            self._transport.write("update_item", **unless_newer(update))
        except ConditionFailed:
            return

    def read_pauses(self) -> Pauses:
        """Implement the port: a consistent read."""
        return self._read(decode_pauses, self._get(PAUSE_KEY))

    def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
        """Implement the port: one TransactWriteItems over the pauses and the facts."""
        names: dict[str, str] = {}
        values = {":true": encode(True), ":false": encode(False)}  # noqa: FBT003 - the values themselves
        to_set, to_remove, conditions = [], [], []
        changed = [name for name in PAUSABLE if getattr(before, name) != getattr(after, name)]
        for name in changed:
            was, pause = getattr(before, name), getattr(after, name)
            names |= {f"#{name}": name, f"#{name}_by": f"{name}_by", f"#{name}_since": f"{name}_since"}
            # A value that is not a boolean is repaired by setting it.
            conditions.append(
                f"attribute_exists(#{name}) AND #{name} <> :false"
                if was
                else f"attribute_not_exists(#{name}) OR #{name} <> :true"
            )
            to_set.append(f"#{name} = {':true' if pause else ':false'}")
            for part, value in (("by", pause and pause.by), ("since", pause and pause.since)):
                if value is None:
                    to_remove.append(f"#{name}_{part}")
                else:
                    to_set.append(f"#{name}_{part} = :{name}_{part}")
                    values[f":{name}_{part}"] = encode(value)
        used = " ".join([*to_set, *conditions])
        update = {
            "TableName": self._table,
            "Key": PAUSE_KEY,
            "UpdateExpression": "SET " + ", ".join(to_set) + (" REMOVE " + ", ".join(to_remove) if to_remove else ""),
            # DynamoDB refuses doubled parentheses around an expression, and `unless_newer` adds a pair.
            "ConditionExpression": conditions[0]
            if len(conditions) == 1
            else " AND ".join(map("({})".format, conditions)),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": {name: value for name, value in values.items() if name in used},
        }
        try:
            self._transport.write(
                "transact_write_items",
                ClientRequestToken=new_id(self._rng),
                TransactItems=[
                    {"Update": unless_newer(update)},
                    *(write for fact in facts for write in self._put_pool_fact(fact)),
                ],
            )
        except ConditionFailed as failed:
            current = self.read_pauses()
            if any(getattr(current, name) != getattr(after, name) for name in changed):
                raise Conflict("another request has just paused or resumed the same", current=None) from failed
            return current
        return self.read_pauses()

    def record(self, fact: PoolFact) -> None:
        """Implement the port: a put, or one TransactWriteItems if the fact must be told to somebody."""
        put, *marked = self._put_pool_fact(fact)
        if marked:
            self._transact(put, *marked)
        else:
            self._transport.write("put_item", **put["Put"])

    def read_counts(self) -> CountRecord:
        """Implement the port: an eventually consistent read, which costs half as much."""
        item = self._transport.read("get_item", TableName=self._table, Key=COUNTS_KEY).get("Item")
        if item is None:
            return CountRecord()
        self._read(check_schema_of_counts, item)
        return self._readable(decode_counts, item) or CountRecord(turn=turn_of(item))

    def write_counts(self, record: CountRecord, *, instead_of: str | None) -> None:
        """Implement the port: a put on the condition that nobody has written since."""
        is_unwritten = "attribute_not_exists(turn) OR NOT attribute_type(turn, :text)"
        put = {
            "TableName": self._table,
            "Item": encode_counts(record),
            "ConditionExpression": (is_unwritten if instead_of is None else "turn = :was") + " OR turn = :this",
            "ExpressionAttributeValues": {
                ":this": {"S": record.turn},
                **({":text": {"S": "S"}} if instead_of is None else {":was": {"S": instead_of}}),
            },
        }
        try:
            self._transport.write("put_item", **unless_newer(put))
        except ConditionFailed as failed:
            raise Conflict("another process has just written the counts", current=None) from failed

    def ping(self) -> TableState:
        """Implement the port: a query for each of two records; a `Date` header is the time. Mostly no DescribeTable.

        A table can only be replaced by deleting it. On AWS it is then away for longer than from one ping to the next.
        So a description counts for a minute, if no ping has failed and no long time was without one.
        """
        last, self._last_ping = self._last_ping, None  # if this one fails, the next one describes the table
        monotonic, now = self._clock.monotonic(), self._clock.now()
        if last is not None and last.counts_at(monotonic, now):
            described_at, description = last.described_at, last.description
        else:
            described_at, description = monotonic, self._describe()
        layout_item, _ = self._look_at(LAYOUT_KEY)
        synced, time = self._look_at(SYNC_KEY)
        layout = self._layout(layout_item)
        if last is not None and layout.identity != last.identity:
            described_at, description = monotonic, self._describe()
        if problem := index_problem(description):
            raise LayoutMismatch(f"table {self._table!r} {problem}")
        synced_at = synced_at_of(synced) if synced else None
        if synced_at is not None and layout.accepted_at is not None and synced_at <= layout.accepted_at:
            synced_at = None
        table_id = description.get("TableId")
        self._last_ping = _Ping(monotonic, now, layout.identity, described_at, description)
        return TableState(
            identity=layout.identity,
            is_restored=None not in {table_id, layout.table_id} and table_id != layout.table_id,
            upgraded=layout.upgrade_finished or 0,
            synced_at=synced_at,
            time=time,
        )

    def _look_at(self, key: Item) -> tuple[Item | None, int | None]:
        """Return a record of the pool, and DynamoDB's time. A query, because operators may not use GetItem."""
        answer = self._transport.read(
            "query",
            TableName=self._table,
            ConsistentRead=True,
            KeyConditionExpression="PK = :pool AND SK = :record",
            ExpressionAttributeValues={":pool": key["PK"], ":record": key["SK"]},
        )
        items: list[Item] = answer["Items"]
        return items[0] if items else None, time_of(answer)

    def has_sandboxes(self) -> bool:
        """Implement the port: a query of each place of the index, until one has a sandbox."""
        return any(
            self._transport.read(
                "query",
                TableName=self._table,
                IndexName=INDEX,
                Limit=1,
                Select="COUNT",
                KeyConditionExpression="status_key = :status",
                ExpressionAttributeValues={":status": {"S": place}},
            )["Count"]
            for status in Status
            for place in status_keys(status, self._shards)
        ) or any(each.set_aside for each in self.read_booked())

    def identify(self, identity: str, *, instead_of: str | None, last_foreign_sync: int | None = None) -> None:
        """Implement the port: a conditional update of the layout record."""
        table_id = self._describe().get("TableId")
        given = {"identity": identity, "table_id": table_id, "accepted_at": last_foreign_sync}
        values = {f":{name}": encode(value) for name, value in given.items() if value is not None}
        changes = "SET " + ", ".join(f"{name} = :{name}" for name, value in given.items() if value is not None)
        condition = "attribute_not_exists(#identity)"
        if instead_of is not None:
            condition, values[":was"] = "#identity = :was", {"S": instead_of}
        try:
            self._transport.write(
                "update_item",
                TableName=self._table,
                Key=LAYOUT_KEY,
                UpdateExpression=changes.replace("identity", "#identity", 1),
                ConditionExpression=f"attribute_exists(PK) AND ({condition} OR #identity = :identity)",
                ExpressionAttributeNames={"#identity": "identity"},
                ExpressionAttributeValues=values,
            )
        except ConditionFailed as failed:
            raise Conflict(f"table {self._table!r} has just got another identity", current=None) from failed

    def finish_upgrade(self) -> None:
        """Implement the port: an update of the layout record."""
        try:
            self._transport.write(
                "update_item",
                TableName=self._table,
                Key=LAYOUT_KEY,
                UpdateExpression="SET upgrade_finished = :this",
                ConditionExpression="attribute_exists(PK)"
                " AND (attribute_not_exists(upgrade_finished) OR upgrade_finished <= :this)",
                ExpressionAttributeValues={":this": encode(schema.UPGRADE)},
            )
        except ConditionFailed:
            self._layout(self._get(LAYOUT_KEY))  # the number of a later release stays

    def _describe(self) -> Item:
        try:
            description: Item = self._transport.read("describe_table", TableName=self._table)["Table"]
        except StoreMisconfigured as error:
            raise StoreMisconfigured(f"DescribeTable: {error.message}") from error
        return description

    def _layout(self, item: Item | None) -> Layout:
        if item is None:
            raise LayoutMismatch(f"table {self._table!r} has no layout record: create it with `broker table create`")
        try:
            layout = decode_layout(item)
        except UnreadableRecord as error:
            raise LayoutMismatch(f"table {self._table!r}: {error.message}") from error
        if layout.shards != self._shards:
            raise LayoutMismatch(
                f"table {self._table!r} has a layout of {layout.shards} shards, but this process uses {self._shards}"
            )
        return layout
