"""What it costs to send a delivery does not depend on how many others wait."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from tests.contract.webhooks import FAR, make_delivery, make_endpoint
from tests.fakes import FakeClock, RecordingRecorder, TimelessStore
from tests.webhook_world import WebhookWorld

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from tests.long.size.meter import Meter

TABLE = "size-webhooks"
DUE = 200
PAGE = 100
"""The deliveries that the store finds by one call."""
PAYLOAD = "x" * 700
"""About the body of a fact, so that a delivery takes less than a unit to read and two to write."""


@pytest.mark.parametrize("others", [0, 2_000])
def test_a_delivery_is_sent_by_one_read_of_its_sandbox_and_two_writes_however_many_wait(
    client: DynamoDBClient, metered: DynamoDBClient, meter: Meter, others: int
) -> None:
    table, clock = f"{TABLE}-{others}", FakeClock(FAR + 1)
    create_table(client, table)
    options: Any = {"clock": clock, "rng": Random(1), "recorder": RecordingRecorder(), "timeout_sec": 60}
    store = DynamoStore(metered, table, **options)
    due = {number * (others + DUE) // DUE for number in range(DUE)}
    deliveries = [
        make_delivery(f"sbx-{number:06}", payload=PAYLOAD, next_try_at=FAR + (0 if number in due else 3600))
        for number in range(others + DUE)
    ]
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(store.add_delivery, deliveries))
    store.write_endpoint(None, make_endpoint())
    world = WebhookWorld(clock=clock, wrap=lambda _: TimelessStore(store), threads=8)
    world.guard.check()
    meter.clear()
    assert world.drain().delivered == DUE
    pages = DUE // PAGE
    assert meter.calls["PutItem"] == 2 * DUE
    assert meter.calls["BatchGetItem"] == pages
    assert meter.calls["Query"] <= DUE + pages + 1, "one for each sandbox, the pages of the index, and an empty one"
    assert meter.scanned["Query"] == 2 * DUE, "each is looked at once in the index, and once in the table"
    assert meter.units["Query"] / 2 <= DUE + 2 * pages + 1
