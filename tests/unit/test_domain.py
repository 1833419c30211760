"""Every transition of a sandbox, allowed and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core import domain
from broker_common.core.errors import InvalidTransition
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.sandbox import ORDER_LIMIT, TRANSITIONS, DeletionReason, Sandbox, Status
from tests.fakes import START, changed, flat, make_account, make_claim, make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = START + 100
A, L, P, S, F, D = (
    Status.AVAILABLE,
    Status.ALLOCATED,
    Status.PENDING_DELETION,
    Status.STALE,
    Status.DELETION_FAILED,
    Status.DELETED,
)
REUSE, CONFIRM, RETIRE = (Policy(recycle=each) for each in RecyclePolicy)


def in_status(status: Status, **changes: object) -> Sandbox:
    """Make a record as it would be found in a status, used by a student where it can be."""
    used = status in {L, P, F, D}
    sandbox = make_sandbox(status=status, dirty=used, next_attempt_at=NOW if status is P else None)
    if status is L:
        claim = make_claim(sandbox)
        sandbox = changed(
            sandbox,
            lease_id=claim.lease.lease_id,
            allocated_to_track=claim.lease.track_id,
            idempotency_key=claim.lease.idempotency_key,
            expires_at=claim.lease.expires_at,
        )
    return replace(sandbox, **changes)  # type: ignore[arg-type] # replace checks the names


def wipe(policy: Policy, *, accepted_only: bool = False) -> Callable[[Sandbox], Sandbox]:
    return lambda each: domain.confirm_wipe(_taken(each), accepted_only=accepted_only, order=9, now=NOW, policy=policy)


def fail(policy: Policy = REUSE) -> Callable[[Sandbox], Sandbox]:
    return lambda each: domain.fail_attempt(
        _taken(each), error="500", outcome_unknown=False, retry_at=NOW + 60, now=NOW, policy=policy
    )


def contradict(policy: Policy) -> Callable[[Sandbox], Sandbox]:
    return lambda each: domain.contradict(changed(_dirty(each), gone_at=NOW), retry_at=NOW, now=NOW, policy=policy)


CHANGES: dict[str, tuple[Callable[[Sandbox], Sandbox | None], dict[Status, Status | None]]] = {
    "allocate": (lambda each: domain.allocate(each, make_claim(each)), {A: L}),
    "end_allocation": (
        lambda each: domain.end_allocation(each, reason=DeletionReason.MARKED, now=NOW),
        {L: P},
    ),
    "begin_attempt": (
        lambda each: domain.begin_attempt(each, attempt_id="a", now=NOW, policy=REUSE),
        {P: P},
    ),
    "reject_deletion": (lambda each: domain.reject_deletion(_taken(each), error="400", now=NOW), {P: F}),
    "fail_attempt, the last one": (fail(replace(REUSE, deletion_max_attempts=1)), {P: F}),
    "confirm_wipe under reuse": (wipe(REUSE), {P: A}),
    "confirm_wipe under reuse, accepted only": (wipe(REUSE, accepted_only=True), {P: S}),
    "confirm_wipe under confirm": (wipe(CONFIRM), {P: S}),
    "confirm_wipe under retire": (wipe(RETIRE), {P: D}),
    "account_gone": (lambda each: domain.account_gone(_taken(each), now=NOW, policy=REUSE), {P: S}),
    "account_gone under retire": (lambda each: domain.account_gone(_taken(each), now=NOW, policy=RETIRE), {P: D}),
    "go_stale": (lambda each: domain.go_stale(each, now=NOW, last_seen=None), {A: S}),
    "restore": (lambda each: domain.restore(each, make_account(), order=9, now=NOW), {S: A}),
    "restore, dirty": (
        lambda each: domain.restore(_dirty(each), make_account(), order=9, now=NOW),
        {S: P},
    ),
    "contradict": (contradict(REUSE), {S: P, D: P}),
    "contradict, the last one": (contradict(replace(REUSE, deletion_max_attempts=1)), {S: F, D: F}),
    "quarantine": (lambda each: domain.quarantine(each, reason="odd", now=NOW), {A: F, S: F}),
    "retry_deletion": (lambda each: domain.retry_deletion(each, now=NOW), {F: P}),
    "bury": (lambda each: domain.bury(each, now=NOW, policy=REUSE), {S: None, F: D}),
    "bury, dirty": (lambda each: domain.bury(_dirty(each), now=NOW, policy=REUSE), {S: D, F: D}),
    "bury under retire": (lambda each: domain.bury(each, now=NOW, policy=RETIRE), {S: D, F: D}),
}


def _taken(sandbox: Sandbox) -> Sandbox:
    return changed(sandbox, attempt_id="a")


def _dirty(sandbox: Sandbox) -> Sandbox:
    return sandbox if sandbox.status is A else replace(sandbox, dirty=True)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leads_where_the_table_says_or_is_refused(name: str, status: Status) -> None:
    change, table = CHANGES[name]
    before = in_status(status)
    if status not in table:
        with pytest.raises(InvalidTransition, match=status):
            change(before)
        return
    after = change(before)
    assert (after and after.status) == table[status]
    if after:
        assert after.version == before.version + 1
        assert after.sandbox_id == before.sandbox_id
        assert 0 <= after.status_order < ORDER_LIMIT


def test_the_table_of_transitions_is_exactly_what_the_changes_can_do() -> None:
    done = {(was, to) for _, table in CHANGES.values() for was, to in table.items() if to and was is not to}
    assert done == {(was, to) for was, targets in TRANSITIONS.items() for to in targets}


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in {"allocate", "begin_attempt"}])
def test_a_change_of_status_that_the_table_lacks_is_refused_whatever_else_allows_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But an allocation, which a store may make without having read the record, and what changes no status."""
    monkeypatch.setattr(domain, "TRANSITIONS", dict.fromkeys(Status, frozenset[Status]()))
    change, table = CHANGES[name]
    for status in table:
        with pytest.raises(InvalidTransition, match=status):
            change(in_status(status))


@pytest.mark.parametrize("status", [status for status in Status if status is not A])
def test_a_sandbox_may_be_dirty_in_any_status_but_available(status: Status) -> None:
    assert make_sandbox(status=status, dirty=True).dirty
    with pytest.raises(InvalidTransition, match="dirty"):
        make_sandbox(dirty=True)


def test_allocating_makes_dirty_and_forgets_the_last_deletion() -> None:
    before = make_sandbox(
        deletion_requested_at=1,
        deletion_reason=DeletionReason.EXPIRED,
        deletion_last_error="once",
        outcome_unknown=True,
        last_track_id="earlier",
        last_lease_id="earlier-lease",
    )
    claim = make_claim(before, track_name="intro")
    after = domain.allocate(before, claim)
    assert after.dirty
    assert (after.lease_id, after.allocated_to_track, after.idempotency_key) == (
        claim.lease.lease_id,
        "track-1",
        "track-1",
    )
    assert (after.allocated_at, after.expires_at, after.track_name) == (
        claim.lease.allocated_at,
        claim.lease.expires_at,
        "intro",
    )
    assert after.status_order == claim.lease.expires_at
    assert (after.deletion_requested_at, after.deletion_reason, after.deletion_last_error) == (None, None, None)
    assert not after.outcome_unknown
    assert (after.answers_to, after.lease_at_hand) == ("track-1", claim.lease.lease_id)


def test_an_ended_allocation_is_due_at_once_and_still_answers_to_its_last_holder() -> None:
    before = in_status(L)
    after = domain.end_allocation(before, reason=DeletionReason.RELEASED, now=NOW)
    assert after.dirty
    assert (after.lease_id, after.allocated_to_track, after.idempotency_key) == (None, None, None)
    assert (after.answers_to, after.lease_at_hand) == ("track-1", flat(before).lease_id)
    assert (after.next_attempt_at, after.status_order, after.deletion_requested_at) == (NOW, NOW, NOW)
    assert after.deletion_reason is DeletionReason.RELEASED
    assert after.expires_at == flat(before).expires_at


def test_an_attempt_moves_the_next_one_beyond_its_window() -> None:
    after = domain.begin_attempt(in_status(P), attempt_id="a1", now=NOW, policy=REUSE)
    assert after.attempt_id == "a1"
    assert after.next_attempt_at == after.status_order == NOW + REUSE.attempt_window_sec
    assert after.deletion_retry_count == 0
    assert not after.is_due_for_deletion(NOW + REUSE.attempt_window_sec - 1)
    assert after.is_due_for_deletion(NOW + REUSE.attempt_window_sec)


@pytest.mark.parametrize("name", [name for name, (_, table) in CHANGES.items() if P in table and "begin" not in name])
def test_an_outcome_without_an_attempt_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_domain._taken", lambda each: each)
    with pytest.raises(InvalidTransition, match="attempt"):
        CHANGES[name][0](in_status(P))


def test_a_sandbox_that_is_not_due_yet_is_not_taken() -> None:
    with pytest.raises(InvalidTransition):
        domain.begin_attempt(in_status(P, next_attempt_at=NOW + 1), attempt_id="a", now=NOW, policy=REUSE)


def test_an_attempt_that_was_lost_counts_and_leaves_a_doubt() -> None:
    after = domain.begin_attempt(in_status(P, attempt_id="lost"), attempt_id="a2", now=NOW, policy=REUSE)
    assert (after.attempt_id, after.deletion_retry_count, after.outcome_unknown) == ("a2", 1, True)


def test_a_lost_attempt_that_was_the_last_one_puts_the_sandbox_aside() -> None:
    lost = in_status(P, attempt_id="lost", deletion_retry_count=7)
    after = domain.begin_attempt(lost, attempt_id="a9", now=NOW, policy=REUSE)
    assert (after.status, after.deletion_retry_count, after.attempt_id) == (F, 8, None)
    assert after.outcome_unknown
    assert after.deletion_last_error


def test_a_cancelled_attempt_is_not_counted_and_due_again() -> None:
    taken = domain.begin_attempt(in_status(P), attempt_id="a", now=NOW, policy=REUSE)
    after = domain.cancel_attempt(taken, error="401", now=NOW + 1)
    assert (after.deletion_retry_count, after.attempt_id, after.deletion_last_error) == (0, None, "401")
    assert after.is_due_for_deletion(NOW + 1)
    assert not after.outcome_unknown


@pytest.mark.parametrize("unknown", [True, False])
def test_a_failed_attempt_is_counted_and_its_doubt_kept(unknown: bool) -> None:
    taken = domain.begin_attempt(in_status(P), attempt_id="a", now=NOW, policy=REUSE)
    after = domain.fail_attempt(taken, error="500", outcome_unknown=unknown, retry_at=NOW + 77, now=NOW, policy=REUSE)
    assert (after.status, after.deletion_retry_count, after.next_attempt_at) == (P, 1, NOW + 77)
    assert (after.attempt_id, after.deletion_last_error, after.outcome_unknown) == (None, "500", unknown)
    again = domain.fail_attempt(_taken(after), error="x", outcome_unknown=False, retry_at=NOW, now=NOW, policy=REUSE)
    assert again.outcome_unknown == unknown


def test_a_wipe_cleans_and_clears_the_deletion() -> None:
    taken = in_status(P, attempt_id="a", deletion_last_error="500", last_track_id="track-1")
    after = wipe(REUSE)(taken)
    assert not after.dirty
    assert after.status_order == 9
    assert (flat(after).attempt_id, flat(after).next_attempt_at, flat(after).deletion_last_error) == (None, None, None)
    assert after.answers_to == "track-1"


@pytest.mark.parametrize(
    ("policy", "status"), [(REUSE, S), (CONFIRM, S), (RETIRE, D)], ids=["reuse", "confirm", "retire"]
)
def test_a_wipe_after_an_unanswered_attempt_waits_for_a_sync(policy: Policy, status: Status) -> None:
    after = wipe(policy)(in_status(P, outcome_unknown=True))
    assert after.status is status
    assert not after.dirty


def test_a_doubt_lasts_until_a_sync_sees_the_sandbox() -> None:
    doubtful = wipe(REUSE, accepted_only=True)(in_status(P))
    aside = domain.quarantine(doubtful, reason="odd", now=NOW)
    again = wipe(REUSE)(domain.retry_deletion(aside, now=NOW))
    assert again.status is S
    seen = domain.restore(again, make_account(), order=9, now=NOW)
    assert (seen.status, seen.outcome_unknown) == (A, False)


def test_an_account_that_is_gone_was_wiped_by_nobody() -> None:
    after = domain.account_gone(in_status(P, attempt_id="a"), now=NOW, policy=REUSE)
    assert (after.status, after.dirty, after.stale_since) == (S, True, NOW)
    assert after.attempt_id is None


def test_going_stale_keeps_when_the_sandbox_was_last_seen() -> None:
    before = make_sandbox(last_synced=50)
    assert domain.go_stale(before, now=NOW, last_seen=80).last_synced == 80
    assert domain.go_stale(before, now=NOW, last_seen=None).last_synced == 50
    assert domain.go_stale(replace(before, last_synced=None), now=NOW, last_seen=None).last_synced is None


def test_restoring_takes_over_the_present_name() -> None:
    account = make_account(name="new", external_id="new-uuid", sfdc_account_id="001")
    after = domain.restore(in_status(S, stale_since=5), account, order=42, now=NOW)
    assert (after.name, after.external_id, after.sfdc_account_id) == ("new", "new-uuid", "001")
    assert (after.status_order, after.stale_since, after.last_synced) == (42, None, NOW)


def test_a_dirty_sandbox_that_is_seen_again_is_wiped_with_a_fresh_count() -> None:
    before = in_status(S, dirty=True, deletion_retry_count=5)
    after = domain.restore(before, make_account(), order=42, now=NOW)
    assert (after.status, after.next_attempt_at, after.deletion_retry_count) == (P, NOW, 0)
    assert (after.deletion_reason, after.deletion_requested_at) == (DeletionReason.FOUND_DIRTY, NOW)


def test_describing_what_has_not_changed_returns_the_same_object() -> None:
    sandbox = make_sandbox()
    assert domain.describe(sandbox, make_account(), now=NOW) is sandbox
    renamed = domain.describe(sandbox, make_account(name="new"), now=NOW)
    assert (renamed.name, renamed.version, renamed.status) == ("new", 2, A)


def test_a_quarantine_keeps_its_reason() -> None:
    after = domain.quarantine(make_sandbox(), reason="smells", now=NOW)
    assert (after.deletion_reason, after.deletion_last_error) == (DeletionReason.QUARANTINED, "smells")


def test_a_retry_of_a_deletion_starts_counting_anew() -> None:
    after = domain.retry_deletion(in_status(F, deletion_retry_count=8), now=NOW)
    assert (after.deletion_retry_count, after.next_attempt_at, after.deletion_requested_at) == (0, NOW, NOW)
    assert after.dirty


def test_an_allocation_is_overdue_once_the_buffer_has_passed() -> None:
    held = in_status(L)
    claim = make_claim(make_sandbox())
    edge = claim.lease.expires_at + REUSE.expiry_buffer_sec
    assert not held.lease.is_overdue(edge - 1, REUSE)
    assert not claim.lease.is_overdue(edge - 1, REUSE)
    assert held.lease.is_overdue(edge, REUSE)
    assert claim.lease.is_overdue(edge, REUSE)
    assert not in_status(P, expires_at=0).lease.is_overdue(edge, REUSE)
