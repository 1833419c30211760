"""Checks the facts of a run against the lifecycle, the table and the clients' answers: promise 10 of docs/contract.md.

The facts were read after the last change, and the run began with an empty table.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from broker_common.core.facts import Fact, FactKind
from broker_common.core.sandbox import Status
from tests.lifecycle import Violation, check_end, check_history
from tests.long.history.record import Kind

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from tests.long.history.certainty import Certainties, Lease
    from tests.long.history.checker import Finding
    from tests.long.history.record import Call, History, Row

_ENDINGS = {Kind.MARK: FactKind.MARKED, Kind.RELEASE: FactKind.RELEASED}
_WHOLE_SECOND = 1.0
"""The time of a fact is in whole seconds."""


def find_broken_histories(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a sandbox whose facts, in the feed's order, do not follow from each other."""
    for sandbox_id, facts in _by_sandbox(known.history.feed).items():
        examined["facts"] += len(facts)
        if facts[0].status_before is not None:
            yield f"the first fact of sandbox {sandbox_id} is not that it was added", facts[0]
        yield from _violation(partial(check_history, facts), f"facts of sandbox {sandbox_id}")
    seen: dict[object, Fact] = {}
    for fact in known.history.feed:
        first = seen.setdefault(_name(fact), fact)
        if first != fact:
            yield "a fact was told in two ways", first, fact


def find_disagreeing_facts(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a record in a scan that differs from its last fact before."""
    if not known.history.terms.is_told:
        return
    told = _by_sandbox(known.history.feed)
    for sandbox_id, stretches in known.stretches.items():
        facts = sorted(told.get(sandbox_id, ()), key=lambda fact: fact.version)
        for row in {stretch.row: None for stretch in stretches}:
            examined["records as scans saw them"] += 1
            count = bisect_right(facts, row.version, key=lambda fact: fact.version)
            yield from _disagreement(facts[count - 1] if count else None, row)
    if known.history.scans:
        rows = known.rows[-1]
        for sandbox_id, history in told.items():
            if sandbox_id in rows:
                yield from _disagreement(history[-1], rows[sandbox_id])
            else:
                yield from _violation(partial(check_end, history[-1], status=None), f"sandbox {sandbox_id}")


def find_untold_leases(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a lease that was seen, but whose begin or end has no fact, or a fact that says otherwise."""
    if not known.history.terms.is_told:
        return
    begun, ended, ends = _begun(known.history), _ended(known.history), _ends(known.history)
    held = {row.lease_id for row in known.history.scans[-1].rows} if known.history.scans else set()
    for lease in known.leases.values():
        examined["leases"] += 1
        beginning, ending = begun.get(lease.lease_id), ended.get(lease.lease_id)
        if beginning is None:
            yield f"no fact tells that lease {lease.lease_id} began", lease
        elif (beginning.sandbox_id, beginning.track_id) != (lease.sandbox_id, lease.track_id) or not (
            {sighting.expires_at for sighting in lease.seen} <= ends[lease.lease_id]
        ):
            yield f"lease {lease.lease_id} was told as another one", lease, beginning
        is_over = lease.lease_id not in held if known.history.scans else lease.over_by < math.inf
        if is_over and ending is None:
            yield f"no fact tells that lease {lease.lease_id} ended", lease
    yield from _find_untold_endings(known, examined, ended)


def find_made_up_facts(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a fact that a lease began or ended, although no call asked for that, or before its time."""
    calls = known.history.calls
    since = min((call.began for call in calls), default=math.inf)
    asked: dict[tuple[Kind, str | None, str], list[Call]] = defaultdict(list)
    for call in calls:
        asked[call.kind, call.track_id if call.kind is not Kind.RELEASE else None, call.sandbox_id].append(call)
    # The API made some calls before the first one of a client.
    begun = {lease_id: fact for lease_id, fact in _begun(known.history).items() if fact.at > since}
    for lease_id, fact in begun.items():
        examined["leases that began"] += 1
        requests = asked[Kind.ALLOCATE, fact.track_id, ""]
        if not any(_may_have_begun(call, lease_id) and _came_before(call, fact) for call in requests):
            yield f"nobody asked for lease {lease_id}", fact
    ends = _ends(known.history)
    for lease_id, fact in _ended(known.history).items():
        if lease_id not in begun:
            continue
        examined["leases that ended"] += 1
        if fact.kind is FactKind.EXPIRED:
            if fact.at < max(ends[lease_id]) + known.history.terms.buffer_sec:
                yield f"lease {lease_id} was told as expired before its time", fact, begun[lease_id]
            continue
        kind, track_id = (Kind.MARK, fact.track_id) if fact.kind is FactKind.MARKED else (Kind.RELEASE, None)
        requests = asked[kind, track_id, fact.sandbox_id]
        if not any(call.lease_id in {None, lease_id} and _came_before(call, fact) for call in requests):
            yield f"nobody asked for that end of lease {lease_id}", fact


def find_made_up_extensions(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a fact that a lease was extended, although no call asked for that end."""
    asked: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in known.history.calls:
        if call.kind is Kind.EXTEND:
            asked[call.track_id, call.sandbox_id].append(call)
    for fact in known.history.feed:
        if fact.kind is FactKind.EXTENDED:
            examined["extensions"] += 1
            requests = asked[str(fact.track_id), fact.sandbox_id]
            if not any(_may_have_extended(call, fact) and _came_before(call, fact) for call in requests):
                yield f"nobody asked for that extension of lease {fact.lease_id}", fact


def find_early_expiries(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a lease that expired before the latest end that anybody saw."""
    for lease_id, fact in _ended(known.history).items():
        lease = known.leases.get(lease_id)
        if fact.kind is FactKind.EXPIRED and lease is not None:
            examined["expiries"] += 1
            if fact.at < lease.expires_at + known.history.terms.buffer_sec:
                yield f"lease {lease_id} expired before the latest end that was told", lease, fact


def find_two_accounts(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a sandbox whose history, read by itself, differs from what the feed said about it."""
    by_feed = _by_sandbox(known.history.feed)
    of_each = {
        sandbox_id: list(facts) for sandbox_id, facts in groupby(known.history.pasts, lambda fact: fact.sandbox_id)
    }
    for sandbox_id in sorted(by_feed.keys() | of_each.keys()):
        examined["histories"] += 1
        told, past = by_feed.get(sandbox_id, []), of_each.get(sandbox_id, [])
        if told != past[::-1]:
            differing = [fact for fact in [*told, *past] if (fact in told) != (fact in past)]
            yield f"feed and history of sandbox {sandbox_id} differ", *differing


def _find_untold_endings(known: Certainties, examined: Counter[str], ended: Mapping[str, Fact]) -> Iterator[Finding]:
    """Find a mark or a release that first ended a lease, while the fact names another cause."""
    asked: dict[str, list[Call]] = defaultdict(list)
    for call in known.history.calls:
        if call.kind in _ENDINGS:
            asked[call.sandbox_id].append(call)
    for call in (call for calls in asked.values() for call in calls if call.status == 200):
        lease = known.leases.get(str(call.body["lease_id"] if call.kind is Kind.MARK else call.lease_id))
        if lease is None or call.ended >= lease.expires_at + known.history.terms.buffer_sec:
            continue
        if any(_may_have_ended(each, lease, before=call) for each in asked[call.sandbox_id]):
            continue
        examined["ends that were asked for"] += 1
        ending = ended.get(lease.lease_id)
        if ending is not None and ending.kind is not _ENDINGS[call.kind]:
            yield f"lease {lease.lease_id} was told to have ended by {ending.kind}", call, ending


def _may_have_ended(call: Call, lease: Lease, *, before: Call) -> bool:
    """Tell whether a call of the other kind may have ended the lease before this one's answer."""
    if call.kind is before.kind or call.began > before.ended:
        return False
    return call.lease_id == lease.lease_id or (call.lease_id is None and call.track_id == lease.track_id)


def _may_have_begun(call: Call, lease_id: str) -> bool:
    """Tell whether an allocate may have made a lease: its answer says so, or it has no answer."""
    if call.status == 201:
        return bool(call.body["lease_id"] == lease_id)
    return call.status is None or call.status >= 500


def _may_have_extended(call: Call, fact: Fact) -> bool:
    """Tell whether a call may have made an extension: it asked for that end, and was not refused."""
    is_fit = call.until == fact.details["expires_at"] and call.lease_id in {None, fact.lease_id}
    return is_fit and (call.status in {None, 200} or call.status >= 500)


def _came_before(call: Call, fact: Fact) -> bool:
    return call.began <= fact.at + _WHOLE_SECOND


def _disagreement(last: Fact | None, row: Row) -> Iterator[Finding]:
    if last is None:
        yield f"no fact names sandbox {row.sandbox_id}", row
        return
    lease_id = row.lease_id or row.last_lease_id
    check = partial(check_end, last, status=Status(row.status), lease_id=lease_id, version=row.version)
    yield from _violation(check, f"sandbox {row.sandbox_id}", row)


def _violation(check: Callable[[], None], what: str, *evidence: object) -> Iterator[Finding]:
    try:
        check()
    except Violation as violation:
        rule, *shown = str(violation).split("\n  ")
        finding: Finding = (f"{what}: {rule}", *[*evidence, *shown])
        yield finding


def _begun(history: History) -> dict[str, Fact]:
    return {str(fact.lease_id): fact for fact in history.feed if fact.kind is FactKind.ALLOCATED}


def _ends(history: History) -> Mapping[str, set[float]]:
    """Return all ends of each lease that facts tell."""
    ends: dict[str, set[float]] = defaultdict(set)
    for fact in history.feed:
        if fact.kind in {FactKind.ALLOCATED, FactKind.EXTENDED}:
            ends[str(fact.lease_id)].add(int(fact.details["expires_at"]))
    return ends


def _ended(history: History) -> dict[str, Fact]:
    return {
        str(fact.lease_id): fact
        for fact in history.feed
        if fact.status_before is Status.ALLOCATED and fact.status is not Status.ALLOCATED
    }


def _by_sandbox(feed: Iterable[Fact]) -> dict[str, list[Fact]]:
    """Return the facts of each sandbox in the feed's order, without repetitions."""
    told: dict[str, dict[object, Fact]] = defaultdict(dict)
    for fact in feed:
        told[fact.sandbox_id].setdefault(_name(fact), fact)
    return {sandbox_id: list(facts.values()) for sandbox_id, facts in told.items()}


def _name(fact: Fact) -> object:
    return fact.sandbox_id, fact.version, fact.kind
