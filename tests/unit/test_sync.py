"""Sync: the pool follows the provider's list, unless somebody else was faster or the list is not to be believed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import (
    ListingUnusable,
    ListNotWhole,
    ProviderFailing,
    StoreMisconfigured,
    StoreRejected,
    StoreUnavailable,
    SyncBraked,
)
from broker_common.core.facts import Fact, FactKind
from broker_common.core.guard import MAX_AGE_SEC
from broker_common.core.lease import begin
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.ports import InactiveAccount, SkippedAccount, WipeAnswer
from broker_common.core.sandbox import Status
from broker_common.core.store import Watermark
from broker_common.core.telemetry import (
    AccountRefused,
    AccountSkipped,
    DeleteContradicted,
    DeleteOutcome,
    ItemFailed,
    PoolSynced,
    RefusalReason,
    SyncProgressed,
)
from tests.fakes import (
    BY,
    START,
    WRITES,
    Fault,
    FlakyStore,
    LosingStore,
    flat,
    make_account,
    make_claim,
    make_sandbox,
)
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.sandbox import Sandbox


def writes(world: World) -> Counter[str]:
    return Counter({name: count for name, count in world.memory.calls.items() if name in WRITES})


def told(world: World) -> list[tuple[str, FactKind]]:
    """Return the sandbox and the kind of each of its facts."""
    return [(fact.sandbox_id, fact.kind) for fact in world.memory.facts if isinstance(fact, Fact)]


def seeded(*records: Sandbox, listed: int = 0, policy: Policy | None = None) -> World:
    """Make a world with these records, and `listed` accounts at the provider."""
    world = World(policy=policy)
    world.memory.seed(*records)
    world.provider.accounts = World.accounts(listed)
    return world


def test_new_accounts_are_added_available_and_clean(plain: World) -> None:
    result = plain.sync([make_account("1", sfdc_account_id="001"), make_account("2")])
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
    world.sync(World.accounts(5))
    world.clock.advance(3)
    assert world.allocate().claim


def test_an_unchanged_pool_costs_one_write_in_all(plain: World) -> None:
    plain.sync(World.accounts(30))
    plain.memory.calls.clear()
    plain.clock.advance(600)
    result = plain.sync()
    assert writes(plain) == {"write_watermark": 1}
    assert plain.memory.calls["read_all"] == 1
    assert (result.synced, result.added, result.updated, result.overtaken) == (30, 0, 0, 0)


def test_a_changed_name_is_taken_over(plain: World) -> None:
    plain.pool(1)
    assert plain.sync([make_account("sbx-0", name="new", sfdc_account_id="001")]).updated == 1
    record = plain.record("sbx-0")
    assert (record.name, record.sfdc_account_id, record.status) == ("new", "001", Status.AVAILABLE)


def test_a_missing_sandbox_becomes_stale_and_keeps_when_it_was_last_seen(plain: World) -> None:
    plain.pool(3)
    plain.sync()
    plain.clock.advance(600)
    assert plain.sync(World.accounts(2)).stale == 1
    record = plain.record("sbx-2")
    assert (record.status, record.stale_since, record.last_synced) == (Status.STALE, START + 600, START)
    assert plain.recorder.of(PoolSynced)[-1] == PoolSynced(synced=2, stale=1)


def test_a_dirty_stale_sandbox_that_is_seen_again_is_wiped_first(plain: World) -> None:
    plain.pool(2)
    plain.memory.seed(make_sandbox("sbx-0", status=Status.STALE, dirty=True))
    assert plain.sync().contradicted == 1
    record = plain.record("sbx-0")
    assert (record.status, record.dirty) == (Status.PENDING_DELETION, True)
    plain.clock.advance(120)
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
    plain.sync(force=True)
    assert plain.memory.dump() == before


@pytest.mark.parametrize("status", [Status.DELETION_FAILED, Status.DELETED])
def test_a_failed_deletion_and_a_tombstone_stay_as_they_are_while_listed(plain: World, status: Status) -> None:
    before = make_sandbox("sbx-0", status=status, dirty=True)
    plain.memory.seed(before)
    assert plain.sync(World.accounts(1)).added == 0
    assert plain.record("sbx-0") == before


@pytest.mark.parametrize(
    ("status", "dirty", "left"),
    [
        (Status.DELETION_FAILED, True, Status.DELETED),
        (Status.DELETION_FAILED, False, None),
        (Status.DELETED, True, None),
    ],
)
def test_a_failed_deletion_and_a_tombstone_are_removed_once_no_longer_listed(
    plain: World, status: Status, dirty: bool, left: Status | None
) -> None:
    plain.memory.seed(make_sandbox("gone", status=status, dirty=dirty))
    assert plain.sync(World.accounts(1)).removed == 1
    record = plain.memory.dump()[0].get("gone")
    assert (record and record.status) == left


def test_a_tombstone_made_after_the_pool_was_read_stays(plain: World) -> None:
    plain.pool(2)
    plain.set_policy(recycle=RecyclePolicy.RETIRE)
    plain.pending("gone")
    plain.provider.during_list = lambda: plain.cleaner.delete_sandbox("gone", by=BY)
    plain.sync()
    assert plain.record("gone").status is Status.DELETED


@pytest.mark.parametrize("force", [True, False])
def test_a_list_that_may_lack_accounts_adds_and_updates_and_takes_nothing_away(plain: World, force: bool) -> None:
    plain.memory.seed(
        make_sandbox("tomb", status=Status.DELETED, dirty=True),
        make_sandbox("failed", status=Status.DELETION_FAILED),
        make_sandbox("free"),
        make_sandbox("off"),
        make_sandbox("sbx-0", name="old"),
        make_sandbox("sbx-1", status=Status.STALE),
    )
    plain.provider.accounts = World.accounts(3)
    plain.provider.inactive = [InactiveAccount("off")]
    plain.provider.doubt = "one entry stands twice"
    with pytest.raises(ListNotWhole, match="one entry stands twice"):
        plain.sync(force=force)
    assert {sandbox_id: record.status for sandbox_id, record in plain.memory.dump()[0].items()} == {
        "tomb": Status.DELETED,
        "failed": Status.DELETION_FAILED,
        "free": Status.AVAILABLE,
        "off": Status.AVAILABLE,
        "sbx-0": Status.AVAILABLE,
        "sbx-1": Status.AVAILABLE,
        "sbx-2": Status.AVAILABLE,
    }
    assert plain.record("sbx-0").name == "lab-sbx-0"
    assert plain.memory.read_watermark() is None
    assert plain.recorder.of(PoolSynced) == [PoolSynced(synced=3, stale=0)]


def test_an_account_that_cannot_be_read_is_recorded_and_its_sandbox_left_alone(plain: World) -> None:
    plain.pool(3)
    plain.provider.accounts = World.accounts(2)
    plain.provider.skipped = [SkippedAccount("no name", "sbx-2")]
    result = plain.sync()
    assert (result.synced, result.skipped, result.missing) == (2, 1, 0)
    assert plain.record("sbx-2").status is Status.AVAILABLE
    assert plain.recorder.of(AccountSkipped) == [AccountSkipped(reason="no name", sandbox_id="sbx-2")]


@pytest.mark.parametrize("error", [ListingUnusable("empty"), ProviderFailing("500", outcome_unknown=False)])
def test_without_a_usable_list_nothing_changes(plain: World, error: Exception) -> None:
    plain.pool(10)
    before = plain.memory.dump()
    plain.provider.listing_error = error
    with pytest.raises(type(error)):
        plain.sync(force=True)
    assert plain.memory.dump() == before
    assert plain.memory.read_watermark() is None


def test_a_sync_that_could_add_nothing_to_an_empty_table_does_not_say_that_it_had_records() -> None:
    world, store = flaky_world()
    world.provider.accounts = World.accounts(1)
    store.fail("add", Fault.REFUSED)
    assert world.sync().failed == 1
    assert world.memory.read_watermark() is None
    world.clock.advance(10)
    assert world.sync().added == 1
    assert world.memory.read_watermark() == Watermark(START + 10, 1, accounts_checked_at=START + 10)


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
            plain.sync()
    else:
        assert plain.sync().stale == records - listed
    counted = plain.memory.count()
    assert counted[Status.STALE] == (0 if braked else records - listed)
    assert plain.record("new").status is Status.AVAILABLE


def test_a_braked_sync_leaves_no_watermark_and_removes_nothing_but_adds_and_updates(plain: World) -> None:
    plain.pool(10)
    plain.memory.seed(make_sandbox("tomb", status=Status.DELETED, dirty=True))
    plain.provider.accounts = [make_account("sbx-0", name="new-name"), make_account("new")]
    with pytest.raises(SyncBraked):
        plain.sync()
    assert plain.memory.read_watermark() is None
    assert plain.record("tomb").status is Status.DELETED
    assert plain.record("sbx-0").name == "new-name"
    assert plain.record("new")


def test_force_overrides_the_brake(plain: World) -> None:
    plain.pool(10)
    result = plain.sync(World.accounts(1), force=True)
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
            world.sync()
    else:
        assert world.sync().stale == 6


@pytest.mark.parametrize("status", [Status.DELETED, Status.STALE, Status.ALLOCATED, Status.PENDING_DELETION])
def test_what_a_sync_would_not_take_out_of_service_does_not_weigh(plain: World, status: Status) -> None:
    if status is Status.ALLOCATED:
        plain.pool(20)
        for number in range(20):
            plain.allocate(f"track-{number}")
    else:
        plain.memory.seed(*[make_sandbox(f"other-{number}", status=status) for number in range(20)])
    result = plain.sync([make_account("new")])
    assert (result.missing, result.judged) == (0, 0)


def test_missing_failed_deletions_weigh(plain: World) -> None:
    plain.memory.seed(*[make_sandbox(f"failed-{number}", status=Status.DELETION_FAILED) for number in range(6)])
    plain.provider.accounts = [make_account("new")]
    with pytest.raises(SyncBraked):
        plain.sync()


# -- others at work


@pytest.mark.parametrize(
    ("meanwhile", "status"),
    [(World.allocate, Status.ALLOCATED), (World.use_and_wipe, Status.AVAILABLE)],
    ids=["allocated", "used and wiped"],
)
def test_a_sandbox_that_was_allocated_meanwhile_is_left_as_it_is(
    plain: World, meanwhile: Callable[[World], object], status: Status
) -> None:
    plain.pool(1)
    plain.provider.accounts = [make_account("other")]
    plain.provider.during_list = lambda: meanwhile(plain)
    result = plain.sync()
    assert (result.overtaken, result.stale) == (1, 0)
    assert plain.record("sbx-0").status is status


def test_every_write_that_loses_a_race_is_counted_and_found_again_by_the_next_sync() -> None:
    world = World(wrap=LosingStore)
    world.pool(3)
    world.memory.seed(make_sandbox("sbx-1", status=Status.STALE), make_sandbox("tomb", status=Status.DELETED))
    assert world.sync([make_account("sbx-0", name="new"), make_account("sbx-1"), make_account("born")]).overtaken == 5
    result = world.sync()
    assert (result.updated, result.restored, result.stale, result.removed) == (1, 1, 1, 1)


def test_a_write_that_fails_does_not_stop_the_run() -> None:
    world, store = flaky_world()
    world.provider.accounts = World.accounts(5)
    world.memory.seed(*[make_sandbox(each.sandbox_id, name="old") for each in world.provider.accounts[:3]])
    store.fail("update", Fault.REFUSED, None, Fault.LOST_AFTER)
    result = world.sync()
    assert (result.added, result.updated, result.failed) == (2, 1, 2)
    assert [bool(each.error) for each in world.recorder.of(ItemFailed)] == [True] * 2
    world.sync()
    assert {each.name for each in world.memory.dump()[0].values()} == {f"lab-sbx-{number}" for number in range(5)}


def test_a_pool_that_cannot_be_read_asks_the_provider_for_nothing() -> None:
    asked: list[None] = []
    world, store = flaky_world()
    world.provider.during_list = lambda: asked.append(None)
    store.fail("read_all", Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        world.sync()
    assert asked == []


def test_a_list_that_was_cut_short_does_not_make_the_broker_forget_dirty_sandboxes() -> None:
    tombstones = [make_sandbox(f"sbx-{number}", status=Status.DELETED, dirty=True) for number in range(4, 100)]
    world = seeded(*[make_sandbox(f"sbx-{number}") for number in range(4)], *tombstones, listed=1)
    with pytest.raises(SyncBraked):
        world.sync()
    world.sync(World.accounts(100))
    records, _ = world.memory.dump()
    assert sum(record.status is Status.AVAILABLE for record in records.values()) == 4


def test_clean_tombstones_do_not_wear_the_brake_out() -> None:
    tombstones = [make_sandbox(f"sbx-{number}", status=Status.DELETED) for number in range(4, 30)]
    world = seeded(*[make_sandbox(f"sbx-{number}") for number in range(4)], *tombstones, listed=4)
    assert world.sync().removed == 26


# -- listed means seen


def switched_off(world: World, *sandbox_ids: str) -> None:
    """Have the provider list accounts in another state, beside the active ones that it listed before."""
    world.provider.accounts = [each for each in world.provider.accounts if each.sandbox_id not in sandbox_ids]
    world.provider.inactive = [InactiveAccount(each, f"uuid-{each}") for each in sandbox_ids]


def test_a_sandbox_that_is_listed_in_another_state_is_out_of_service_until_it_is_active_again(plain: World) -> None:
    plain.pool(3)
    switched_off(plain, "sbx-0")
    for _ in range(2):
        assert plain.sync().removed == 0
        assert plain.record("sbx-0").status is Status.STALE
    plain.provider.accounts, plain.provider.inactive = World.accounts(3), ()
    assert plain.sync().restored == 1
    assert plain.record("sbx-0").status is Status.AVAILABLE


@pytest.mark.parametrize("status", [Status.DELETION_FAILED, Status.DELETED, Status.STALE])
@pytest.mark.parametrize("dirty", [True, False])
def test_what_is_listed_in_another_state_is_never_forgotten(plain: World, status: Status, dirty: bool) -> None:
    plain.pool(3)
    record = make_sandbox("sbx-0", status=status, dirty=dirty, deletion_last_error="400")
    plain.memory.seed(record)
    switched_off(plain, "sbx-0")
    for _ in range(3):
        plain.sync(force=True)
    assert plain.record("sbx-0") == record


def test_a_dirty_sandbox_that_was_purged_while_it_was_switched_off_stays_out_and_is_counted(plain: World) -> None:
    plain.pool(3)
    plain.memory.seed(make_sandbox("sbx-0", status=Status.STALE, dirty=True, gone_at=START))
    switched_off(plain, "sbx-0")
    plain.clock.advance(plain.policy.stale_grace_sec + 1)
    plain.purger.run(by=BY)
    assert plain.sync().tombstones_listed == 1
    plain.provider.accounts, plain.provider.inactive = World.accounts(3), ()
    result = plain.sync()
    assert (result.added, result.tombstones_listed) == (0, 1)
    assert (plain.record("sbx-0").status, plain.record("sbx-0").dirty) == (Status.DELETED, True)
    assert plain.recorder.of(PoolSynced)[-1] == PoolSynced(synced=3, stale=0, tombstones_listed=1)


def test_sandboxes_that_are_all_switched_off_at_once_brake_the_sync(plain: World) -> None:
    plain.pool(10)
    switched_off(plain, *[f"sbx-{number}" for number in range(9)])
    with pytest.raises(SyncBraked, match=r"9 of 10 .* or not active"):
        plain.sync()
    assert plain.memory.count()[Status.STALE] == 0


# -- one account backs one record


def refused(world: World) -> list[tuple[RefusalReason, str, str | None]]:
    """Return what the last sync refused, and forget it."""
    events = world.recorder.of(AccountRefused)
    world.recorder.events.clear()
    return [(event.reason, event.sandbox_id, event.held_by) for event in events]


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("spelt", [str, str.upper])
def test_an_account_that_another_record_has_is_refused_until_that_record_is_gone(
    plain: World, status: Status, spelt: Callable[[str], str]
) -> None:
    owner = in_status(status)
    plain.memory.seed(owner)
    renumbered = make_account("3101", external_id=spelt(owner.external_id))
    plain.provider.accounts = [renumbered, make_account("other")]
    for _ in range(2):
        assert plain.sync().refused == 1
        assert "3101" not in plain.memory.dump()[0]
        assert refused(plain) == [(RefusalReason.ID_TAKEN, "3101", owner.sandbox_id)]
    plain.memory.seed(replace(owner, external_id="gone"))
    plain.clock.advance(1)
    plain.sync()
    assert (plain.record("3101").status, refused(plain)) == (Status.AVAILABLE, [])


def in_status(status: Status) -> Sandbox:
    """Make sandbox 3100 in a status, dirty where it can be."""
    sandbox = make_sandbox("3100", external_id="uuid-0a")
    if status is Status.ALLOCATED:
        return begin(sandbox, make_claim(sandbox).lease, by=BY).result
    if status is Status.RESERVED:
        return replace(sandbox, status=status, reservation_id="res-1")
    return replace(sandbox, status=status, dirty=status is not Status.AVAILABLE)


def test_a_clean_sandbox_that_was_renumbered_is_added_under_its_new_id_once_the_old_record_is_purged(
    plain: World,
) -> None:
    plain.pool(3)
    assert plain.sync([*World.accounts(2), make_account("new", external_id="uuid-sbx-2")]).stale == 1
    plain.clock.advance(plain.policy.stale_grace_sec + 1)
    plain.purger.run(by=BY)
    assert plain.sync().added == 1
    assert plain.record("new").status is Status.AVAILABLE


def test_a_used_sandbox_that_was_renumbered_is_wiped_before_its_account_is_given_away(plain: World) -> None:
    plain.pool(1)
    plain.provider.accounts = [make_account("new", external_id="uuid-sbx-0"), make_account("other")]
    plain.allocate()
    plain.sync()
    plain.mark()
    plain.sync()
    plain.provider.answers.append(WipeAnswer.GONE)
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    assert plain.sync().contradicted == 1
    plain.clock.advance(120)
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    assert [call.external_id for call in plain.provider.deletes] == ["uuid-sbx-0", "uuid-sbx-0"]
    assert (plain.record("sbx-0").dirty, "new" in plain.memory.dump()[0]) == (False, False)
    plain.sync()
    plain.clock.advance(plain.policy.stale_grace_sec + 1)
    plain.purger.run(by=BY)
    plain.sync()
    assert plain.record("new").status is Status.AVAILABLE


@pytest.mark.parametrize("status", [Status.DELETION_FAILED, Status.DELETED])
def test_a_used_sandbox_whose_account_is_listed_under_another_id_is_not_forgotten(plain: World, status: Status) -> None:
    record = make_sandbox("3100", external_id="uuid-0a", status=status, dirty=True)
    plain.memory.seed(record)
    plain.provider.accounts = [make_account("3101", external_id="uuid-0a"), make_account("other")]
    for _ in range(3):
        plain.sync(force=True)
    assert plain.record("3100") == record
    assert "3101" not in plain.memory.dump()[0]


@pytest.mark.parametrize("status", [Status.ALLOCATED, Status.PENDING_DELETION, Status.DELETION_FAILED, Status.DELETED])
def test_what_is_held_or_must_be_wiped_keeps_its_account_when_its_id_is_listed_with_another(
    plain: World, status: Status
) -> None:
    record = in_status(status)
    plain.memory.seed(record)
    assert plain.sync([make_account("3100", external_id="uuid-0b"), make_account("other")], force=True).removed == 0
    assert plain.record("3100") == record
    assert refused(plain) == [(RefusalReason.ID_CHANGED, "3100", "3100")]


@pytest.mark.parametrize("status", [Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED])
def test_a_clean_sandbox_takes_over_another_account(plain: World, status: Status) -> None:
    plain.memory.seed(make_sandbox("3100", status=status, external_id="uuid-0a"))
    plain.sync([make_account("3100", external_id="uuid-0b"), make_account("3101", external_id="uuid-0c")])
    assert plain.record("3100").external_id == "uuid-0b"
    assert plain.memory.read_all().accounts == {"uuid-0b": "3100", "uuid-0c": "3101"}


def gone_and_replaced(world: World) -> None:
    """Put a used sandbox in the store whose account is gone, and list another account under its id."""
    world.memory.seed(make_sandbox("3100", status=Status.STALE, dirty=True, external_id="uuid-0a", gone_at=START))
    world.provider.accounts = [make_account("3100", external_id="uuid-0b"), make_account("other")]


def test_a_used_sandbox_whose_account_is_gone_takes_over_another_and_has_it_wiped_first(plain: World) -> None:
    gone_and_replaced(plain)
    assert plain.sync().restored == 1
    record = plain.record("3100")
    assert (record.status, record.dirty, record.external_id) == (Status.PENDING_DELETION, True, "uuid-0b")
    plain.cleaner.delete_sandbox("3100", by=BY)
    assert [call.external_id for call in plain.provider.deletes] == ["uuid-0b"]


@pytest.mark.parametrize(
    ("doubt", "inactive"), [("shifted", None), (None, InactiveAccount("x", "uuid-0a"))], ids=["not whole", "inactive"]
)
def test_a_used_sandbox_keeps_its_account_while_that_may_still_exist(
    plain: World, doubt: str | None, inactive: InactiveAccount | None
) -> None:
    gone_and_replaced(plain)
    before = plain.record("3100")
    plain.provider.doubt, plain.provider.inactive = doubt, (inactive,) if inactive else ()
    if doubt:
        with pytest.raises(ListNotWhole):
            plain.sync()
    else:
        plain.sync()
    assert plain.record("3100") == before
    assert refused(plain) == [(RefusalReason.ID_CHANGED, "3100", "3100")]


def test_entries_that_share_an_id_add_and_change_nothing_and_are_not_missing(plain: World) -> None:
    plain.pool(3)
    plain.provider.accounts = World.accounts(2)
    plain.provider.ambiguous = [make_account("sbx-2", external_id="uuid-x"), make_account("new", external_id="uuid-x")]
    result = plain.sync()
    assert (result.added, result.updated, result.stale, result.missing, result.refused) == (0, 0, 0, 0, 2)
    assert plain.record("sbx-2").status is Status.AVAILABLE
    assert refused(plain) == [(RefusalReason.AMBIGUOUS, "sbx-2", None), (RefusalReason.AMBIGUOUS, "new", None)]


def test_of_two_records_of_an_earlier_release_that_share_an_account_none_stays_in_service(plain: World) -> None:
    plain.pool(2)
    plain.memory.forget_accounts()
    twins = [make_sandbox(each, external_id="uuid-0a") for each in ("3100", "3101")]
    plain.memory.seed(*twins)
    result = plain.sync([*World.accounts(2), make_account("3101", external_id="uuid-0a")])
    assert (result.stale, result.overtaken) == (2, 0)
    assert {plain.record(each).status for each in ("3100", "3101")} == {Status.STALE}
    assert refused(plain) == [(RefusalReason.ID_TAKEN, "3101", "3100")]
    plain.clock.advance(plain.policy.stale_grace_sec + 1)
    plain.purger.bulk_delete(Status.STALE, by=BY)
    plain.sync()
    assert plain.record("3101").status is Status.AVAILABLE


def test_a_used_sandbox_that_shares_its_account_is_not_sent_to_be_wiped(plain: World) -> None:
    plain.memory.seed(
        make_sandbox("3100", status=Status.STALE, dirty=True, external_id="uuid-0a"),
        replace(in_status(Status.ALLOCATED), sandbox_id="3101"),
    )
    plain.sync([make_account("3100", external_id="uuid-0a"), make_account("other")])
    assert plain.record("3100").status is Status.STALE


def test_the_accounts_of_an_earlier_release_s_records_are_recorded_once(plain: World) -> None:
    plain.pool(60)
    plain.memory.forget_accounts()
    plain.sync()
    assert plain.memory.read_all().accounts == {f"uuid-sbx-{number}": f"sbx-{number}" for number in range(60)}
    assert writes(plain) == {"record_accounts": 3, "write_watermark": 1}
    plain.sync()
    assert plain.memory.calls["record_accounts"] == 3


def test_the_account_records_are_read_by_each_sync_while_a_process_of_an_earlier_release_may_run(plain: World) -> None:
    plain.pool(3)
    plain.sync()
    plain.memory.upgraded = 0
    plain.clock.advance(MAX_AGE_SEC)
    for _ in range(2):
        plain.memory.forget_accounts()
        plain.sync()
        assert len(plain.memory.read_all().accounts) == 3
    plain.memory.forget_accounts()
    plain.memory.finish_upgrade()
    plain.clock.advance(MAX_AGE_SEC)
    plain.sync()
    assert len(plain.memory.read_all().accounts) == 3


def test_after_the_upgrade_the_account_records_are_read_once_a_day(plain: World) -> None:
    plain.pool(3)
    plain.sync()
    plain.memory.forget_accounts()
    for passed, recorded in ((24 * 3600 - 1, 0), (1, 3)):
        plain.clock.advance(passed)
        plain.sync()
        assert len(plain.memory.read_all().accounts) == recorded


def test_account_records_that_could_not_be_written_are_written_by_the_next_sync() -> None:
    world, store = flaky_world()
    world.pool(3)
    world.memory.forget_accounts()
    store.fail("record_accounts", Fault.REFUSED, None, StoreRejected("the record is too large"))
    world.sync()
    assert len(world.memory.read_all().accounts) == 2
    world.sync()
    assert len(world.memory.read_all().accounts) == 3


# -- deletes that were answered with 404


def refuse_to_know(world: World, rounds: int) -> list[Status]:
    """Answer each delete of sbx-0 with 404 and list it as active all the same; returns what syncs made of it."""
    seen = []
    for _ in range(rounds):
        world.clock.advance(world.policy.deletion_backoff_max_sec)
        world.provider.answers.append(WipeAnswer.GONE)
        world.cleaner.delete_sandbox("sbx-0", by=BY)
        world.sync()
        seen.append(world.record("sbx-0").status)
    return seen


@pytest.mark.parametrize("recycle", RecyclePolicy)
def test_a_404_while_the_account_is_listed_is_a_failed_attempt_and_at_the_limit_for_a_person(
    recycle: RecyclePolicy,
) -> None:
    world = World(policy=Policy(recycle=recycle, deletion_max_attempts=3))
    world.pool(3)
    world.pending("sbx-0")
    assert refuse_to_know(world, 3) == [Status.PENDING_DELETION, Status.PENDING_DELETION, Status.DELETION_FAILED]
    record = world.record("sbx-0")
    assert (record.dirty, flat(record).deletion_retry_count, flat(record).gone_at) == (True, 3, None)
    assert flat(record).deletion_last_error == (
        "the provider answered 404 to the last delete, but still lists the account as active; attempts: 3"
    )
    events = world.recorder.of(DeleteContradicted)
    assert [(event.sandbox_id, event.lease_id, event.attempts) for event in events] == [
        ("sbx-0", "lease-1", number) for number in (1, 2, 3)
    ]


def test_a_404_that_the_list_contradicts_is_tried_again_after_a_pause_that_grows(plain: World) -> None:
    plain.pool(3)
    plain.pending("sbx-0")
    pauses = []
    for _ in range(4):
        refuse_to_know(plain, 1)
        pauses.append((flat(plain.record("sbx-0")).next_attempt_at or 0) - plain.clock.now())
    assert pauses == sorted(pauses)
    assert 60 <= pauses[0] <= 120
    assert 480 <= pauses[3] <= 960


def test_a_404_that_is_true_leads_out_of_the_pool_as_before(plain: World) -> None:
    plain.pool(3)
    plain.pending("sbx-0")
    plain.provider.answers.append(WipeAnswer.GONE)
    assert plain.cleaner.delete_sandbox("sbx-0", by=BY).outcome is DeleteOutcome.GONE
    assert plain.sync(World.accounts(3)[1:]).contradicted == 0
    assert plain.record("sbx-0").status is Status.STALE


@pytest.mark.parametrize("removed_by", ["bulk delete", "purge"])
def test_a_tombstone_that_an_operator_or_a_purge_made_stays_though_it_came_of_a_404(
    plain: World, removed_by: str
) -> None:
    plain.pool(3)
    plain.pending("sbx-0")
    plain.provider.answers.append(WipeAnswer.GONE)
    plain.cleaner.delete_sandbox("sbx-0", by=BY)
    plain.clock.advance(plain.policy.stale_grace_sec + 1)
    if removed_by == "purge":
        plain.purger.run(by=BY)
    else:
        plain.purger.bulk_delete(Status.STALE, by=BY)
    result = plain.sync()
    assert (result.contradicted, result.tombstones_listed) == (0, 1)
    assert plain.record("sbx-0").status is Status.DELETED


# -- many at once


def test_new_accounts_are_added_many_with_one_write_and_spread_over_the_ring(plain: World) -> None:
    assert plain.sync(World.accounts(60)).added == 60
    assert writes(plain) == {"add": 3, "write_watermark": 1}
    assert len({each.status_order for each in plain.memory.dump()[0].values()}) == 60


def test_of_many_new_accounts_one_that_cannot_be_added_keeps_no_other_out(plain: World) -> None:
    plain.provider.accounts = World.accounts(20)
    plain.provider.during_list = lambda: plain.memory.seed(make_sandbox("sbx-7", status=Status.DELETED))
    result = plain.sync()
    assert (result.added, result.overtaken) == (19, 1)
    assert plain.record("sbx-7").status is Status.DELETED


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_many_new_accounts_whose_one_write_fails_or_is_lost_are_each_added_and_told_once(fault: Fault) -> None:
    world, store = flaky_world()
    store.fail("add", fault)
    result = world.sync(World.accounts(30))
    assert (result.added, result.overtaken, result.failed) == (30, 0, 0)
    assert store.calls["add"] == 1 + 25 + 1
    assert world.memory.count()[Status.AVAILABLE] == 30
    assert Counter(told(world)) == Counter((each.sandbox_id, FactKind.ADDED) for each in World.accounts(30))


def test_of_many_new_accounts_one_whose_write_fails_keeps_no_other_out() -> None:
    world, store = flaky_world()
    store.fail("add", Fault.REFUSED, *[None] * 7, StoreRejected("the record is too large"))
    result = world.sync(World.accounts(20))
    assert (result.added, result.failed) == (19, 1)
    assert [(each.sandbox_id, each.error) for each in world.recorder.of(ItemFailed)] == [
        ("sbx-7", "the record is too large")
    ]
    assert world.sync().added == 1


def test_many_new_accounts_whose_lost_write_is_repeated_after_a_second_are_each_added_and_told_once() -> None:
    world, store = flaky_world()
    store.fail("add", Fault.LOST_AFTER)
    store.before_call = lambda method: world.clock.advance(1) if method == "add" else None
    result = world.sync(World.accounts(20))
    assert (result.added, result.overtaken, result.failed) == (20, 0, 0)
    assert Counter(told(world)) == Counter((each.sandbox_id, FactKind.ADDED) for each in World.accounts(20))


def test_new_sandboxes_that_tracks_get_after_a_lost_answer_are_not_taken_for_an_empty_table() -> None:
    world, store = flaky_world()
    store.fail("add", Fault.LOST_AFTER)
    adds = 0

    def allocate_both(method: str) -> None:
        nonlocal adds
        adds += method == "add"
        if adds == 2:
            adds += 1
            world.clock.advance(3)
            world.allocate("one")
            world.allocate("two")

    store.before_call = allocate_both
    result = world.sync(World.accounts(2))
    assert (result.added, result.overtaken) == (0, 2)
    assert world.memory.read_watermark()


def test_a_store_that_refuses_everything_is_asked_twice_for_each_batch() -> None:
    class Busy(FlakyStore):
        def commit(self, *changes: Change) -> None:
            self.fail("add", Fault.REFUSED)
            super().commit(*changes)

    world = World(wrap=Busy)
    result = world.sync(World.accounts(200))
    assert (result.added, result.failed) == (0, 200)
    assert world.store.calls["add"] == 2 * 8  # type: ignore[attr-defined] # it is a `FlakyStore`
    assert len({each.sandbox_id for each in world.recorder.of(ItemFailed)}) == 200


def test_many_new_accounts_are_not_tried_one_by_one_if_a_person_must_repair_the_table() -> None:
    world, store = flaky_world()
    store.fail("add", StoreMisconfigured("there is no table"))
    result = world.sync(World.accounts(30))
    assert (result.added, result.failed, store.calls["add"]) == (5, 25, 2)
    assert [each.error for each in world.recorder.of(ItemFailed)] == ["there is no table"] * 25
    assert world.sync().added == 25


@pytest.mark.parametrize(("before", "change"), [(None, "added"), ("old", "records changed")])
def test_a_long_sync_says_how_far_it_is(plain: World, before: str | None, change: str) -> None:
    if before:
        plain.memory.seed(*[make_sandbox(f"sbx-{number}", name=before) for number in range(5001)])
    plain.sync(World.accounts(5001))
    assert plain.recorder.of(SyncProgressed) == [
        SyncProgressed(change=change, done=done, total=5001) for done in (5000, 5001)
    ]
