"""What the rules need from the outside, as protocols; adapters and test doubles implement them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from broker_common.core.domain import account_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from broker_common.core.domain import Account, Candidate, Claim, Sandbox, Status
    from broker_common.core.events import Event


class Clock(Protocol):
    """Time, so that tests can hold it."""

    def now(self) -> int:
        """Return the time in Unix seconds."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never running backwards."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class Recorder(Protocol):
    """Where the core says what happened; metrics and log lines hang on it."""

    def record(self, event: Event) -> None:
        """Take note of an event; never raises."""


@dataclass(frozen=True, slots=True)
class RingPosition:
    """A place in the ring that holds all available sandboxes in a random order.

    `at` lies in [0, `SandboxStore.ring_size`). `after`, a sandbox id, tells apart sandboxes at the same place that
    were already returned.
    """

    at: int
    after: str | None = None


@dataclass(frozen=True, slots=True)
class AvailablePage:
    """Candidates read from the ring, and the position from which to read on (which may have wrapped around)."""

    candidates: tuple[Candidate, ...]
    next: RingPosition
    distance: int
    """How far `next` lies beyond the position that was asked for; a whole walk covers `ring_size`."""


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
class Watermark:
    """When a sync last succeeded, and how many accounts it saw."""

    synced_at: int
    accounts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Which operations an operator has paused."""

    allocate: bool = False
    sync: bool = False
    cleanup: bool = False
    expire: bool = False


ADD_AT_ONCE = 25
"""How many sandboxes one call of `SandboxStore.add` or `record_accounts` takes at most."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Every sandbox, tombstones included, in no order; and the ids of the sandboxes that account records name.

    `accounts` has an entry for each account that is recorded, under its `account_key`.
    """

    sandboxes: tuple[Sandbox, ...]
    accounts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What the store tells of its table, and the store's own time."""

    identity: str | None
    """Made once for each table; None for a table of an older release that has not got it yet."""
    is_restored: bool = False
    """The table is physically another one than the one that its identity was given to."""
    synced_at: int | None = None
    """When a sync last succeeded on it; None if that was never, or before an operator accepted the table."""
    time: int | None = None
    """The store's own time in Unix seconds; None where it does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTable:
    """What is remembered of the right table."""

    identity: str
    had_records: bool = False
    """A sync had succeeded on it, so it has a record of a sandbox."""
    accepted_at: int = 0
    """When an operator accepted it, in milliseconds by the memory's clock; 0 if nobody had to."""


class TableMemory(Protocol):
    """Which table is the right one, remembered outside of the table, for all processes.

    Every method raises `QueueUnavailable` if the memory does not answer.
    """

    def recall(self) -> KnownTable | None:
        """Return what is remembered; None if that is nothing."""

    def remember(self, table: KnownTable) -> None:
        """Remember a table where none is remembered, and of the same one that it had records."""

    def replace(self, identity: str) -> None:
        """Remember an accepted table in the place of any other."""


class SandboxStore(Protocol):
    """Sandboxes, claims, and for each account the record of the one sandbox that has it.

    No write gives an account to a sandbox while another sandbox's record has it (`account_key` tells them apart); such
    a write raises `Conflict`. A record of an account that names a sandbox that is gone, or has another account now,
    keeps nobody out.

    Single reads (`get`, `get_claim`, `read_claims`, `read_all`, `read_watermark`, `read_pauses`) see every write that
    was answered before they began. What goes through the index (`read_available`, `read_due`, `list_sandboxes`,
    `count`) may lag behind: a hint, which only a conditional write can turn into a fact.

    A record that this release cannot read is never changed and no candidate: reading it alone, or writing where it is,
    raises `UnreadableRecord`; what reads many leaves it out.

    Every method may raise `StoreUnavailable`; every write may also raise `OutcomeUnknown`, and then it may have been
    applied. A write whose answer was lost and that is sent again by the same caller succeeds if the first one was
    applied.
    """

    @property
    def ring_size(self) -> int:
        """The size of the ring that `read_available` walks."""

    def get(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox, tombstones included."""

    def get_claim(self, track_id: str, idempotency_key: str) -> Claim | None:
        """Return the claim of a (track, idempotency key)."""

    def read_claims(self, track_id: str) -> list[Claim]:
        """Return all claims of a track."""

    def read_available(self, position: RingPosition, *, limit: int, prefix: str) -> AvailablePage:
        """Read available sandboxes onwards from a position of the ring, by one query.

        At most `limit` sandboxes are looked at; those whose name does not start with `prefix` are left out, so an
        empty page is not the end.
        """

    def allocate(self, candidate: Candidate, claim: Claim, *, token: str) -> AllocateAnswer:
        """Write the claim and allocate its sandbox, or neither, in one transaction.

        Holds only if the (track, key) has no claim and the sandbox is available at the candidate's version. A claim
        that exists is reported before anything that is wrong with the candidate. `token` names one frozen request
        (candidate and claim): sending it again after an `OutcomeUnknown` never applies it twice.
        """

    def end_allocation(self, before: Sandbox, after: Sandbox) -> None:
        """Write `after` and delete the claim, or neither, in one transaction.

        Holds only if the sandbox is still allocated under `before`'s lease at its version; the claim is deleted if it
        is that lease's, and its absence does not matter. Raises `Conflict` otherwise.
        """

    def add(self, *sandboxes: Sandbox) -> None:
        """Write sandboxes that have no record yet, tombstones included, and their accounts' records: all or nothing.

        Takes up to `ADD_AT_ONCE`. Raises `Conflict` if one of them has a record, or its account has another sandbox;
        the conflict shows the record only where one sandbox was to be added.
        """

    def record_accounts(self, *sandboxes: Sandbox) -> None:
        """Write the accounts' records of sandboxes that exist: all or nothing.

        Takes up to `ADD_AT_ONCE`. Raises `Conflict` if another sandbox has one of the accounts.
        """

    def update(self, before: Sandbox, after: Sandbox) -> None:
        """Replace `before` by `after`; raises `Conflict` unless the record has `before`'s status and version.

        Never used to begin or end an allocation: those move a claim as well.
        """

    def remove(self, before: Sandbox) -> None:
        """Delete a record, and its account's; raises `Conflict` unless it has `before`'s status and version.

        Absence is success.
        """

    def read_all(self) -> Pool:
        """Read every sandbox and every account's record."""

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

    def read_watermark(self) -> Watermark | None:
        """Return what the last successful sync left; None before the first, or if that cannot be read."""

    def write_watermark(self, watermark: Watermark) -> None:
        """Leave word of a successful sync; an older one than what is there changes nothing."""

    def read_pauses(self) -> Pauses:
        """Return what is paused."""

    def set_pauses(self, changes: Mapping[str, bool]) -> Pauses:
        """Set the named pauses, leave the others, and return all."""

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


@dataclass(frozen=True, slots=True)
class SkippedAccount:
    """An entry of the provider's list that does not parse, and as much of its ids as could be read."""

    reason: str
    sandbox_id: str | None = None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class InactiveAccount:
    """An entry of the provider's list that is no active sandbox, with those of its ids that it states."""

    sandbox_id: str | None
    external_id: str | None = None


@dataclass(frozen=True, slots=True)
class AccountListing:
    """What the provider lists, all pages.

    `accounts` are the active sandbox accounts, each id and each account once. `ambiguous` are those that share one of
    both with another entry, which says something else: nothing may be concluded from them. `doubt` says why the list
    may lack accounts; it is None if the list is known to be whole, so that what is not in it is absent.
    """

    accounts: tuple[Account, ...]
    skipped: tuple[SkippedAccount, ...] = ()
    inactive: tuple[InactiveAccount, ...] = ()
    ambiguous: tuple[Account, ...] = ()
    doubt: str | None = None

    @property
    def _entries(self) -> tuple[Account | SkippedAccount | InactiveAccount, ...]:
        return (*self.accounts, *self.skipped, *self.inactive, *self.ambiguous)

    @property
    def sandbox_ids(self) -> frozenset[str]:
        """Every sandbox id that an entry states, of whatever state and type."""
        return frozenset(entry.sandbox_id for entry in self._entries if entry.sandbox_id is not None)

    @property
    def account_keys(self) -> frozenset[str]:
        """The `account_key` of every account that an entry states, of whatever state and type."""
        return frozenset(account_key(entry.external_id) for entry in self._entries if entry.external_id is not None)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left to a caller; durations in whole seconds, rounded up."""

    is_exceeded: bool
    limit: int
    remaining: int
    reset_after: int
    retry_after: int


class RateLimit(Protocol):
    """How many requests each key may make, shared by all processes."""

    def take(self, key: str) -> Allowance | None:
        """Take one request off a key's allowance; None if it cannot be counted now. Never raises, hardly waits."""


class WipeAnswer(Enum):
    """What the provider said to a delete call that it did not refuse."""

    WIPED = "wiped"
    ACCEPTED = "accepted"
    GONE = "gone"


class Provider(Protocol):
    """The provider's account API. Each call is made at most once; whoever calls decides about a retry."""

    def list_accounts(self) -> AccountListing:
        """List the accounts.

        Raises `ListingUnusable` if an answer is cut short or does not parse, or no active sandbox account is listed;
        `ProviderMisconfigured`,
        `ProviderRejected`, `ProviderFailing`, `ProviderBusy`, `ProviderCircuitOpen`, `ProviderSlotsUnavailable`.
        """

    def admit(self) -> AbstractContextManager[None]:
        """Hold one of the call slots that all workers share, for one `delete_account` inside the context.

        Raises `ProviderBusy`, `ProviderCircuitOpen` or `ProviderSlotsUnavailable`; then nothing may be sent.
        """

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        """Ask for an account to be wiped. Call it inside `admit`.

        The request goes out within `send_within` seconds, or not at all.
        Raises `ProviderMisconfigured`, `ProviderRejected` or `ProviderFailing`.
        """
