"""A provider with 11,000 accounts, and the same pool in DynamoDB Local. Both are made once a session.

Calls and units are counted, and a larger pool shows no other counts. It is large enough for what has a limit: each
partition of allocated and of available sandboxes needs more than one page of 1,000.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_boto3_client, make_client
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.lease import begin
from broker_common.core.pool import add
from broker_common.core.sandbox import ORDER_LIMIT, Account, Claim, Sandbox
from tests.backends import AWS_ENVIRONMENT, empty_database
from tests.bulk_load import load_records
from tests.fakes import BY, START, RecordingRecorder, make_claim
from tests.long.size.meter import Meter
from tests.provider.conftest import MockCsp, running_mock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

TABLE = "size"
ALLOCATED = 6_000
AVAILABLE = 5_000
DUE = 100
_DATABASE = 10


@pytest.fixture(scope="session")
def aws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def client(dynamodb_local_url: str, aws: None) -> DynamoDBClient:
    return make_client(region="us-east-1", endpoint_url=dynamodb_local_url, timeout_sec=60, connections=16)


@pytest.fixture(scope="session")
def large_provider() -> Iterator[MockCsp]:
    with running_mock(MOCK_CSP_POOL=str(ALLOCATED + AVAILABLE), MOCK_CSP_OTHERS="0") as mock:
        yield mock


@pytest.fixture(scope="session")
def accounts(large_provider: MockCsp) -> list[Account]:
    """Return the provider's accounts in the order of its list."""
    return [
        Account(
            sandbox_id=str(account["csp_id"]),
            external_id=account["id"],
            name=account["name"],
            sfdc_account_id=account["sfdc_account_id"],
        )
        for account in large_provider.accounts()
    ]


def free(account: Account, rng: Random) -> Sandbox:
    """Return the record of an account that has been available for long."""
    return add(account, order=rng.randrange(ORDER_LIMIT), by=BY, now=START - 86_400, version=1).result


def held(account: Account, rng: Random, *, expires_at: int) -> tuple[Sandbox, Claim]:
    """Return the record and the claim of an account that a track of its own holds."""
    sandbox = free(account, rng)
    claim = make_claim(sandbox, f"track-{sandbox.sandbox_id}", allocated_at=START - 7200, expires_at=expires_at)
    return begin(sandbox, claim.lease, by=BY).result, claim


@pytest.fixture(scope="session")
def pool(client: DynamoDBClient, accounts: list[Account]) -> str:
    """Load the pool and return its table. Every account has a record. Most are allocated, and none is due."""
    rng = Random(1)
    create_table(client, TABLE)
    busy, idle = accounts[:ALLOCATED], accounts[ALLOCATED:]
    load_records(client, TABLE, (free(account, rng) for account in idle))
    load_records(
        client, TABLE, (held(account, rng, expires_at=START + rng.randrange(1, 14_400))[0] for account in busy)
    )
    return TABLE


@pytest.fixture
def metered(dynamodb_local_url: str, aws: None) -> DynamoDBClient:
    """Return a client for one test and its meter, which listens to boto3."""
    return make_boto3_client(region="us-east-1", endpoint_url=dynamodb_local_url, timeout_sec=60, connections=16)


@pytest.fixture
def meter(metered: DynamoDBClient) -> Meter:
    return Meter(metered)


@pytest.fixture
def store(pool: str, metered: DynamoDBClient) -> DynamoStore:
    """Return a store on the large pool. The meter counts its calls."""
    return DynamoStore(metered, pool, clock=SystemClock(), rng=Random(2), recorder=RecordingRecorder(), timeout_sec=60)


@pytest.fixture
def database_url(redis_url: str) -> str:
    """Return the URL of an empty database for this package only."""
    return empty_database(redis_url, _DATABASE)


@pytest.fixture
def redis(database_url: str) -> Iterator[Redis]:
    with Redis.from_url(database_url) as client:
        yield client
