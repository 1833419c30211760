"""The life of a sandbox by the table of states in docs/contract.md, written independently of the code that it checks.

All tests that watch changes use it. `check_change` checks one change with its fact, `check_history` the facts of one
sandbox, `check_end` a record against its last fact, `check_histories` all facts against all records, `check_usage` the
lines of ended leases against all facts. Each raises `Violation`, which names the broken rule. `kinds_of` is the table itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from broker_common.core.facts import Fact, FactKind
from broker_common.core.sandbox import ORDER_LIMIT, DeletionReason, Sandbox, Status, Wipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from broker_common.core.facts import Detail, PoolFact
    from broker_common.core.usage import UsageLine

A, R, L, P, S, F, D = (
    Status.AVAILABLE,
    Status.RESERVED,
    Status.ALLOCATED,
    Status.PENDING_DELETION,
    Status.STALE,
    Status.DELETION_FAILED,
    Status.DELETED,
)

MOVES: Mapping[tuple[Status | None, Status | None], frozenset[FactKind]] = {
    (None, A): frozenset({FactKind.ADDED}),
    (None, R): frozenset({FactKind.ADDED}),
    (A, R): frozenset({FactKind.RESERVED}),
    (A, L): frozenset({FactKind.ALLOCATED}),
    (A, S): frozenset({FactKind.STALE}),
    (A, F): frozenset({FactKind.QUARANTINED}),
    (R, A): frozenset({FactKind.UNRESERVED}),
    (R, L): frozenset({FactKind.ALLOCATED}),
    (R, S): frozenset({FactKind.STALE}),
    (R, F): frozenset({FactKind.QUARANTINED}),
    (L, P): frozenset({FactKind.MARKED, FactKind.RELEASED, FactKind.EXPIRED}),
    (P, A): frozenset({FactKind.WIPED, FactKind.AVAILABLE}),
    (P, R): frozenset({FactKind.WIPED, FactKind.AVAILABLE}),
    (P, S): frozenset({FactKind.WIPED, FactKind.STALE}),
    (P, D): frozenset({FactKind.WIPED, FactKind.REMOVED}),
    (P, F): frozenset({FactKind.WIPED, FactKind.NEEDS_ATTENTION}),
    (S, A): frozenset({FactKind.RESTORED}),
    (S, R): frozenset({FactKind.RESTORED}),
    (S, P): frozenset({FactKind.RESTORED, FactKind.WIPE_FAILED}),
    (S, F): frozenset({FactKind.QUARANTINED, FactKind.NEEDS_ATTENTION}),
    (S, D): frozenset({FactKind.REMOVED}),
    (F, P): frozenset({FactKind.RETRIED}),
    (F, D): frozenset({FactKind.REMOVED}),
    (D, P): frozenset({FactKind.WIPE_FAILED}),
    (D, F): frozenset({FactKind.NEEDS_ATTENTION}),
    (S, None): frozenset({FactKind.REMOVED}),
    (F, None): frozenset({FactKind.REMOVED}),
    (D, None): frozenset({FactKind.REMOVED}),
}
"""Every possible change of status, and the kinds of fact for it. None means that there is no record."""
STAYS: Mapping[Status, frozenset[FactKind]] = {
    A: frozenset({FactKind.UPDATED}),
    R: frozenset({FactKind.UPDATED}),
    L: frozenset({FactKind.UPDATED, FactKind.QUARANTINED, FactKind.EXTENDED, FactKind.EXPIRING}),
    P: frozenset({FactKind.UPDATED, FactKind.QUARANTINED, FactKind.WIPED, FactKind.WIPE_FAILED}),
    F: frozenset({FactKind.UPDATED}),
}
"""The kinds of fact for a change that keeps the status."""

_ENDINGS: Mapping[FactKind, DeletionReason] = {
    FactKind.MARKED: DeletionReason.MARKED,
    FactKind.RELEASED: DeletionReason.RELEASED,
    FactKind.EXPIRED: DeletionReason.EXPIRED,
}
_OUTCOMES = frozenset({FactKind.WIPED, FactKind.WIPE_FAILED, FactKind.NEEDS_ATTENTION, FactKind.STALE})
_FLAGGED = frozenset({L, P, F})
_DESCRIBED = ("name", "external_id", "sfdc_account_id")


class Violation(AssertionError):
    """A rule of the contract is broken; the message names it."""


def kinds_of(before: Status | None, after: Status | None) -> frozenset[FactKind]:
    """Return the possible kinds of fact for a change between two statuses; empty if there is no such change."""
    if before is after:
        return STAYS.get(before, frozenset()) if before else frozenset()
    return MOVES.get((before, after), frozenset())


def check_record(sandbox: Sandbox) -> None:
    """Raise `Violation` if a record by itself breaks a rule."""
    wipe = sandbox.wipe
    if sandbox.dirty and sandbox.status in {A, R}:
        _broken("a dirty sandbox is never available, and never reserved", sandbox)
    if (sandbox.reservation_id is not None) != (sandbox.status is R):
        _broken("a sandbox has a reservation exactly while it is reserved", sandbox)
    if not sandbox.dirty and sandbox.status is L:
        _broken("an allocated sandbox is dirty", sandbox)
    if (sandbox.lease is not None) != (sandbox.status is L):
        _broken("a sandbox has a lease exactly while it is allocated", sandbox)
    if wipe and wipe.attempt_id is not None and sandbox.status is not P:
        _broken("an attempt is open only while the sandbox waits to be wiped", sandbox)
    if wipe and wipe.ready_at is not None and (sandbox.status is not P or sandbox.dirty or wipe.attempt_id is not None):
        _broken("a cooling sandbox is wiped, pending_deletion, and has no open attempt", sandbox)
    if sandbox.quarantine is not None and sandbox.status not in _FLAGGED:
        _broken("a sandbox with a quarantine is held, waits to be wiped, or is set aside", sandbox)
    if not 0 <= sandbox.status_order < ORDER_LIMIT or not 0 <= sandbox.version < ORDER_LIMIT:
        _broken("order and version are exact numbers", sandbox)


def check_change(before: Sandbox | None, after: Sandbox | None, fact: Fact | None) -> None:
    """Raise `Violation` if a change, or its fact, breaks a rule of the contract."""
    if after is not None:
        check_record(after)
    if fact is None:
        _check_without_fact(before, after)
        return
    was, now = before.status if before else None, after.status if after else None
    if fact.kind not in kinds_of(was, now):
        _broken(f"no {fact.kind} leads from {was} to {now}", before, after, fact)
    _check_fact(before, after, fact)
    if before is None:
        return
    if after is None:
        if before.dirty and before.status is not D:
            _broken("a dirty sandbox leaves a tombstone", before, after, fact)
        return
    _check_same(before, after, fact)
    _check_dirt(before, after, fact)
    _check_leases(before, after, fact)
    _check_wipe(before, after, fact)
    _check_quarantine(before, after, fact)
    _check_reservation(before, after, fact)


def check_history(facts: Iterable[Fact]) -> None:
    """Raise `Violation` if the facts of one sandbox, oldest first, do not follow from each other."""
    facts = list(facts)
    _check_ends(facts)
    last: Fact | None = None
    lease_ids: set[str | None] = set()
    for fact in facts:
        if fact.kind not in kinds_of(fact.status_before, fact.status):
            _broken(f"no {fact.kind} leads from {fact.status_before} to {fact.status}", fact)
        if last is not None:
            if fact.sandbox_id != last.sandbox_id:
                _broken("a history is that of one sandbox", last, fact)
            if fact.version <= last.version:
                _broken("versions grow", last, fact)
            if fact.status_before is not last.status:
                _broken("each fact begins where the last one ended", last, fact)
            if last.status is L and (fact.lease_id, fact.track_id) != (last.lease_id, last.track_id):
                _broken("a lease ends as it began, for the same track", last, fact)
        if fact.kind is FactKind.ALLOCATED:
            if fact.lease_id is None or fact.lease_id in lease_ids:
                _broken("each allocation has a lease of its own", fact)
            lease_ids.add(fact.lease_id)
        last = fact


def _check_ends(facts: Sequence[Fact]) -> None:
    """Check what the facts of one sandbox tell about the ends of its leases."""
    ends_at: Detail | None = None
    told: set[tuple[str | None, Detail | None]] = set()
    for fact in facts:
        if fact.kind is FactKind.EXPIRING:
            end_of_lease = fact.lease_id, fact.details.get("expires_at")
            if end_of_lease in told or fact.details.get("expires_at") != (ends_at or fact.details.get("expires_at")):
                _broken(f"it is told once for each end of a lease, now {ends_at}", fact)
            told.add(end_of_lease)
        if fact.kind is FactKind.EXTENDED and ends_at not in {None, fact.details.get("expires_at_before")}:
            _broken(f"an extension begins at the end of its lease, {ends_at}", fact)
        if fact.kind is FactKind.EXPIRED and isinstance(ends_at, int) and fact.at < ends_at:
            _broken(f"expiry never ends a lease before the latest end that was told, {ends_at}", fact)
        if fact.kind in {FactKind.ALLOCATED, FactKind.EXTENDED}:
            ends_at = fact.details.get("expires_at")


def check_histories(facts: Iterable[Fact | PoolFact], records: Mapping[str, Sandbox]) -> None:
    """Raise `Violation` if the facts of a sandbox do not lead to its record. `facts` must be complete.

    A record without facts is not checked.
    """
    of_sandbox: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if isinstance(fact, Fact):
            of_sandbox[fact.sandbox_id].append(fact)
    for sandbox_id, history in of_sandbox.items():
        check_history(history)
        record = records.get(sandbox_id)
        if record is None:
            check_end(history[-1], status=None)
        else:
            lease_id = record.latest_lease_id
            check_end(history[-1], status=record.status, lease_id=lease_id, version=record.version)


def check_usage(facts: Iterable[Fact | PoolFact], lines: Iterable[UsageLine]) -> None:
    """Raise `Violation` unless each lease that ended has one line, which says what the facts say. `facts` are complete."""
    of_lease: dict[str | None, list[Fact]] = defaultdict(list)
    for fact in facts:
        if isinstance(fact, Fact):
            of_lease[fact.lease_id].append(fact)
    told: dict[str, tuple[object, ...]] = {}
    for lease_id, history in of_lease.items():
        ended = next((fact for fact in history if fact.kind in _ENDINGS), None)
        if ended is None or lease_id is None:
            continue
        began = next((fact for fact in history if fact.kind is FactKind.ALLOCATED), None)
        wiped = [fact.at for fact in history if fact.kind is FactKind.WIPED]
        wiped_at = wiped[0] if wiped else None
        told[lease_id] = (began and _beginning(began), ended.at, _ENDINGS[ended.kind], wiped_at)
    seen: set[str] = set()
    for line in lines:
        if line.lease_id in seen:
            _broken("a lease has one line", line)
        seen.add(line.lease_id)
        expected = told.get(line.lease_id)
        if expected is None:
            _broken("a line is that of a lease that ended", line)
        beginning = (line.allocated_at, line.track_name, line.customer)
        # A test may begin with a lease whose begin no fact tells.
        said = (expected[0] and beginning, line.ended_at, line.ending, line.wiped_at)
        if said != expected:
            _broken(f"a line says what the facts say: {said} is not {expected}", line)
    missing = told.keys() - seen
    if missing:
        _broken("each lease that ended has a line", sorted(missing))


def _beginning(began: Fact) -> tuple[object, ...]:
    return began.at, began.details.get("track_name"), began.details.get("customer")


def check_end(last: Fact, *, status: Status | None, lease_id: str | None = None, version: int = ORDER_LIMIT) -> None:
    """Raise `Violation` if a record does not fit its last fact. `lease_id` is that of its lease, or of its last lease.

    `status` is None if there is no record.
    """
    if status is not last.status:
        _broken(f"a record has the status of its last fact, and not {status}", last)
    if status is not None and lease_id != last.lease_id:
        _broken(f"a record has the lease of its last fact, and not {lease_id}", last)
    if version < last.version:
        _broken(f"versions grow, and {version} is lower", last)


def _cools(sandbox: Sandbox) -> bool:
    return sandbox.status is P and sandbox.wipe is not None and sandbox.wipe.ready_at is not None


def _check_without_fact(before: Sandbox | None, after: Sandbox | None) -> None:
    """Check a change without a fact: only the begin and the cancel of an attempt may be one."""
    if before is None or after is None or before.status is not P or after.status is not P:
        _broken("each change of status has its fact", before, after)
    _check_version(before, after)
    attempts = [each.wipe.attempt_id if each.wipe else None for each in (before, after)]
    if attempts[0] == attempts[1]:
        _broken("only the begin or the cancel of an attempt has no fact", before, after)
    if _besides_attempts(before) != _besides_attempts(after):
        _broken("the begin or the cancel of an attempt changes only the attempt", before, after)
    if before.wipe and after.wipe and before.wipe.outcome_unknown and not after.wipe.outcome_unknown:
        _broken("a doubt lasts until a wipe or a sync", before, after)


def _besides_attempts(sandbox: Sandbox) -> Sandbox:
    gone_at, ready_at = (sandbox.wipe.gone_at, sandbox.wipe.ready_at) if sandbox.wipe else (None, None)
    wipe = Wipe(gone_at=gone_at, ready_at=ready_at)
    return replace(sandbox, wipe=wipe, version=0, updated_at=0, status_order=0)


def _check_fact(before: Sandbox | None, after: Sandbox | None, fact: Fact) -> None:
    shown = after or before
    if shown is None:
        _broken("a fact is about a record", fact)
    lease = shown.lease or shown.last_lease
    said = (fact.sandbox_id, fact.track_id, fact.lease_id, fact.status_before, fact.status)
    track_id, lease_id = (lease.track_id, lease.lease_id) if lease else (None, None)
    true = (shown.sandbox_id, track_id, lease_id, before.status if before else None, after.status if after else None)
    if said != true:
        _broken(f"a fact says what is true: {said} is not {true}", before, after, fact)
    if after is not None and (fact.version, fact.at) != (after.version, after.updated_at):
        _broken("a fact has the version and time of the record that it made", before, after, fact)
    if before is not None and fact.version <= before.version:
        _broken("versions grow", before, after, fact)
    if fact.version < fact.at * 1000:
        _broken("a version is no earlier than its time", before, after, fact)
    if not fact.principal:
        _broken("a fact names its principal", before, after, fact)


def _check_version(before: Sandbox, after: Sandbox) -> None:
    if after.version <= before.version:
        _broken("versions grow", before, after)


def _check_same(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    _check_version(before, after)
    if (before.sandbox_id, before.created_at) != (after.sandbox_id, after.created_at):
        _broken("id and creation time of a sandbox never change", before, after, fact)
    if fact.kind not in {FactKind.UPDATED, FactKind.RESTORED} and any(
        getattr(before, name) != getattr(after, name) for name in _DESCRIBED
    ):
        _broken("only a sync changes the description of a sandbox", before, after, fact)


def _check_dirt(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    if before.dirty and not after.dirty and fact.kind is not FactKind.WIPED:
        _broken("only a confirmed wipe makes a sandbox clean", before, after, fact)
    if not before.dirty and after.dirty and fact.kind is not FactKind.ALLOCATED:
        _broken("only an allocation makes a sandbox dirty", before, after, fact)
    if fact.kind is FactKind.WIPED and after.dirty:
        _broken("a wiped sandbox is clean", before, after, fact)
    if before.status is S and after.status is P and not after.dirty:
        _broken("a clean sandbox that is seen again is available", before, after, fact)
    if before.status is D and not before.dirty:
        _broken("only a dirty tombstone comes back", before, after, fact)


def _check_leases(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    if fact.kind is FactKind.EXTENDED:
        _check_extension(before, after, fact)
    elif fact.kind is FactKind.EXPIRING:
        _check_warning(before, after, fact)
    elif before.lease and after.lease and before.lease != after.lease:
        _broken("holder and times of a lease do not change, but by an extension", before, after, fact)
    if fact.kind is FactKind.ALLOCATED:
        last = [(each.lease_id, each.track_id) if each else None for each in (before.last_lease, after.last_lease)]
        if last[0] != last[1]:
            _broken("the last lease is known until the next one has ended", before, after, fact)
    elif before.lease and not after.lease:
        ended, last_lease = before.lease, after.last_lease
        kept = ("lease_id", "track_id", "allocated_at", "expires_at", "track_name", "customer")
        if last_lease is None or any(getattr(ended, name) != getattr(last_lease, name) for name in kept):
            _broken("a lease that ended is kept as the last one", before, after, fact)
    elif before.last_lease != after.last_lease:
        _broken("the last lease stays until another one ends", before, after, fact)


def _check_extension(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    if before.lease is None or after.lease is None:
        _broken("only a lease is extended", before, after, fact)
    if after.lease.expires_at <= before.lease.expires_at:
        _broken("a lease is never shortened", before, after, fact)
    if fact.details != {"expires_at": after.lease.expires_at, "expires_at_before": before.lease.expires_at}:
        _broken("an extension tells both ends", before, after, fact)
    if after.status_order != after.lease.expires_at:
        _broken("the index has the end of each lease", before, after, fact)
    shortened = replace(after.lease, expires_at=before.lease.expires_at)
    if replace(before, status_order=0, version=0, updated_at=0) != replace(
        after, lease=shortened, status_order=0, version=0, updated_at=0
    ):
        _broken("an extension changes only the end of a lease", before, after, fact)


def _check_warning(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    lease, told = before.lease, after.lease
    if lease is None or told is None:
        _broken("only of a lease is it told that it ends soon", before, after, fact)
    if lease.warned_for == lease.expires_at or fact.details.get("expires_at") != lease.expires_at:
        _broken("it is told once for each end of a lease", before, after, fact)
    if replace(before, lease=replace(lease, warned_for=lease.expires_at), version=0, updated_at=0) != replace(
        after, version=0, updated_at=0
    ):
        _broken("telling it changes nothing else", before, after, fact)


def _check_wipe(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    was_open = before.wipe is not None and before.wipe.attempt_id is not None
    if before.status is P and fact.kind in _OUTCOMES and not was_open and not _cools(before):
        _broken("an outcome belongs to an attempt", before, after, fact)
    if after.wipe and after.wipe.attempt_id is not None:
        opened = before.wipe.attempt_id if before.wipe else None
        if after.wipe.attempt_id != opened:
            _broken("the begin of an attempt has no fact", before, after, fact)
        if fact.kind in _OUTCOMES:
            _broken("an outcome ends its attempt", before, after, fact)
    if _cools(before) and fact.kind in {FactKind.WIPED, FactKind.WIPE_FAILED}:
        _broken("there is no wipe of a cooling sandbox", before, after, fact)
    if _cools(after) and not _cools(before) and fact.kind is not FactKind.WIPED:
        _broken("only a wipe makes a sandbox cool", before, after, fact)
    if fact.kind is FactKind.WIPED and after.status is P and not _cools(after):
        _broken("a wiped sandbox leaves pending_deletion, or cools", before, after, fact)
    if fact.kind is FactKind.AVAILABLE and not _cools(before):
        _broken("only a sandbox that has cooled becomes available by itself", before, after, fact)
    in_doubt = (before.wipe is not None and before.wipe.outcome_unknown) or bool(fact.details.get("accepted_only"))
    if fact.kind is FactKind.WIPED and in_doubt and after.status in {A, R, P}:
        _broken("after a wipe in doubt only a sync makes a sandbox available", before, after, fact)


def _check_quarantine(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    flag, still = before.quarantine, after.quarantine
    if before.status is P and flag is not None:
        if after.status not in {P, F}:
            _broken("a sandbox that an operator sets aside waits for a person", before, after, fact)
        if after.status is F and still is None and (after.wipe is None or after.wipe.last_error != flag):
            _broken("the reason of a quarantine is kept", before, after, fact)
        if _cools(after) and not _cools(before):
            _broken("a sandbox that waits for a person does not cool", before, after, fact)
    if fact.kind is FactKind.WIPED and after.status is F and flag is None:
        _broken("a wiped sandbox waits for a person only if an operator asked for that", before, after, fact)
    if still != flag and still is not None and fact.kind is not FactKind.QUARANTINED:
        _broken("only an operator asks for a quarantine", before, after, fact)
    is_lifted = fact.kind is FactKind.UPDATED and fact.details.get("quarantine") == "lifted"
    if flag is not None and still is None and not is_lifted and F not in {before.status, after.status}:
        _broken("a quarantine stays until it is lifted", before, after, fact)


def _check_reservation(before: Sandbox, after: Sandbox, fact: Fact) -> None:
    if fact.kind is FactKind.ALLOCATED and (after.lease is None or after.lease.reservation_id != before.reservation_id):
        _broken("a reserved sandbox is allocated for its reservation, and no other one is", before, after, fact)
    if None not in {before.reservation_id, after.reservation_id} and before.reservation_id != after.reservation_id:
        _broken("a sandbox leaves one reservation before it is set aside for another", before, after, fact)
    lease = after.lease if fact.kind is FactKind.ALLOCATED else None
    said = after.reservation_id or before.reservation_id or (lease.reservation_id if lease else None)
    if fact.details.get("reservation_id") != said:
        _broken("a fact names the reservation that a sandbox enters, leaves or stays in", before, after, fact)


def _broken(rule: str, *shown: object) -> NoReturn:
    raise Violation("\n  ".join([rule, *map(repr, shown)]))
