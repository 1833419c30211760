"""A report on usage costs as many calls and units as its lines have pages; its memory is tested with the rules."""

from __future__ import annotations

import time
from collections import Counter
from math import ceil
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.usage import Grouping, Usage
from broker_common.core.utc import DAY_SEC, day_of
from tests.fakes import RecordingRecorder
from tests.long.size.month import KEPT_DAYS, MONTH_DAYS, load_lines, simulate_month

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

    from tests.long.size.meter import Meter

TABLE = "size-usage"
LEASES = 4_000
PAGE = 1000
"""The items that the store reads by one call."""


@pytest.mark.timeout(300)
def test_a_report_reads_each_line_once(client: DynamoDBClient, metered: DynamoDBClient, meter: Meter) -> None:
    create_table(client, TABLE)
    now = int(time.time())
    lines = list(simulate_month(LEASES, until=now))
    load_lines(client, TABLE, iter(lines))
    options: Any = {"clock": SystemClock(), "rng": Random(1), "recorder": RecordingRecorder(), "timeout_sec": 60}
    store = DynamoStore(metered, TABLE, **options, history_days=KEPT_DAYS)
    usage = Usage(records=store, clock=SystemClock(), kept_days=KEPT_DAYS)
    pages = sum(ceil((count + 1) / PAGE) for count in Counter(day_of(line.ended_at) for line in lines).values())
    expected = sum(line.ended_at - line.allocated_at for line in lines) / 3600
    meter.clear()
    report = usage.report(since=now - MONTH_DAYS * DAY_SEC, until=now, by=Grouping.CUSTOMER)
    assert report.total.leases == LEASES
    assert abs(report.total.sandbox_hours - expected) < 0.01
    assert meter.calls.keys() == {"Query"}
    assert meter.calls["Query"] <= pages
    assert meter.scanned["Query"] == LEASES
    assert meter.units["Query"] / 2 <= LEASES * 300 / 4096 + pages
