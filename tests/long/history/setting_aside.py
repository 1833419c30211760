"""Checks a history against promise 9: what is set aside for a reservation is for those whom it is for, in its time.

As in `checker`, what is not certain counts for the broker. A state of a reservation that an answer or a scan showed is
in force from then on at the latest, until a newer version is. Changes only shorten a reservation, so none that was not
seen allows more.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from broker_common.core.facts import FactKind
from broker_common.core.reservation import OPENS_BEFORE_SEC, ReservationStage
from broker_common.core.sandbox import Status
from tests.long.history.record import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.facts import Fact
    from tests.long.history.certainty import Certainties
    from tests.long.history.checker import Finding
    from tests.long.history.record import Call, History

INDEX_SEC = 1.0
"""A run of the job may miss a sandbox that was set aside so shortly before it."""
_RUNS = 2
"""After so many runs of the job, nothing is set aside for a reservation that is over."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """What was seen of a reservation at some moment, which was over at `known_by`."""

    version: int
    is_cancelled: bool
    starts_at: int
    ends_at: int
    track_names: tuple[str, ...]
    known_by: float

    def is_open_at(self, at: int) -> bool:
        return not self.is_cancelled and self.starts_at - OPENS_BEFORE_SEC <= at < self.ends_at


def find_wrong_draws(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a lease of a sandbox that was set aside for others, or not at that time."""
    terms, asked, begun = _terms(known.history), _requests(known.history), _begun(known.history)
    for before, fact in _allocations(known.history):
        was_for = before.details.get("reservation_id") if before and before.status is Status.RESERVED else None
        reservation_id = fact.details.get("reservation_id")
        if was_for != reservation_id:
            text = f"sandbox {fact.sandbox_id} was set aside for {was_for}, and was allocated as from {reservation_id}"
            yield text, fact, before
        if reservation_id is None:
            continue
        examined["draws"] += 1
        # A lease gets its time before its write.
        in_force = _in_force(terms.get(str(reservation_id), []), max(fact.at, begun.get(fact.lease_id, 0)))
        if not any(each.is_open_at(fact.at) for each in in_force):
            yield f"lease {fact.lease_id} was drawn from a reservation that was not open", fact, tuple(in_force)
        labs = {name for each in in_force for name in each.track_names}
        requests = asked[fact.track_id or ""]
        if not any(call.reservation_id == reservation_id or call.track_name in labs for call in requests):
            yield f"lease {fact.lease_id} was drawn by a track whom its reservation is not for", fact, tuple(in_force)


def find_wrong_counts(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a reservation whose counters exceed what was booked, differ from its sandboxes, or grow after its end."""
    scans = known.history.scans
    for number, scan in enumerate(scans):
        aside = Counter(row.reservation_id for row in scan.rows if row.status == "reserved")
        for each in scan.reservations:
            examined["reservations in scans"] += 1
            if each.set_aside < 0 or each.set_aside + each.drawn > each.count:
                yield f"reservation {each.reservation_id} has more than was booked", each
        if scan.began == scan.ended or number == len(scans) - 1:  # it shows one moment
            examined["scans of one moment"] += 1
            counted = Counter({each.reservation_id: each.set_aside for each in scan.reservations if each.set_aside})
            if counted != aside:
                yield "the counters differ from what is set aside", dict(counted), dict(aside), scan.began
    for one, other in pairwise(scans):
        over = {each.reservation_id: each for each in one.reservations if each.stage != ReservationStage.BOOKED}
        for each in other.reservations:
            earlier = over.get(each.reservation_id)
            if earlier is not None and each.drawn > earlier.drawn:
                yield f"reservation {each.reservation_id} was drawn from after its end", earlier, each


def find_kept_aside(known: Certainties, examined: Counter[str]) -> Iterator[Finding]:
    """Find a sandbox that is still set aside after two runs of the job since the end of its reservation."""
    over = {reservation_id: _over_by(seen) for reservation_id, seen in _terms(known.history).items()}
    for sandbox_id, stretches in known.stretches.items():
        for stretch in stretches:
            if stretch.row.status != "reserved":
                continue
            examined["stretches of being set aside"] += 1
            since, until = known.surely(stretch)
            since = max(since + INDEX_SEC, over.get(stretch.row.reservation_id or "", math.inf))
            runs = [run for run in known.history.reserve_runs if since <= run.began and run.ended <= until]
            if len(runs) >= _RUNS:
                yield f"sandbox {sandbox_id} was set aside for a reservation that was over", stretch.row, runs[1]
    if known.history.terms.drained and known.rows:
        for row in known.rows[-1].values():
            if row.status == "reserved":
                yield f"sandbox {row.sandbox_id} is set aside for ever", row


def _allocations(history: History) -> Iterator[tuple[Fact | None, Fact]]:
    """Yield each fact that a lease began, and the fact of its sandbox before."""
    by_sandbox: dict[str, dict[int, Fact]] = defaultdict(dict)
    for fact in history.feed:
        by_sandbox[fact.sandbox_id][fact.version] = fact
    for facts in by_sandbox.values():
        ordered = [facts[version] for version in sorted(facts)]
        for before, fact in zip([None, *ordered], ordered, strict=False):
            if fact.kind is FactKind.ALLOCATED:
                yield before, fact


def _requests(history: History) -> dict[str, list[Call]]:
    """Return the allocates of each track."""
    found: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        if call.kind is Kind.ALLOCATE:
            found[call.track_id].append(call)
    return found


def _begun(history: History) -> dict[str | None, float]:
    """Return when the call began that was answered with each new lease."""
    return {
        call.body["lease_id"]: call.began for call in history.calls if call.kind is Kind.ALLOCATE and call.status == 201
    }


def _terms(history: History) -> dict[str, list[_Terms]]:
    """Return all that was seen of each reservation."""
    found: dict[str, list[_Terms]] = defaultdict(list)
    for call in history.calls:
        if call.kind in {Kind.BOOK, Kind.CHANGE, Kind.CANCEL} and call.status in {200, 201}:
            body, labs = call.body, tuple(call.body["track_names"])
            is_cancelled = body["state"] == ReservationStage.CANCELLED
            found[body["reservation_id"]].append(
                _Terms(body["version"], is_cancelled, body["starts_at"], body["ends_at"], labs, call.ended)
            )
    for scan in history.scans:
        for row in scan.reservations:
            is_cancelled = row.stage == ReservationStage.CANCELLED
            seen = _Terms(row.version, is_cancelled, row.starts_at, row.ends_at, row.track_names, scan.ended)
            found[row.reservation_id].append(seen)
    return found


def _in_force(seen: list[_Terms], since: float) -> list[_Terms]:
    """Return what may have been in force at some time since a moment."""
    latest = max((each.version for each in seen if each.known_by <= since), default=0)
    return [each for each in seen if each.version >= latest]


def _over_by(seen: list[_Terms]) -> float:
    """Return a time at which a reservation was surely over."""
    cancelled = min((each.known_by for each in seen if each.is_cancelled), default=math.inf)
    return min(cancelled, max(each.ends_at for each in seen))
