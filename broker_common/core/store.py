"""The store's port, in four parts: commit, candidates, the pool's state, and reports.

Single reads (those of `Commits` and `PoolState`) see every write that was answered before they began. What goes through
the index (`Candidates` and `Reports`) may lag behind: a hint, which only a conditional write can turn into a fact.

A record that this release cannot read, because it is damaged or of a newer schema, is never changed and no candidate:
reading it alone, or writing where it is, raises `UnreadableRecord`; what reads many leaves it out.

Every method may raise `StoreUnavailable`; every write may also raise `OutcomeUnknown`, and then it may have been
applied. A write whose answer was lost and that is sent again by the same caller succeeds if the first one was applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker_common.core.facts import Change, Fact, PoolFact
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Candidate, Claim, Sandbox, Status

COMMIT_AT_ONCE = 25
"""How many changes one call of `Commits.commit` takes at most, and sandboxes one of `record_accounts`."""


class Conflict(BrokerError):
    """Another writer came first: what was read is no longer what is stored.

    `current` is the record as it is now, or None if it is gone.
    """

    code = "CONFLICT"

    def __init__(self, message: str, *, current: Sandbox | None) -> None:
        super().__init__(message)
        self.current = current


# -- commit


@dataclass(frozen=True, slots=True)
class Allocated:
    """The claim was written and its sandbox is allocated under it."""


@dataclass(frozen=True, slots=True)
class ClaimHeld:
    """Nothing was written: the (track, key) holds `claim` already (it may be this very request's)."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class CandidateGone:
    """Nothing was written: the candidate is no longer available at its version, or its record cannot be read.

    `current` is what it is now, if there is a record that can be read.
    """

    current: Sandbox | None


@dataclass(frozen=True, slots=True)
class Contended:
    """Nothing was written: another transaction was at work on the same records, or the table throttled; try again."""


AllocateAnswer = Allocated | ClaimHeld | CandidateGone | Contended


class Commits(Protocol):
    """The one door through which sandboxes, their claims, their accounts and their facts change.

    An account belongs to one sandbox: no change gives it to another one while a record has it (`account_key` tells
    accounts apart). A record of an account that names a sandbox that is gone, or has another account now, keeps nobody
    out.
    """

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox, tombstones included."""

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        """Return the claim of a (track, idempotency key)."""

    def read_claims(self, track_id: str) -> list[Claim]:
        """Return all claims of a track."""

    def allocate(self, candidate: Candidate, claim: Claim, *, by: Actor, token: str) -> AllocateAnswer:
        """Write the claim, the sandbox as allocated under it, and the fact; or nothing.

        Holds only if the (track, key) has no claim and the sandbox is available at the candidate's version. A claim
        that exists is reported before anything that is wrong with the candidate. `token` names one frozen request
        (candidate, claim and actor): sending it again after an `OutcomeUnknown` never applies it twice.
        """

    def commit(self, *changes: Change) -> None:
        """Make changes, each with its fact, its claim and its account: all or nothing.

        A change holds only if the record has the status and version of `before`, or if there is none where `before` is
        None; the claim of a lease that ends is deleted if it is that lease's, and its absence does not matter. To
        remove a record that is absent is success. Leases begin by `allocate` alone. Takes one change of any kind, or up
        to `COMMIT_AT_ONCE` that add a record.

        Raises `Conflict`, which shows the record where one change was to be made.
        """

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        """Write the accounts' records of sandboxes that exist: all or nothing.

        Takes up to `COMMIT_AT_ONCE`. Raises `Conflict` if another sandbox has one of the accounts.
        """


# -- candidates


@dataclass(frozen=True, slots=True)
class Position:
    """A position among all available sandboxes, which lie in a random order.

    `at` lies in [0, `Candidates.positions`). `after`, a sandbox id, tells apart sandboxes at the same position that
    were already returned.
    """

    at: int
    after: str | None = None


@dataclass(frozen=True, slots=True)
class CandidatePage:
    """Candidates, and the position from which to read on (which may have wrapped around)."""

    candidates: tuple[Candidate, ...]
    next: Position
    distance: int
    """How far `next` lies beyond the position that was asked for; a whole walk covers all `positions`."""


class Candidates(Protocol):
    """Which sandboxes might be allocated."""

    @property
    def positions(self) -> int:
        """How many positions there are."""

    def read_candidates(self, position: Position, *, limit: int, prefix: str) -> CandidatePage:
        """Read available sandboxes onwards from a position, by one query.

        At most `limit` sandboxes are looked at; those whose name does not start with `prefix` are left out, so an
        empty page is not the end.
        """


# -- the pool's state


@dataclass(frozen=True, slots=True)
class Watermark:
    """When a sync last succeeded, and how many accounts it saw."""

    synced_at: int
    accounts: int


PAUSABLE = ("allocate", "sync", "cleanup", "expire")
"""What an operator can pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """By whom something is paused, and since when; None where a release before this one paused it."""

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
    """What the store tells of its table, and the store's own time."""

    identity: str | None
    """Made once for each table; None for a table of an older release that has not got it yet."""
    is_restored: bool = False
    """The table is physically another one than the one that its identity was given to."""
    is_upgraded: bool = True
    """An operator said that no process of a release before this one runs, or none ever did."""
    synced_at: int | None = None
    """When a sync last succeeded on it; None if that was never, or before an operator accepted the table."""
    time: int | None = None
    """The store's own time in Unix seconds; None where it does not tell."""


class PoolState(Protocol):
    """What is known of the pool as a whole, and of its table."""

    def read_watermark(self) -> Watermark | None:
        """Return what the last successful sync left; None before the first, or if that cannot be read."""

    def write_watermark(self, watermark: Watermark) -> None:
        """Leave word of a successful sync; an older one than what is there changes nothing."""

    def read_pauses(self) -> Pauses:
        """Return what is paused."""

    def set_pauses(self, before: Pauses, after: Pauses, *facts: PoolFact) -> Pauses:
        """Write the pauses in which `before` and `after` differ, with their facts, and return all.

        Raises `Conflict` if what differs is no longer paused, or not paused, as in `before`.
        """

    def record(self, fact: PoolFact) -> None:
        """Write a fact of the pool that comes with no change."""

    def ping(self) -> TableState:
        """Make sure that the store answers and is laid out for this process, and return what it tells of itself.

        Raises `LayoutMismatch`.
        """

    def has_sandboxes(self) -> bool:
        """Tell whether the store has a record of a sandbox, tombstones included (an index read)."""

    def identify(self, identity: str, *, instead_of: str | None, accepted_at: int | None = None) -> None:
        """Give the table an identity, and take it for the physical table that it is now.

        Raises `Conflict` unless its identity is `instead_of`. `accepted_at`: when an operator accepted it (Unix
        seconds); syncs before that count no more.
        """

    def finish_upgrade(self) -> None:
        """Write down that no process of a release before this one runs. May be repeated."""


# -- reports


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sandbox whose record cannot be read; `reason` names the field."""

    sandbox_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SandboxPage:
    """A page of sandboxes; `cursor` reads on, and is None at the end."""

    sandboxes: tuple[Sandbox, ...]
    cursor: str | None
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """Every sandbox, tombstones included, in no order; and the ids of the sandboxes that account records name.

    `accounts` has an entry for each account of these sandboxes that is recorded, under its `account_key`.
    """

    sandboxes: tuple[Sandbox, ...]
    accounts: Mapping[str, str]
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True)
class FactPage:
    """A page of a sandbox's facts; `cursor` reads on, and is None at the end."""

    facts: tuple[Fact, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A page of the facts of all sandboxes and of the pool; `cursor` reads on.

    `is_last`: when it was read, nothing came after it.
    """

    facts: tuple[Fact | PoolFact, ...]
    cursor: str
    is_last: bool


class Reports(Protocol):
    """What jobs and operators read of many records."""

    def read_all(self, *, with_accounts: bool = True) -> Pool:
        """Read every sandbox, and the records of their accounts unless these are not wanted."""

    def read_removed(self, sandbox_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the version of the last fact of those sandboxes whose record was removed, as long as that is kept."""

    def read_due(self, status: Status, *, until: int) -> Iterator[str]:
        """Read the ids of sandboxes in a status whose `status_order` is at most `until`; reads only those."""

    def list_sandboxes(self, status: Status | None, *, limit: int, cursor: str | None) -> SandboxPage:
        """List sandboxes of one status, or all of them, tombstones included, if `status` is None.

        A record that cannot be read is listed under the status at which the index has it. Where it has none, because
        the status is one of a later release for example, only a listing of all has it.
        A page may be short; it is the last one only without a cursor. Raises `InvalidInput` for a cursor that was not
        given by a listing of the same status.
        """

    def count(self) -> Mapping[Status, int]:
        """Count sandboxes per status, every status present; by the index, so a record need not be readable."""

    def oldest_pending_deletion(self) -> int | None:
        """Return when the deletion was asked for that has waited longest (an index read); None if none waits."""

    def read_history(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        """Read the facts of a sandbox, newest first; also of one whose record was removed.

        Raises `InvalidInput` for a cursor that was not given by a history of the same sandbox.
        """

    def read_feed(self, *, since: int, cursor: str | None, limit: int) -> FeedPage:
        """Read the facts of all sandboxes and of the pool from `since` (Unix seconds) on, or after a cursor.

        They come in about the order of time, and those of one sandbox in that of its versions. A fact of the last
        moments may be missing: the index lags, and another process's clock may be behind. Raises `InvalidInput` for a
        cursor that was not given by a feed.
        """


class SandboxStore(Commits, Candidates, PoolState, Reports, Protocol):
    """All four parts, as one table has them."""
