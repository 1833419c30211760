"""The sandbox store on DynamoDB: one table, one index, conditional writes and transactions."""

from __future__ import annotations

import math
import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from broker_common.adapters.dynamo_items import (
    ELSEWHERE,
    PAUSE_KEY,
    SYNC_KEY,
    Item,
    account_item_key,
    account_key_of,
    claim_key,
    decode_candidate,
    decode_claim,
    decode_cursor,
    decode_pauses,
    decode_requested_at,
    decode_sandbox,
    decode_watermark,
    encode,
    encode_account,
    encode_claim,
    encode_cursor,
    encode_sandbox,
    encode_watermark,
    index_key,
    only_if_allocatable,
    order_of,
    sandbox_id_of,
    sandbox_key,
    shard_of,
    status_key,
    synced_at_of,
)
from broker_common.adapters.dynamo_table import INDEX, LAYOUT_KEY, SHARDS, Layout, decode_layout, index_problem
from broker_common.adapters.dynamo_time import time_of
from broker_common.adapters.dynamo_transport import ConditionFailed, DynamoTransport
from broker_common.core.deadline import Backoff
from broker_common.core.domain import (
    ORDER_LIMIT,
    Candidate,
    Claim,
    Sandbox,
    Status,
    allocation_changes,
)
from broker_common.core.errors import (
    Conflict,
    LayoutMismatch,
    OutcomeUnknown,
    StoreMisconfigured,
    StoreUnavailable,
    UnreadableRecord,
)
from broker_common.core.events import RecordUnreadable
from broker_common.core.ids import new_id
from broker_common.core.parallel import for_each
from broker_common.core.ports import (
    AllocateAnswer,
    Allocated,
    AvailablePage,
    CandidateGone,
    ClaimHeld,
    Contended,
    Pauses,
    Pool,
    RingPosition,
    SandboxPage,
    TableState,
    Unreadable,
    Watermark,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from random import Random

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.core.ports import Clock, Recorder

_BATCH = 100
"""BatchGetItem's limit."""
_PAGE = 1000
"""Items of one page of a query or scan: some 400 KB, answered well within the time of one call, as 1 MB may not be."""
_COUNT_THREADS = 8
_IN_ORDER: Item = {":zero": {"N": "0"}, ":highest": {"N": str(ORDER_LIMIT - 1)}}
_SAY_AGAIN_SEC = 60.0
_SAID = 1000
"""Unreadable records remembered as said; with more, all are said again."""

Source = TypeVar("Source")
Record = TypeVar("Record")


class DynamoStore:
    """`SandboxStore` on one DynamoDB table; safe to use from many threads."""

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
    ) -> None:
        """Use `client` as `make_client` makes it, with the same `timeout_sec`."""
        self._table = table_name
        self._clock = clock
        self._rng = rng
        self._shards = shards
        self._recorder = recorder
        self._said_at: dict[str, float] = {}
        self._saying = threading.Lock()
        self._transport = DynamoTransport(
            client, table_name, clock=clock, rng=rng, recorder=recorder, timeout_sec=timeout_sec
        )

    @property
    def ring_size(self) -> int:
        """One stretch of `status_order` for each shard."""
        return ORDER_LIMIT * self._shards

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Implement the port: a consistent read."""
        item = self._get(sandbox_key(sandbox_id))
        return self._sandbox(item) if item else None

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        """Implement the port: a consistent read."""
        item = self._get(claim_key(track_id, idempotency_key))
        return self._read(decode_claim, item) if item else None

    def read_claims(self, track_id: str) -> list[Claim]:
        """Implement the port: a consistent query of the track's partition."""
        any_of_them = claim_key(track_id, "")
        return [
            self._read(decode_claim, item)
            for item in self._query(
                ConsistentRead=True,
                KeyConditionExpression="PK = :track AND begins_with(SK, :claim)",
                ExpressionAttributeValues={":track": any_of_them["PK"], ":claim": any_of_them["SK"]},
            )
        ]

    def read_available(self, position: RingPosition, *, limit: int, prefix: str) -> AvailablePage:
        """Implement the port: the ring is the shards of `available`, one behind the other."""
        shard, order = divmod(position.at, ORDER_LIMIT)
        part = status_key(Status.AVAILABLE, shard)
        request: Item = {
            "TableName": self._table,
            "IndexName": INDEX,
            "Limit": limit,
            "KeyConditionExpression": "status_key = :status AND status_order BETWEEN :order AND :highest",
            "ExpressionAttributeValues": {
                ":status": {"S": part},
                ":order": {"N": str(order)},
                ":highest": {"N": str(ORDER_LIMIT - 1)},
            },
        }
        if position.after is not None:
            request["ExclusiveStartKey"] = index_key(position.after, part, order)
        if prefix:
            request["FilterExpression"] = "begins_with(#name, :prefix)"
            request["ExpressionAttributeNames"] = {"#name": "name"}
            request["ExpressionAttributeValues"][":prefix"] = {"S": prefix}
        answer = self._transport.read("query", **request)
        candidates = tuple(found for item in answer["Items"] if (found := self._readable(decode_candidate, item)))
        if last := answer.get("LastEvaluatedKey"):
            at = shard * ORDER_LIMIT + order_of(last)
            return AvailablePage(candidates, RingPosition(at, sandbox_id_of(last)), at - position.at)
        end = (shard + 1) * ORDER_LIMIT
        return AvailablePage(candidates, RingPosition(end % self.ring_size), end - position.at)

    def allocate(self, candidate: Candidate, claim: Claim, *, token: str) -> AllocateAnswer:
        """Implement the port: one TransactWriteItems, sent once."""
        version = candidate.version
        changes = allocation_changes(claim, version=version)
        update = self._update(candidate.sandbox_id, Status.AVAILABLE, version, changes)
        reasons = self._transport.transact_once(
            ClientRequestToken=token,
            TransactItems=[
                {
                    "Put": {
                        "TableName": self._table,
                        "Item": encode_claim(claim),
                        "ConditionExpression": "attribute_not_exists(PK)",
                        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                    }
                },
                {"Update": only_if_allocatable(update, candidate.sandbox_id)},
            ],
        )
        if reasons is None:
            return Allocated()
        held, taken = reasons
        if held["Code"] == "ConditionalCheckFailed":
            if not held.get("Item"):
                raise OutcomeUnknown("DynamoDB says that there is a claim, and does not show it")
            return ClaimHeld(self._read(decode_claim, held["Item"]))
        if taken["Code"] == "ConditionalCheckFailed":
            return CandidateGone(self._readable(self._decode, taken["Item"]) if taken.get("Item") else None)
        if "ValidationError" in {held["Code"], taken["Code"]}:
            # Its record is too large for what an allocation adds.
            self._say(UnreadableRecord("", "it cannot be written", sandbox_id=candidate.sandbox_id))
            return CandidateGone(None)
        return Contended()

    def end_allocation(self, before: Sandbox, after: Sandbox) -> None:
        """Implement the port: one TransactWriteItems over the sandbox and its claim."""
        if before.allocated_to_track is None or before.idempotency_key is None or before.lease_id is None:
            raise Conflict(f"sandbox {before.sandbox_id} is not allocated", current=before)
        claim = {
            "TableName": self._table,
            "Key": claim_key(before.allocated_to_track, before.idempotency_key),
            "ConditionExpression": "attribute_not_exists(PK) OR lease_id = :lease",
            "ExpressionAttributeValues": {":lease": {"S": before.lease_id}},
        }
        failed = self._transact({"Update": self._replace(before, after)}, {"Delete": claim})
        if failed is None:
            return
        if _has_failed(failed[0]):
            self._settle(before, after, failed[0].get("Item"))
        else:
            # The claim is another lease's: it stays, and must not keep this allocation from ending.
            self.update(before, after)

    def add(self, *sandboxes: Sandbox) -> None:
        """Implement the port: one TransactWriteItems over the sandboxes and their accounts."""
        if len(sandboxes) == 1:
            (sandbox,) = sandboxes
            met = self._write_with_account(sandbox, self._put(sandbox))
            if met is not None:
                self._settle(None, sandbox, met[0].get("Item"))
        else:
            self._write_all(*map(self._put, sandboxes), *map(self._put_account, sandboxes))

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        """Implement the port: one TransactWriteItems over the accounts."""
        if len(sandboxes) == 1:
            self._write_with_account(sandboxes[0])
        else:
            self._write_all(*map(self._put_account, sandboxes))

    def update(self, before: Sandbox, after: Sandbox) -> None:
        """Implement the port: a conditional update of what differs, in one transaction with a change of account."""
        change = self._replace(before, after)
        if before.account_key != after.account_key:
            met = self._write_with_account(after, {"Update": change}, self._drop_account(before))
            if met is not None:
                self._settle(before, after, met[0].get("Item"))
            return
        try:
            self._transport.write("update_item", **change)
        except ConditionFailed as failed:
            self._settle(before, after, failed.answer.get("Item"))

    def remove(self, before: Sandbox) -> None:
        """Implement the port: one TransactWriteItems over the sandbox and its account."""
        delete = {
            "TableName": self._table,
            "Key": sandbox_key(before.sandbox_id),
            "ConditionExpression": "attribute_not_exists(PK) OR (status_key = :status AND version = :version)",
            "ExpressionAttributeValues": {
                ":status": {"S": self._key_of(before.status, before.sandbox_id)},
                ":version": {"N": str(before.version)},
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        failed = self._transact({"Delete": delete}, self._drop_account(before))
        if failed is not None and not _has_failed(failed[0]):
            failed = self._transact({"Delete": delete})  # the account's record is another sandbox's, and stays
        if failed is not None:
            self._settle(before, None, failed[0].get("Item"))

    def read_all(self) -> Pool:
        """Implement the port: one consistent scan."""
        sandboxes: list[Sandbox] = []
        accounts: dict[str, str] = {}
        for item in self._pages(
            "scan",
            ConsistentRead=True,
            FilterExpression="SK = :meta OR SK = :account",
            ExpressionAttributeValues={":meta": {"S": "META"}, ":account": {"S": "ACCOUNT"}},
        ):
            if (account := account_key_of(item)) is not None:
                accounts[account] = item["sandbox_id"]["S"]
            elif sandbox := self._readable(self._decode, item):
                sandboxes.append(sandbox)
        return Pool(tuple(sandboxes), accounts)

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        """Implement the port: a range query a shard."""
        for shard in range(self._shards):
            for item in self._query(
                IndexName=INDEX,
                KeyConditionExpression="status_key = :status AND status_order <= :until",
                ExpressionAttributeValues={
                    ":status": {"S": status_key(status, shard)},
                    ":until": {"N": str(until)},
                },
                ProjectionExpression="PK",
            ):
                yield sandbox_id_of(item)

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """Implement the port: keys from the index, then consistent reads of the records; last, the rest."""
        places = [status_key(each, shard) for each in ([status] if status else Status) for shard in range(self._shards)]
        parts = places if status else [*places, ELSEWHERE]
        part, start = decode_cursor(cursor, status, parts) if cursor is not None else (0, None)
        ids: list[str] = []
        while part < len(parts) and len(ids) < limit:
            if parts[part] == ELSEWHERE:
                if not ids:
                    ids, start = self._find_elsewhere(places, start, limit=limit)
                    part += 0 if start else 1
                break
            request: Item = {
                "TableName": self._table,
                "IndexName": INDEX,
                "Limit": limit - len(ids),
                "KeyConditionExpression": "status_key = :status AND status_order BETWEEN :zero AND :highest",
                "ExpressionAttributeValues": {":status": {"S": parts[part]}, **_IN_ORDER},
                "ProjectionExpression": "PK",
            }
            if start:
                request["ExclusiveStartKey"] = start
            answer = self._transport.read("query", **request)
            ids += [sandbox_id_of(item) for item in answer["Items"]]
            start = answer.get("LastEvaluatedKey")
            part += 0 if start else 1
        found, unreadable = self._get_many(ids)
        sandboxes = tuple(each for each in found if status is None or each.status is status)
        more = encode_cursor(status, parts[part], start) if part < len(parts) else None
        return SandboxPage(sandboxes, more, tuple(unreadable))

    def count(self) -> Mapping[Status, int]:
        """Implement the port: a counting query a status and shard."""

        def count_part(part: tuple[Status, int]) -> int:
            status, shard = part
            request: Item = {
                "TableName": self._table,
                "IndexName": INDEX,
                "Select": "COUNT",
                "KeyConditionExpression": "status_key = :status",
                "ExpressionAttributeValues": {":status": {"S": status_key(status, shard)}},
            }
            total: int = 0
            while True:
                answer = self._transport.read("query", **request)
                total += int(answer["Count"])
                if "LastEvaluatedKey" not in answer:
                    return total
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

        parts = [(status, shard) for status in Status for shard in range(self._shards)]
        totals = dict.fromkeys(Status, 0)
        for (status, _), count in zip(parts, for_each(count_part, parts, threads=_COUNT_THREADS), strict=True):
            totals[status] += count
        return totals

    def oldest_pending_deletion(self) -> int | None:
        """Implement the port: the least of what the index projects."""
        asked = (
            self._readable(decode_requested_at, item)
            for shard in range(self._shards)
            for item in self._query(
                IndexName=INDEX,
                KeyConditionExpression="status_key = :status",
                ExpressionAttributeValues={":status": {"S": status_key(Status.PENDING_DELETION, shard)}},
                ProjectionExpression="PK, deletion_requested_at",
            )
        )
        return min((each for each in asked if each is not None), default=None)

    def read_watermark(self) -> Watermark | None:
        """Implement the port: a consistent read."""
        item = self._get(SYNC_KEY)
        return self._readable(decode_watermark, item) if item else None

    def write_watermark(self, watermark: Watermark) -> None:
        """Implement the port: a put on the condition that time goes forward."""
        try:
            self._transport.write(
                "put_item",
                TableName=self._table,
                Item=encode_watermark(watermark),
                ConditionExpression="attribute_not_exists(PK) OR synced_at <= :now",
                ExpressionAttributeValues={":now": {"N": str(watermark.synced_at)}},
            )
        except ConditionFailed:
            return

    def read_pauses(self) -> Pauses:
        """Implement the port: a consistent read."""
        return self._read(decode_pauses, self._get(PAUSE_KEY))

    def set_pauses(self, changes: Mapping[str, bool]) -> Pauses:
        """Implement the port: one update of the named attributes only."""
        if not changes:
            return self.read_pauses()
        answer = self._transport.write(
            "update_item",
            TableName=self._table,
            Key=PAUSE_KEY,
            UpdateExpression="SET " + ", ".join(f"#{name} = :{name}" for name in changes),
            ExpressionAttributeNames={f"#{name}": name for name in changes},
            ExpressionAttributeValues={f":{name}": {"BOOL": value} for name, value in changes.items()},
            ReturnValues="ALL_NEW",
        )
        return self._read(decode_pauses, answer["Attributes"])

    def ping(self) -> TableState:
        """Implement the port: DescribeTable, and a query of the pool's own records; its `Date` header is the time."""
        description = self._describe()
        answer = self._transport.read(
            "query",
            TableName=self._table,
            ConsistentRead=True,
            KeyConditionExpression="PK = :pool",
            ExpressionAttributeValues={":pool": LAYOUT_KEY["PK"]},
        )
        found = {item["SK"]["S"]: item for item in answer["Items"]}
        layout = self._layout(found.get(LAYOUT_KEY["SK"]["S"]))
        if problem := index_problem(description):
            raise LayoutMismatch(f"table {self._table!r} {problem}")
        synced = found.get(SYNC_KEY["SK"]["S"])
        synced_at = synced_at_of(synced) if synced else None
        if synced_at is not None and layout.accepted_at is not None and synced_at <= layout.accepted_at:
            synced_at = None
        table_id = description.get("TableId")
        return TableState(
            identity=layout.identity,
            is_restored=None not in {table_id, layout.table_id} and table_id != layout.table_id,
            synced_at=synced_at,
            time=time_of(answer),
        )

    def has_sandboxes(self) -> bool:
        """Implement the port: one query in a pool that has available sandboxes in each shard, more in a poorer one."""
        return any(
            self._transport.read(
                "query",
                TableName=self._table,
                IndexName=INDEX,
                Limit=1,
                Select="COUNT",
                KeyConditionExpression="status_key = :status",
                ExpressionAttributeValues={":status": {"S": status_key(status, shard)}},
            )["Count"]
            for status in Status
            for shard in range(self._shards)
        )

    def identify(self, identity: str, *, instead_of: str | None, accepted_at: int | None = None) -> None:
        """Implement the port: a conditional update of the layout record."""
        table_id = self._describe().get("TableId")
        given = {"identity": identity, "table_id": table_id, "accepted_at": accepted_at}
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
            raise Conflict(f"table {self._table!r} was given another identity", current=None) from failed

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
                f"table {self._table!r} is laid out for {layout.shards} shards, and this process for {self._shards}"
            )
        return layout

    def _write_with_account(self, sandbox: Sandbox, *writes: Item) -> list[Item] | None:
        """Make writes together with that of a sandbox's account record: all or nothing.

        Returns None if all was written, and else what each of the writes met. Raises `Conflict` if nothing but the
        account is in the way.
        """
        failed = self._transact(self._put_account(sandbox), *writes)
        if failed is not None and not any(map(_has_failed, failed[1:])):
            owner_id = failed[0]["Item"]["sandbox_id"]["S"]
            owner = self.get(owner_id)
            if owner is not None and owner.account_key == sandbox.account_key:
                raise Conflict(f"the account of sandbox {sandbox.sandbox_id} is sandbox {owner_id}'s", current=None)
            # The owner's record went, or changed, by hand or by an earlier release, which knows no accounts' records.
            take = self._put_account(sandbox, instead_of=owner_id)
            failed = self._transact(take, *writes, self._unchanged(owner_id, owner))
            if failed is not None and not any(map(_has_failed, failed[1:-1])):
                raise Conflict(f"the account of sandbox {sandbox.sandbox_id} has just changed hands", current=None)
        return failed[1:] if failed else None

    def _write_all(self, *actions: Item) -> None:
        if self._transact(*actions) is not None:
            raise Conflict("another writer has written one of several records", current=None)

    def _transact(self, *actions: Item) -> list[Item] | None:
        """Send a TransactWriteItems; return None if it was applied, and what each item met if a condition failed."""
        try:
            self._transport.write(
                "transact_write_items", ClientRequestToken=new_id(self._rng), TransactItems=list(actions)
            )
        except ConditionFailed as failed:
            reasons: list[Item] = failed.answer["CancellationReasons"]
            return reasons
        return None

    def _put(self, sandbox: Sandbox) -> Item:
        return {
            "Put": {
                "TableName": self._table,
                "Item": encode_sandbox(sandbox, self._shards),
                "ConditionExpression": "attribute_not_exists(PK)",
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def _put_account(self, sandbox: Sandbox, *, instead_of: str | None = None) -> Item:
        return {
            "Put": {
                "TableName": self._table,
                "Item": encode_account(sandbox),
                "ConditionExpression": "attribute_not_exists(PK) OR sandbox_id = :owner",
                "ExpressionAttributeValues": {":owner": {"S": instead_of or sandbox.sandbox_id}},
                "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            }
        }

    def _drop_account(self, sandbox: Sandbox) -> Item:
        return {
            "Delete": {
                "TableName": self._table,
                "Key": account_item_key(sandbox.account_key),
                "ConditionExpression": "attribute_not_exists(PK) OR sandbox_id = :owner",
                "ExpressionAttributeValues": {":owner": {"S": sandbox.sandbox_id}},
            }
        }

    def _unchanged(self, sandbox_id: str, known: Sandbox | None) -> Item:
        """Build what holds only while a sandbox is as it is known, or has no record, and changes nothing."""
        on = {"TableName": self._table, "Key": sandbox_key(sandbox_id)}
        if known is None:
            return {"Delete": {**on, "ConditionExpression": "attribute_not_exists(PK)"}}
        return {
            "Update": {
                **on,
                "UpdateExpression": "SET sandbox_id = :same",
                "ConditionExpression": "version = :version",
                "ExpressionAttributeValues": {
                    ":same": {"S": sandbox_id},
                    ":version": {"N": str(known.version)},
                },
            }
        }

    def _replace(self, before: Sandbox, after: Sandbox) -> Item:
        changes = {
            item.name: getattr(after, item.name)
            for item in fields(Sandbox)
            if getattr(before, item.name) != getattr(after, item.name)
        }
        return self._update(before.sandbox_id, before.status, before.version, changes)

    def _update(self, sandbox_id: str, status: Status, version: int, changes: Mapping[str, Any]) -> Item:
        """Build the update of a sandbox that is still in `status` at `version`."""
        values: Item = {
            ":was": {"S": self._key_of(status, sandbox_id)},
            ":version_was": {"N": str(version)},
        }
        stored = dict(changes)
        if "status" in stored:
            stored["status_key"] = self._key_of(stored["status"], sandbox_id)
        names, to_set, to_remove = {}, [], []
        for name, value in stored.items():
            names[f"#{name}"] = name
            if value is None:
                to_remove.append(f"#{name}")
            else:
                to_set.append(f"#{name} = :{name}")
                values[f":{name}"] = encode(value)
        return {
            "TableName": self._table,
            "Key": sandbox_key(sandbox_id),
            "UpdateExpression": "SET " + ", ".join(to_set) + (" REMOVE " + ", ".join(to_remove) if to_remove else ""),
            "ConditionExpression": "status_key = :was AND version = :version_was",
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }

    def _settle(self, before: Sandbox | None, after: Sandbox | None, item: Item | None) -> None:
        """Decide about a failed condition: what is stored may be our own write, whose first answer was lost."""
        current = self._sandbox(item) if item else None
        if current != after:
            known = before or after
            raise Conflict(
                f"sandbox {known.sandbox_id if known else '?'} was changed by another writer", current=current
            )

    def _key_of(self, status: Status, sandbox_id: str) -> str:
        return status_key(status, shard_of(sandbox_id, self._shards))

    def _get(self, key: Mapping[str, Any]) -> Item | None:
        answer = self._transport.read("get_item", TableName=self._table, Key=key, ConsistentRead=True)
        item: Item | None = answer.get("Item")
        return item

    def _get_many(self, sandbox_ids: list[str]) -> tuple[list[Sandbox], list[Unreadable]]:
        """Return the records of these ids that can be read, in order, and those that cannot."""
        found: dict[str, Sandbox] = {}
        unreadable: list[Unreadable] = []
        wanted = [sandbox_key(each) for each in dict.fromkeys(sandbox_ids)]
        backoff = Backoff(self._clock, self._rng, base=0.025, limit=1.0)
        while wanted:
            request = {self._table: {"Keys": wanted[:_BATCH], "ConsistentRead": True}}
            answer = self._transport.read("batch_get_item", RequestItems=request)
            for item in answer["Responses"].get(self._table, []):
                try:
                    found[sandbox_id_of(item)] = self._sandbox(item)
                except UnreadableRecord as error:
                    unreadable.append(Unreadable(sandbox_id_of(item), error.reason))
            unread = answer.get("UnprocessedKeys", {}).get(self._table, {}).get("Keys", [])
            wanted = unread + wanted[_BATCH:]
            if unread:
                backoff.pause(StoreUnavailable("the table is throttled"))
        return [found[each] for each in sandbox_ids if each in found], unreadable

    def _find_elsewhere(self, places: list[str], start: Item | None, *, limit: int) -> tuple[list[str], Item | None]:
        """Return the next ids of sandboxes that stand at none of these places of the index, and where to read on.

        Looks at a thousand items, so that it may find none and yet not be at the end.
        """
        names = {f":place{number}": {"S": place} for number, place in enumerate(places)}
        request: Item = {
            "TableName": self._table,
            "Limit": _PAGE,
            "FilterExpression": "SK = :meta AND (attribute_not_exists(status_key) OR attribute_not_exists(status_order)"
            f" OR NOT status_order BETWEEN :zero AND :highest OR NOT status_key IN ({', '.join(names)}))",
            "ExpressionAttributeValues": {":meta": {"S": "META"}, **_IN_ORDER, **names},
            "ProjectionExpression": "PK, SK",
        }
        if start:
            request["ExclusiveStartKey"] = start
        answer = self._transport.read("scan", **request)
        found = answer["Items"]
        if len(found) > limit:
            return [sandbox_id_of(item) for item in found[:limit]], sandbox_key(sandbox_id_of(found[limit - 1]))
        return [sandbox_id_of(item) for item in found], answer.get("LastEvaluatedKey")

    def _sandbox(self, item: Item) -> Sandbox:
        return self._read(self._decode, item)

    def _decode(self, item: Item) -> Sandbox:
        return decode_sandbox(item, self._shards)

    def _read(self, decode: Callable[[Source], Record], item: Source) -> Record:
        """Decode an item, and say it if that cannot be done; raises `UnreadableRecord`."""
        try:
            return decode(item)
        except UnreadableRecord as error:
            self._say(error)
            raise

    def _readable(self, decode: Callable[[Item], Record], item: Item) -> Record | None:
        """Decode an item, or say that it cannot be read and return None: it is nobody else's trouble."""
        try:
            return self._read(decode, item)
        except UnreadableRecord:
            return None

    def _say(self, error: UnreadableRecord) -> None:
        """Record that a record cannot be read, once a minute."""
        now = self._clock.monotonic()
        with self._saying:
            if now - self._said_at.get(error.message, -math.inf) < _SAY_AGAIN_SEC:
                return
            if len(self._said_at) >= _SAID:
                self._said_at.clear()
            self._said_at[error.message] = now
        self._recorder.record(
            RecordUnreadable(error=error.message, sandbox_id=error.sandbox_id, track_id=error.track_id)
        )

    def _query(self, **request: Any) -> Iterator[Item]:  # noqa: ANN401 - DynamoDB's own JSON
        return self._pages("query", **request)

    def _pages(self, operation: str, **request: Any) -> Iterator[Item]:  # noqa: ANN401 - DynamoDB's own JSON
        request |= {"TableName": self._table, "Limit": _PAGE}
        while True:
            answer = self._transport.read(operation, **request)
            yield from answer["Items"]
            if "LastEvaluatedKey" not in answer:
                return
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _has_failed(reason: Item) -> bool:
    return bool(reason["Code"] == "ConditionalCheckFailed")
