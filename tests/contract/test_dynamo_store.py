"""The DynamoDB store keeps the stores' contract on every engine that speaks DynamoDB's API here."""

from __future__ import annotations

from functools import cache, partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from moto import mock_aws

from broker_common.adapters.dynamo_items import Item, claim_key, sandbox_key
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.system_clock import SystemClock
from tests.contract.suite import ConcurrentStoreContract, StoreContract
from tests.fakes import RecordingRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

_tables = count()


class Spoilable(DynamoStore):
    """A store whose records a test can make unreadable, as a hand or a later release would."""

    def __init__(self, client: DynamoDBClient, table_name: str, **options: Any) -> None:
        super().__init__(client, table_name, **options)
        self._by_hand = partial(client.update_item, TableName=table_name)

    def spoil(self, sandbox_id: str) -> None:
        self._set(sandbox_key(sandbox_id), "created_at")

    def spoil_claim(self, track_id: str, idempotency_key: str) -> None:
        self._set(claim_key(track_id, idempotency_key), "expires_at")

    def _set(self, key: Item, name: str) -> None:
        # A number: moto cannot compare values of different types.
        self._by_hand(Key=key, UpdateExpression=f"SET {name} = :bad", ExpressionAttributeValues={":bad": {"N": "-1"}})


def empty_store(client: DynamoDBClient, *, shards: int = 4) -> Iterator[DynamoStore]:
    """Yield a store on a table of its own, which is dropped afterwards."""
    name = f"pool-{next(_tables)}"
    create_table(client, name, shards=shards)
    yield Spoilable(client, name, clock=SystemClock(), rng=Random(name), recorder=RecordingRecorder(), shards=shards)
    client.delete_table(TableName=name)


@cache
def client_of(url: str) -> DynamoDBClient:
    return new_client(url)


def new_client(url: str | None) -> DynamoDBClient:
    return make_client(region="us-east-1", endpoint_url=url, timeout_sec=10, connections=48)


class TestOnMoto(StoreContract):
    """In one thread only: moto copies the table for each transaction, without a lock."""

    @pytest.fixture
    def store(self, aws_environment: dict[str, str]) -> Iterator[DynamoStore]:
        with mock_aws():
            yield from empty_store(new_client(None))


class TestOnMinistack(ConcurrentStoreContract):
    @pytest.fixture
    def store(self, ministack_url: str, aws_environment: dict[str, str]) -> Iterator[DynamoStore]:
        yield from empty_store(client_of(ministack_url))


class TestOnDynamoDBLocal(ConcurrentStoreContract):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[DynamoStore]:
        yield from empty_store(client_of(dynamodb_local_url))


class TestOnDynamoDBLocalWithOneShard(ConcurrentStoreContract):
    @pytest.fixture
    def store(self, dynamodb_local_url: str, aws_environment: dict[str, str]) -> Iterator[DynamoStore]:
        yield from empty_store(client_of(dynamodb_local_url), shards=1)
