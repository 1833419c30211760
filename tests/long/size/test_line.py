"""What the line costs: next to nothing while nobody waits, and a few calls a second with a thousand places."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.dynamo_places import LINE
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.core.line import MAX_RETRY_SEC
from broker_common.core.waiting import Waiting
from tests.bulk_load import load_records
from tests.contract.line import FAR, make_place
from tests.fakes import FakeClock, RecordingRecorder, StoreWrapper, TimelessStore, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.core.line import Place
    from broker_common.core.store import SandboxStore

POOL = 400
ALLOCATED = POOL * 9 // 10
A_SECOND = 20
"""The allocations that one process serves in a second."""
WAITING = 1_000
LIMIT = 4
"""The read calls of a process in a second."""
SECONDS = 10

_tables = count()


class Calls:
    """Notes each call of a client of boto3, by the second of a clock, and what it is for."""

    def __init__(self, client: DynamoDBClient, clock: FakeClock) -> None:
        self.seen: list[tuple[float, str]] = []
        self._clock = clock
        client.meta.events.register("provide-client-params.dynamodb", self._note)

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        partition = params.get("Key", {}).get("PK") or params.get("ExpressionAttributeValues", {}).get(":line")
        of = "line" if partition == {"S": LINE} else "index" if "IndexName" in params else "other"
        self.seen.append((self._clock.monotonic(), f"{model.name} of {of}"))


class NoLine(StoreWrapper):
    """A store in which nobody waits, so that nobody has to read."""

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        return []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(FAR)


@pytest.fixture
def calls(metered: DynamoDBClient, clock: FakeClock) -> Calls:
    return Calls(metered, clock)


@pytest.fixture
def new_world(metered: DynamoDBClient, clock: FakeClock) -> Callable[..., World]:
    def make(wrap: Callable[[SandboxStore], SandboxStore], *, places: int = 0, free: int = 0) -> World:
        """Return a process over a table of its own."""
        number = next(_tables)
        table = f"line-{number}"
        create_table(metered, table)
        load_records(metered, table, (make_sandbox(f"sbx-{each}") for each in range(free)))
        load_records(
            metered,
            table,
            (make_place(f"track-{each}", unique=f"{each:04}", back_by=FAR + MAX_RETRY_SEC) for each in range(places)),
        )
        options: dict[str, Any] = {"clock": clock, "rng": Random(table), "recorder": RecordingRecorder()}
        store = DynamoStore(metered, table, **options, timeout_sec=1)
        return World(clock=clock, wrap=lambda _: wrap(TimelessStore(store)), seed=number, k_candidates=15)

    return make


def test_while_nobody_waits_an_allocation_costs_a_tenth_of_a_call_more_at_most(
    new_world: Callable[..., World], calls: Calls
) -> None:
    made = []
    for wrap in (lambda store: store, NoLine):
        world = new_world(wrap, free=POOL)
        calls.seen.clear()
        for number in range(ALLOCATED):
            assert not world.allocate(f"track-{number}").replayed
            world.clock.advance(1 / A_SECOND)
        made.append(Counter(name for _, name in calls.seen))
    with_line, without = made
    assert with_line["Query of line"] > 0
    assert sum(with_line.values()) - sum(without.values()) <= ALLOCATED / 10
    assert with_line["TransactWriteItems of other"] == without["TransactWriteItems of other"] == ALLOCATED


def test_a_thousand_waiting_tracks_cost_few_reads_a_second_and_one_write_each_time_they_are_back(
    new_world: Callable[..., World], calls: Calls, clock: FakeClock
) -> None:
    world = new_world(lambda store: store, places=WAITING)
    due = [(number / WAITING * MAX_RETRY_SEC, f"track-{number}") for number in range(WAITING)]
    calls.seen.clear()
    began, back = clock.monotonic(), 0
    while due[0][0] < SECONDS:
        at, track_id = heapq.heappop(due)
        clock.advance(max(0.0, at - clock.monotonic()))
        answer = world.wait(track_id)
        assert isinstance(answer, Waiting)
        assert answer.waiting == WAITING
        heapq.heappush(due, (clock.monotonic() + answer.retry_after, track_id))
        back += 1

    passed = clock.monotonic() - began
    of_line = Counter(name for _, name in calls.seen if not name.endswith("other"))
    assert of_line["UpdateItem of line"] == back
    assert set(of_line) == {"UpdateItem of line", "Query of line", "Query of index"}
    reads = [at for at, name in calls.seen if name.startswith("Query of ") and not name.endswith("other")]
    assert len(reads) <= LIMIT * passed + LIMIT + 1, "the first second has the first read of everything"
    assert not [name for _, name in calls.seen if name.startswith(("Transact", "Put", "Delete"))]
