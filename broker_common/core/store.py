"""The port of the store: commits, the line, reservations, webhooks, candidates, the pool, reports, samples and usage.

A single read (in `Commits`, `Line`, `ReservationRecords`, `WebhookRecords` and `PoolState`) sees every write that was
answered before the read began. A read of the index (in `Candidates` and `Reports`) may be out of date. It is only a
hint, and a conditional write decides.

This release cannot read a record that is damaged or has a newer schema. It never changes such a record, and never
allocates its sandbox. A read of that record alone, or a write to it, raises `UnreadableRecord`. Other reads skip it.
Only a damaged record of counts is written over, because the pool can be counted again; but not if its schema is newer,
or is not a number.

Every method may raise `StoreUnavailable`. Every write may also raise `OutcomeUnknown`; then it may have been applied.
If the answer was lost, the caller may send the same write again: it succeeds if the first one was applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from broker_common.core.errors import BrokerError
from broker_common.core.samples import WatchRecords
from broker_common.core.schema import UPGRADE
from broker_common.core.usage import UsageRecords
from broker_common.core.webhook_store import WebhookRecords

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker_common.core.facts import Change, Fact, PoolFact
    from broker_common.core.line import Place
    from broker_common.core.principals import Actor
    from broker_common.core.reservation import Reservation
    from broker_common.core.sandbox import Candidate, Claim, Sandbox, Status

COMMIT_AT_ONCE = 25
"""The most changes in one call of `Commits.commit`, and the most sandboxes in one of `record_accounts`."""


class Conflict(BrokerError):
    """Another writer came first, so the stored record differs from the one that was read.

    `current` is the stored record, or None if it is gone.
    """

    code = "CONFLICT"

    def __init__(self, message: str, *, current: Sandbox | None) -> None:
        super().__init__(message)
        self.current = current


class ReservationFull(Conflict):
    """A sandbox cannot be set aside for a reservation, which lacks none of its name, or is not being filled now."""


# -- commit


@dataclass(frozen=True, slots=True)
class Allocated:
    """The claim was written, and its sandbox is allocated."""


@dataclass(frozen=True, slots=True)
class ClaimHeld:
    """Nothing was written: the (track, key) already holds `claim`. This same request may have written it."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class CandidateGone:
    """Nothing was written: the candidate is no longer free at its version, or its record cannot be read.

    Or it is set aside for a reservation that is not open, or is gone.

    `current` is the stored record, if there is one that can be read.
    """

    current: Sandbox | None


@dataclass(frozen=True, slots=True)
class Contended:
    """Nothing was written: another transaction used the same records, or the table throttled. Try again."""


@dataclass(frozen=True, slots=True)
class PlaceHeld:
    """Nothing was written: the (track, key) has this place in the line."""

    place_id: str


@dataclass(frozen=True, slots=True)
class ReservationShut:
    """Nothing was written: no lease may be drawn from the candidate's reservation now."""


AllocateAnswer = Allocated | ClaimHeld | CandidateGone | PlaceHeld | ReservationShut | Contended


class Commits(Protocol):
    """The only way to change sandboxes, their claims, their account records and their facts.

    An account, identified by `account_key`, belongs to one sandbox. While the sandbox's record has the account, no
    change gives it to another sandbox. An account record has no effect if its sandbox is gone or has another account.
    """

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox or a tombstone; None if there is no record."""

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        """Return the claim of a (track, idempotency key); None if there is no claim."""

    def read_claims(self, track_id: str) -> list[Claim]:
        """Return all claims of a track."""

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        """Write the claim, the allocated sandbox and the fact, and delete the place `place_id`; or nothing.

        Writes only if the (track, key) has no claim, and no other place in the line than `place_id`, and the sandbox is
        free at the candidate's version. A sandbox that is set aside is drawn from its reservation, whose counters
        change, too: only if the reservation is open when the lease begins. An existing claim or place is reported
        first, even if the candidate is gone, too. `token` names one unchanged request (candidate, claim, actor and
        place). A request that is sent again after `OutcomeUnknown` is never applied twice.
        """

    def commit(self, *changes: Change) -> None:
        """Make changes, each with its fact, its claim and its account record: all or nothing.

        A change is made only if the record has the status and version of `before`; or, if `before` is None, if there is
        no record. When a lease ends, its claim is removed. When it is extended, its claim gets the new end. A claim
        that is absent or of another lease is left unchanged. Removing an absent record succeeds. Only `allocate` begins
        a lease. Takes one change of any kind, or up to `COMMIT_AT_ONCE` changes that add a record that is not reserved.

        A change that sets a sandbox aside for a reservation, or ends that, changes the reservation's counters, too. It
        is set aside only if its name starts with the reservation's prefix, and while the reservation lacks one and is
        being filled, by the time of the fact. Otherwise raises `ReservationFull`. A reservation whose record is gone
        does not prevent the end.

        A change that ends a lease writes its usage line, and a change that writes a wipe adds the time of the wipe to
        the line of the last lease, if it has none: see `usage`.

        Raises `Conflict`. After a single change, it has the stored record.
        """

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        """Write the account records of existing sandboxes: all or nothing.

        Takes up to `COMMIT_AT_ONCE` sandboxes. Raises `Conflict` if another sandbox has one of the accounts.
        """


# -- line


@dataclass(frozen=True, slots=True)
class Joined:
    """The place was written."""


JoinAnswer = Joined | ClaimHeld | PlaceHeld


class Line(Protocol):
    """The line of waiting tracks. A (track, idempotency key) never has both a claim and a place.

    Places whose time is over stay for a while. The caller skips them, and may delete them by `leave`.
    """

    def read_line(self, *, limit: int | None = None) -> list[Place]:
        """Return the places by their ids; with a `limit`, only the first ones. Places that cannot be read are left out.

        Sees every write that was answered before the read began.
        """

    def read_place(self, track_id: str, idempotency_key: str) -> Place | None:
        """Return the place of a (track, idempotency key); None if there is none."""

    def read_places(self, track_id: str) -> list[Place]:
        """Return all places of a track."""

    def join(self, place: Place) -> JoinAnswer:
        """Write a place, if its (track, key) has no claim and no other place."""

    def renew(self, place: Place) -> bool:
        """Write a place's `back_by` and the reservations of its wish. Return False if the place is gone."""

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        """Delete a place; `unless_renewed`: only if its `back_by` is as it was read. Return whether it was there."""


# -- reservations


@dataclass(frozen=True, slots=True)
class OpenReservations:
    """All reservations that were not archived. `version` grows whenever one is booked, changed, cancelled or ended."""

    version: int
    reservations: tuple[Reservation, ...]


@dataclass(frozen=True, slots=True)
class ReservationPage:
    """A page of reservations. `cursor` reads the next page; it is None on the last one."""

    reservations: tuple[Reservation, ...]
    cursor: str | None


class ReservationRecords(Protocol):
    """The reservations. `Commits` changes their counters, `set_aside` and `drawn`; nothing here does.

    One that has ended is archived as soon as nothing is set aside for it.
    """

    def read_reservations(self) -> OpenReservations:
        """Return the reservations that were not archived. Those that cannot be read are left out."""

    def read_booked(self) -> tuple[Reservation, ...]:
        """Return the same reservations without their version, for who changes none: one read less."""

    def read_reservation(self, reservation_id: str) -> Reservation | None:
        """Return a reservation, also an archived one; None if there is none."""

    def write_reservation(
        self, before: Reservation | None, after: Reservation, *, version: int, fact: PoolFact | None = None
    ) -> None:
        """Book a reservation (`before` is None), or change, cancel or end one, with its fact: all or nothing.

        Raises `Conflict` unless `version` is that of `OpenReservations`, the stored record is as `before` in all but
        its counters, and `count` stays at least the sum of the counters. A change of `starts_at` also needs the stored
        `opened_at` to be as in `before`, and writes that of `after`.
        """

    def mark_opened(self, reservation: Reservation, fact: PoolFact) -> None:
        """Write the `opened_at` of a reservation, and the fact about its start.

        Raises `Conflict` if it has one already, has another version, or is no longer booked.
        """

    def archive_reservation(self, reservation: Reservation) -> None:
        """Move a reservation that has ended to the archive, where it stays for 90 days.

        Raises `Conflict` while sandboxes are set aside for it.
        """

    def list_archived(self, *, limit: int, cursor: str | None) -> ReservationPage:
        """List the archived reservations, the one that ended last first (an index read).

        Raises `InvalidInput` for a cursor that was not given by this listing.
        """


# -- candidates


@dataclass(frozen=True, slots=True)
class Position:
    """A position among all available sandboxes, or all that are set aside for a reservation: in a random order.

    `at` is in [0, `Candidates.positions`). `after` is a sandbox id: of the sandboxes at the same position, those up to
    this id were already returned.
    """

    at: int
    after: str | None = None


@dataclass(frozen=True, slots=True)
class CandidatePage:
    """Candidates, and the position to read on from, which may have wrapped around."""

    candidates: tuple[Candidate, ...]
    next: Position
    distance: int
    """How far `next` is beyond the requested position. A whole walk covers all `positions`."""


class Candidates(Protocol):
    """Reads sandboxes that may be free."""

    @property
    def positions(self) -> int:
        """The number of positions."""

    def read_candidates(
        self, position: Position, *, limit: int, prefix: str, reservation_id: str | None = None
    ) -> CandidatePage:
        """Read sandboxes that are available, or set aside for `reservation_id`, from a position on, by one query.

        The query reads at most `limit` sandboxes, and skips those whose name does not start with `prefix`. So an empty
        page is not the end.
        """


# -- the pool's state


@dataclass(frozen=True, slots=True)
class Watermark:
    """When a sync last succeeded, and how many accounts it saw."""

    synced_at: int
    accounts: int
    accounts_checked_at: int | None = None
    """When a sync last made sure that every sandbox has its account record, after the upgrade was finished."""


PAUSABLE = ("allocate", "sync", "cleanup", "expire")
"""The operations that an operator can pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Who paused an operation, and since when. None if an earlier release paused it."""

    by: str | None = None
    since: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Which operations an operator has paused."""

    allocate: Pause | None = None
    sync: Pause | None = None
    cleanup: Pause | None = None
    expire: Pause | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What the store says about its table, and the store's own time."""

    identity: str | None
    """Made once for each table. None if an earlier release made the table and it has no identity yet."""
    is_restored: bool = False
    """The identity was given to another physical table, so this one is a copy."""
    upgraded: int = UPGRADE
    """The number of the last finished upgrade: an operator said that no process without it runs, or none ever did."""
    synced_at: int | None = None
    """When a sync last succeeded on it; None if never, or not since an operator accepted the table."""
    time: int | None = None
    """The store's own time in Unix seconds; None if it did not report the time."""


RETURN_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""A count tells when the first sandbox is expected back, the second, the fifth, and so on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCount:
    """A count of the pool that one process made."""

    by_status: Mapping[Status, int]
    oldest_pending_deletion: int | None
    """When the sandbox that waits longest for its wipe was given back; None if none waits."""
    began_at: int
    """When the count began, in Unix seconds of that process's clock."""
    counted_by: str
    """The process's id."""
    waiting: int = 0
    """How many places the line had, at most 15 seconds earlier."""
    longest_waiting_since: int | None = None
    """When the place joined that waits longest of those whose tracks are not late; None if there is none."""
    returns: tuple[int, ...] = ()
    """When the sandboxes of `RETURN_RANKS` are expected back, as far as so many are in use or wait for their wipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRecord:
    """The last count of the pool, and which process may count next. Everything is empty if there is no record yet."""

    turn: str | None = None
    """New with each write. None also if the record is not the broker's."""
    count: PoolCount | None = None
    counter: str | None = None
    """The id of the process that may count."""
    counting_until: int = 0
    """Until when only that process may count, in Unix seconds of its clock."""


class PoolState(Protocol):
    """Reads and writes the state of the pool as a whole, and of its table."""

    def read_watermark(self) -> Watermark | None:
        """Return the watermark of the last successful sync; None before the first, or if it cannot be read."""

    def write_watermark(self, watermark: Watermark) -> None:
        """Write the watermark of a successful sync. One that is older than the stored one changes nothing."""

    def read_pauses(self) -> Pauses:
        """Return the stored pauses."""

    def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
        """Write the pauses in which `before` and `after` differ, with their facts, and return all pauses.

        Raises `Conflict` if the stored state of one of these is not that in `before`.
        """

    def record(self, fact: PoolFact) -> None:
        """Write a fact of the pool without a change."""

    def read_counts(self) -> CountRecord:
        """Return the record of counts, which may be out of date. If it is damaged, return only its `turn`.

        Raises `UnreadableRecord` if its schema is newer, or is not a number. Then it cannot be written over.
        """

    def write_counts(self, record: CountRecord, *, instead_of: str | None) -> None:
        """Write the record of counts.

        Raises `Conflict` unless the stored `turn` is `instead_of`, and its schema is one that this release reads.
        """

    def ping(self) -> TableState:
        """Make sure that the store answers and has the layout for this process, and return its table's state.

        Raises `LayoutMismatch`.
        """

    def has_sandboxes(self) -> bool:
        """Tell whether the store has a record of any sandbox or tombstone (an index read)."""

    def identify(self, identity: str, *, instead_of: str | None, last_foreign_sync: int | None = None) -> None:
        """Give the table an identity, which belongs to the current physical table.

        Raises `Conflict` unless its identity is `instead_of`. A watermark up to `last_foreign_sync` (its `synced_at`)
        no longer counts: it is of a sync before the operator accepted the table. Two watermarks are compared, not a
        watermark and a time: the next sync may succeed within the same second, or by a clock that is behind.
        """

    def finish_upgrade(self) -> None:
        """Record that no process of an earlier release runs. May be repeated."""


# -- reports


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sandbox whose record cannot be read; `reason` names the field."""

    sandbox_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SandboxPage:
    """A page of sandboxes. `cursor` reads the next page; it is None on the last one."""

    sandboxes: tuple[Sandbox, ...]
    cursor: str | None
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """All sandboxes and tombstones, in no order, and their account records.

    `accounts` maps an `account_key` to the sandbox id in its account record, for each recorded account of these. It is
    empty if the account records were not read.
    """

    sandboxes: tuple[Sandbox, ...]
    accounts: Mapping[str, str]
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class FactPage:
    """A page of a sandbox's facts. `cursor` reads the next page; it is None on the last one."""

    facts: tuple[Fact, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A page of the facts of all sandboxes and of the pool. `cursor` reads the next page.

    `is_last`: there were no further facts when the page was read.
    """

    facts: tuple[Fact | PoolFact, ...]
    cursor: str
    is_last: bool


class Reports(Protocol):
    """Reads many records, for jobs and operators."""

    def read_all(self, *, with_accounts: bool = True, consistent: bool = False, known: Sequence[Sandbox] = ()) -> Pool:
        """Read all sandboxes and tombstones; also their account records, if `with_accounts`.

        The index tells which there are, and may be out of date. So may a record, unless `consistent`, which costs
        twice as much. Of `known`, those that have the same version in the index are returned and not read.
        """

    def read_removed(self, sandbox_ids: Sequence[str]) -> Mapping[str, int]:
        """Return, for sandboxes whose record was removed, the version of their last fact if it is still kept."""

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        """Read the ids of sandboxes in a status whose `status_order` is at most `until`. Reads only these."""

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """List sandboxes of one status; if `status` is None, list all sandboxes and tombstones.

        A record that cannot be read is listed under its status in the index. It may have none there, for example if
        its status is of a later release. Then only a listing of all has it. A page may be short; only the last one
        has no cursor. Raises `InvalidInput` for a cursor that was not given by a listing of the same status.
        """

    def count(self) -> Mapping[Status, int]:
        """Count the sandboxes of every status, by the index. So records that cannot be read count, too."""

    def read_next_due(self, status: Status, *, limit: int) -> Sequence[int]:
        """Return the lowest `status_order` of the sandboxes in a status, in order (an index read)."""

    def oldest_pending_deletion(self) -> int | None:
        """Return when the sandbox that waits longest for its wipe was given back (an index read), or None."""

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        """Read the facts of a sandbox, newest first, even if its record was removed.

        Raises `InvalidInput` for a cursor that was not given by a history of the same sandbox.
        """

    def read_feed(self, *, since: int, cursor: str | None, limit: int, newest_first: bool = False) -> FeedPage:
        """Read the facts of all sandboxes and of the pool from `since` (Unix seconds) on, or after a cursor.

        They are roughly in the order of time, or the newest first. Those of one sandbox are in the order of its
        versions. A very new fact may be missing, because the index lags and the clock of another process may be behind.
        Raises `InvalidInput` for a cursor that was not given by a feed in the same order.
        """


class SandboxStore(
    Commits,
    Line,
    ReservationRecords,
    WebhookRecords,
    Candidates,
    PoolState,
    Reports,
    WatchRecords,
    UsageRecords,
    Protocol,
):
    """All parts of the store."""
