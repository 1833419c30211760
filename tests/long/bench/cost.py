"""What each call of the API and each item of a job costs on AWS: request units that DynamoDB Local reports, in dollars.

The use cases run in this process on the broker's own store, whose client is made to ask for `ReturnConsumedCapacity`.
No answer says what a write consumed that its condition refused. AWS charges the table for it by the size of the item
("Capacity unit consumption for write operations", DynamoDB developer guide); it is counted as if it had been applied to
the table, which is exact for items of up to 1 KB, as all of these are.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_transport import make_boto3_client
from broker_common.adapters.recorders import Recorders
from broker_common.core.allocation import AllocateRequest, Allocation
from broker_common.core.counts import Counts
from broker_common.core.errors import NoSandboxesAvailable
from broker_common.core.ids import new_id
from broker_common.core.lease import begin
from broker_common.core.line import Place, Wish, new_place_id
from broker_common.core.sandbox import Account, Claim, Sandbox, Status
from broker_common.core.store import RETURN_RANKS, Position
from tests.bulk_load import load_records
from tests.fakes import BY, FakeClock, TimelessStore, make_claim, walk_ring
from tests.long.bench.load import new_tracks
from tests.long.bench.pool import make_pool
from tests.long.bench.report import columns
from tests.long.bench.servers import REGION
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

    from tests.long.bench.servers import Servers

WRITE_DOLLARS, READ_DOLLARS = 0.625, 0.125
"""A million write and read request units: on demand, table class Standard, us-east-1, since 1 November 2024.

Source: aws.amazon.com/dynamodb/pricing/on-demand.
"""
ALLOCATIONS_A_MONTH = 730_000
"""1,000 an hour: the month that is shown by item."""
_MONTHS = (1_000, 100_000, 10_000_000)
_GAUGES_EVERY_SEC = (2, 30)
"""`POOL_GAUGE_CACHE_SEC`: the default, and a value for a large pool."""
_HOURS_A_MONTH = 730
_LAB_HOURS = 4
_BUSY_HOURS = 3
"""A pool is large enough for hours with so many times the mean rate."""
_API_PROCESSES = 4
_K_CANDIDATES = 15
_READS = frozenset({"GetItem", "BatchGetItem", "Query", "Scan"})
_SAMPLE = 60
"""The allocations of which a row is the mean: a multiple of the candidate cache's size."""
GAUGES = "metrics: count the pool, for all processes"
GAUGES_OF_NONE = "the same, of an empty pool"
LOOK = "metrics: read the count, in each other process"
AHEAD = "metrics: the line and the next returns"
_AHEAD_EVERY_SEC = 15
LINE = "look at the line, nobody waits"
_WAITING = 1_000
_LOOKS = 1.5
"""How often a process reads the record between two counts: it comes too early about every second time."""
_OF_A_LIFE = (
    "allocate, new",
    "allocate, repeated",
    "read a sandbox",
    "mark for deletion",
    "delete attempt: take it, write the outcome",
)
_TRACK_NAME = "infoblox-threat-defense-101"


@dataclass(frozen=True, slots=True)
class Units:
    """Calls of DynamoDB, and their request units."""

    calls: float = 0
    reads: float = 0
    table_writes: float = 0
    index_writes: float = 0

    @property
    def dollars(self) -> float:
        """The price of a million of these."""
        return self.reads * READ_DOLLARS + (self.table_writes + self.index_writes) * WRITE_DOLLARS

    def __add__(self, other: Units) -> Units:
        return Units(
            self.calls + other.calls,
            self.reads + other.reads,
            self.table_writes + other.table_writes,
            self.index_writes + other.index_writes,
        )

    def __mul__(self, factor: float) -> Units:
        return Units(self.calls * factor, self.reads * factor, self.table_writes * factor, self.index_writes * factor)


class Meter:
    """Adds up the request units of one client's calls. boto3 must make all of them."""

    def __init__(self, client: DynamoDBClient) -> None:
        self._lock = threading.Lock()
        self._total = Units()
        client.meta.events.register("provide-client-params.dynamodb", self._ask)
        client.meta.events.register("after-call.dynamodb", self._note)

    def measure(self, work: Callable[[], object]) -> Units:
        """Return the request units of `work`."""
        before = self._total
        work()
        return self._total + before * -1

    @staticmethod
    def _ask(params: dict[str, Any], model: Any, **_: object) -> None:
        if "ReturnConsumedCapacity" in model.input_shape.members:  # DescribeTable costs nothing
            params["ReturnConsumedCapacity"] = "INDEXES"

    def _note(self, parsed: dict[str, Any], model: Any, **_: object) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        found = Units(calls=1)
        for each in consumed if isinstance(consumed, list) else [consumed]:
            if model.name in _READS:
                # AWS charges at least half a unit, also for a query without results; DynamoDB Local does not.
                found += Units(reads=max(each["CapacityUnits"], 0.5))
            else:
                indexes = each.get("GlobalSecondaryIndexes", {}).values()
                found += Units(
                    table_writes=each["Table"]["CapacityUnits"],
                    index_writes=sum(index["CapacityUnits"] for index in indexes),
                )
        if "Error" in parsed:
            found += _refused(model.name, parsed)
        with self._lock:
            self._total += found


def _refused(operation: str, answer: dict[str, Any]) -> Units:
    """Count a write that its condition refused. A transaction writes each item twice."""
    if operation == "TransactWriteItems":
        return Units(table_writes=2 * len(answer["CancellationReasons"]))
    assert answer["Error"]["Code"] == "ConditionalCheckFailedException", answer
    return Units(table_writes=1)


@dataclass(frozen=True, slots=True)
class Costs:
    """The request units of each action, and the price of a month of it in dollars, item by item."""

    units: dict[str, Units]
    month: dict[str, float]
    months: dict[int, dict[str, float]]
    """The price of each part, by the allocations of a month."""


def measure_costs(servers: Servers, *, pool: int) -> Costs:
    """Measure every call and job on a pool with a fifth available and the rest allocated."""
    client = make_boto3_client(region=REGION, endpoint_url=servers.dynamodb_url, timeout_sec=60, connections=8)
    meter = Meter(client)
    full = _world(client, servers.make_table("cost"))
    full.provider.accounts = [_account(each) for each in _fill(servers.client(), "cost", pool)]
    empty = _world(client, servers.make_table("cost-empty"))
    units = (
        _of_calls(meter, full, empty) | _of_line(meter, full, servers.client(), "cost") | _of_jobs(meter, full, pool)
    )
    return price(units, pool)


def _world(client: DynamoDBClient, table: str) -> World:
    """Return the use cases of a process over a table."""
    clock = FakeClock()
    store = DynamoStore(client, table, clock=clock, rng=Random(1), recorder=Recorders([]))
    return World(clock=clock, wrap=lambda _: TimelessStore(store), k_candidates=_K_CANDIDATES)


def _fill(client: DynamoDBClient, table: str, pool: int) -> list[Sandbox]:
    """Load a pool into a table. All but a fifth is allocated, for longer than the measurement."""
    sandboxes = make_pool(pool)
    free, held = sandboxes[: pool // 5], sandboxes[pool // 5 :]
    rng, now = Random(2), FakeClock().now()
    claims = [_claim(each, track, rng, now) for each, track in zip(held, new_tracks(len(held)), strict=True)]
    load_records(
        client, table, free + [begin(each, claim.lease, by=BY).result for each, claim in zip(held, claims, strict=True)]
    )
    load_records(client, table, claims)
    return sandboxes


def _claim(sandbox: Sandbox, track: str, rng: Random, now: int) -> Claim:
    times = {"allocated_at": now, "expires_at": now + 7 * 24 * 3600}
    return make_claim(sandbox, track, lease_id=new_id(rng), track_name=_TRACK_NAME, **times)


def _account(sandbox: Sandbox) -> Account:
    return Account(
        sandbox_id=sandbox.sandbox_id,
        external_id=sandbox.external_id,
        name=sandbox.name,
        sfdc_account_id=sandbox.sfdc_account_id,
    )


def _allocate(world: World, track: str) -> Allocation:
    allocation = world.allocator.allocate(
        AllocateRequest(track_id=track, idempotency_key=track, track_name=_TRACK_NAME), by=BY
    )
    assert isinstance(allocation, Allocation)
    return allocation


def _of_calls(meter: Meter, full: World, empty: World) -> dict[str, Units]:
    """Measure the calls of the API."""
    for world in (full, empty):
        world.pauses.current()  # counted in a row of its own
        world.guard.check()  # the same
    tracks = new_tracks(_SAMPLE)
    units = {"allocate, new": meter.measure(lambda: [_allocate(full, each) for each in tracks]) * (1 / _SAMPLE)}
    track = tracks[0]
    held = _allocate(full, track).claim.sandbox_id  # fills the candidate cache

    counts = [Counts(world.store, world.clock, Random(3), max_age=2, policy=world.policy) for world in (full, empty)]
    for each in counts:
        each.latest()  # takes the right to count
    reader = Counts(full.store, full.clock, Random(4), max_age=2, policy=full.policy)

    def refuse() -> None:
        with suppress(NoSandboxesAvailable):
            _allocate(empty, track)

    def mark() -> None:
        full.mark(held, track)

    steps: dict[str, Callable[[], object]] = {
        "allocate, repeated": lambda: _allocate(full, track),
        "allocate, refused, empty pool": refuse,
        "allocate, refused, within a second of that": refuse,
        "read a sandbox": lambda: full.leases.read(track_id=track, sandbox_id=held),
        "list what a track holds": lambda: full.leases.list_held(track_id=track),
        "extend a lease": lambda: full.extend(full.clock.now() + 5 * 3600, held, track),
        "mark for deletion": mark,
        "mark for deletion, repeated": mark,
        "delete attempt: take it, write the outcome": lambda: full.cleaner.delete_sandbox(held, by=BY),
        "admin: stats": full.store.count,
        "admin: a page of 50": lambda: full.store.list_sandboxes(Status.ALLOCATED, limit=50, cursor=None),
        GAUGES: counts[0].latest,
        GAUGES_OF_NONE: counts[1].latest,
        LOOK: reader.latest,
        LINE: full.store.read_line,
        "readiness, or a look at the table": full.guard.look,
        "look at the pauses": full.store.read_pauses,
    }
    units |= {name: meter.measure(step) for name, step in steps.items()}
    full.clock.advance(_AHEAD_EVERY_SEC)
    return units | {AHEAD: meter.measure(counts[0].latest) + units[GAUGES] * -1}


def _of_line(meter: Meter, full: World, client: DynamoDBClient, table: str) -> dict[str, Units]:
    """Measure what waiting costs: a place, and the reads of a process while a thousand tracks wait."""
    places = [_place(f"track-{number}", number) for number in range(_WAITING)]
    load_records(client, table, places)
    one, other = _place("one", 0), _place("other", 0)
    (free,) = full.store.read_candidates(Position(0), limit=1, prefix="").candidates
    claim = make_claim(free, "other", track_name=_TRACK_NAME)
    steps: dict[str, Callable[[], object]] = {
        "join the line": lambda: full.store.join(one),
        "come back to a place": lambda: full.store.renew(one),
        "leave the line": lambda: full.store.leave(one),
        f"look at the line, {_WAITING:,} wait": full.store.read_line,
        "look at the free sandboxes, if somebody waits": lambda: walk_ring(full.store, limit=1000),
        "join the line again": lambda: full.store.join(other),
        "allocate from the line": lambda: full.store.allocate(
            free, claim, by=BY, token=new_id(Random(5)), place_id=other.place_id
        ),
    }
    units = {name: meter.measure(step) for name, step in steps.items()}
    del units["join the line again"]
    for each in places:
        full.store.leave(each)
    return units


def _place(track: str, number: int) -> Place:
    at = 10**11 + number  # DynamoDB Local removes what its time is over for
    return Place(
        place_id=new_place_id(0, at, new_id(Random(track))),
        track_id=track,
        idempotency_key=track,
        wish=Wish(),
        round=0,
        joined_at=at,
        back_by=at + 20,
        customer="Example Company",
        track_name=_TRACK_NAME,
    )


def _of_jobs(meter: Meter, full: World, pool: int) -> dict[str, Units]:
    """Measure the items of jobs, and runs that find nothing. The sample's allocations expire."""
    cleanup = meter.measure(lambda: list(full.cleaner.find_due()))
    full.syncer.run(by=BY)  # the first sync of a day also reads the account records
    unchanged = meter.measure(partial(full.syncer.run, by=BY))
    (newcomer,) = make_pool(1, first=pool)
    full.provider.accounts = [*full.provider.accounts, _account(newcomer)]
    with_newcomer = meter.measure(partial(full.syncer.run, by=BY))
    idle = meter.measure(partial(full.expirer.run, by=BY))
    full.clock.advance(full.policy.lab_duration_sec + full.policy.expiry_buffer_sec)
    due = meter.measure(partial(full.expirer.run, by=BY))
    return {
        "sync: 1,000 unchanged sandboxes": unchanged * (1000 / pool),
        "sync: one new sandbox": with_newcomer + unchanged * -1,
        "cleanup: find nothing due": cleanup,
        "expire: find nothing due": idle,
        "expire: one allocation": (due + idle * -1) * (1 / (_SAMPLE - 1)),
    }


def pool_for(allocations: float, *, busy_hours: float = _BUSY_HOURS) -> float:
    """Return the number of sandboxes for so many allocations a month, with a fifth to spare."""
    return allocations / _HOURS_A_MONTH * busy_hours * _LAB_HOURS / 0.8


def price(units: Mapping[str, Units], measured_pool: int) -> Costs:
    """Return the price of months, by request units that were measured on a pool of `measured_pool`.

    The month that is shown by item has its allocations spread evenly.
    """
    even_pool = pool_for(ALLOCATIONS_A_MONTH, busy_hours=1)
    months = {
        allocations: _parts(_month(units, allocations, pool_for(allocations), measured_pool)) for allocations in _MONTHS
    }
    return Costs(dict(units), _month(units, ALLOCATIONS_A_MONTH, even_pool, measured_pool), months)


def _month(units: Mapping[str, Units], allocations: float, pool: float, measured_pool: int) -> dict[str, float]:
    """Return the price of a month of allocations. Each is read once and marked; one in ten is requested twice.

    One API of four processes gets health checks and scrapes. One of them counts the pool for the gauges of all: beyond
    the cost on an empty pool, that costs in proportion to the pool.
    """
    on_empty = units[GAUGES_OF_NONE]
    gauges = on_empty + (units[GAUGES] + on_empty * -1) * (pool / measured_pool)
    shown = min(1, pool / RETURN_RANKS[-1])
    times = {
        "allocate, new": allocations,
        "allocate, repeated": allocations / 10,
        "read a sandbox": allocations,
        "mark for deletion": allocations,
        "delete attempt: take it, write the outcome": allocations,
        "sync: 1,000 unchanged sandboxes": _every(600) * pool / 1000,
        "cleanup: find nothing due": _every(300),
        "expire: find nothing due": _every(300),
        "look at the pauses": _every(3) * _API_PROCESSES,
        "readiness, or a look at the table": _every(3) * _API_PROCESSES,
        GAUGES: _every(_GAUGES_EVERY_SEC[0]),
        LOOK: _every(_GAUGES_EVERY_SEC[0]) * _LOOKS * (_API_PROCESSES - 1),
        AHEAD: _every(_AHEAD_EVERY_SEC) * shown,
        LINE: min(allocations, _every(1) * _API_PROCESSES),
    }
    return {name: (gauges if name == GAUGES else units[name]).dollars * count / 1e6 for name, count in times.items()}


def _parts(month: dict[str, float]) -> dict[str, float]:
    """Add up a month: the allocations, the constant calls, and the gauges at both intervals."""
    lives = sum(month[name] for name in _OF_A_LIFE)
    gauges = month[GAUGES] + month[LOOK]
    return {"allocations": lives, "jobs and probes": sum(month.values()) - lives - gauges} | {
        f"gauges every {seconds} s": gauges * _GAUGES_EVERY_SEC[0] / seconds for seconds in _GAUGES_EVERY_SEC
    }


def _every(seconds: float) -> float:
    return _HOURS_A_MONTH * 3600 / seconds


def cost_table(costs: Costs) -> str:
    """Return units and prices as a table."""
    rows: list[tuple[str, ...]] = [("", "calls", "read", "write, table", "write, index", "$ a million", "$ a month")]
    for name, each in costs.units.items():
        numbers = (each.calls, each.reads, each.table_writes, each.index_writes, each.dollars)
        month = f"{costs.month[name]:.2f}" if name in costs.month else ""
        rows.append((name, *(f"{number:.2f}" for number in numbers), month))
    rows.append(("in all", "", "", "", "", "", f"{sum(costs.month.values()):.2f}"))
    return columns(rows)


def months_table(costs: Costs) -> str:
    """Return the price of months of more and more allocations, in dollars, as a table."""
    parts = list(costs.months[_MONTHS[0]])
    rows = [("allocations a month", "pool", *parts)]
    for allocations, dollars in costs.months.items():
        rows.append((f"{allocations:,}", f"{pool_for(allocations):,.0f}", *(f"{dollars[part]:.2f}" for part in parts)))
    return columns(rows)
