"""How many calls of DynamoDB an overview makes."""

from __future__ import annotations

from collections import Counter as Tally
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from moto import mock_aws

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.core.counts import Counts
from broker_common.core.inventory import Inventory
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.overview import Breaker, Overviews
from broker_common.core.policy import Policy
from broker_common.core.telemetry import StoreCalled
from tests.backends import moto_client
from tests.contract.webhooks import make_endpoint
from tests.fakes import FakeClock, RecordingRecorder, make_reservation

if TYPE_CHECKING:
    from collections.abc import Iterator

MIDNIGHT = 1_750_032_000


@pytest.fixture
def recorder() -> RecordingRecorder:
    return RecordingRecorder()


@pytest.fixture(params=[MIDNIGHT, MIDNIGHT + 1800, MIDNIGHT + 12 * 3600])
def clock(request: pytest.FixtureRequest) -> FakeClock:
    return FakeClock(request.param)


@pytest.fixture
def store(clock: FakeClock, recorder: RecordingRecorder) -> Iterator[DynamoStore]:
    with mock_aws():
        client = moto_client()
        create_table(client, "pool")
        yield DynamoStore(client, "pool", clock=clock, rng=Random(1), recorder=recorder)


def calls(recorder: RecordingRecorder) -> Tally[str]:
    return Tally(event.operation for event in recorder.of(StoreCalled))


class Redis:
    """A queue without runs, and a closed breaker."""

    def read_last(self, job: str, *, limit: int) -> list[Any]:
        return []

    def read(self) -> Breaker:
        return Breaker(state="closed")


def test_an_overview_reads_the_table_six_times_at_most_while_another_process_counts(
    store: DynamoStore, clock: FakeClock, recorder: RecordingRecorder
) -> None:
    for name in ("one", "another"):
        store.write_endpoint(None, make_endpoint(name))
    store.write_reservation(None, make_reservation(starts_at=clock.now(), ends_at=clock.now() + 7200), version=0)
    Counts(store, clock, Random(2), max_age=2.0, policy=Policy()).latest()  # the other process
    mine = Counts(store, clock, Random(3), max_age=2.0, policy=Policy())
    redis: Any = Redis()
    overviews = Overviews(
        store=store,
        inventory=Inventory(store=store, leases=redis),
        reservations=KnownReservations(store, clock),
        # Without the thread that renews the count: on a slow machine it would read once more meanwhile.
        pool_count=lambda: mine.latest()[1],
        queue=redis,
        breaker=redis,
        clock=clock,
        jobs=("sync",),
    )
    recorder.events.clear()
    found = overviews.read()
    assert (len(found.reservations), len(found.endpoints)) == (1, 2)
    assert sum(calls(recorder).values()) <= 6, calls(recorder)
