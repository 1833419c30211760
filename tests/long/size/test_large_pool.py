"""Jobs in a pool of 11,000 cost as much as their work: sync writes changed accounts, expiry reads and writes due ones.

In one file, so that one process loads the pool.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.adapters.csp_client import CspClient
from broker_common.adapters.dynamo_items import status_keys
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import SHARDS, create_table
from broker_common.adapters.redis_breaker import RedisBreaker
from broker_common.adapters.redis_slots import RedisSlots
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.expiry import Expirer, ExpiryResult
from broker_common.core.guard import Guard
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.lease import begin, candidate_of, end
from broker_common.core.policy import Policy
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.store import COMMIT_AT_ONCE, Allocated, Watermark
from broker_common.core.sync import Syncer
from broker_common.core.telemetry import ProviderCalled, SyncProgressed
from broker_common.services import BULK_THREADS
from tests.bulk_load import load_records
from tests.fakes import (
    BY,
    START,
    FakeClock,
    FakeProvider,
    FakeTableMemory,
    MemoryStore,
    RecordingRecorder,
    add_of,
    make_claim,
)
from tests.long.size.conftest import ALLOCATED, AVAILABLE, DUE, free, held
from tests.provider.conftest import TOKEN
from tests.world import World

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from redis import Redis

    from broker_common.core.ports import Provider, Recorder
    from broker_common.core.sandbox import Account
    from tests.long.size.meter import Meter
    from tests.provider.conftest import MockCsp

ALL = ALLOCATED + AVAILABLE
FIRST = 5_100
BATCH = 100
"""Records that one BatchGetItem reads."""
PLACES = sum(len(status_keys(status, SHARDS)) for status in Status)
"""The partitions of sandboxes in the index. Each is read once, also if it is empty."""
LIST_PAGE = 10
"""The accounts in a page of the provider's list."""
PAGE = 1000
"""The items that the store reads by one call."""
CLAIM_UNITS, SANDBOX_UNITS, FACT_UNITS = 2, 6, 4
"""What a transaction writes of each, as DynamoDB Local counts: two units an item, and two for each index entry that is
put or deleted. A change of status moves its entry; a fact comes with one. AWS counts one for each entry."""
UNIT_BYTES = 4096
MEGABYTE = 2**20


@pytest.fixture
def recorder() -> RecordingRecorder:
    return RecordingRecorder()


@pytest.fixture
def provider(large_provider: MockCsp, redis: Redis, recorder: RecordingRecorder) -> CspClient:
    """Return a client of the large provider, which lists everything in one answer unless switched."""
    large_provider.switch()
    return CspClient(
        base_url=large_provider.url,
        token=TOKEN,
        connect_timeout=5,
        read_timeout=60,
        connections=1,
        slots=RedisSlots(redis, limit=1, lease_sec=120),
        breaker=RedisBreaker(redis, threshold=5, timeout_sec=60, trial_sec=60),
        recorder=recorder,
        clock=SystemClock(),
    )


def a_guard() -> Guard:
    """Return a guard whose calls are not counted: they depend on time."""
    return Guard(
        store=MemoryStore(), memory=FakeTableMemory(), recorder=RecordingRecorder(), clock=SystemClock(), rng=Random(5)
    )


def a_syncer(store: DynamoStore, provider: Provider, recorder: Recorder) -> Syncer:
    return Syncer(
        store=store,
        provider=provider,
        guard=a_guard(),
        reservations=KnownReservations(store, SystemClock()),
        recorder=recorder,
        clock=SystemClock(),
        rng=Random(3),
        policy=Policy(),
        threads=BULK_THREADS,
    )


@pytest.mark.timeout(300)
def test_a_sync_of_an_unchanged_pool_reads_list_and_table_once_and_writes_its_watermark_alone(
    store: DynamoStore, provider: CspClient, recorder: RecordingRecorder, meter: Meter
) -> None:
    syncer = a_syncer(store, provider, recorder)
    now = SystemClock().now()
    store.write_watermark(Watermark(now, ALL, accounts_checked_at=now))
    meter.clear()

    result = syncer.run(by=BY)

    assert result.synced == ALL
    assert (result.added, result.updated, result.restored, result.stale, result.removed) == (0, 0, 0, 0, 0)
    assert (result.skipped, result.overtaken, result.failed, result.missing) == (0, 0, 0, 0)
    queries = meter.calls["Query"]
    assert meter.calls == {"Query": queries, "BatchGetItem": ceil(ALL / BATCH), "GetItem": 1, "UpdateItem": 1}
    assert meter.scanned["Query"] == ALL, "the index has each sandbox once; most of the table, its facts, is not read"
    assert min(ALLOCATED, AVAILABLE) > SHARDS * PAGE, "both take several pages of each partition"
    assert queries <= ALL // PAGE + PLACES
    assert meter.units["Query"] / 2 * UNIT_BYTES <= queries * MEGABYTE, "no page is cut short by DynamoDB's own limit"
    # An eventually consistent read by key is half a unit, also for a small item.
    assert meter.units["BatchGetItem"] / 2 == ALL / 2
    assert len(recorder.of(ProviderCalled)) == 1


@pytest.mark.timeout(300)
def test_a_first_sync_writes_25_accounts_with_their_facts_in_a_transaction_and_says_how_far_it_is(
    client: DynamoDBClient,
    metered: DynamoDBClient,
    meter: Meter,
    recorder: RecordingRecorder,
    accounts: list[Account],
) -> None:
    create_table(client, "size-first")
    store = DynamoStore(metered, "size-first", clock=SystemClock(), rng=Random(9), recorder=recorder, timeout_sec=60)
    provider = FakeProvider()
    provider.accounts = accounts[:FIRST]

    result = a_syncer(store, provider, recorder).run(by=BY)

    assert (result.added, result.failed, result.overtaken) == (FIRST, 0, 0)
    assert meter.calls["TransactWriteItems"] == FIRST / COMMIT_AT_ONCE
    assert [event.done for event in recorder.of(SyncProgressed)] == [5_000, FIRST]
    assert store.count()[Status.AVAILABLE] == FIRST
    assert len(store.read_history(accounts[0].sandbox_id, limit=10, cursor=None).facts) == 1


def test_an_allocation_and_its_end_are_one_call_each_with_any_facts(
    client: DynamoDBClient, metered: DynamoDBClient, meter: Meter, accounts: list[Account]
) -> None:
    create_table(client, "size-units")
    store = DynamoStore(metered, "size-units", clock=FakeClock(), rng=Random(7), recorder=RecordingRecorder())
    sandbox = free(accounts[0], Random(8))
    store.commit(add_of(sandbox))
    claim = make_claim(sandbox)
    meter.clear()

    assert store.allocate(candidate_of(sandbox), claim, by=BY, token="size-units") == Allocated()
    assert meter.calls == {"TransactWriteItems": 1}
    assert meter.units["TransactWriteItems"] / 2 == CLAIM_UNITS + SANDBOX_UNITS + FACT_UNITS
    meter.clear()

    # DynamoDB Local does not count the line of usage, for which AWS takes two units more.
    store.commit(end(begin(sandbox, claim.lease, by=BY).result, reason=DeletionReason.MARKED, by=BY, now=START + 60))
    assert meter.calls == {"TransactWriteItems": 1}
    assert meter.units["TransactWriteItems"] / 2 == CLAIM_UNITS + SANDBOX_UNITS + FACT_UNITS


@pytest.mark.timeout(300)
def test_a_list_of_more_than_a_thousand_pages_is_read_to_its_end(
    large_provider: MockCsp, provider: CspClient, recorder: RecordingRecorder, accounts: list[Account]
) -> None:
    large_provider.switch(paging="offset", page_size=LIST_PAGE)

    assert list(provider.list_accounts().accounts) == accounts
    assert len(recorder.of(ProviderCalled)) == ceil(ALL / LIST_PAGE) > 1000


def test_of_100_000_available_sandboxes_a_sync_writes_those_alone_that_have_changed() -> None:
    world = World()
    world.pool(100_000)
    world.provider.accounts = [
        replace(account, name="new") if number < 37 else account
        for number, account in enumerate(world.provider.accounts)
    ]

    assert world.syncer.run(by=BY).updated == 37
    assert world.memory.calls == {
        "read_all": 1,
        "read_watermark": 1,
        "read_booked": 1,
        "update": 37,
        "write_watermark": 1,
        "ping": 2,
    }


def expire(store: DynamoStore) -> ExpiryResult:
    expirer = Expirer(
        store=store,
        guard=a_guard(),
        recorder=RecordingRecorder(),
        clock=FakeClock(START),
        policy=Policy(),
        threads=BULK_THREADS,
    )
    return expirer.run(by=BY)


@pytest.mark.timeout(300)
def test_an_expiry_reads_and_writes_what_is_due_and_nothing_that_grows_with_the_pool(
    store: DynamoStore, client: DynamoDBClient, pool: str, accounts: list[Account], meter: Meter
) -> None:
    rng, overdue = Random(4), START - Policy().expiry_buffer_sec
    due = [
        held(each, rng, expires_at=overdue - rng.randrange(3600)) for each in accounts[: ALLOCATED : ALLOCATED // DUE]
    ]
    load_records(client, pool, [record for pair in due for record in pair])

    assert expire(store) == ExpiryResult(expired=DUE, failed=0)
    # Every three seconds, one more query asks whether there are endpoints that must be told.
    assert SHARDS < meter.calls["Query"] <= SHARDS + 10
    assert meter.calls == {"Query": meter.calls["Query"], "GetItem": DUE, "TransactWriteItems": DUE}
    assert meter.scanned["Query"] == DUE
    # An index entry is far below 1 KB: a query of 25 of them reads 4 KB or little more. A record is below 4 KB.
    assert meter.units["Query"] / 2 <= DUE * 0.25 / 2 + SHARDS / 2
    assert meter.units["GetItem"] / 2 == DUE


@pytest.mark.timeout(300)
def test_an_expiry_with_nothing_due_reads_no_sandbox(store: DynamoStore, meter: Meter) -> None:
    expire(store)
    meter.clear()

    assert expire(store) == ExpiryResult(expired=0, failed=0)
    assert (meter.calls, meter.scanned["Query"]) == ({"Query": SHARDS}, 0)
