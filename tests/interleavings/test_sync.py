"""Sync against all else that changes the pool: allocates, the life of a sandbox, another sync, a purge, an operator."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core import pool, purge
from broker_common.core import sync as sync_module
from broker_common.core.allocation import Allocation
from broker_common.core.errors import InvalidTransition, NoSandboxesAvailable, SandboxNotFound, SyncBraked
from broker_common.core.ports import WipeAnswer
from broker_common.core.sandbox import DeletionReason, Status
from broker_common.core.sync import SyncResult
from tests.fakes import BY, START, Crashed, Fault, MemoryStore, flat, kind_of, make_account, make_sandbox, removal_of
from tests.interleavings.calls import commute
from tests.interleavings.stage import POLICY, Stage
from tests.interleavings.test_allocate import allocate_without
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from broker_common.core.facts import Change
    from broker_common.core.sandbox import Account, Sandbox
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

SEEN = make_account("sbx-0")
RENAMED = make_account("sbx-0", name="gpu-0")
RENUMBERED = make_account("sbx-8", external_id=SEEN.external_id)
ELSEWHERE = make_account("sbx-9")
"""Keeps the list from being empty; its sandbox is held by a track of its own."""
LONG_AGO = START - POLICY.stale_grace_sec - 1


def stale(**changes: Any) -> Sandbox:
    return make_sandbox("sbx-0", status=Status.STALE, stale_since=LONG_AGO, status_order=LONG_AGO, **changes)


def set_up(schedule: Schedule, *records: Sandbox) -> Stage:
    stage = Stage(schedule, processes=3)
    stage.memory.seed(*records)
    stage.held("zoe", "sbx-9")
    return stage


def sync(stage: Stage, name: str, world: World, *accounts: Account, force: bool = True) -> None:
    world.provider.accounts = (ELSEWHERE, *accounts)
    stage.play(name, lambda: world.syncer.run(by=BY, force=force))


def allocate_against_sync(
    schedule: Schedule, *accounts: Account, before: Sandbox | None, tracks: int = 1, force: bool = True
) -> tuple[list[Any], Any, Stage]:
    """Let tracks ask while a sync runs; returns their answers, the sync's result and the stage."""
    stage = set_up(schedule, *([before] if before else []))
    *apis, worker = stage.worlds
    for name, api in zip(("ann", "bob")[:tracks], apis, strict=False):
        stage.allocate(name, api)
    sync(stage, "sync", worker, *accounts, force=force)
    results = stage.run()
    result = results.pop("sync")
    return list(results.values()), result, stage


def described_again(schedule: Schedule, *, tracks: int) -> None:
    answers, result, _ = allocate_against_sync(schedule, RENAMED, before=make_sandbox("sbx-0"), tracks=tracks)
    (allocation,) = (each for each in answers if isinstance(each, Allocation))
    assert allocation.claim.name == ("gpu-0" if result.updated else "lab-sbx-0")


@pytest.mark.parametrize("tracks", [1, 2])
def test_a_sandbox_that_is_described_again_is_given_all_the_same_under_its_name_of_that_moment(
    every_order: Search, tracks: int
) -> None:
    every_order(lambda schedule: described_again(schedule, tracks=tracks), once=tracks > 1)


def test_a_sandbox_that_is_renamed_is_given_under_a_name_that_was_asked_for_or_not_at_all(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = set_up(schedule, make_sandbox("sbx-0"))
        first, second, worker = stage.worlds
        stage.allocate("ann", first, prefix="lab-")
        stage.allocate("bob", second, prefix="gpu-")
        sync(stage, "sync", worker, RENAMED)
        results = stage.run()
        for name, prefix in (("ann", "lab-"), ("bob", "gpu-")):
            answer = results[name]
            assert isinstance(answer, NoSandboxesAvailable) or answer.claim.name.startswith(prefix)
        assert results["sync"].updated == (not isinstance(results["ann"], Allocation))

    every_order(case, once=True)


@pytest.mark.parametrize("tracks", [1, 2])
def test_a_sandbox_that_is_not_listed_is_given_to_a_track_or_goes_stale_and_never_both(
    every_order: Search, tracks: int
) -> None:
    def case(schedule: Schedule) -> None:
        answers, result, stage = allocate_against_sync(schedule, before=make_sandbox("sbx-0"), tracks=tracks)
        given = [each for each in answers if isinstance(each, Allocation)]
        # Overtaken by an allocate that came before the write, or left alone as what was allocated when it was read.
        assert len(given) == 1 - result.stale
        assert stage.statuses()[0] is (Status.STALE if result.stale else Status.ALLOCATED)

    every_order(case, once=tracks > 1)


@pytest.mark.parametrize("tracks", [1, 2])
def test_a_braked_sync_takes_nothing_away_from_who_asks_meanwhile(every_order: Search, tracks: int) -> None:
    def case(schedule: Schedule) -> None:
        answers, result, _ = allocate_against_sync(schedule, before=make_sandbox("sbx-0"), tracks=tracks, force=False)
        # Nothing is missing for a sync that reads the sandbox as allocated.
        assert isinstance(result, (SyncBraked, SyncResult))
        assert [type(each) for each in answers].count(Allocation) == 1

    every_order(case, once=tracks > 1)


@pytest.mark.parametrize("tracks", [1, 2])
@pytest.mark.parametrize("before", [stale(), None], ids=["restored", "new"])
def test_a_sandbox_that_a_sync_brings_goes_to_one_track_or_stays_available(
    every_order: Search, before: Sandbox | None, tracks: int
) -> None:
    def case(schedule: Schedule) -> None:
        answers, result, stage = allocate_against_sync(schedule, SEEN, before=before, tracks=tracks)
        assert result.restored + result.added == 1
        given = [each for each in answers if isinstance(each, Allocation)]
        assert len(given) <= 1
        assert stage.statuses()[0] is (Status.ALLOCATED if given else Status.AVAILABLE)

    every_order(case, once=tracks > 1)


def seen_again_used(schedule: Schedule) -> None:
    stage = set_up(schedule)
    stage.used(stale(dirty=True))
    api, worker, cleaner = stage.worlds
    stage.allocate("ann", api)
    sync(stage, "sync", worker, SEEN)
    stage.play("delete", lambda: cleaner.cleaner.delete_sandbox("sbx-0", by=BY))
    results = stage.run()
    assert isinstance(results["ann"], (Allocation, NoSandboxesAvailable))
    assert flat(stage.settle()["sbx-0"]).deletion_reason in {DeletionReason.FOUND_DIRTY, None}


def test_a_used_sandbox_that_a_sync_sees_again_reaches_nobody_unwiped(every_order: Search) -> None:
    every_order(seen_again_used, once=True)


@pytest.mark.parametrize(
    ("answer", "accounts"),
    [
        (WipeAnswer.WIPED, [SEEN]),
        (WipeAnswer.WIPED, [RENAMED]),
        (WipeAnswer.WIPED, []),
        (WipeAnswer.ACCEPTED, [SEEN]),
        (WipeAnswer.GONE, [SEEN]),
    ],
    ids=["wiped, listed", "wiped, renamed", "wiped, missing", "accepted, listed", "gone, listed"],
)
def test_a_sync_that_read_the_pool_before_a_whole_life_of_a_sandbox_does_not_touch_what_came_of_it(
    every_order: Search, accounts: list[Account], answer: WipeAnswer
) -> None:
    """Given back, wiped and given to the next track, while the sync reads, lists and writes."""

    def case(schedule: Schedule) -> None:
        stage = set_up(schedule)
        claim = stage.held("ann")
        first, second, api = stage.worlds

        def life() -> None:
            first.mark("sbx-0", "ann", lease_id=claim.lease.lease_id)
            first.cleaner.delete_sandbox("sbx-0", by=BY)

        first.provider.answers.append(answer)
        stage.play("life", life)
        sync(stage, "sync", second, *accounts)
        stage.allocate("bob", api)
        results = stage.run()
        given = isinstance(results["bob"], Allocation)
        assert (stage.statuses()[0] is Status.ALLOCATED) == given

    every_order(case, once=True)


def two_syncs(schedule: Schedule, first: list[Account], second: list[Account], before: Sandbox | None) -> None:
    stage = set_up(schedule, *([before] if before else []))
    for world, name, accounts in zip(stage.worlds, ("one", "two"), (first, second), strict=False):
        sync(stage, name, world, *accounts)
    results = stage.run()
    changes = [results["one"], results["two"]]
    assert sum(each.added for each in changes) <= 1
    assert not any(each.failed for each in changes)


@pytest.mark.parametrize("before", [None, make_sandbox("sbx-0"), stale()], ids=["new", "available", "stale"])
@pytest.mark.parametrize(
    ("first", "second"),
    [([SEEN], [SEEN]), ([SEEN], [RENAMED]), ([SEEN], []), ([], [])],
    ids=["agree", "name it differently", "disagree", "miss it"],
)
def test_two_syncs_at_once_add_a_sandbox_once_and_overtake_each_other_without_harm(
    every_order: Search, first: list[Account], second: list[Account], before: Sandbox | None
) -> None:
    every_order(lambda schedule: two_syncs(schedule, first, second, before))


def renumbered_while_synced(schedule: Schedule, before: Sandbox | None) -> None:
    stage = set_up(schedule, *([before] if before else []))
    first, second, api = stage.worlds
    sync(stage, "one", first, SEEN)
    sync(stage, "two", second, RENUMBERED)
    stage.allocate("ann", api)
    results = stage.run()
    assert results["one"].added + results["two"].added <= 1


@pytest.mark.parametrize("before", [None, make_sandbox("sbx-0"), stale()], ids=["new", "available", "stale"])
def test_two_syncs_that_see_one_account_under_two_ids_give_it_to_one_sandbox(
    every_order: Search, before: Sandbox | None
) -> None:
    every_order(lambda schedule: renumbered_while_synced(schedule, before), once=True)


def test_a_sandbox_whose_account_answers_404_and_is_listed_is_wiped_before_it_is_given_away(
    every_order: Search,
) -> None:
    """The account is listed under its own id by one sync and under another by a second one."""

    def case(schedule: Schedule) -> None:
        stage = set_up(schedule)
        stage.pending()
        first, second, third = stage.worlds
        first.provider.answers.append(WipeAnswer.GONE)
        stage.play("delete", lambda: first.cleaner.delete_sandbox("sbx-0", by=BY))
        sync(stage, "one", second, SEEN)
        sync(stage, "two", third, RENUMBERED)
        results = stage.run()
        assert results["one"].contradicted + results["two"].contradicted <= 1
        assert stage.records()["sbx-0"].dirty

    every_order(case, once=True)


def test_the_search_finds_a_store_that_adds_an_account_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "_check_account", lambda *_: None)
    with pytest.raises(Violation, match="one account"):
        explore(lambda schedule: renumbered_while_synced(schedule, None))


def purged_while_synced(schedule: Schedule, accounts: list[Account], *, used: bool) -> None:
    stage = set_up(schedule)
    (stage.used if used else stage.memory.seed)(stale(dirty=used))
    first, second, api = stage.worlds
    sync(stage, "sync", first, *accounts)
    stage.play("purge", partial(second.purger.run, by=BY))
    stage.allocate("ann", api)
    results = stage.run()
    removed, restored = results["purge"].removed, results["sync"].restored
    assert removed + restored <= 1
    record = stage.records().get("sbx-0")
    if removed and used:
        # Forgotten for good only by a sync that saw the tombstone, and not the account.
        assert record is None or record.status is Status.DELETED
    elif removed:
        # Added as new by a sync that read the pool after the purge.
        assert (record is not None) == bool(results["sync"].added)
    elif used:
        assert stage.settle()["sbx-0"].status is Status.AVAILABLE


@pytest.mark.parametrize("used", [False, True], ids=["clean", "used"])
@pytest.mark.parametrize("accounts", [[SEEN], []], ids=["listed", "missing"])
def test_a_purge_and_a_sync_that_sees_the_sandbox_again_do_not_undo_each_other(
    every_order: Search, accounts: list[Account], used: bool
) -> None:
    every_order(lambda schedule: purged_while_synced(schedule, accounts, used=used), once=True)


@pytest.mark.parametrize("accounts", [[SEEN], [RENAMED], []], ids=["listed", "renamed", "missing"])
def test_an_operator_s_retry_is_not_lost_to_a_sync_or_a_bulk_delete_unless_the_record_is_removed(
    every_order: Search, accounts: list[Account]
) -> None:
    def case(schedule: Schedule) -> None:
        stage = set_up(schedule)
        failed = make_sandbox(
            "sbx-0", status=Status.DELETION_FAILED, dirty=True, last_track_id="ann", last_lease_id="lease-1"
        )
        stage.used(failed)
        first, second, third = stage.worlds
        sync(stage, "sync", first, *accounts)
        stage.play("retry", lambda: second.operations.retry_deletion("sbx-0", by=BY))
        stage.play("bulk delete", lambda: third.purger.bulk_delete(Status.DELETION_FAILED, by=BY))
        results = stage.run()
        record = stage.settle().get("sbx-0")
        if isinstance(results["retry"], SandboxNotFound):
            assert record is None
            assert not accounts
        elif isinstance(results["retry"], InvalidTransition):
            assert record is None or record.status is Status.DELETED
        else:
            assert record
            assert record.status is Status.AVAILABLE
            assert len(stage.deletes) == 1

    every_order(case, once=True)


@pytest.mark.parametrize("before", [make_sandbox("sbx-0"), stale(), None], ids=["available", "stale", "new"])
@pytest.mark.parametrize("accounts", [[RENAMED], []], ids=["renamed", "missing"])
def test_a_sync_killed_at_any_of_its_calls_is_made_up_for_by_the_next(
    every_order: Search, accounts: list[Account], before: Sandbox | None
) -> None:
    def case(schedule: Schedule) -> None:
        stage = set_up(schedule, *([before] if before else []))
        first, second, _ = stage.worlds
        stage.may_fail(first, Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
        first.provider.accounts = (ELSEWHERE, *accounts)

        def killed_and_repeated() -> None:
            try:
                first.syncer.run(by=BY, force=True)
            except Crashed:
                first.start()
                first.syncer.run(by=BY, force=True)

        stage.play("sync", killed_and_repeated)
        stage.allocate("ann", second)
        results = stage.run()
        if isinstance(results["ann"], NoSandboxesAvailable) and accounts:
            assert stage.records()["sbx-0"].name == "gpu-0"
        assert stage.memory.read_watermark()

    every_order(case, once=True)


# -- planted bugs


def test_the_search_finds_a_sync_that_writes_without_a_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = MemoryStore.commit

    def unconditional(memory: MemoryStore, *changes: Change) -> None:
        if kind_of(*changes) == "update":
            memory._put(changes[0].sandbox_id, changes[0].after)
        else:
            sound(memory, *changes)

    monkeypatch.setattr(MemoryStore, "commit", unconditional)
    with pytest.raises(Violation, match="no such transition"):
        explore(lambda schedule: described_again(schedule, tracks=1))


def test_the_search_finds_an_allocate_that_does_not_check_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox is still available then, and its name is no longer the one that the track is told."""
    monkeypatch.setattr(MemoryStore, "allocate", allocate_without("version"))
    with pytest.raises(Violation, match="claims"):
        explore(lambda schedule: described_again(schedule, tracks=1))


def test_the_search_finds_a_restore_that_forgets_dirt(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(sandbox: Sandbox, account: Account, **arguments: Any) -> Change:
        return pool.restore(replace(sandbox, dirty=False), account, **arguments)

    monkeypatch.setattr(sync_module, "restore", forgetful)
    monkeypatch.setattr(sync_module, "is_thought_gone", lambda _: False)
    with pytest.raises(Violation, match="became available unwiped"):
        explore(seen_again_used)


def test_the_search_finds_a_purge_that_leaves_no_tombstone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purge, "remove", lambda sandbox, **_: removal_of(sandbox))
    with pytest.raises(Violation, match="tombstone"):
        explore(lambda schedule: purged_while_synced(schedule, [SEEN], used=True))


# -- what is left out as the same


def test_orders_that_are_left_out_because_their_steps_commute_hide_no_state_and_no_outcome() -> None:
    def seen(*, once: bool) -> tuple[int, set[object], set[object]]:
        states: set[object] = set()
        outcomes: set[object] = set()

        def case(schedule: Schedule) -> None:
            stage = set_up(schedule, make_sandbox("sbx-1"))
            stage.held("ann")
            first, second, third = stage.worlds
            sync(stage, "sync", first, SEEN)
            stage.play("mark", lambda: second.mark("sbx-0", "ann"))
            stage.play("quarantine", lambda: third.operations.quarantine("sbx-1", by=BY, reason="odd"))
            results = stage.run()
            states.update(
                (frozenset(moment.records.values()), frozenset(moment.claims.values())) for moment in stage.moments()
            )
            outcomes.add(repr(sorted(results.items())))

        return explore(case, commute=commute if once else None), states, outcomes

    every, states, outcomes = seen(once=False)
    fewer, same_states, same_outcomes = seen(once=True)
    assert fewer < every
    assert (same_states, same_outcomes) == (states, outcomes)
    assert len(outcomes) > 2
