"""Reports on DynamoDB: reads of many records, for jobs and operators.

Keys come from the index, records from the table.
"""

from __future__ import annotations

from functools import partial
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_facts import (
    FACTS,
    Mark,
    decode_fact,
    decode_feed_cursor,
    decode_history_cursor,
    decode_removed,
    encode_feed_cursor,
    encode_history_cursor,
    facts_key,
    removed_key,
)
from broker_common.adapters.dynamo_items import (
    ELSEWHERE,
    RESERVED,
    account_item_key,
    account_key_of,
    decode_cursor,
    decode_requested_at,
    encode_cursor,
    merge_reserved,
    order_of,
    sandbox_id_of,
    sandbox_key,
    status_key,
    status_keys,
)
from broker_common.adapters.dynamo_reservations import DynamoOpenReservations
from broker_common.adapters.dynamo_table import INDEX
from broker_common.core.deadline import time_left
from broker_common.core.errors import UnreadableRecord
from broker_common.core.facts import Fact
from broker_common.core.parallel import for_each
from broker_common.core.sandbox import ORDER_LIMIT, Sandbox, Status
from broker_common.core.store import FactPage, FeedPage, Pool, SandboxPage, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from broker_common.adapters.dynamo_fields import Item


_THREADS = 8
_BATCH = 100
_SCAN_MARGIN_SEC = 2.0
"""Time that a request must have left to read another page of the whole table."""
_IN_ORDER: Item = {":zero": {"N": "0"}, ":highest": {"N": str(ORDER_LIMIT - 1)}}


class DynamoReports(DynamoOpenReservations):
    """`Reports` on one DynamoDB table."""

    def read_all(self, *, with_accounts: bool = True, consistent: bool = False, known: Sequence[Sandbox] = ()) -> Pool:
        """Implement the port: keys and versions from the index, then reads of sandboxes, and of accounts.

        Never scans the table, most of which is facts.
        """

        def read_versions(place: str) -> list[tuple[str, object]]:
            query = self._query(
                IndexName=INDEX,
                KeyConditionExpression="status_key = :status",
                ExpressionAttributeValues={":status": {"S": place}},
                ProjectionExpression="PK, version",
            )
            return [(sandbox_id_of(item), item.get("version")) for item in query]

        reserved = self._reserved_places()
        places = [*(place for status in Status for place in status_keys(status, self._shards)), *reserved]
        # A sandbox that changes its status meanwhile may be found twice.
        seen = dict(each for found in for_each(read_versions, places, threads=_THREADS) for each in found)
        unchanged = [each for each in known if seen.get(each.sandbox_id) == {"N": str(each.version)}]
        for each in unchanged:
            del seen[each.sandbox_id]
        read, unreadable = self._decode_many(
            self._get_parallel([sandbox_key(each) for each in seen], consistent=consistent)
        )
        sandboxes = (*unchanged, *read)
        keys = dict.fromkeys(sandbox.account_key for sandbox in sandboxes) if with_accounts else ()
        accounts = self._get_parallel([account_item_key(key) for key in keys], consistent=consistent)
        recorded = {account_key_of(item): item["sandbox_id"]["S"] for item in accounts}
        return Pool(sandboxes, recorded, tuple(unreadable))

    def read_removed(self, sandbox_ids: Sequence[str]) -> Mapping[str, int]:
        """Implement the port: batches of consistent reads."""
        items = self._get_parallel([removed_key(each) for each in dict.fromkeys(sandbox_ids)], consistent=True)
        return {sandbox_id_of(item): decode_removed(item) for item in items}

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        """Implement the port: a range query for each place of the index."""
        for place in status_keys(status, self._shards):
            for item in self._query(
                IndexName=INDEX,
                KeyConditionExpression="status_key = :status AND status_order <= :until",
                ExpressionAttributeValues={":status": {"S": place}, ":until": {"N": str(until)}},
                ProjectionExpression="PK",
            ):
                yield sandbox_id_of(item)

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """Implement the port: keys from the index, then consistent reads; last, records that the index lacks."""
        places = [place for each in ([status] if status else Status) for place in status_keys(each, self._shards)]
        fixed, last = list(places), [] if status else [ELSEWHERE]
        if status in {None, Status.RESERVED}:
            if cursor is not None:  # a malformed one needs no read
                decode_cursor(cursor, status, [*places, *merge_reserved([], cursor), *last])
            places += merge_reserved(self._reserved_places(), cursor)
        parts = [*places, *last]
        part, start = decode_cursor(cursor, status, parts) if cursor is not None else (0, None)
        ids: list[str] = []
        while part < len(parts) and len(ids) < limit:
            if parts[part] == ELSEWHERE:
                if ids:
                    break
                ids, start = self._find_elsewhere(fixed, start, limit=limit)
                part += 0 if start else 1
                # Most of the table is facts: many pages have no sandbox.
                if time_left(self._clock) < _SCAN_MARGIN_SEC:
                    break
                continue
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
        """Implement the port: a counting query for each place of the index, and the counters of reservations."""

        def count_at(place: str) -> int:
            request: Item = {
                "TableName": self._table,
                "IndexName": INDEX,
                "Select": "COUNT",
                "KeyConditionExpression": "status_key = :status",
                "ExpressionAttributeValues": {":status": {"S": place}},
            }
            total: int = 0
            while True:
                answer = self._transport.read("query", **request)
                total += int(answer["Count"])
                if "LastEvaluatedKey" not in answer:
                    return total
                request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

        places = {place: status for status in Status for place in status_keys(status, self._shards)}
        totals = dict.fromkeys(Status, 0)
        for place, count in zip(places, for_each(count_at, places, threads=_THREADS), strict=True):
            totals[places[place]] += count
        totals[Status.RESERVED] = sum(each.set_aside for each in self.read_booked())
        return totals

    def read_next_due(self, status: Status, *, limit: int) -> Sequence[int]:
        """Implement the port: a range query for each place of the index, merged; its pages are as short as will do."""
        places = status_keys(status, self._shards)
        page = limit * 5 // (4 * self._shards) + 1  # a shard rarely has more than a quarter above its share

        def orders_at(place: str) -> Iterator[int]:
            return map(
                order_of,
                self._query(
                    IndexName=INDEX,
                    Limit=page,
                    KeyConditionExpression="status_key = :status AND status_order BETWEEN :zero AND :highest",
                    ExpressionAttributeValues={":status": {"S": place}, **_IN_ORDER},
                    ProjectionExpression="PK, status_order",
                ),
            )

        return list(islice(merge(*map(orders_at, places)), limit))

    def oldest_pending_deletion(self) -> int | None:
        """Implement the port: the minimum of an attribute that the index projects."""
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

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        """Implement the port: a consistent query of the sandbox's partition, backwards."""
        request: Item = {
            "TableName": self._table,
            "ConsistentRead": True,
            "ScanIndexForward": False,
            "Limit": limit,
            "KeyConditionExpression": "PK = :sandbox AND begins_with(SK, :facts)",
            "ExpressionAttributeValues": {":sandbox": sandbox_key(sandbox_id)["PK"], ":facts": {"S": FACTS}},
        }
        if cursor is not None:
            request["ExclusiveStartKey"] = decode_history_cursor(cursor, sandbox_id)
        answer = self._transport.read("query", **request)
        facts = tuple(fact for item in answer["Items"] if (fact := self._readable(decode_fact, item)))
        more = encode_history_cursor(answer["LastEvaluatedKey"]) if "LastEvaluatedKey" in answer else None
        return FactPage(tuple(fact for fact in facts if isinstance(fact, Fact)), more)

    def read_feed(self, *, since: int, cursor: str | None, limit: int, newest_first: bool = False) -> FeedPage:
        """Implement the port: a query for each shard of the index, merged; then consistent reads of the facts."""
        marks: list[Mark] = [None] * self._shards
        if cursor is not None:
            since, marks = decode_feed_cursor(cursor, self._shards, newest_first=newest_first)
        found: list[tuple[int, int, Item]] = []
        is_last = True
        for shard, mark in enumerate(marks):
            request: Item = {
                "TableName": self._table,
                "IndexName": INDEX,
                "Limit": limit,
                "ScanIndexForward": not newest_first,
                "KeyConditionExpression": "status_key = :facts AND status_order BETWEEN :since AND :highest",
                "ExpressionAttributeValues": {
                    ":facts": {"S": facts_key(shard)},
                    ":since": {"N": str(min(since * 1000, ORDER_LIMIT - 1))},
                    ":highest": _IN_ORDER[":highest"],
                },
                "ProjectionExpression": "PK, SK, status_key, status_order",
            }
            if mark is not None:
                request["ExclusiveStartKey"] = mark
            answer = self._transport.read("query", **request)
            found += [(order_of(item), shard, item) for item in answer["Items"]]
            is_last = is_last and "LastEvaluatedKey" not in answer
        # The sort is stable: facts of one shard keep the order of the index, which continues after a mark.
        found.sort(key=lambda each: each[0], reverse=newest_first)
        shown = found[:limit]
        for _, shard, item in shown:
            marks[shard] = item
        keys = [{"PK": item["PK"], "SK": item["SK"]} for _, _, item in shown]
        items = {(item["PK"]["S"], item["SK"]["S"]): item for item in self._get_items(keys)}
        facts = tuple(
            fact
            for key in keys
            if (stored := items.get((key["PK"]["S"], key["SK"]["S"])))
            and (fact := self._readable(decode_fact, stored)) is not None
        )
        more = encode_feed_cursor(since, marks, newest_first=newest_first)
        return FeedPage(facts, more, is_last and len(found) == len(shown))

    def _get_parallel(self, keys: Sequence[Item], *, consistent: bool) -> list[Item]:
        get = partial(self._get_items, consistent=consistent)
        batches = [keys[first : first + _BATCH] for first in range(0, len(keys), _BATCH)]
        return [item for batch in for_each(get, batches, threads=_THREADS) for item in batch]

    def _get_many(self, sandbox_ids: list[str]) -> tuple[list[Sandbox], list[Unreadable]]:
        """Return the readable records of these ids, in order, and the unreadable ones."""
        items = self._get_items([sandbox_key(each) for each in dict.fromkeys(sandbox_ids)])
        sandboxes, unreadable = self._decode_many(items)
        found = {sandbox.sandbox_id: sandbox for sandbox in sandboxes}
        return [found[each] for each in sandbox_ids if each in found], unreadable

    def _decode_many(self, items: Iterable[Item]) -> tuple[list[Sandbox], list[Unreadable]]:
        sandboxes: list[Sandbox] = []
        unreadable: list[Unreadable] = []
        for item in items:
            try:
                sandboxes.append(self._sandbox(item))
            except UnreadableRecord as error:
                unreadable.append(Unreadable(sandbox_id_of(item), error.reason))
        return sandboxes, unreadable

    def _find_elsewhere(self, places: list[str], start: Item | None, *, limit: int) -> tuple[list[str], Item | None]:
        """Return the next ids of sandboxes that are not at `places` of the index, and the key to continue after.

        Reads one page of the table: it may find nothing before the end of the table.
        """
        names = {f":place{number}": {"S": place} for number, place in enumerate(places)}
        request: Item = {
            "TableName": self._table,
            "FilterExpression": "SK = :meta AND (attribute_not_exists(status_key) OR attribute_not_exists(status_order)"
            " OR NOT status_order BETWEEN :zero AND :highest"
            f" OR NOT (status_key IN ({', '.join(names)}) OR begins_with(status_key, :reserved)))",
            "ExpressionAttributeValues": {":meta": {"S": "META"}, ":reserved": {"S": RESERVED}, **_IN_ORDER, **names},
            "ProjectionExpression": "PK, SK",
        }
        if start:
            request["ExclusiveStartKey"] = start
        answer = self._transport.read("scan", **request)
        found = answer["Items"]
        if len(found) > limit:
            return [sandbox_id_of(item) for item in found[:limit]], sandbox_key(sandbox_id_of(found[limit - 1]))
        return [sandbox_id_of(item) for item in found], answer.get("LastEvaluatedKey")
