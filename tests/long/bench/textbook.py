"""The textbook broker, to be compared with: index lookup, first K, shuffle, conditional updates in turn.

It stands behind the same API as the real one (`textbook_wsgi`), in as many processes and threads, with the same client.
Wrong as it is (an index that lags, no claim, everyone after the same K), it shows what the design gains.
"""

from __future__ import annotations

import time
from random import Random
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_items import decode_candidate, decode_sandbox, shard_of, status_key
from broker_common.adapters.dynamo_table import INDEX, SHARDS, create_table, table_definition
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core.allocation import RETRY_AFTER_EMPTY_SEC, AllocateRequest, Allocation
from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.ids import new_id
from broker_common.core.lease import claim_on
from broker_common.core.sandbox import Claim, Status, next_version
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome
from tests.fakes import make_claim

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.adapters.dynamo_store import DynamoStore
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Candidate, Sandbox

_TRACK_INDEX = "TrackIndex"


def make_textbook_table(client: DynamoDBClient, name: str) -> str:
    """Create the broker's table with an index of the holding track beside its own; returns its name."""
    definition: Any = table_definition(name)
    definition["AttributeDefinitions"].append({"AttributeName": "allocated_to_track", "AttributeType": "S"})
    definition["GlobalSecondaryIndexes"].append(
        {
            "IndexName": _TRACK_INDEX,
            "KeySchema": [{"AttributeName": "allocated_to_track", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "ALL"},
        }
    )
    client.create_table(**definition)
    create_table(client, name)  # adds the layout record, without which no API starts
    return name


class TextbookAllocator:
    """Replaces the broker's `Allocator`."""

    def __init__(self, *, store: DynamoStore, policy: Policy, recorder: Recorder, **_: object) -> None:
        self._store = store
        self._policy = policy
        self._recorder = recorder
        self._rng = Random()

    def allocate(self, request: AllocateRequest, *, by: Actor, **_: object) -> Allocation:
        """Allocate a sandbox, or return the one that the track holds by the index."""
        started = time.monotonic()
        conflicts, outcome = 0, AllocateOutcome.NO_SANDBOXES
        try:
            held = self._read(_TRACK_INDEX, "allocated_to_track", request.track_id)
            if held:
                outcome = AllocateOutcome.IDEMPOTENT
                return Allocation(_claim_of(decode_sandbox(held[0], SHARDS)), replayed=True)
            for candidate in self._first_available():
                claim = self._claim(request, candidate)
                if self._take(candidate, claim):
                    outcome = AllocateOutcome.SUCCESS
                    return Allocation(claim, replayed=False)
                conflicts += 1
            raise NoSandboxesAvailable("no sandbox is available", retry_after=RETRY_AFTER_EMPTY_SEC)
        finally:
            seconds = time.monotonic() - started
            self._recorder.record(
                AllocateEnded(outcome=outcome, seconds=seconds, conflicts=conflicts, track_id=request.track_id)
            )

    def _first_available(self) -> list[Candidate]:
        """Return the first K of the index in random order."""
        for shard in range(SHARDS):
            items = self._read(INDEX, "status_key", status_key(Status.AVAILABLE, shard))
            if items:
                return self._rng.sample([decode_candidate(item, None) for item in items], len(items))
        return []

    def _read(self, index: str, key: str, value: str) -> list[Item]:
        answer = self._store._transport.read(
            "query",
            TableName=self._store._table,
            IndexName=index,
            Limit=self._policy.k_candidates,
            KeyConditionExpression=f"{key} = :value",
            ExpressionAttributeValues={":value": {"S": value}},
        )
        items: list[Item] = answer["Items"]
        return items

    def _take(self, candidate: Candidate, claim: Claim) -> bool:
        place = status_key(Status.AVAILABLE, shard_of(candidate.sandbox_id, SHARDS))
        changes = self._store._allocation(candidate, claim, next_version(candidate.version, claim.lease.allocated_at))
        update = self._store._update(candidate.sandbox_id, place, candidate.version, changes)
        try:
            self._store._transport.write("update_item", **update)
        except ConditionFailed:
            return False
        return True

    def _claim(self, request: AllocateRequest, candidate: Candidate) -> Claim:
        now = int(time.time())
        return make_claim(
            candidate,
            request.track_id,
            idempotency_key=request.idempotency_key,
            lease_id=new_id(self._rng),
            allocated_at=now,
            expires_at=now + self._policy.lab_duration_sec,
            track_name=request.track_name,
        )


def _claim_of(sandbox: Sandbox) -> Claim:
    assert sandbox.lease is not None
    return claim_on(sandbox, sandbox.lease)
