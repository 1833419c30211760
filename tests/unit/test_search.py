"""Finding sandboxes by name, lab and order, in a copy of the pool."""

from __future__ import annotations

import threading
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import InvalidInput, StoreUnavailable
from broker_common.core.pool_copy import MAX_AGE_SEC
from broker_common.core.sandbox import Status
from broker_common.core.search import Query, SortField
from broker_common.core.store import Watermark
from tests.fakes import BY, FakeClock, Fault, LaggingStore, make_sandbox
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from broker_common.core.search import Found

STATUSES = [Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED]


@pytest.fixture
def world() -> World:
    """Return a pool of three sandboxes that are held, three that wait to be wiped, and six others."""
    world = World()
    for number in range(3):
        world.memory.seed(
            make_sandbox(
                f"held-{number}",
                name=f"Lab-Fox-{number}",
                status=Status.ALLOCATED,
                track_name=("dns", "dhcp", None)[number],
                allocated_to_track=f"track-{number}",
                lease_id=f"lease-{number}",
                idempotency_key="key",
                expires_at=9000 - number,
            )
        )
        world.pending(f"given-back-{number}", name=f"lab-owl-{number}", track_name="dns", deletion_retry_count=number)
    for number in range(6):
        world.memory.seed(make_sandbox(f"sbx-{number}", status=STATUSES[number % 3]))
    return world


def ids(found: Found) -> list[str]:
    return [sandbox.sandbox_id for sandbox in found.sandboxes]


def find(world: World, query: Query | None = None, *, limit: int = 100, cursor: str | None = None) -> Found:
    return world.search.find(query or Query(), limit=limit, cursor=cursor)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(name="fox"), ["held-0", "held-1", "held-2"]),
        (Query(name="OWL-1"), ["given-back-1"]),
        (Query(name="nothing"), []),
        (Query(track_name="dns"), ["given-back-0", "given-back-1", "given-back-2", "held-0"]),
        (Query(track_name="dns", status=Status.ALLOCATED), ["held-0"]),
        (Query(track_id="track-2"), ["held-2"]),
        (Query(status=Status.STALE), ["sbx-1", "sbx-4"]),
        (Query(name="fox", sort=SortField.EXPIRES_AT), ["held-2", "held-1", "held-0"]),
        (Query(name="fox", sort=SortField.EXPIRES_AT, descending=True), ["held-0", "held-1", "held-2"]),
        (
            Query(name="owl", sort=SortField.DELETION_RETRY_COUNT, descending=True),
            [f"given-back-{n}" for n in (2, 1, 0)],
        ),
    ],
)
def test_finds_what_fits_in_the_order_that_is_asked_for(world: World, query: Query, expected: list[str]) -> None:
    found = find(world, query)
    assert ids(found) == expected
    assert found.total == len(expected)
    assert found.cursor is None


@pytest.mark.parametrize("descending", [False, True])
def test_what_has_no_value_comes_last(world: World, descending: bool) -> None:
    query = Query(status=Status.ALLOCATED, sort=SortField.TRACK_NAME, descending=descending)
    assert ids(find(world, query)) == (["held-0", "held-1", "held-2"] if descending else ["held-1", "held-0", "held-2"])


@pytest.mark.parametrize("limit", [1, 2, 5, 11, 12, 13])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", SortField)
def test_pages_show_each_sandbox_once(world: World, sort: SortField, descending: bool, limit: int) -> None:
    query = Query(sort=sort, descending=descending)
    whole = ids(find(world, query))
    assert len(set(whole)) == len(whole) == 12
    paged: list[str] = []
    cursor = None
    while True:
        page = find(world, query, limit=limit, cursor=cursor)
        paged += ids(page)
        assert page.total == 12
        cursor = page.cursor
        if cursor is None:
            break
        assert len(page.sandboxes) == limit
    assert paged == whole


def test_a_page_goes_on_behind_a_sandbox_that_is_gone(world: World) -> None:
    page = find(world, Query(name="fox"), limit=1)
    world.leases.release(sandbox_id="held-0", lease_id="lease-0", by=BY)
    world.clock.advance(MAX_AGE_SEC)
    assert ids(find(world, Query(name="fox"), limit=1, cursor=page.cursor)) == ["held-1"]


def test_the_copy_is_read_again_once_it_is_older_than_three_seconds(world: World) -> None:
    find(world)
    world.memory.seed(make_sandbox("new"))
    world.clock.advance(MAX_AGE_SEC)
    found = find(world)
    assert "new" not in ids(found)
    assert found.age_sec == MAX_AGE_SEC
    world.clock.advance(MAX_AGE_SEC + 1)
    found = find(world)
    assert "new" in ids(found)
    assert found.age_sec == 0


def test_the_copy_has_each_sandbox_as_it_was_when_the_copy_was_read() -> None:
    clock = FakeClock()
    world = World(clock=clock, memory=LaggingStore(clock, Random(1)))
    world.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(20)])
    clock.advance(3)
    for number in range(20):
        world.allocate(f"track-{number}")
    available = find(world, Query(status=Status.AVAILABLE))
    assert ids(available) == []


def test_many_who_ask_at_once_read_the_pool_once() -> None:
    world, store = flaky_world()
    world.pool(3)
    come, let_through = store.hold_up()
    threads = [threading.Thread(target=find, args=(world,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert come.wait(30)
    let_through.set()
    for thread in threads:
        thread.join(30)
    assert store.calls["read_all"] == 1


def test_who_waits_for_another_ones_read_is_refused_at_the_deadline() -> None:
    world, store = flaky_world()
    world.pool(1)
    come, let_through = store.hold_up()
    reader = threading.Thread(target=find, args=(world,))
    reader.start()
    assert come.wait(30)
    with deadline_in(0, world.clock), pytest.raises(StoreUnavailable):
        find(world)
    let_through.set()
    reader.join(30)


def test_a_store_that_is_away_is_said_and_leaves_nothing_behind() -> None:
    world, store = flaky_world()
    world.pool(3)
    store.fail("read_all", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        find(world)
    assert len(ids(find(world))) == 3


def test_available_sandboxes_show_when_a_sync_saw_them_last(world: World) -> None:
    world.memory.write_watermark(Watermark(world.clock.now(), 12))
    (seen,) = find(world, Query(name="sbx-0")).sandboxes
    assert seen.last_synced == world.clock.now()


@pytest.mark.parametrize(
    "query",
    [
        Query(name="fox", sort=SortField.NAME),
        Query(name="fox", descending=True),
        Query(name="ox"),
        Query(status=Status.ALLOCATED),
    ],
)
def test_a_cursor_of_another_question_is_refused(world: World, query: Query) -> None:
    cursor = find(world, Query(name="fox"), limit=1).cursor
    with pytest.raises(InvalidInput):
        find(world, query, cursor=cursor)


def test_any_other_text_is_no_cursor(world: World) -> None:
    query = Query(sort=SortField.EXPIRES_AT)
    good = find(world, query, limit=1).cursor or ""
    rng = Random(1)
    for text in ("", "x", "e30=", "W10=", "[" * 50_000, good[:-4], good + "AAAA", "é", good[::-1]):
        with pytest.raises(InvalidInput):
            find(world, query, cursor=text)
    for _ in range(300):
        at = rng.randrange(len(good))
        broken = good[:at] + chr(rng.randrange(33, 127)) + good[at + 1 :]
        if broken != good:
            # What is accepted all the same names a place, and does no harm.
            with suppress(InvalidInput):
                find(world, query, cursor=broken)


def test_unreadable_records_are_named_on_the_first_page(world: World) -> None:
    world.memory.spoil("sbx-0")
    first = find(world, Query(name="fox"), limit=1)
    assert [each.sandbox_id for each in first.unreadable] == ["sbx-0"]
    assert find(world, Query(name="fox"), limit=1, cursor=first.cursor).unreadable == ()
