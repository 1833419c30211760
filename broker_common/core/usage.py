"""Usage: one line for each lease that has ended, and reports over them by lab, customer or day.

A line is written in the transaction that ends its lease, and gets the time of the wipe in the transaction that writes
the wipe. A report reads lines, never facts. Times are Unix seconds. A day is one of UTC.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import InvalidInput
from broker_common.core.facts import FactKind
from broker_common.core.sandbox import DeletionReason
from broker_common.core.utc import day_of, first_kept

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from broker_common.core.facts import Change
    from broker_common.core.ports import Clock

MOST_LEASES = 500_000
"""The most leases in one report. It holds 16 bytes for each, and their lengths twice while it sorts them."""
MOST_ROWS = 10_000
"""The most labs or customers in one report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageLine:
    """A lease that has ended. `wiped_at`: when its sandbox was wiped after it; None if it was not, or not yet."""

    lease_id: str
    track_name: str | None = None
    customer: str | None = None
    allocated_at: int
    ended_at: int
    ending: DeletionReason
    wiped_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WipedLease:
    """The wipe of a sandbox after the lease `lease_id`, which had ended at `ended_at`."""

    lease_id: str
    ended_at: int
    wiped_at: int


class UsageRecords(Protocol):
    """The lines of ended leases. `Commits.commit` writes them: see `ended_by` and `wiped_by`.

    It is a part of `store.SandboxStore`, whose docstring says what holds for every method.
    """

    def read_usage(self, *, since: int, until: int) -> Iterator[UsageLine]:
        """Read the lines of the leases that ended from `since` on and before `until`, in no order, page by page.

        Sees every lease whose end was answered before the read began. Lines that cannot be read are left out.
        """


def ended_by(change: Change) -> UsageLine | None:
    """Return the line of the lease that a change ends; None if it ends no lease."""
    lease = change.before.lease if change.before else None
    wipe = change.after.wipe if change.after else None
    if lease is None or wipe is None or wipe.requested_at is None or wipe.reason is None:
        return None
    return UsageLine(
        lease_id=lease.lease_id,
        track_name=lease.track_name,
        customer=lease.customer,
        allocated_at=lease.allocated_at,
        ended_at=wipe.requested_at,
        ending=wipe.reason,
    )


def wiped_by(change: Change) -> WipedLease | None:
    """Return the lease after which a change says that the sandbox is wiped; None if it does not, or there is none."""
    before, fact = change.before, change.fact
    if before is None or fact is None or fact.kind is not FactKind.WIPED:
        return None
    if before.last_lease is None or before.wipe is None or before.wipe.requested_at is None:
        return None
    return WipedLease(lease_id=before.last_lease.lease_id, ended_at=before.wipe.requested_at, wiped_at=fact.at)


# -- the report


class Grouping(StrEnum):
    """What a report has a row for: each lab, each customer, or each day."""

    TRACK_NAME = "track_name"
    CUSTOMER = "customer"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """The leases of one lab or customer, or those that ended on one day.

    `group` is None where the lab or the customer is not known. `marked`, `released` and `expired` say how many leases
    ended so. `wipes`: how many of the leases were followed by a wipe. A median or p95 is None if there is nothing to
    measure.
    """

    group: str | None
    leases: int
    sandbox_hours: float
    marked: int
    released: int
    expired: int
    lease_median_sec: int | None
    lease_p95_sec: int | None
    wipes: int
    wipe_median_sec: int | None
    wipe_p95_sec: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What the leases were that ended from `since` on and before `until`.

    The rows are in the order of days, or else those with the most sandbox hours come first. `total` is over all rows.
    """

    since: int
    until: int
    by: Grouping
    rows: tuple[UsageRow, ...]
    total: UsageRow


def percentile(ordered: Sequence[int], percent: int) -> int | None:
    """Return the lowest of the values that at least `percent` of 100 values do not exceed; None if there are none.

    So it is always one of the values. Source: the nearest-rank method; NIST/SEMATECH, e-Handbook of Statistical
    Methods, 7.2.6.2, and Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996), definition 1.
    """
    if not ordered:
        return None
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1]


def summarize(lines: Iterable[UsageLine], *, since: int, until: int, by: Grouping) -> UsageReport:
    """Return the report over the lines, which it reads once and does not keep.

    It holds two numbers of 8 bytes for each lease, because a median needs all values. Raises `InvalidInput` for more
    than `MOST_LEASES` leases or `MOST_ROWS` rows.
    """
    tallies: defaultdict[str | None, _Tally] = defaultdict(_Tally)
    for count, line in enumerate(lines, 1):
        tallies[_group_of(line, by)].add(line)
        if count > MOST_LEASES:
            raise _fault("from", f"More than {MOST_LEASES} leases ended in this time. Choose a shorter one.")
        if len(tallies) > MOST_ROWS:
            raise _fault("by", f"There are more than {MOST_ROWS} of them in this time. Choose a shorter one.")
    total = _Tally()
    for tally in tallies.values():
        total.add_all(tally)
    rows = [tally.row(group) for group, tally in tallies.items()]
    if by is Grouping.DAY:
        rows.sort(key=lambda row: row.group or "")
    else:
        rows.sort(key=lambda row: (-row.sandbox_hours, row.group or ""))
    return UsageReport(since=since, until=until, by=by, rows=tuple(rows), total=total.row(None))


class Usage:
    """Reports on ended leases, for operators."""

    def __init__(self, *, records: UsageRecords, clock: Clock, kept_days: int) -> None:
        """`kept_days`: for how many days lines are kept."""
        self._records = records
        self._clock = clock
        self._kept_days = kept_days

    def report(self, *, since: int, until: int | None, by: Grouping, customer: str | None = None) -> UsageReport:
        """Return the report on the leases that ended from `since` on and before `until`; None for now.

        With a `customer`, only its leases count. A lease that had not ended by `until` does not count.

        Raises `InvalidInput` if `since` is before the first day of which all lines are kept, if it is not before
        `until`, or if `until` is in the future; also as `summarize`.
        """
        now = self._clock.now()
        until = now if until is None else until
        if until > now + MAX_DIFFERENCE_SEC:
            raise _fault("to", f"Must not be in the future: it is {now} now.")
        if since >= until:
            raise _fault("from", "Must be before `to`, which is now if it is left out.")
        earliest = first_kept(now, days=self._kept_days)
        if since < earliest:
            shown = f"{earliest} ({day_of(earliest)} 00:00 UTC)"
            raise _fault("from", f"Must be {shown} or later: earlier leases are not kept (HISTORY_DAYS).")
        lines = self._records.read_usage(since=since, until=until)
        if customer is not None:
            lines = (line for line in lines if line.customer == customer)
        return summarize(lines, since=since, until=until, by=by)


@dataclass(slots=True)
class _Tally:
    """What is counted of one row: how leases ended, and how long each lease and each wipe took."""

    endings: Counter[DeletionReason] = field(default_factory=Counter)
    leases: array[int] = field(default_factory=lambda: array("q"))
    wipes: array[int] = field(default_factory=lambda: array("q"))

    def add(self, line: UsageLine) -> None:
        self.endings[line.ending] += 1
        # Two processes may write the two times, and their clocks differ a little.
        self.leases.append(max(0, line.ended_at - line.allocated_at))
        if line.wiped_at is not None:
            self.wipes.append(max(0, line.wiped_at - line.ended_at))

    def add_all(self, other: _Tally) -> None:
        self.endings.update(other.endings)
        self.leases.extend(other.leases)
        self.wipes.extend(other.wipes)

    def row(self, group: str | None) -> UsageRow:
        leases, wipes = sorted(self.leases), sorted(self.wipes)
        return UsageRow(
            group=group,
            leases=len(leases),
            sandbox_hours=round(sum(leases) / 3600, 2),
            marked=self.endings[DeletionReason.MARKED],
            released=self.endings[DeletionReason.RELEASED],
            expired=self.endings[DeletionReason.EXPIRED],
            lease_median_sec=percentile(leases, 50),
            lease_p95_sec=percentile(leases, 95),
            wipes=len(wipes),
            wipe_median_sec=percentile(wipes, 50),
            wipe_p95_sec=percentile(wipes, 95),
        )


def _group_of(line: UsageLine, by: Grouping) -> str | None:
    if by is Grouping.DAY:
        return day_of(line.ended_at)
    return line.track_name if by is Grouping.TRACK_NAME else line.customer


def _fault(name: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{name}: {problem}", details={name: [problem]})
