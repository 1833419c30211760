"""What every use case tells: one fact for each change, with its principal, its request and its lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import pytest

from broker_common.core.errors import (
    NoSandboxesAvailable,
    NotSandboxOwner,
    ProviderFailing,
    ProviderRejected,
    SyncBraked,
)
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.policy import Policy
from broker_common.core.ports import WipeAnswer
from broker_common.core.principals import Actor, job_actor
from tests.fakes import BY, START, Crashed, Fault, make_account, make_sandbox
from tests.lifecycle import A, D, F, L, P, S, check_histories, check_usage
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Status

HOUR = 3600
OPERATOR = Actor(principal="ada", request_id="request-9")
SYNC = job_actor("sync", "job-sync-1")

Told: TypeAlias = "tuple[FactKind, str, str | None, Status | None, Status | None]"
"""A fact, without what names it: its kind, by whom and by which request, the status before it and after it."""


def told(world: World, sandbox_id: str = "sbx-0") -> list[Told]:
    """Return the facts of a sandbox, oldest first, after a check that they fit together."""
    check_histories(world.memory.facts, world.memory.dump()[0])
    check_usage(world.memory.facts, world.memory.usage.values())
    facts = [fact for fact in world.memory.facts if isinstance(fact, Fact) and fact.sandbox_id == sandbox_id]
    return [(each.kind, each.principal, each.request_id, each.status_before, each.status) for each in facts]


def said(kind: FactKind, by: Actor, before: Status | None, after: Status | None) -> Told:
    return (kind, by.principal, by.request_id, before, after)


def test_an_allocation_is_told_with_its_lease_its_track_and_its_end(plain: World) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    (fact,) = [fact for fact in plain.memory.facts if isinstance(fact, Fact)]
    assert told(plain) == [said(FactKind.ALLOCATED, BY, A, L)]
    assert (fact.lease_id, fact.track_id, fact.at) == (lease.lease_id, "track-1", START)
    assert fact.details == {"expires_at": lease.expires_at}
    assert fact.version == plain.record("sbx-0").version


def test_a_replay_and_a_refusal_tell_nothing(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    plain.allocate()
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate("other")
    with pytest.raises(NotSandboxOwner):
        plain.leases.mark_for_deletion(track_id="other", sandbox_id="sbx-0", by=BY)
    assert len(told(plain)) == 1


@pytest.mark.parametrize("kind", [FactKind.MARKED, FactKind.RELEASED, FactKind.EXPIRED])
def test_an_end_is_told_once_however_often_it_is_asked_for(plain: World, kind: FactKind) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    plain.clock.advance(5 * HOUR)
    ends: dict[FactKind, Callable[[], object]] = {
        FactKind.MARKED: lambda: plain.leases.mark_for_deletion(track_id="track-1", sandbox_id="sbx-0", by=OPERATOR),
        FactKind.RELEASED: lambda: plain.leases.release(sandbox_id="sbx-0", lease_id=lease.lease_id, by=OPERATOR),
        FactKind.EXPIRED: lambda: plain.expirer.run(by=OPERATOR),
    }
    for _ in range(2):
        ends[kind]()
    assert told(plain)[1:] == [said(kind, OPERATOR, L, P)]
    last = plain.memory.facts[-1]
    assert isinstance(last, Fact)
    assert (last.lease_id, last.track_id) == (lease.lease_id, "track-1")


@pytest.mark.parametrize("is_operators", [True, False])
def test_an_extension_is_told_once_with_who_made_it_and_its_lease(plain: World, is_operators: bool) -> None:
    plain.pool(1)
    lease = plain.allocate().claim.lease
    until = lease.expires_at + HOUR
    for _ in range(2):
        if is_operators:
            plain.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=until, by=OPERATOR)
        else:
            plain.leases.extend(track_id="track-1", sandbox_id="sbx-0", expires_at=until, by=OPERATOR)
    assert told(plain)[1:] == [said(FactKind.EXTENDED, OPERATOR, L, L)]
    last = plain.memory.facts[-1]
    assert isinstance(last, Fact)
    assert (last.lease_id, last.track_id) == (lease.lease_id, "track-1")


def test_an_allocate_that_ends_its_overdue_lease_first_says_so_in_its_own_name(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    plain.clock.advance(5 * HOUR)
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate()
    assert told(plain)[1:] == [said(FactKind.EXPIRED, BY, L, P)]


@pytest.mark.parametrize(
    ("answer", "kind", "status"),
    [
        (WipeAnswer.WIPED, FactKind.WIPED, A),
        (WipeAnswer.ACCEPTED, FactKind.WIPED, S),
        (WipeAnswer.GONE, FactKind.STALE, S),
        (ProviderFailing("500", outcome_unknown=False), FactKind.WIPE_FAILED, P),
        (ProviderRejected("422"), FactKind.NEEDS_ATTENTION, F),
    ],
)
def test_each_outcome_of_a_wipe_is_told_with_the_lease_before_it_and_the_attempt_is_not(
    plain: World, answer: WipeAnswer | Exception, kind: FactKind, status: Status
) -> None:
    plain.pending()
    plain.provider.answers.append(answer)
    by = job_actor("cleanup", "job-cleanup-1")
    plain.cleaner.delete_sandbox("sbx-0", by=by)
    assert told(plain) == [said(kind, by, P, status)]
    (fact,) = [fact for fact in plain.memory.facts if isinstance(fact, Fact)]
    assert (fact.lease_id, fact.track_id) == ("lease-1", "track-1")


def test_attempts_used_up_are_told_with_how_many_there_were() -> None:
    world = World(policy=Policy(deletion_max_attempts=2))
    world.pending()
    for _ in range(2):
        world.provider.answers.append(ProviderFailing("500", outcome_unknown=False))
        world.cleaner.delete_sandbox("sbx-0", by=BY)
        world.clock.advance(HOUR)
    assert told(world) == [said(FactKind.WIPE_FAILED, BY, P, P), said(FactKind.NEEDS_ATTENTION, BY, P, F)]
    assert [fact.details for fact in world.memory.facts] == [{"tries": n, "error": "500"} for n in (1, 2)]


def test_an_attempt_whose_worker_died_is_told_by_the_one_that_gave_up_after_it() -> None:
    world = World(policy=Policy(deletion_max_attempts=1))
    world.pending(attempt_id="lost", next_attempt_at=START)
    world.cleaner.delete_sandbox("sbx-0", by=OPERATOR)
    assert told(world) == [said(FactKind.NEEDS_ATTENTION, OPERATOR, P, F)]


def test_what_a_sync_does_is_reported_for_each_sandbox_that_it_changed(plain: World) -> None:
    plain.memory.seed(
        make_sandbox("renamed", name="old"),
        make_sandbox("missing"),
        make_sandbox("back", status=S),
        make_sandbox("denied", status=S, dirty=True),
        make_sandbox("tomb", status=D, dirty=True),
        make_sandbox("failed", status=F),
        make_sandbox("same"),
    )
    plain.provider.accounts = [make_account(each) for each in ("renamed", "back", "denied", "same", "new")]
    plain.syncer.run(by=SYNC)
    assert {
        each: told(plain, each) for each in ("renamed", "missing", "back", "denied", "tomb", "failed", "same", "new")
    } == {
        "renamed": [said(FactKind.UPDATED, SYNC, A, A)],
        "missing": [said(FactKind.STALE, SYNC, A, S)],
        "back": [said(FactKind.RESTORED, SYNC, S, A)],
        "denied": [said(FactKind.WIPE_FAILED, SYNC, S, P)],
        "tomb": [said(FactKind.REMOVED, SYNC, D, None)],
        "failed": [said(FactKind.REMOVED, SYNC, F, None)],
        "same": [],
        "new": [said(FactKind.ADDED, SYNC, None, A)],
    }


def test_a_used_sandbox_whose_account_was_replaced_is_told_as_restored(plain: World) -> None:
    plain.memory.seed(make_sandbox("sbx-0", status=S, dirty=True, external_id="gone"))
    plain.provider.accounts = [make_account("sbx-0")]
    plain.syncer.run(by=SYNC)
    assert told(plain) == [said(FactKind.RESTORED, SYNC, S, P)]
    assert plain.memory.facts[-1].details["external_id_before"] == "gone"


def test_a_braked_sync_says_how_many_were_missing(plain: World) -> None:
    plain.pool(10)
    plain.provider.accounts = World.accounts(4)
    with pytest.raises(SyncBraked):
        plain.syncer.run(by=SYNC)
    (fact,) = plain.memory.facts
    assert isinstance(fact, PoolFact)
    assert (fact.kind, fact.principal, fact.request_id) == (PoolFactKind.SYNC_BRAKED, "job:sync", "job-sync-1")
    assert (fact.details, fact.at) == ({"missing": 6, "judged": 10}, START)


def test_a_sync_that_was_forced_or_had_no_whole_list_is_not_told_as_braked(plain: World) -> None:
    plain.pool(10)
    plain.provider.accounts = World.accounts(4)
    plain.syncer.run(by=SYNC, force=True)
    assert not any(isinstance(fact, PoolFact) for fact in plain.memory.facts)


def test_an_operator_s_changes_are_told_in_the_operator_s_name(plain: World) -> None:
    plain.memory.seed(make_sandbox("sbx-0"))
    plain.operations.quarantine("sbx-0", reason="odd", by=OPERATOR)
    plain.operations.retry_deletion("sbx-0", by=OPERATOR)
    plain.operations.quarantine("sbx-0", reason="odd", by=OPERATOR)
    plain.operations.lift_quarantine("sbx-0", by=OPERATOR)
    assert told(plain) == [
        said(FactKind.QUARANTINED, OPERATOR, A, F),
        said(FactKind.RETRIED, OPERATOR, F, P),
        said(FactKind.QUARANTINED, OPERATOR, P, P),
        said(FactKind.UPDATED, OPERATOR, P, P),
    ]


def test_a_bulk_retry_reports_each_sandbox(plain: World) -> None:
    plain.memory.seed(*[make_sandbox(f"f-{number}", status=F, dirty=True) for number in range(3)])
    plain.operations.bulk_retry(by=OPERATOR)
    assert [told(plain, f"f-{number}") for number in range(3)] == [[said(FactKind.RETRIED, OPERATOR, F, P)]] * 3


@pytest.mark.parametrize("dirty", [True, False])
def test_a_removal_is_told_and_so_is_a_tombstone(plain: World, dirty: bool) -> None:
    plain.memory.seed(make_sandbox("sbx-0", status=S, dirty=dirty, stale_since=START))
    plain.clock.advance(48 * HOUR)
    plain.purger.run(by=OPERATOR)
    assert told(plain) == [said(FactKind.REMOVED, OPERATOR, S, D if dirty else None)]


@pytest.mark.parametrize("fault", [Fault.LOST_AFTER, Fault.CRASH_AFTER])
def test_a_change_whose_answer_was_lost_is_told_once(fault: Fault) -> None:
    world, store = flaky_world()
    world.pool(1)
    world.allocate()
    store.fail("end_allocation", fault)
    with pytest.raises(Crashed if fault is Fault.CRASH_AFTER else Exception):
        world.mark()
    world.mark()
    assert [kind for kind, *_ in told(world)] == [FactKind.ALLOCATED, FactKind.MARKED]


def test_a_sandbox_that_is_added_again_has_a_version_above_that_of_its_removal(plain: World) -> None:
    plain.provider.accounts = World.accounts(2)
    plain.syncer.run(by=SYNC)
    plain.provider.accounts = World.accounts(2)[1:]
    plain.syncer.run(by=SYNC)
    plain.purger.bulk_delete(S, by=BY)
    removal = plain.memory.facts[-1]
    plain.provider.accounts = World.accounts(2)
    plain.syncer.run(by=SYNC)
    assert isinstance(removal, Fact)
    assert (removal.kind, removal.sandbox_id) == (FactKind.REMOVED, "sbx-0")
    assert plain.record("sbx-0").version > removal.version
    assert [each[0] for each in told(plain)][-2:] == [FactKind.REMOVED, FactKind.ADDED]


def test_what_is_added_first_asks_for_no_removal_where_nothing_is_new(plain: World) -> None:
    plain.pool(3)
    plain.syncer.run(by=SYNC)
    assert plain.memory.calls["read_removed"] == 0
