"""Sync: the pool follows the provider's list, unless somebody else was faster or the list is not to be believed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core import domain
from broker_common.core.domain import Policy, RecyclePolicy, Status
from broker_common.core.errors import ListingUnusable, ProviderFailing, StoreUnavailable, SyncBraked
from broker_common.core.events import AccountSkipped, ItemFailed, PoolSynced
from broker_common.core.ports import SkippedAccount, Watermark
from tests.fakes import START, WRITES, Fault, FlakyStore, LosingStore, MemoryStore, make_account, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from broker_common.core.domain import Sandbox


def writes(world: World) -> Counter[str]:
    return Counter({name: count for name, count in world.memory.calls.items() if name in WRITES})


def seeded(*records: Sandbox, listed: int = 0, policy: Policy | None = None) -> World:
    """Make a world with these records, and `listed` accounts at the provider."""
    world = World(policy=policy)
    world.memory.seed(*records)
    world.provider.accounts = World.accounts(listed)
    return world


def test_new_accounts_are_added_available_and_clean(plain: World) -> None:
    plain.provider.accounts = [make_account("1", sfdc_account_id="001"), make_account("2")]
    result = plain.syncer.run()
    assert (result.synced, result.added, result.stale) == (2, 2, 0)
    assert result.message == "Synced 2 sandboxes, marked 0 as stale"
    record = plain.record("1")
    assert (record.status, record.dirty, record.name, record.external_id) == (
        Status.AVAILABLE,
        False,
        "lab-1",
        "uuid-1",
    )
    assert (record.sfdc_account_id, record.created_at, record.last_synced) == ("001", START, START)


def test_added_sandboxes_can_be_allocated(world: World) -> None:
    world.provider.accounts = World.accounts(5)
    world.syncer.run()
    world.clock.advance(3)
    assert world.allocate().claim


def test_sandboxes_are_spread_over_the_ring(plain: World) -> None:
    plain.provider.accounts = World.accounts(50)
    plain.syncer.run()
    records, _ = plain.memory.dump()
    assert len({each.status_order for each in records.values()}) == 50


def test_an_unchanged_pool_costs_one_write_in_all(plain: World) -> None:
    plain.provider.accounts = World.accounts(30)
    plain.syncer.run()
    plain.memory.calls.clear()
    plain.clock.advance(600)
    result = plain.syncer.run()
    assert writes(plain) == {"write_watermark": 1}
    assert plain.memory.calls["read_all"] == 1
    assert (result.synced, result.added, result.updated, result.overtaken) == (30, 0, 0, 0)


def test_a_finished_sync_leaves_its_watermark(plain: World) -> None:
    plain.provider.accounts = World.accounts(3)
    plain.syncer.run()
    assert plain.memory.read_watermark() == Watermark(START, 3)


def test_a_changed_name_is_taken_over(plain: World) -> None:
    plain.pool(1)
    plain.provider.accounts = [make_account("sbx-0", name="new", sfdc_account_id="001")]
    assert plain.syncer.run().updated == 1
    record = plain.record("sbx-0")
    assert (record.name, record.sfdc_account_id, record.status) == ("new", "001", Status.AVAILABLE)


def test_a_missing_sandbox_becomes_stale_and_keeps_when_it_was_last_seen(plain: World) -> None:
    plain.pool(3)
    plain.syncer.run()
    plain.clock.advance(600)
    plain.provider.accounts = World.accounts(2)
    assert plain.syncer.run().stale == 1
    record = plain.record("sbx-2")
    assert (record.status, record.stale_since, record.last_synced) == (Status.STALE, START + 600, START)


def test_a_stale_sandbox_that_is_seen_again_is_available(plain: World) -> None:
    plain.pool(2)
    plain.memory.seed(make_sandbox("sbx-0", status=Status.STALE, stale_since=START))
    assert plain.syncer.run().restored == 1
    assert plain.record("sbx-0").status is Status.AVAILABLE


def test_a_dirty_stale_sandbox_that_is_seen_again_is_wiped_first(plain: World) -> None:
    plain.pool(2)
    plain.memory.seed(make_sandbox("sbx-0", status=Status.STALE, dirty=True))
    assert plain.syncer.run().restored == 1
    record = plain.record("sbx-0")
    assert (record.status, record.dirty) == (Status.PENDING_DELETION, True)
    assert list(plain.cleaner.find_due()) == ["sbx-0"]


@pytest.mark.parametrize("seen", [True, False])
def test_allocated_and_waiting_sandboxes_are_never_touched(plain: World, seen: bool) -> None:
    plain.pool(4)
    held = plain.allocate().claim.sandbox_id
    waiting = next(each for each in ("sbx-0", "sbx-1") if each != held)
    plain.pending(waiting)
    before = plain.memory.dump()
    ours = {held, waiting}
    plain.provider.accounts = [
        replace(each, name="renamed") if each.sandbox_id in ours else each
        for each in World.accounts(4)
        if seen or each.sandbox_id not in ours
    ]
    plain.syncer.run(force=True)
    assert plain.memory.dump() == before


def test_a_failed_deletion_that_is_still_listed_waits_for_its_person(plain: World) -> None:
    failed = make_sandbox("sbx-0", status=Status.DELETION_FAILED, dirty=True)
    plain.memory.seed(failed)
    plain.provider.accounts = World.accounts(1)
    plain.syncer.run()
    assert plain.record("sbx-0") == failed


@pytest.mark.parametrize("dirty", [True, False])
def test_a_failed_deletion_that_is_no_longer_listed_is_removed(plain: World, dirty: bool) -> None:
    plain.memory.seed(make_sandbox("gone", status=Status.DELETION_FAILED, dirty=dirty))
    plain.provider.accounts = World.accounts(1)
    assert plain.syncer.run().removed == 1
    records, _ = plain.memory.dump()
    assert [records["gone"].status] == [Status.DELETED] if dirty else "gone" not in records


def test_a_tombstone_keeps_its_account_out_as_long_as_it_is_listed(plain: World) -> None:
    tombstone = make_sandbox("sbx-0", status=Status.DELETED, dirty=True)
    plain.memory.seed(tombstone)
    plain.provider.accounts = World.accounts(1)
    result = plain.syncer.run()
    assert (result.added, plain.record("sbx-0")) == (0, tombstone)


def test_a_tombstone_that_is_no_longer_listed_goes_for_good(plain: World) -> None:
    plain.memory.seed(make_sandbox("gone", status=Status.DELETED, dirty=True))
    plain.provider.accounts = World.accounts(1)
    assert plain.syncer.run().removed == 1
    assert "gone" not in plain.memory.dump()[0]


def test_a_tombstone_made_after_the_pool_was_read_stays(plain: World) -> None:
    plain.pool(2)
    plain.set_policy(recycle=RecyclePolicy.RETIRE)
    plain.pending("gone")
    plain.provider.during_list = lambda: plain.cleaner.delete_sandbox("gone")
    plain.syncer.run()
    assert plain.record("gone").status is Status.DELETED


def test_an_incomplete_list_removes_nothing_but_marks_stale(plain: World) -> None:
    plain.memory.seed(
        make_sandbox("tomb", status=Status.DELETED, dirty=True),
        make_sandbox("failed", status=Status.DELETION_FAILED),
        make_sandbox("free"),
    )
    plain.provider.accounts = World.accounts(2)
    plain.provider.skipped = [SkippedAccount("no csp_id")]
    result = plain.syncer.run()
    assert (result.removed, result.stale, result.skipped) == (0, 1, 1)
    assert plain.record("tomb").status is Status.DELETED
    assert plain.record("failed").status is Status.DELETION_FAILED
    assert plain.record("free").status is Status.STALE


def test_an_account_that_cannot_be_read_is_recorded_and_its_sandbox_left_alone(plain: World) -> None:
    plain.pool(3)
    plain.provider.accounts = World.accounts(2)
    plain.provider.skipped = [SkippedAccount("no name", "sbx-2")]
    result = plain.syncer.run()
    assert (result.synced, result.skipped, result.missing) == (2, 1, 0)
    assert plain.record("sbx-2").status is Status.AVAILABLE
    assert plain.recorder.of(AccountSkipped) == [AccountSkipped(reason="no name", sandbox_id="sbx-2")]


@pytest.mark.parametrize("error", [ListingUnusable("empty"), ProviderFailing("500", outcome_unknown=False)])
def test_without_a_usable_list_nothing_changes(plain: World, error: Exception) -> None:
    plain.pool(10)
    before = plain.memory.dump()
    plain.provider.listing_error = error
    with pytest.raises(type(error)):
        plain.syncer.run(force=True)
    assert plain.memory.dump() == before
    assert plain.memory.read_watermark() is None


# -- the brake


@pytest.mark.parametrize(
    ("records", "listed", "braked"),
    [
        (8, 4, False),  # 4 missing: below the least number
        (5, 0, True),  # 5 of 5
        (10, 5, False),  # exactly 50 %
        (9, 4, True),  # 5 of 9: more than 50 %
        (11, 5, True),  # 6 of 11
        (100, 50, False),
        (100, 49, True),
        (4, 0, False),  # all of a small pool
    ],
)
def test_the_brake_holds_at_more_than_half_and_at_least_five(
    plain: World, records: int, listed: int, braked: bool
) -> None:
    plain.pool(records)
    plain.provider.accounts = [*World.accounts(listed), make_account("new")]
    if braked:
        with pytest.raises(SyncBraked, match=f"{records - listed} of {records}"):
            plain.syncer.run()
    else:
        assert plain.syncer.run().stale == records - listed
    counted = plain.memory.count()
    assert counted[Status.STALE] == (0 if braked else records - listed)
    assert plain.record("new").status is Status.AVAILABLE


def test_a_braked_sync_leaves_no_watermark_and_removes_nothing_but_adds_and_updates(plain: World) -> None:
    plain.pool(10)
    plain.memory.seed(make_sandbox("tomb", status=Status.DELETED, dirty=True))
    plain.provider.accounts = [make_account("sbx-0", name="new-name"), make_account("new")]
    with pytest.raises(SyncBraked):
        plain.syncer.run()
    assert plain.memory.read_watermark() is None
    assert plain.record("tomb").status is Status.DELETED
    assert plain.record("sbx-0").name == "new-name"
    assert plain.record("new")


def test_force_overrides_the_brake(plain: World) -> None:
    plain.pool(10)
    plain.provider.accounts = World.accounts(1)
    result = plain.syncer.run(force=True)
    assert (result.stale, result.missing, result.judged) == (9, 9, 10)


@pytest.mark.parametrize(
    ("percent", "least", "braked"), [(50, 5, True), (90, 5, False), (50, 7, False), (0, 1, True), (60, 6, False)]
)
def test_the_brake_follows_its_settings(percent: int, least: int, braked: bool) -> None:
    world = World(policy=Policy(stale_brake_percent=percent, stale_brake_min=least))
    world.pool(10)
    world.provider.accounts = World.accounts(4)
    if braked:
        with pytest.raises(SyncBraked):
            world.syncer.run()
    else:
        assert world.syncer.run().stale == 6


@pytest.mark.parametrize("status", [Status.DELETED, Status.STALE, Status.ALLOCATED, Status.PENDING_DELETION])
def test_what_a_sync_would_not_take_out_of_service_does_not_weigh(plain: World, status: Status) -> None:
    if status is Status.ALLOCATED:
        plain.pool(20)
        for number in range(20):
            plain.allocate(f"track-{number}")
    else:
        plain.memory.seed(*[make_sandbox(f"other-{number}", status=status) for number in range(20)])
    plain.provider.accounts = [make_account("new")]
    result = plain.syncer.run()
    assert (result.missing, result.judged) == (0, 0)


def test_missing_failed_deletions_weigh(plain: World) -> None:
    plain.memory.seed(*[make_sandbox(f"failed-{number}", status=Status.DELETION_FAILED) for number in range(6)])
    plain.provider.accounts = [make_account("new")]
    with pytest.raises(SyncBraked):
        plain.syncer.run()


# -- others at work


def test_a_sandbox_that_was_allocated_meanwhile_is_left_to_its_track(plain: World) -> None:
    plain.pool(1)
    plain.provider.accounts = [make_account("other")]
    plain.provider.during_list = plain.allocate
    result = plain.syncer.run()
    assert (result.overtaken, result.stale) == (1, 0)
    assert plain.record("sbx-0").status is Status.ALLOCATED


def test_a_sandbox_that_was_used_and_wiped_meanwhile_is_left_for_the_next_sync(plain: World) -> None:
    plain.pool(1)
    plain.provider.accounts = [make_account("other")]

    def meanwhile() -> None:
        plain.allocate()
        plain.custody.mark_for_deletion(track_id="track-1", sandbox_id="sbx-0")
        plain.cleaner.delete_sandbox("sbx-0")

    plain.provider.during_list = meanwhile
    assert plain.syncer.run().overtaken == 1
    assert plain.record("sbx-0").status is Status.AVAILABLE


def test_every_write_that_loses_a_race_is_counted_and_found_again_by_the_next_sync() -> None:
    world = World(wrap=LosingStore)
    world.pool(3)
    world.memory.seed(make_sandbox("sbx-1", status=Status.STALE), make_sandbox("tomb", status=Status.DELETED))
    world.provider.accounts = [make_account("sbx-0", name="new"), make_account("sbx-1"), make_account("born")]
    assert world.syncer.run().overtaken == 5
    result = world.syncer.run()
    assert (result.updated, result.restored, result.stale, result.removed) == (1, 1, 1, 1)


def test_a_write_that_fails_does_not_stop_the_run() -> None:
    stores: list[FlakyStore] = []

    def wrap(memory: MemoryStore) -> FlakyStore:
        stores.append(FlakyStore(memory))
        return stores[0]

    world = World(wrap=wrap)
    world.provider.accounts = World.accounts(5)
    stores[0].fail("add", Fault.REFUSED, None, Fault.LOST_AFTER)
    result = world.syncer.run()
    assert (result.added, result.failed) == (3, 2)
    assert len(world.recorder.of(ItemFailed)) == 2
    world.syncer.run()
    assert world.memory.count()[Status.AVAILABLE] == 5


def test_a_pool_that_cannot_be_read_asks_the_provider_for_nothing() -> None:
    asked: list[None] = []
    stores: list[FlakyStore] = []

    def wrap(memory: MemoryStore) -> FlakyStore:
        stores.append(FlakyStore(memory))
        return stores[0]

    world = World(wrap=wrap)
    world.provider.during_list = lambda: asked.append(None)
    stores[0].fail("read_all", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        world.syncer.run()
    assert asked == []


def test_a_sandbox_that_comes_back_has_a_version_that_was_never_there(plain: World) -> None:
    plain.provider.accounts = World.accounts(1)
    plain.syncer.run()
    record = plain.record("sbx-0")
    for number in range(20):
        renamed = domain.describe(record, make_account("sbx-0", name=f"name-{number}"), now=plain.clock.now())
        plain.memory.update(record, renamed)
        record = renamed
    plain.memory.remove(record)
    plain.clock.advance(1)
    plain.syncer.run()
    assert plain.record("sbx-0").version > record.version


def test_what_a_sync_wrote_is_recorded(plain: World) -> None:
    plain.pool(3)
    plain.provider.accounts = World.accounts(2)
    plain.syncer.run()
    assert plain.recorder.of(PoolSynced) == [PoolSynced(synced=2, stale=1)]


def test_a_list_that_was_cut_short_does_not_make_the_broker_forget_dirty_sandboxes() -> None:
    tombstones = [make_sandbox(f"sbx-{number}", status=Status.DELETED, dirty=True) for number in range(4, 100)]
    world = seeded(*[make_sandbox(f"sbx-{number}") for number in range(4)], *tombstones, listed=1)
    with pytest.raises(SyncBraked):
        world.syncer.run()
    world.provider.accounts = World.accounts(100)
    world.syncer.run()
    records, _ = world.memory.dump()
    assert sum(record.status is Status.AVAILABLE for record in records.values()) == 4


def test_clean_tombstones_do_not_wear_the_brake_out() -> None:
    tombstones = [make_sandbox(f"sbx-{number}", status=Status.DELETED) for number in range(4, 30)]
    world = seeded(*[make_sandbox(f"sbx-{number}") for number in range(4)], *tombstones, listed=4)
    assert world.syncer.run().removed == 26
