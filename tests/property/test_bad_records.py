"""A person or a later release changes one attribute of one record: nothing breaks, and no other track notices."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from broker_common.adapters.dynamo_items import PAUSE_KEY, SYNC_KEY, claim_key, sandbox_key
from broker_common.adapters.dynamo_store import DynamoStore
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import BrokerError, NoSandboxesAvailable, UnreadableRecord
from broker_common.core.flat import OPTIONAL_SANDBOX_FIELDS, SANDBOX_FIELDS
from broker_common.core.sandbox import ORDER_LIMIT, Sandbox, Status
from broker_common.core.store import PAUSABLE, Pause, Pauses, Watermark
from tests.backends import AWS_ENVIRONMENT
from tests.fakes import BY, FakeClock, RecordingRecorder, TimelessStore, add_of, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.adapters.dynamo_fields import Item

TABLE = "bad-records"
_seeds = count()
OTHERS = ("free-1", "free-2")
KEYS: dict[str, Item] = {
    "free": sandbox_key("free-0"),
    "held": sandbox_key("held"),
    "pending": sandbox_key("pending"),
    "claim": claim_key("victim", "victim"),
    "pauses": PAUSE_KEY,
    "watermark": SYNC_KEY,
}
ALL_PAUSED = Pauses(**dict.fromkeys(PAUSABLE, Pause(by="op", since=1)))
TEXTS = ["", "x", "available", "allocated", "of_a_later_release", "available#0", "allocated#1", "free-1"]
NUMBERS = ["0", "-1", "1", "1.5", "1E3", "9007199254740992", "1E30", "1750000000"]
VALUES: list[Item | None] = [
    None,
    *({"S": text} for text in TEXTS),
    *({"N": number} for number in NUMBERS),
    {"BOOL": True},
    {"BOOL": False},
    {"NULL": True},
    {"L": []},
    {"M": {"S": {"S": "x"}}},
    {"SS": ["x"]},
]
"""None: the attribute is dropped."""


@pytest.fixture(scope="module")
def client(dynamodb_local_url: str) -> Iterator[DynamoDBClient]:
    """Yield a client of DynamoDB Local, whose conditions compare values of different types as Amazon's do."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in AWS_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield make_client(region="us-east-1", endpoint_url=dynamodb_local_url, timeout_sec=10, connections=16)


@contextmanager
def pool(client: DynamoDBClient) -> Iterator[World]:
    """Yield a world on a table with three free sandboxes, one that a track holds, one that waits to be wiped."""
    create_table(client, TABLE)
    try:
        clock = FakeClock()
        store = DynamoStore(client, TABLE, clock=clock, rng=Random(next(_seeds)), recorder=RecordingRecorder())
        # Never the same client token twice: the engine remembers them, also those of a table that is no more.
        world = World(clock=clock, wrap=lambda _: TimelessStore(store), seed=next(_seeds))
        store.commit(add_of(make_sandbox("held")))
        world.allocate("victim")
        store.commit(
            add_of(
                make_sandbox(
                    "pending",
                    status=Status.PENDING_DELETION,
                    dirty=True,
                    last_track_id="t",
                    last_lease_id="l",
                    next_attempt_at=1,
                )
            )
        )
        for name in ("free-0", *OTHERS):
            store.commit(add_of(make_sandbox(name, status_order=int(name[-1]) * 10**15)))
        store.set_pauses(Pauses(), ALL_PAUSED)
        store.set_pauses(ALL_PAUSED, Pauses())
        store.write_watermark(Watermark(1, 1, accounts_checked_at=1))
        world.start()
        yield world
    finally:
        client.delete_table(TableName=TABLE)


def mutilate(client: DynamoDBClient, which: str, attribute: str, value: Item | None) -> Item | None:
    """Change an attribute, and return the whole record, or None if the table does not take that."""
    item = stored(client, which)
    item.pop(attribute, None)
    item |= {} if value is None else {attribute: value}
    try:
        client.put_item(TableName=TABLE, Item=item)
    except client.exceptions.ClientError:
        return None
    return stored(client, which)


def stored(client: DynamoDBClient, which: str) -> Item:
    """Return a record as the table has it."""
    return dict(client.get_item(TableName=TABLE, Key=KEYS[which], ConsistentRead=True)["Item"])


def attributes(which: str) -> list[str]:
    names = [*SANDBOX_FIELDS, *OPTIONAL_SANDBOX_FIELDS, "schema"] if which in {"free", "held", "pending"} else []
    return {
        "claim": ["track_id", "idempotency_key", "sandbox_id", "lease_id", "allocated_at", "expires_at", "name"],
        "pauses": ["allocate", "sync", "cleanup", "expire"],
        "watermark": ["synced_at", "accounts", "accounts_checked_at"],
    }.get(which, [*names, "status_key"])


CHANGES = st.sampled_from([(which, name) for which in KEYS for name in attributes(which)])


def try_to(*calls: Callable[[], object]) -> None:
    """Call each; a `BrokerError` is an answer, anything else is none."""
    for call in calls:
        with suppress(BrokerError):
            call()


def use_everything(world: World, sandbox_ids: list[str]) -> None:
    """Run every use case over everything, and every call within its deadline: none goes round in circles."""
    store = world.store
    for sandbox_id in sandbox_ids:
        for track in ("victim", "t", "stranger"):
            try_to(
                lambda s=sandbox_id, t=track: world.leases.read(track_id=t, sandbox_id=s),  # type: ignore[misc]
                lambda s=sandbox_id, t=track: world.mark(s, t),  # type: ignore[misc]
            )
        try_to(
            lambda s=sandbox_id: world.inventory.read(s),  # type: ignore[misc]
            lambda s=sandbox_id: world.operations.quarantine(s, by=BY, reason="odd"),  # type: ignore[misc]
            lambda s=sandbox_id: world.operations.lift_quarantine(s, by=BY),  # type: ignore[misc]
            lambda s=sandbox_id: world.operations.retry_deletion(s, by=BY),  # type: ignore[misc]
            lambda s=sandbox_id: world.history.of_sandbox(s, limit=5, cursor=None),  # type: ignore[misc]
        )
    try_to(
        lambda: world.allocate("victim"),
        lambda: world.leases.list_held(track_id="victim"),
        lambda: world.inventory.list_of_track("victim", None, limit=5, cursor=None),
        store.count,
        store.oldest_pending_deletion,
        store.read_watermark,
        store.read_pauses,
        lambda: world.pauses.set({"sync": False}, by=BY),
        lambda: world.history.feed(limit=5),
    )
    world.clock.advance(72 * 3600)
    try_to(
        *(
            partial(run, by=BY)
            for run in (world.syncer.run, world.expirer.run, world.purger.run, world.operations.bulk_retry)
        )
    )
    for sandbox_id in list(world.cleaner.find_due()):
        world.cleaner.delete_sandbox(sandbox_id, by=BY)
    try_to(
        lambda: world.purger.bulk_delete(Status.STALE, by=BY),
        lambda: world.purger.bulk_delete(Status.DELETION_FAILED, by=BY),
    )


def listing(world: World) -> tuple[list[Sandbox], list[str]]:
    """Return what a listing of everything has, and the ids that it calls unreadable."""
    sandboxes: list[Sandbox] = []
    unreadable: list[str] = []
    cursor = None
    while True:
        page = world.inventory.list_sandboxes(None, limit=2, cursor=cursor)
        sandboxes += page.sandboxes
        unreadable += [each.sandbox_id for each in page.unreadable]
        if (cursor := page.cursor) is None:
            return sandboxes, unreadable


@pytest.mark.timeout(300)  # it takes a minute of an idle machine
@given(change=CHANGES, value=st.sampled_from(VALUES))
@example(change=("free", "name"), value=None)
@example(change=("free", "external_id"), value=None)
@example(change=("free", "name"), value={"N": "1"})
@example(change=("free", "status"), value={"S": "of_a_later_release"})
@example(change=("free", "dirty"), value={"BOOL": True})
@example(change=("free", "created_at"), value={"N": "1.5"})
@example(change=("free", "sandbox_id"), value={"S": "free-1"})
@example(change=("free", "last_synced"), value={"S": "x"})
@example(change=("free", "status_order"), value={"N": "1.5"})
@example(change=("free", "status_order"), value={"N": "1E30"})
@example(change=("free", "version"), value={"N": "1.5"})
@example(change=("held", "allocated_at"), value={"S": "x"})
@example(change=("held", "idempotency_key"), value=None)
@example(change=("held", "status_key"), value={"S": "available#0"})
@example(change=("held", "status_key"), value=None)
@example(change=("pending", "status_key"), value={"S": "allocated#1"})
@example(change=("claim", "expires_at"), value=None)
@example(change=("claim", "track_id"), value={"S": "x"})
@example(change=("pauses", "sync"), value={"S": "x"})
@example(change=("watermark", "synced_at"), value={"S": "x"})
@example(change=("free", "schema"), value={"N": "9007199254740992"})
@example(change=("free", "schema"), value={"S": "x"})
@example(change=("held", "quarantine_reason"), value={"BOOL": True})
@example(change=("pending", "last_lease_id"), value=None)
@settings(
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_one_bad_record_is_its_own_tracks_trouble_alone(
    client: DynamoDBClient, change: tuple[str, str], value: Item | None
) -> None:
    which, attribute = change
    with pool(client) as world, deadline_in(1000 * 3600, world.clock):
        item = mutilate(client, which, attribute, value)
        if item is None:
            return
        everything = {"free-0", "held", "pending", *OTHERS}
        sandboxes, unreadable = listing(world)
        assert sorted([*(each.sandbox_id for each in sandboxes), *unreadable]) == sorted(everything)
        assert set(unreadable) <= {KEYS[which]["PK"]["S"].removeprefix("SBX#")}

        readable = {each.sandbox_id for each in sandboxes if each.status is Status.AVAILABLE}
        served: set[str] = set()
        with suppress(UnreadableRecord, *([] if which == "pauses" else [NoSandboxesAvailable])):
            for number in range(4):
                served.add(world.allocate(f"other-{number}").claim.sandbox_id)
        if which != "pauses":
            assert set(OTHERS) <= served <= readable
            for number, sandbox_id in enumerate(sorted(served & set(OTHERS))):
                assert world.store.get(sandbox_id) is not None, number
        if unreadable:
            assert stored(client, which) == item

        use_everything(world, sorted(everything))
        if unreadable:
            assert stored(client, which) == item


def test_the_range_of_the_ring_is_what_conditions_name() -> None:
    assert int(NUMBERS[5]) == ORDER_LIMIT
