"""The checks of `tests/lifecycle.py`: each rule of the contract is broken once, and each breach is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.facts import Change, Fact, FactKind, change
from tests.fakes import BY, START, changed, flat
from tests.lifecycle import (
    A,
    D,
    F,
    L,
    P,
    S,
    Violation,
    check_change,
    check_histories,
    check_history,
    check_record,
    kinds_of,
)
from tests.unit.states import NOW, flagged, in_status, rested, taken

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Sandbox, Status


END_OF_LEASE: int = flat(in_status(L)).expires_at


def later(sandbox: Sandbox, **changes: object) -> Sandbox:
    """Return a record after one more change."""
    return changed(sandbox, version=NOW * 1000, updated_at=NOW, **changes)


def make(before: Sandbox | None, after: Sandbox | None, kind: FactKind, **details: str | int) -> Change:
    return change(before, after, kind, by=BY, now=NOW, details=details)


def changing(status: Status, kind: FactKind, /, **changes: object) -> Change:
    """Return a change of a sandbox in a status, with a fact of this kind."""
    return make(in_status(status), later(in_status(status), **changes), kind)


def wiping(as_before: Callable[[Sandbox], Sandbox] = lambda each: each, /, **changes: object) -> Change:
    """Return the end of an attempt that wiped a sandbox."""
    return make(as_before(taken(in_status(P))), later(in_status(P), **changes), FactKind.WIPED)


def extending(expires_at: int = END_OF_LEASE + 60, /, told_before: int = END_OF_LEASE, **changes: object) -> Change:
    """Return an extension of a lease, whose fact tells `told_before` as the end until now."""
    longer = later(in_status(L), **{"expires_at": expires_at, "status_order": expires_at, **changes})
    return make(in_status(L), longer, FactKind.EXTENDED, expires_at=expires_at, expires_at_before=told_before)


def as_fact(told: Change, **changes: Any) -> Change:
    """Return a change whose fact says something else."""
    assert told.fact is not None
    return replace(told, fact=replace(told.fact, **changes))


MARKED = changing(L, FactKind.MARKED, status=P, lease_id=None, last_lease_id="x", last_track_id="y")
WIPED = wiping(status=A, dirty=False)
RENAMED = changing(A, FactKind.UPDATED, name="new")
TAKEN = Change(in_status(P), later(taken(in_status(P))), None)


@pytest.mark.parametrize("good", [WIPED, RENAMED, TAKEN, extending()])
def test_what_the_contract_allows_passes(good: Change) -> None:
    check_change(good.before, good.after, good.fact)


BREACHES: dict[str, tuple[str, Change]] = {
    "status": ("no sandbox.stale leads from", changing(L, FactKind.STALE, status=S)),
    "kind": ("no sandbox.stale leads from", as_fact(WIPED, kind=FactKind.STALE, status=A)),
    "no fact of a move": ("each change of status has its fact", replace(WIPED, fact=None)),
    "no fact of an addition": ("each change of status has its fact", Change(None, in_status(A), None)),
    "no fact of a name": ("only the begin or the cancel", Change(in_status(P), later(in_status(P), name="new"), None)),
    "take and more": ("changes only the attempt", Change(in_status(P), later(taken(in_status(P)), name="new"), None)),
    "take that forgets a doubt": (
        "a doubt lasts",
        Change(in_status(P, outcome_unknown=True), later(taken(in_status(P))), None),
    ),
    "take with a fact": (
        "the begin of an attempt has no fact",
        make(in_status(P), later(taken(in_status(P))), FactKind.UPDATED),
    ),
    "version stays": ("versions grow", as_fact(replace(RENAMED, before=RENAMED.after), version=NOW * 1000)),
    "version of a take": ("versions grow", replace(TAKEN, before=changed(in_status(P), version=NOW * 1000))),
    "version of the fact": ("the version and time of the record", as_fact(RENAMED, version=NOW * 1000 + 1)),
    "version before its time": (
        "no earlier than its time",
        make(in_status(A), changed(in_status(A), version=7, updated_at=NOW), FactKind.UPDATED),
    ),
    "time of the fact": ("the version and time of the record", as_fact(RENAMED, at=START)),
    "status of the fact": ("a fact says what is true", as_fact(RENAMED, status=S)),
    "holder in the fact": ("a fact says what is true", as_fact(RENAMED, track_id="another")),
    "lease in the fact": ("a fact says what is true", as_fact(RENAMED, lease_id="another")),
    "sandbox of the fact": ("a fact says what is true", as_fact(RENAMED, sandbox_id="another")),
    "nobody": ("names its principal", as_fact(RENAMED, principal="")),
    "another id": ("never change", changing(A, FactKind.UPDATED, sandbox_id="2")),
    "another birth": ("never change", changing(A, FactKind.UPDATED, created_at=1)),
    "renamed by a wipe": ("only a sync changes the description", wiping(status=A, dirty=False, name="new")),
    "cleaned by nobody": ("only a confirmed wipe makes", changing(F, FactKind.RETRIED, status=P, dirty=False)),
    "dirty from nowhere": (
        "only an allocation makes a sandbox dirty",
        changing(A, FactKind.STALE, status=S, dirty=True),
    ),
    "wiped and dirty": ("a wiped sandbox is clean", wiping(status=D)),
    "clean, wiped again": ("is available", changing(S, FactKind.RESTORED, status=P)),
    "clean tombstone back": (
        "only a dirty tombstone",
        make(in_status(D, dirty=False), later(in_status(P), dirty=False), FactKind.WIPE_FAILED),
    ),
    "dirty and gone": ("leaves a tombstone", make(in_status(F), None, FactKind.REMOVED)),
    "another holder": ("holder and times", changing(L, FactKind.UPDATED, allocated_to_track="thief")),
    "later expiry": ("holder and times", changing(L, FactKind.UPDATED, expires_at=NOW)),
    "shortened": ("never shortened", extending(END_OF_LEASE - 1)),
    "extended to the same end": ("never shortened", extending(END_OF_LEASE)),
    "extended, and another end told": ("tells both ends", extending(told_before=END_OF_LEASE - 1)),
    "extended, but not in the index": ("the index has the end", extending(status_order=END_OF_LEASE)),
    "extended under another lease": ("only the end of a lease", extending(lease_id="another")),
    "extended for another track": ("only the end of a lease", extending(allocated_to_track="thief")),
    "extended and flagged": ("only the end of a lease", extending(quarantine_reason="smells")),
    "extended without a lease": (
        "no sandbox.extended leads from",
        make(in_status(P), later(in_status(P)), FactKind.EXTENDED),
    ),
    "lease forgotten": ("kept as the last one", MARKED),
    "last lease forgotten": ("stays until another one ends", changing(P, FactKind.UPDATED, last_lease_id="x")),
    "last lease of an allocation": (
        "until the next one has ended",
        make(in_status(A, last_lease_id="l", last_track_id="t"), later(in_status(L)), FactKind.ALLOCATED),
    ),
    "wiped without an attempt": ("belongs to an attempt", replace(WIPED, before=in_status(P))),
    "attempt goes on after its outcome": (
        "an outcome ends its attempt",
        make(taken(in_status(P)), later(taken(in_status(P))), FactKind.WIPE_FAILED),
    ),
    "called while it cools": (
        "no wipe of a cooling sandbox",
        make(rested(in_status(P)), later(rested(in_status(P)), status=A, ready_at=None), FactKind.WIPED),
    ),
    "cools from nowhere": (
        "only a wipe makes",
        make(in_status(P, dirty=False), later(rested(in_status(P))), FactKind.UPDATED),
    ),
    "wiped and still waits": ("leaves pending_deletion, or cools", wiping(dirty=False)),
    "available by itself": (
        "only a sandbox that has cooled",
        make(in_status(P, dirty=False), later(in_status(P), dirty=False, status=A), FactKind.AVAILABLE),
    ),
    "available in doubt": (
        "only a sync makes",
        make(taken(in_status(P, outcome_unknown=True)), later(in_status(P), status=A, dirty=False), FactKind.WIPED),
    ),
    "cooling in doubt": (
        "only a sync makes",
        make(taken(in_status(P)), later(rested(in_status(P))), FactKind.WIPED, accepted_only=True),
    ),
    "flag ignored": ("waits for a person", wiping(flagged, status=A, dirty=False)),
    "flag's reason lost": ("reason of a quarantine is kept", wiping(flagged, status=F, dirty=False)),
    "flagged and cools": (
        "does not cool",
        make(flagged(taken(in_status(P))), later(flagged(rested(in_status(P)))), FactKind.WIPED),
    ),
    "set aside unasked": ("only if an operator asked", wiping(status=F, dirty=False)),
    "flag from nowhere": (
        "only an operator asks",
        make(in_status(P), later(flagged(in_status(P))), FactKind.UPDATED),
    ),
    "flag lost": ("until it is lifted", make(flagged(in_status(L)), later(in_status(L)), FactKind.UPDATED)),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_contract_is_named(name: str) -> None:
    rule, bad = BREACHES[name]
    with pytest.raises(Violation, match=rule):
        check_change(bad.before, bad.after, bad.fact)


def test_a_fact_about_nothing_is_no_change() -> None:
    with pytest.raises(Violation, match="leads from None to None"):
        check_change(None, None, RENAMED.fact)


def force(sandbox: Sandbox, **changes: object) -> Sandbox:
    """Return a record that the type itself would refuse."""
    for name, value in changes.items():
        object.__setattr__(sandbox, name, value)
    return sandbox


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("never available", lambda: force(in_status(A), dirty=True)),
        ("an allocated sandbox is dirty", lambda: in_status(L, dirty=False)),
        ("a lease exactly while", lambda: force(in_status(L), status=P)),
        ("an attempt is open only", lambda: in_status(S, attempt_id="a")),
        ("a cooling sandbox", lambda: in_status(P, ready_at=NOW)),
        ("a cooling sandbox", lambda: in_status(S, ready_at=NOW)),
        ("a cooling sandbox", lambda: taken(rested(in_status(P)))),
        ("a sandbox with a quarantine", lambda: flagged(in_status(A))),
        ("exact numbers", lambda: in_status(A, status_order=-1)),
        ("exact numbers", lambda: in_status(A, version=2**53)),
    ],
)
def test_a_record_that_cannot_be_is_named(rule: str, bad: Callable[[], Sandbox]) -> None:
    with pytest.raises(Violation, match=rule):
        check_record(bad())


def told(kind: FactKind, version: int, before: Status | None, after: Status | None, lease: str | None = None) -> Fact:
    return Fact(
        kind=kind,
        sandbox_id="1",
        version=version,
        at=START,
        principal="somebody",
        lease_id=lease,
        track_id=lease and f"track-of-{lease}",
        status_before=before,
        status=after,
    )


LIFE = [
    told(FactKind.ADDED, 1, None, A),
    told(FactKind.ALLOCATED, 2, A, L, "x"),
    told(FactKind.MARKED, 3, L, P, "x"),
    told(FactKind.WIPED, 7, P, A, "x"),
    told(FactKind.ALLOCATED, 8, A, L, "y"),
    told(FactKind.EXPIRED, 9, L, P, "y"),
    told(FactKind.STALE, 11, P, S, "y"),
    told(FactKind.REMOVED, 12, S, D, "y"),
    told(FactKind.REMOVED, 13, D, None, "y"),
    told(FactKind.ADDED, 14, None, A),
]


def test_a_whole_life_is_a_history_and_so_is_any_end_of_it() -> None:
    for first in range(len(LIFE)):
        check_history(LIFE[first:])


@pytest.mark.parametrize("lost", range(1, len(LIFE) - 1))
def test_a_fact_that_is_missing_from_a_history_is_noticed(lost: int) -> None:
    with pytest.raises(Violation):
        check_history(LIFE[:lost] + LIFE[lost + 1 :])


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("leads from", [told(FactKind.WIPED, 1, A, L)]),
        ("one sandbox", [LIFE[0], replace(LIFE[1], sandbox_id="2")]),
        ("versions grow", [LIFE[0], replace(LIFE[1], version=1)]),
        ("where the last one ended", [LIFE[0], LIFE[2]]),
        ("ends as it began", [*LIFE[:2], replace(LIFE[2], lease_id="y")]),
        ("ends as it began", [*LIFE[:2], replace(LIFE[2], track_id="y")]),
        ("a lease of its own", [*LIFE[:4], replace(LIFE[4], lease_id="x")]),
        ("a lease of its own", [replace(LIFE[1], lease_id=None)]),
    ],
)
def test_a_history_that_cannot_be_is_named(rule: str, bad: list[Fact]) -> None:
    with pytest.raises(Violation, match=rule):
        check_history(bad)


def extended(version: int, before: int, after: int) -> Fact:
    fact = told(FactKind.EXTENDED, version, L, L, "x")
    return replace(fact, details={"expires_at": after, "expires_at_before": before})


EXTENDED = [replace(LIFE[1], details={"expires_at": 10}), extended(3, 10, 20), extended(4, 20, 30)]


def test_a_lease_that_is_extended_twice_is_a_history_and_a_lost_extension_is_noticed() -> None:
    for first in range(3):
        check_history(EXTENDED[first:])
    with pytest.raises(Violation, match="begins at the end of its lease"):
        check_history([EXTENDED[0], EXTENDED[2]])


def test_a_lease_that_expires_before_its_latest_end_is_noticed() -> None:
    at_its_end = replace(told(FactKind.EXPIRED, 5, L, P, "x"), at=30)
    check_history([*EXTENDED, at_its_end])
    with pytest.raises(Violation, match="never ends a lease before"):
        check_history([*EXTENDED, replace(at_its_end, at=29)])


END = {"1": in_status(A, sandbox_id="1", version=14)}


def test_facts_lead_to_the_records() -> None:
    check_histories(LIFE, END)
    check_histories(LIFE[:9], {"2": in_status(L, sandbox_id="2")})
    held = in_status(L, sandbox_id="1", version=2, lease_id="x", allocated_to_track="track-of-x")
    check_histories(LIFE[:2], {"1": held})


@pytest.mark.parametrize(
    ("rule", "facts", "records"),
    [
        ("the status of its last fact", LIFE, {}),
        ("the status of its last fact", LIFE[:9], END),
        ("the status of its last fact", LIFE[:2], END),
        ("the lease of its last fact", LIFE[:4], END),
        ("versions grow", LIFE, {"1": in_status(A, sandbox_id="1", version=13)}),
        ("each fact begins", [LIFE[0], LIFE[2]], END),
    ],
)
def test_facts_that_do_not_lead_to_the_records_are_noticed(
    rule: str, facts: list[Fact], records: dict[str, Sandbox]
) -> None:
    with pytest.raises(Violation, match=rule):
        check_histories(facts, records)


def test_what_does_not_exist_has_no_kinds() -> None:
    assert kinds_of(L, A) == kinds_of(None, None) == kinds_of(D, D) == frozenset()
