"""Every transition of a sandbox, allowed and refused, beside the table of states in docs/contract.md."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from broker_common.core import sandbox as core
from broker_common.core.errors import InvalidTransition
from broker_common.core.facts import FactKind
from broker_common.core.lease import begin, end, extend
from broker_common.core.pool import (
    add,
    give_up_reserved,
    lift_quarantine,
    mark_stale,
    quarantine,
    remove,
    restore,
    set_aside,
)
from broker_common.core.sandbox import TRANSITIONS, DeletionReason, Sandbox, Status
from broker_common.core.wipe import (
    account_gone,
    begin_attempt,
    cancel_attempt,
    confirm_wipe,
    contradict,
    fail_attempt,
    finish_cooling,
    reject_deletion,
    retry_deletion,
)
from tests.fakes import BY, START, change_of, changed, make_account, make_claim, make_sandbox
from tests.lifecycle import MOVES, STAYS, A, D, F, L, P, R, S, check_change, check_record, kinds_of
from tests.unit.states import CONFIRM, COOLING, NOW, RETIRE, REUSE, flagged, in_status, rested, taken, used

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.policy import Policy

ONCE = replace(REUSE, deletion_max_attempts=1)


def wipe(sandbox: Sandbox, policy: Policy, *, accepted_only: bool = False, reservation_id: str | None = None) -> Change:
    return confirm_wipe(
        taken(sandbox),
        accepted_only=accepted_only,
        order=9,
        by=BY,
        now=NOW,
        policy=policy,
        reservation_id=reservation_id,
    )


def fail(sandbox: Sandbox, policy: Policy) -> Change:
    return fail_attempt(
        taken(sandbox), error="500", outcome_unknown=False, retry_at=NOW + 60, by=BY, now=NOW, policy=policy
    )


def deny(sandbox: Sandbox, policy: Policy) -> Change:
    return contradict(changed(used(sandbox), gone_at=NOW), retry_at=NOW, by=BY, now=NOW, policy=policy)


def lose(sandbox: Sandbox, policy: Policy) -> Change:
    return begin_attempt(changed(sandbox, attempt_id="lost"), attempt_id="b", by=BY, now=NOW, policy=policy)


Table = dict[Status, Status | None]
CHANGES: dict[str, tuple[Callable[[Sandbox], Change | None], Table, FactKind | None]] = {
    "begin": (lambda each: begin(each, make_claim(each).lease, by=BY), {A: L, R: L}, FactKind.ALLOCATED),
    "extend": (
        lambda each: extend(each, expires_at=(each.lease.expires_at if each.lease else 0) + 1, by=BY, now=NOW),
        {L: L},
        FactKind.EXTENDED,
    ),
    "end, marked": (partial(end, reason=DeletionReason.MARKED, by=BY, now=NOW), {L: P}, FactKind.MARKED),
    "end, released": (partial(end, reason=DeletionReason.RELEASED, by=BY, now=NOW), {L: P}, FactKind.RELEASED),
    "end, expired": (partial(end, reason=DeletionReason.EXPIRED, by=BY, now=NOW), {L: P}, FactKind.EXPIRED),
    "begin_attempt": (partial(begin_attempt, attempt_id="a", by=BY, now=NOW, policy=REUSE), {P: P}, None),
    "begin_attempt after a lost one": (partial(lose, policy=REUSE), {P: P}, None),
    "begin_attempt after a lost last one": (partial(lose, policy=ONCE), {P: F}, FactKind.NEEDS_ATTENTION),
    "cancel_attempt": (lambda each: cancel_attempt(taken(each), error="401", now=NOW), {P: P}, None),
    "fail_attempt": (partial(fail, policy=REUSE), {P: P}, FactKind.WIPE_FAILED),
    "fail_attempt, the last one": (partial(fail, policy=ONCE), {P: F}, FactKind.NEEDS_ATTENTION),
    "reject_deletion": (
        lambda each: reject_deletion(taken(each), error="400", by=BY, now=NOW),
        {P: F},
        FactKind.NEEDS_ATTENTION,
    ),
    "confirm_wipe under reuse": (partial(wipe, policy=REUSE), {P: A}, FactKind.WIPED),
    "confirm_wipe for a reservation": (partial(wipe, policy=REUSE, reservation_id="res-2"), {P: R}, FactKind.WIPED),
    "confirm_wipe under reuse, accepted only": (
        partial(wipe, policy=REUSE, accepted_only=True),
        {P: S},
        FactKind.WIPED,
    ),
    "confirm_wipe under confirm": (partial(wipe, policy=CONFIRM), {P: S}, FactKind.WIPED),
    "confirm_wipe under retire": (partial(wipe, policy=RETIRE), {P: D}, FactKind.WIPED),
    "confirm_wipe with a time to cool": (partial(wipe, policy=COOLING), {P: P}, FactKind.WIPED),
    "confirm_wipe of one to be set aside": (lambda each: wipe(flagged(each), REUSE), {P: F}, FactKind.WIPED),
    "finish_cooling": (lambda each: finish_cooling(rested(each), order=9, by=BY, now=NOW), {P: A}, FactKind.AVAILABLE),
    "finish_cooling for a reservation": (
        lambda each: finish_cooling(rested(each), order=9, by=BY, now=NOW, reservation_id="res-2"),
        {P: R},
        FactKind.AVAILABLE,
    ),
    "finish_cooling of one to be set aside": (
        lambda each: finish_cooling(flagged(rested(each)), order=9, by=BY, now=NOW),
        {P: F},
        FactKind.NEEDS_ATTENTION,
    ),
    "account_gone": (lambda each: account_gone(taken(each), by=BY, now=NOW, policy=REUSE), {P: S}, FactKind.STALE),
    "account_gone under retire": (
        lambda each: account_gone(taken(each), by=BY, now=NOW, policy=RETIRE),
        {P: D},
        FactKind.REMOVED,
    ),
    "account_gone of one to be set aside": (
        lambda each: account_gone(flagged(taken(each)), by=BY, now=NOW, policy=RETIRE),
        {P: F},
        FactKind.NEEDS_ATTENTION,
    ),
    "mark_stale": (partial(mark_stale, by=BY, now=NOW, last_seen=None), {A: S, R: S}, FactKind.STALE),
    "restore": (lambda each: restore(each, make_account(), order=9, by=BY, now=NOW), {S: A}, FactKind.RESTORED),
    "restore for a reservation": (
        lambda each: restore(each, make_account(), order=9, by=BY, now=NOW, reservation_id="res-2"),
        {S: R},
        FactKind.RESTORED,
    ),
    "set_aside": (partial(set_aside, reservation_id="res-2", order=9, by=BY, now=NOW), {A: R}, FactKind.RESERVED),
    "give_up_reserved": (partial(give_up_reserved, order=9, by=BY, now=NOW), {R: A}, FactKind.UNRESERVED),
    "restore, dirty": (
        lambda each: restore(used(each), make_account(), order=9, by=BY, now=NOW),
        {S: P},
        FactKind.RESTORED,
    ),
    "contradict": (partial(deny, policy=REUSE), {S: P, D: P}, FactKind.WIPE_FAILED),
    "contradict, the last one": (partial(deny, policy=ONCE), {S: F, D: F}, FactKind.NEEDS_ATTENTION),
    "quarantine": (
        partial(quarantine, reason="odd", by=BY, now=NOW),
        {A: F, R: F, S: F, L: L, P: P},
        FactKind.QUARANTINED,
    ),
    "lift_quarantine": (
        lambda each: lift_quarantine(flagged(each), by=BY, now=NOW),
        {L: L, P: P},
        FactKind.UPDATED,
    ),
    "retry_deletion": (partial(retry_deletion, by=BY, now=NOW), {F: P}, FactKind.RETRIED),
    "remove": (
        lambda each: remove(changed(each, dirty=False), by=BY, now=NOW, policy=REUSE),
        {S: None, F: None, D: None},
        FactKind.REMOVED,
    ),
    "remove, dirty": (
        lambda each: remove(used(each), by=BY, now=NOW, policy=REUSE),
        {S: D, F: D, D: None},
        FactKind.REMOVED,
    ),
    "remove under retire": (partial(remove, by=BY, now=NOW, policy=RETIRE), {S: D, F: D, D: None}, FactKind.REMOVED),
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_leads_where_the_table_says_and_tells_so_or_is_refused(name: str, status: Status) -> None:
    make, table, kind = CHANGES[name]
    before = in_status(status)
    if status not in table:
        with pytest.raises(InvalidTransition, match=status):
            make(before)
        return
    change = make(before)
    assert change is not None
    assert (change.after and change.after.status) == table[status]
    assert (change.fact and change.fact.kind) == kind
    check_change(change.before, change.after, change.fact)


def test_the_transitions_that_exist_are_exactly_those_of_the_contract() -> None:
    told: dict[tuple[Status | None, Status | None], set[FactKind]] = defaultdict(set)
    for _, table, kind in CHANGES.values():
        for was, to in table.items():
            if was is not to and kind is not None:
                told[was, to].add(kind)
    told[None, A].add(FactKind.ADDED)
    told[None, R].add(FactKind.ADDED)
    assert told == MOVES


def test_a_move_that_the_contract_lacks_is_none_of_the_core_s_either() -> None:
    moves = {(was, to) for was, targets in TRANSITIONS.items() for to in targets}
    assert moves == {(was, to) for was, to in MOVES if was and to}


@pytest.mark.parametrize(
    "name",
    [name for name, (_, table, _) in CHANGES.items() if any(to not in {None, was, L} for was, to in table.items())],
)
def test_a_change_of_status_that_the_table_lacks_is_refused_although_all_else_allows_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But an allocation, which a store may make without having read the record, and what changes no status."""
    monkeypatch.setattr(core, "TRANSITIONS", dict.fromkeys(Status, frozenset[Status]()))
    make, table, _ = CHANGES[name]
    for status, to in table.items():
        if to not in {None, status}:
            with pytest.raises(InvalidTransition, match=status):
                make(in_status(status))


@pytest.mark.parametrize("reservation_id", [None, "res-2"])
def test_a_sandbox_that_is_added_is_a_move_of_the_contract(reservation_id: str | None) -> None:
    change = add(make_account(), order=3, by=BY, now=NOW, version=NOW * 1000, reservation_id=reservation_id)
    check_change(change.before, change.after, change.fact)


@pytest.mark.parametrize("status", [status for status in Status if status not in {A, R}])
def test_a_sandbox_may_be_dirty_in_any_status_but_available_and_reserved(status: Status) -> None:
    assert make_sandbox(status=status, dirty=True).dirty
    for free in (A, R):
        with pytest.raises(InvalidTransition, match="dirty"):
            make_sandbox(status=free, dirty=True)


def test_a_sandbox_has_a_reservation_exactly_while_it_is_reserved() -> None:
    with pytest.raises(InvalidTransition, match="reservation"):
        replace(in_status(R), reservation_id=None)
    with pytest.raises(InvalidTransition, match="reservation"):
        replace(in_status(A), reservation_id="res-1")


@pytest.mark.parametrize("reservation_id", [None, "res-2"])
def test_a_reserved_sandbox_is_not_allocated_for_others(reservation_id: str | None) -> None:
    lease = make_claim(in_status(R), reservation_id=reservation_id).lease
    with pytest.raises(InvalidTransition, match="cannot become allocated"):
        begin(in_status(R), lease, by=BY)


def test_a_sandbox_has_a_lease_exactly_while_it_is_allocated() -> None:
    held = in_status(L)
    with pytest.raises(InvalidTransition, match="lease"):
        replace(held, lease=None)
    with pytest.raises(InvalidTransition, match="lease"):
        replace(make_sandbox(), lease=held.lease)


def test_an_allocated_sandbox_is_not_being_wiped() -> None:
    with pytest.raises(InvalidTransition, match="must not have a wipe"):
        replace(in_status(L), wipe=core.Wipe(requested_at=START))


@pytest.mark.parametrize("status", Status)
def test_the_records_of_these_tests_are_as_the_contract_allows(status: Status) -> None:
    check_record(in_status(status))


def test_every_kind_of_fact_about_a_sandbox_belongs_to_some_change() -> None:
    assert {kind for kinds in (*MOVES.values(), *STAYS.values()) for kind in kinds} == set(FactKind)
    assert kinds_of(S, S) == frozenset()
    assert change_of(in_status(A), in_status(A, version=2)).fact is not None
