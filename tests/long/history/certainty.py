"""The certain parts of a history: when a lease was surely held, and when a record was surely in one state.

Every bound is on the side that blames no correct broker. A lease is surely held from the first answer that named it until
the earliest moment at which its end may have begun. A record that two scans show at the same version was in that state
from the end of the first scan to the beginning of the second.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.long.history.record import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.long.history.record import Call, ClaimRow, Delete, History, Row, Scan


@dataclass(slots=True, kw_only=True)
class Lease:
    """One allocation, as far as the history shows it."""

    lease_id: str
    sandbox_id: str
    track_id: str
    key: str | None
    """None until an allocate or a scan shows it."""
    expires_at: float
    """The latest end that was seen."""
    born_from: float
    """The lease did not exist before this time."""
    sure_from: float = math.inf
    """The lease existed at this time: the end of the first call or scan that saw it."""
    seen_until: float = -math.inf
    """The lease had not ended before this time: the beginning of the last call or scan that saw it."""
    over_from: float = math.inf
    """The end did not begin before this time."""
    over_by: float = math.inf
    """The lease had ended at this time: the end of the first call whose answer said so."""
    is_marked: bool = False
    """Whether a mark of the lease was accepted."""
    seen: list[Sighting] = field(default_factory=list)
    """Every observation of the lease as held."""

    def covers(self, began: float, ended: float) -> bool:
        """Tell whether the lease was surely held all the time from `began` to `ended`."""
        return self.sure_from <= began and ended <= self.over_from


@dataclass(frozen=True, slots=True)
class Sighting:
    """One observation of a lease as held, at some moment from `began` to `ended`."""

    lease_id: str
    sandbox_id: str
    track_id: str
    key: str | None
    expires_at: float
    born_from: float
    began: float
    ended: float
    allocated_at: int | None
    """None if it was not shown."""


@dataclass(slots=True)
class Stretch:
    """Consecutive scans, by their numbers, that show a record in the same state."""

    row: Row
    first: int
    last: int


@dataclass(slots=True)
class ClaimStretch:
    """Consecutive scans that show the same claim."""

    claim: ClaimRow
    first: int
    last: int


@dataclass
class Certainties:
    """All certain facts about one history."""

    history: History
    leases: dict[str, Lease] = field(default_factory=dict)
    disputes: list[tuple[Lease, Sighting]] = field(default_factory=list)
    """Leases that two observations show differently."""
    stretches: dict[str, list[Stretch]] = field(default_factory=lambda: defaultdict(list))
    claim_stretches: list[ClaimStretch] = field(default_factory=list)
    claims: list[dict[tuple[str, str], ClaimRow]] = field(default_factory=list)
    """The claims of each scan by (track, key)."""
    rows: list[dict[str, Row]] = field(default_factory=list)
    """The rows of each scan by sandbox."""

    def __post_init__(self) -> None:
        for sighting in _sightings(self.history):
            self._see(sighting)
        self._bound_ends()
        self._join_scans()
        self._wipes: dict[str, list[Delete]] = defaultdict(list)
        for delete in sorted(self.history.deletes, key=lambda each: each.began):
            if delete.is_confirmed:
                self._wipes[delete.external_id].append(delete)
        self.external_ids = _external_ids(self.history)
        self._waiting_calls = [call for call in self.history.calls if call.wait_sec is not None]
        self._scan_starts = [scan.began for scan in self.history.scans]

    def scans_within(self, began: float, ended: float) -> Iterator[tuple[int, Scan]]:
        """Yield (number, scan) of each scan that lies within the interval."""
        for number in range(bisect_left(self._scan_starts, began), len(self.history.scans)):
            scan = self.history.scans[number]
            if scan.ended > ended:
                return
            yield number, scan

    def surely(self, stretch: Stretch) -> tuple[float, float]:
        """Return the interval in which a record was surely in one state; it is empty if one scan saw it."""
        return self.history.scans[stretch.first].ended, self.history.scans[stretch.last].began

    def was_wiped(self, sandbox_id: str, since: float, until: float = math.inf) -> bool:
        """Tell whether the provider confirmed a delete that began after `since` and was answered before `until`."""
        wipes = self._wipes[self.external_ids.get(sandbox_id, "")]
        start = bisect_left(wipes, since, key=lambda each: each.began)
        return any(each.ended <= until for each in wipes[start:])

    def wiped_at(self, sandbox_id: str, since: float) -> float | None:
        """Return the time of the first confirmation of such a delete."""
        wipes = self._wipes[self.external_ids.get(sandbox_id, "")]
        start = bisect_left(wipes, since, key=lambda each: each.began)
        return wipes[start].ended if start < len(wipes) else None

    def _see(self, sighting: Sighting) -> None:
        lease = self.leases.get(sighting.lease_id)
        if lease is None:
            lease = self.leases[sighting.lease_id] = Lease(
                lease_id=sighting.lease_id,
                sandbox_id=sighting.sandbox_id,
                track_id=sighting.track_id,
                key=sighting.key,
                expires_at=sighting.expires_at,
                born_from=sighting.born_from,
            )
        lease.key = lease.key if lease.key is not None else sighting.key
        is_same = (lease.sandbox_id, lease.track_id) == (sighting.sandbox_id, sighting.track_id)
        if not is_same or sighting.key not in {None, lease.key}:
            self.disputes.append((lease, sighting))
            return
        lease.seen.append(sighting)
        lease.expires_at = max(lease.expires_at, sighting.expires_at)
        lease.born_from = max(lease.born_from, sighting.born_from)
        lease.sure_from = min(lease.sure_from, sighting.ended)
        lease.seen_until = max(lease.seen_until, sighting.began)

    def _bound_ends(self) -> None:
        marks: dict[tuple[str, str], list[Call]] = defaultdict(list)
        releases: dict[str, list[Call]] = defaultdict(list)
        for call in self.history.calls:
            if call.kind is Kind.MARK:
                marks[call.track_id, call.sandbox_id].append(call)
            elif call.kind is Kind.RELEASE and call.lease_id is not None:
                releases[call.lease_id].append(call)
        for lease in self.leases.values():
            ours = [call for call in marks[lease.track_id, lease.sandbox_id] if _may_end(call, lease)]
            theirs = [call for call in releases[lease.lease_id] if call.status in {None, 200} or _failed(call)]
            may_begin = [call.began for call in ours + theirs]
            may_begin.append(lease.expires_at + self.history.terms.buffer_sec)
            lease.over_from = max(min(may_begin), lease.seen_until, lease.born_from)
            lease.over_by = min((call.ended for call in ours + theirs if call.status == 200), default=math.inf)
            lease.is_marked = any(call.status == 200 for call in ours)

    def _join_scans(self) -> None:
        open_rows: dict[str, Stretch] = {}
        open_claims: dict[tuple[str, str], ClaimStretch] = {}
        for number, scan in enumerate(self.history.scans):
            self.rows.append({row.sandbox_id: row for row in scan.rows})
            self.claims.append({(claim.track_id, claim.key): claim for claim in scan.claims})
            for row in scan.rows:
                stretch = open_rows.get(row.sandbox_id)
                if stretch is not None and stretch.last == number - 1 and stretch.row == row:
                    stretch.last = number
                else:
                    open_rows[row.sandbox_id] = stretch = Stretch(row, number, number)
                    self.stretches[row.sandbox_id].append(stretch)
            for held_by, claim in self.claims[-1].items():
                held = open_claims.get(held_by)
                if held is not None and held.last == number - 1 and held.claim == claim:
                    held.last = number
                else:
                    open_claims[held_by] = held = ClaimStretch(claim, number, number)
                    self.claim_stretches.append(held)

    def free_throughout(self, began: float, ended: float, prefix: str) -> list[Row]:
        """Return the sandboxes with this prefix that were surely available all the time from `began` to `ended`."""
        found = []
        for stretches in self.stretches.values():
            scans = self.history.scans
            at = bisect_right(stretches, began, key=lambda each: scans[each.first].ended) - 1
            if at < 0:
                continue
            row, (since, until) = stretches[at].row, self.surely(stretches[at])
            if row.status == "available" and row.name.startswith(prefix) and since <= began and ended <= until:
                found.append(row)
        return found

    def maybe_free(self, began: float, ended: float, prefix: str) -> set[str]:
        """Return the sandboxes with this prefix that may have been free at some time from `began` to `ended`.

        One that was set aside counts too: it may have been due to a place of its lab.
        """
        return {
            sandbox_id
            for sandbox_id, stretches in self.stretches.items()
            if any(each.row.name.startswith(prefix) for each in stretches)
            and not any(
                each.row.status not in {"available", "reserved"} and since <= began and ended <= until
                for each in stretches
                for since, until in [self.surely(each)]
            )
        }

    def waiting_within(self, began: float, ended: float) -> set[tuple[str, str]]:
        """Return the (track, key) of each request that would wait in line and ran at some time of an interval."""
        return {
            (call.track_id, call.key)
            for call in self._waiting_calls
            if call.began <= ended and (began <= call.ended or call.status is None or call.status >= 500)
        }

    def scans_around(self, began: float, ended: float) -> list[Scan]:
        """Return the scans from the last one that ended before an interval to the first one that began after it.

        Empty if the interval is not between two scans.
        """
        scans = self.history.scans
        first = bisect_left(self._scan_starts, began) - 1
        while first >= 0 and scans[first].ended > began:
            first -= 1
        last = bisect_right(self._scan_starts, ended)
        return list(scans[first : last + 1]) if first >= 0 and last < len(scans) else []


def _external_ids(history: History) -> dict[str, str]:
    """Return the provider's id of each sandbox."""
    found = {account.sandbox_id: account.external_id for account in history.accounts}
    for scan in history.scans:
        found |= {row.sandbox_id: row.external_id for row in scan.rows}
    for call in history.calls:
        if "external_id" in call.body:
            found[call.body["sandbox_id"]] = call.body["external_id"]
    return found


def _sightings(history: History) -> Iterator[Sighting]:
    for call in history.calls:
        if call.status in {200, 201}:
            yield from _in_answer(call)
    for scan in history.scans:
        for row in scan.rows:
            if row.status == "allocated" and row.lease_id is not None:
                yield Sighting(
                    row.lease_id,
                    row.sandbox_id,
                    row.track_id or "",
                    row.key,
                    row.expires_at or 0,
                    row.allocated_at or 0,
                    scan.began,
                    scan.ended,
                    row.allocated_at,
                )


def _in_answer(call: Call) -> Iterator[Sighting]:
    """Yield the leases that an answer shows as held."""
    if call.kind is Kind.ALLOCATE:
        created = call.began if call.status == 201 else -math.inf
        yield _of_body(call, call.body, key=call.key, created=created)
    elif call.kind is Kind.EXTEND:
        yield _of_body(call, call.body, key=None, created=-math.inf)
    elif call.kind in {Kind.READ, Kind.LIST}:
        for body in [call.body] if call.kind is Kind.READ else call.body["sandboxes"]:
            if body["status"] == "allocated":
                yield _of_body(call, body, key=None, created=-math.inf)


def _of_body(call: Call, body: object, *, key: str | None, created: float) -> Sighting:
    assert isinstance(body, dict)
    return Sighting(
        body["lease_id"],
        body["sandbox_id"],
        body.get("allocated_to_track") or call.track_id,
        key,
        body["expires_at"],
        # The claim gets its time, in whole seconds, before its write.
        max(created, body.get("allocated_at", -math.inf)),
        call.began,
        call.ended,
        body.get("allocated_at"),
    )


def _may_end(mark: Call, lease: Lease) -> bool:
    """Tell whether a mark of the lease's track may have ended this lease.

    A mark without an answer may still be carried out at any time. A mark with an answer has read its lease before.
    """
    if mark.lease_id not in {None, lease.lease_id}:
        return False
    if mark.status is None:
        return True
    if mark.status == 200:
        return bool(mark.body["lease_id"] == lease.lease_id)
    return _failed(mark) and mark.ended >= lease.born_from


def _failed(call: Call) -> bool:
    return call.status is not None and call.status >= 500
