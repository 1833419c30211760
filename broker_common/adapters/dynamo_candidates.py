"""Candidates for allocation on DynamoDB: the shards of `available`, one after another, form a ring.

Each reservation has a ring of its own, which is one partition of the index. Its positions are as many, so each order of
a sandbox stands for as many positions as there are shards.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker_common.adapters.dynamo_base import DynamoBase
from broker_common.adapters.dynamo_items import (
    decode_candidate,
    index_key,
    order_of,
    reserved_key,
    sandbox_id_of,
    status_key,
)
from broker_common.adapters.dynamo_table import INDEX
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.core.store import CandidatePage, Position

if TYPE_CHECKING:
    from broker_common.adapters.dynamo_fields import Item


class DynamoCandidates(DynamoBase):
    """`Candidates` on one DynamoDB table."""

    @property
    def positions(self) -> int:
        """The length of the ring: the range of `status_order`, once for each shard."""
        return ORDER_LIMIT * self._shards

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        """Implement the port: one query of the shard at `position`, or of the reservation's ring."""
        if reservation_id is None:
            (shard, order), scale, end = (
                divmod(position.at, ORDER_LIMIT),
                1,
                (position.at // ORDER_LIMIT + 1) * ORDER_LIMIT,
            )
            part = status_key(Status.AVAILABLE, shard)
        else:
            shard, order, scale, end = 0, position.at // self._shards, self._shards, self.positions
            part = reserved_key(reservation_id)
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
        decode = partial(decode_candidate, reservation_id=reservation_id)
        candidates = tuple(found for item in answer["Items"] if (found := self._readable(decode, item)))
        if last := answer.get("LastEvaluatedKey"):
            at = shard * ORDER_LIMIT + order_of(last) * scale
            return CandidatePage(candidates, Position(at, sandbox_id_of(last)), at - position.at)
        return CandidatePage(candidates, Position(end % self.positions), end - position.at)
