"""Checks a history against the promises of docs/contract.md: pure functions from the history to the violations.

No honest broker is ever blamed: what is not certain counts for the broker (`certainty` says what is).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from tests.long.history.certainty import Certainties
from tests.long.history.queueing import (
    find_double_places,
    find_held_up,
    find_lost_places,
    find_overtaken,
    is_shut_out,
    might_be_ahead,
)
from tests.long.history.record import Kind
from tests.long.history.setting_aside import find_kept_aside, find_wrong_counts, find_wrong_draws
from tests.long.history.telling import (
    find_broken_histories,
    find_disagreeing_facts,
    find_early_expiries,
    find_made_up_extensions,
    find_made_up_facts,
    find_two_accounts,
    find_untold_leases,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.long.history.certainty import Lease
    from tests.long.history.record import Call, History, Row, Scan

Key = TypeVar("Key")
Finding: TypeAlias = "tuple[str, *tuple[object, ...]]"
"""A finding in words, and the records that show it."""

GRACE_SEC = 5.0
"""For so long after a fault of the store, or the kill of an API process, a track may still get a 503."""
INDEX_SEC = 1.0
"""A request may miss a sandbox that became available so shortly before it."""
IMPATIENT_SEC = 5.0
"""A client that waited less than this gave up too early: its missing answer proves nothing."""
_ALLOWED: Mapping[Kind, frozenset[int | None]] = {
    Kind.ALLOCATE: frozenset({200, 201, 202, 409}),
    Kind.READ: frozenset({200, 403, 404}),
    Kind.LIST: frozenset({200}),
    Kind.EXTEND: frozenset({200, 403, 404, 409}),
    Kind.MARK: frozenset({200, 403, 404, 409}),
    Kind.RELEASE: frozenset({200, 404, 409}),
    Kind.GIVE_UP: frozenset({204}),
    # The times of a reservation may be over when a slow call comes.
    Kind.BOOK: frozenset({201, 400, 409}),
    Kind.CHANGE: frozenset({200, 400, 409}),
    Kind.CANCEL: frozenset({200, 409}),
}


class Promise(IntEnum):
    """The promises of docs/contract.md, by their numbers."""

    ONE_HOLDER = 1
    ONE_SANDBOX = 2
    HONEST_REFUSAL = 3
    CLAIMS_AGREE = 4
    WIPED_IN_THE_END = 5
    NO_DELETE_IN_USE = 6
    STORE_ALONE = 7
    TURN = 8
    SET_ASIDE = 9
    FACTS = 10
    LATEST_END = 11

    @property
    def sentence(self) -> str:
        """The promise in a few words."""
        return _SENTENCES[self]


_SENTENCES = {
    Promise.ONE_HOLDER: "a sandbox has at most one holder",
    Promise.ONE_SANDBOX: "a (track, key) holds at most one sandbox",
    Promise.HONEST_REFUSAL: "409 or 202 only if nothing matching was free for it, and never to who holds one",
    Promise.CLAIMS_AGREE: "claims and sandboxes agree, and an allocation lasts until it may end",
    Promise.WIPED_IN_THE_END: "what was given back is wiped, nothing dirty is available, no sandbox is lost",
    Promise.NO_DELETE_IN_USE: "the provider is never asked to delete what is available or allocated",
    Promise.STORE_ALONE: "tracks need the store alone, and get an honest answer",
    Promise.TURN: "who waits is served in turn, keeps its place, and holds nobody up once it is gone",
    Promise.SET_ASIDE: "what is set aside goes to whom it is for, in its time, and never exceeds what was booked",
    Promise.FACTS: "each change has exactly one fact, and none is lost or made up",
    Promise.LATEST_END: "a lease lasts until the latest end that was told, and none is given an end beyond its limit",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise, and the records that show it."""

    promise: Promise
    text: str
    evidence: tuple[object, ...] = ()


@dataclass
class Verdict:
    """All violations, and for each promise the number of checks."""

    violations: list[Violation] = field(default_factory=list)
    examined: dict[Promise, Counter[str]] = field(default_factory=lambda: {promise: Counter() for promise in Promise})

    @property
    def broken(self) -> set[Promise]:
        """The broken promises."""
        return {violation.promise for violation in self.violations}


def check(history: History) -> Verdict:
    """Check a history against every promise."""
    known, verdict = Certainties(history), Verdict()
    for promise, look in _CHECKS:
        verdict.violations += [
            Violation(promise, text, tuple(evidence)) for text, *evidence in look(known, verdict.examined[promise])
        ]
    return verdict


def _find_second_holders(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find two leases of one sandbox that were surely held at the same moment."""
    by_sandbox = _group(known.leases.values(), lambda lease: lease.sandbox_id)
    examined["leases"] = len(known.leases)
    for sandbox_id, leases in by_sandbox.items():
        for one, other in _overlaps(leases):
            yield f"sandbox {sandbox_id} had two holders at once", one, other
    for lease, sighting in known.disputes:
        if lease.track_id != sighting.track_id:
            yield f"lease {lease.lease_id} was shown to two tracks", lease, sighting


def _find_answers_to_others(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find an answer that shows a track a sandbox as allocated to another track."""
    for call in known.history.calls:
        if call.kind is Kind.READ and call.status == 200:
            examined["reads"] += 1
            if call.body["status"] == "allocated" and call.body["allocated_to_track"] != call.track_id:
                yield f"sandbox {call.sandbox_id} was shown to a track that does not hold it", call


def _find_second_sandboxes(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find two leases of one (track, key) that were surely held at the same moment."""
    holders = _group(known.leases.values(), lambda lease: (lease.track_id, lease.key))
    examined["(track, key) pairs"] = len(holders)
    examined["leases"] = len(known.leases)
    for (track_id, key), leases in holders.items():
        if key is not None:
            for one, other in _overlaps(leases):
                yield f"track {track_id} held two sandboxes under key {key}", one, other
    for lease, sighting in known.disputes:
        if lease.sandbox_id != sighting.sandbox_id:
            yield f"lease {lease.lease_id} was shown for two sandboxes", lease, sighting


def _find_false_refusals(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a 409 or 202 although a matching sandbox was available all the time, or the (track, key) held one.

    As many of them as there may be places ahead may be due to these.
    """
    holders = _group(known.leases.values(), lambda lease: (lease.track_id, lease.key))
    for call in known.history.calls:
        if call.kind is not Kind.ALLOCATE or call.status not in {202, 409}:
            continue
        examined["refusals" if call.status == 409 else "answers to wait"] += 1
        free = known.free_throughout(call.began - INDEX_SEC, call.ended, call.prefix)
        if free and not is_shut_out(call) and len(free) > len(might_be_ahead(known, call)):
            first = free[0]
            yield f"track {call.track_id} was refused though {first.sandbox_id} ({first.name}) was free", call, first
        for lease in holders.get((call.track_id, call.key), ()):
            if lease.covers(call.began, call.ended):
                yield f"track {call.track_id} was refused though it held {lease.sandbox_id}", call, lease


def _find_disagreeing_rows(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a scan without a lease, or without its claim, although the lease was surely held."""
    for lease in known.leases.values():
        for number, scan in known.scans_within(lease.sure_from, lease.over_from):
            examined["held leases in scans"] += 1
            row = known.rows[number].get(lease.sandbox_id)
            if row is None or (row.status, row.lease_id) != ("allocated", lease.lease_id):
                yield f"lease {lease.lease_id} was ended by nobody who may", lease, _seen(scan, row)
                break
            if lease.key is not None:
                claim = known.claims[number].get((lease.track_id, lease.key))
                if claim is None or claim.lease_id != lease.lease_id:
                    yield f"lease {lease.lease_id} had no claim while it was held", lease, _seen(scan, claim)
                    break
    for lease, sighting in known.disputes:
        if (lease.sandbox_id, lease.track_id) == (sighting.sandbox_id, sighting.track_id):
            yield f"lease {lease.lease_id} was shown with two keys", lease, sighting


def _find_disagreeing_claims(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a claim or an allocation that existed during a whole scan that does not show the other of the two."""
    for held in known.claim_stretches:
        for number in range(held.first + 1, held.last):
            examined["claims in scans"] += 1
            row = known.rows[number].get(held.claim.sandbox_id)
            if row is None or (row.status, row.lease_id) != ("allocated", held.claim.lease_id):
                yield "a claim was there while its sandbox was not allocated under it", held.claim, row
                break
    for stretches in known.stretches.values():
        for stretch in stretches:
            if stretch.row.status != "allocated":
                continue
            for number in range(stretch.first + 1, stretch.last):
                examined["allocations in scans"] += 1
                claim = known.claims[number].get((stretch.row.track_id or "", stretch.row.key or ""))
                if claim is None or claim.lease_id != stretch.row.lease_id:
                    yield "a sandbox was allocated without its claim", stretch.row, claim
                    break


def _find_holders_turned_away(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a holder that cannot see or give back a lease that it surely holds, or a lease shown after its end."""
    of_track = _group(known.leases.values(), lambda lease: lease.track_id)
    for call in known.history.calls:
        if call.status is None or call.status >= 500:
            continue
        for lease in of_track.get(call.track_id, ()):
            if lease.covers(call.began, call.ended):
                examined["calls of holders"] += 1
                if not _grants(call, lease):
                    yield f"the holder of {lease.sandbox_id} was answered as if it were not", call, lease
            elif _shows(call, lease) and call.began > lease.over_by:
                yield f"lease {lease.lease_id} was shown as held after its end was confirmed", call, lease
            elif (
                call.kind is Kind.ALLOCATE
                and _shows(call, lease)
                and call.began >= call.body["expires_at"] + known.history.terms.buffer_sec
            ):
                yield f"lease {lease.lease_id} was given out past its expiry and buffer", call, lease


def _find_moved_ends(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find an end that is earlier than one that was told before, or beyond the limit."""
    for lease in known.leases.values():
        seen = sorted(lease.seen, key=lambda each: each.ended)
        latest = list(accumulate((each.expires_at for each in seen), max))
        for sighting in seen:
            examined["ends"] += 1
            before = bisect_left(seen, sighting.began, key=lambda each: each.ended)
            if before and sighting.expires_at < latest[before - 1]:
                yield f"lease {lease.lease_id} was shortened", lease, sighting
            began_at = sighting.allocated_at
            if began_at is not None and sighting.expires_at > began_at + known.history.terms.max_lab_sec:
                yield f"lease {lease.lease_id} was given an end beyond its limit", lease, sighting
    for call in known.history.calls:
        if call.kind is Kind.EXTEND and call.status == 200:
            examined["extensions"] += 1
            if call.body["expires_at"] < call.until:
                yield "an extension was answered with an earlier end than it asked for", call


def _find_what_is_left(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find, at the end, a claim without its allocation or the reverse; after a drain, any of either."""
    if not known.history.scans:
        return
    last = known.history.scans[-1]
    rows, claims = known.rows[-1], known.claims[-1]
    examined["claims at rest"], examined["sandboxes at rest"] = len(claims), len(rows)
    for claim in last.claims:
        row = rows.get(claim.sandbox_id)
        if row is None or (row.status, row.lease_id) != ("allocated", claim.lease_id):
            yield "a claim was left over", claim
        elif known.history.terms.drained:
            yield "an allocation was never ended", claim
    for row in last.rows:
        if row.status == "allocated":
            claim_of = claims.get((row.track_id or "", row.key or ""))
            if claim_of is None or claim_of.lease_id != row.lease_id:
                yield f"sandbox {row.sandbox_id} is allocated without a claim", row


def _find_dirty_ones(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a sandbox that is available, reserved or allocated without a wipe since its last lease."""
    by_sandbox = {
        sandbox_id: sorted(leases, key=lambda lease: lease.sure_from)
        for sandbox_id, leases in _group(known.leases.values(), lambda lease: lease.sandbox_id).items()
    }
    for sandbox_id, leases in by_sandbox.items():
        for one, other in pairwise(leases):
            examined["leases after another"] += 1
            # If both were seen late, their order may be uncertain.
            if not known.was_wiped(sandbox_id, one.over_from, other.sure_from) and not known.was_wiped(
                sandbox_id, other.over_from, one.sure_from
            ):
                yield f"sandbox {sandbox_id} was given out again without a wipe", one, other
    for sandbox_id, stretches in known.stretches.items():
        leases = by_sandbox.get(sandbox_id, [])
        for stretch in stretches:
            if stretch.row.status not in {"available", "reserved"}:
                continue
            examined["stretches of being free"] += 1
            scan = known.history.scans[stretch.first]
            if stretch.row.dirty:
                yield f"sandbox {sandbox_id} was {stretch.row.status} and dirty", stretch.row, _seen(scan, stretch.row)
            at = bisect_right(leases, scan.began, key=lambda lease: lease.sure_from) - 1
            if at >= 0 and not known.was_wiped(sandbox_id, leases[at].over_from, scan.ended):
                yield (
                    f"sandbox {sandbox_id} was {stretch.row.status} without a wipe",
                    leases[at],
                    _seen(scan, stretch.row),
                )


def _find_what_was_not_carried_out(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find, after a drain, a lease whose sandbox was not wiped since its end and does not wait for a person."""
    if not known.history.terms.drained or not known.history.scans:
        return
    for lease in known.leases.values():
        examined["accepted marks" if lease.is_marked else "other endings"] += 1
        row = known.rows[-1].get(lease.sandbox_id)
        left_to_a_person = row is not None and row.status == "deletion_failed"
        if not left_to_a_person and not known.was_wiped(lease.sandbox_id, lease.over_from):
            what = "an accepted mark was not carried out" if lease.is_marked else "an ended allocation was not wiped"
            yield f"{what}: {lease.sandbox_id}", lease, row


def _find_lost_sandboxes(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find, after a drain, an account without a record, a record without an account, or a sandbox out of service."""
    if not known.history.terms.drained or not known.history.scans:
        return
    rows = known.rows[-1]
    accounts = {account.sandbox_id: account for account in known.history.accounts}
    examined["accounts"] = len(accounts)
    for account in accounts.values():
        if account.sandbox_id not in rows:
            yield f"sandbox {account.sandbox_id} was lost", account
    for row in rows.values():
        if row.sandbox_id not in accounts:
            yield f"sandbox {row.sandbox_id} has a record and no account", row
        elif row.status not in {"available", "allocated", "deletion_failed"}:
            yield f"sandbox {row.sandbox_id} did not come back into service", row


def _find_deletes_in_use(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a delete call that began while its sandbox was surely allocated, or surely free."""
    sandbox_of = {external_id: sandbox_id for sandbox_id, external_id in known.external_ids.items()}
    by_sandbox = _group(known.leases.values(), lambda lease: lease.sandbox_id)
    for delete in known.history.deletes:
        examined["deletes"] += 1
        sandbox_id = sandbox_of.get(delete.external_id, "")
        for lease in by_sandbox.get(sandbox_id, ()):
            if lease.sure_from < delete.began < lease.over_from:
                yield f"the provider was asked to delete {sandbox_id} while it was allocated", delete, lease
        for stretch in known.stretches.get(sandbox_id, ()):
            since, until = known.surely(stretch)
            if stretch.row.status in {"available", "reserved"} and since < delete.began < until:
                yield (
                    f"the provider was asked to delete {sandbox_id} while it was {stretch.row.status}",
                    delete,
                    stretch.row,
                )


def _find_bad_answers(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find an answer that no track may get, or a 503 without a fault of the store."""
    faults = [fault for fault in known.history.faults if fault.refuses_calls]
    for call in known.history.calls:
        examined[f"{call.kind} {call.status or 'without an answer'}"] += 1
        if call.status is not None and call.status in _ALLOWED[call.kind]:
            if call.kind is Kind.ALLOCATE and (call.status == 200) != call.replayed and call.status in {200, 201}:
                yield "a replay was not called so, or something new was", call
            continue
        if call.status is None and call.patience < IMPATIENT_SEC:
            continue
        is_excused = any(fault.began <= call.ended and call.began <= fault.ended + GRACE_SEC for fault in faults)
        if call.status not in {None, 503}:
            yield f"a track was answered {call.status}", call
        elif not is_excused:
            yield f"a track was {'told 503' if call.status else 'not answered'}, and no fault explains that", call


_CHECKS: tuple[tuple[Promise, Callable[[Certainties, Counter[str]], Iterator[Finding]]], ...] = (
    (Promise.ONE_HOLDER, _find_second_holders),
    (Promise.ONE_HOLDER, _find_answers_to_others),
    (Promise.ONE_SANDBOX, _find_second_sandboxes),
    (Promise.HONEST_REFUSAL, _find_false_refusals),
    (Promise.CLAIMS_AGREE, _find_disagreeing_rows),
    (Promise.CLAIMS_AGREE, _find_disagreeing_claims),
    (Promise.CLAIMS_AGREE, _find_holders_turned_away),
    (Promise.CLAIMS_AGREE, _find_what_is_left),
    (Promise.WIPED_IN_THE_END, _find_dirty_ones),
    (Promise.WIPED_IN_THE_END, _find_what_was_not_carried_out),
    (Promise.WIPED_IN_THE_END, _find_lost_sandboxes),
    (Promise.NO_DELETE_IN_USE, _find_deletes_in_use),
    (Promise.STORE_ALONE, _find_bad_answers),
    (Promise.CLAIMS_AGREE, find_double_places),
    (Promise.TURN, find_overtaken),
    (Promise.TURN, find_lost_places),
    (Promise.TURN, find_held_up),
    (Promise.SET_ASIDE, find_wrong_draws),
    (Promise.SET_ASIDE, find_wrong_counts),
    (Promise.SET_ASIDE, find_kept_aside),
    (Promise.FACTS, find_broken_histories),
    (Promise.FACTS, find_disagreeing_facts),
    (Promise.FACTS, find_untold_leases),
    (Promise.FACTS, find_made_up_facts),
    (Promise.FACTS, find_made_up_extensions),
    (Promise.FACTS, find_two_accounts),
    (Promise.LATEST_END, _find_moved_ends),
    (Promise.LATEST_END, find_early_expiries),
)


def _group(leases: Iterable[Lease], key: Callable[[Lease], Key]) -> dict[Key, list[Lease]]:
    grouped: dict[Key, list[Lease]] = defaultdict(list)
    for lease in leases:
        grouped[key(lease)].append(lease)
    return grouped


def _overlaps(leases: list[Lease]) -> Iterator[tuple[Lease, Lease]]:
    """Yield pairs of neighbouring leases that were surely held at the same moment."""
    latest: Lease | None = None
    for lease in sorted(leases, key=lambda each: each.sure_from):
        if lease.sure_from >= lease.over_from:
            continue
        if latest is not None and lease.sure_from < latest.over_from:
            yield latest, lease
        if latest is None or lease.over_from > latest.over_from:
            latest = lease


def _grants(call: Call, lease: Lease) -> bool:
    """Tell whether the holder of a lease may get this answer."""
    match call.kind:
        case Kind.READ if call.sandbox_id == lease.sandbox_id:
            return _shows(call, lease)
        case Kind.LIST:
            return _shows(call, lease)
        case Kind.ALLOCATE if call.key == lease.key and call.status != 409:
            return _shows(call, lease)
        case Kind.EXTEND | Kind.MARK if call.sandbox_id == lease.sandbox_id and call.lease_id in {None, lease.lease_id}:
            return call.status == 200
        case _:
            return True


def _shows(call: Call, lease: Lease) -> bool:
    """Tell whether an answer shows a lease as held."""
    if call.kind is Kind.ALLOCATE:
        return call.body.get("lease_id") == lease.lease_id
    if call.kind is Kind.LIST:
        return any(each["lease_id"] == lease.lease_id for each in call.body["sandboxes"])
    return (
        call.kind is Kind.READ
        and call.body.get("status") == "allocated"
        and call.body.get("lease_id") == lease.lease_id
    )


def _seen(scan: Scan, record: Row | object) -> tuple[str, object]:
    return f"scan {scan.began:.3f} to {scan.ended:.3f}", record
