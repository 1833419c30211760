"""Expiry in a pool of 100,000 allocated sandboxes costs what is due, not what the pool holds."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.adapters.dynamo_table import SHARDS
from broker_common.core.domain import Policy
from broker_common.core.expiry import Expirer, ExpiryResult
from broker_common.services import BULK_THREADS
from tests.bulk_load import load_records
from tests.fakes import START, FakeClock, RecordingRecorder
from tests.size.conftest import ALLOCATED, DUE, held

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_store import DynamoStore
    from broker_common.core.domain import Account
    from tests.size.meter import Meter


def expire(store: DynamoStore) -> ExpiryResult:
    expirer = Expirer(
        store=store, recorder=RecordingRecorder(), clock=FakeClock(START), policy=Policy(), threads=BULK_THREADS
    )
    return expirer.run()


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
    assert meter.calls == {"Query": SHARDS, "GetItem": DUE, "TransactWriteItems": DUE}
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
