"""What the rules need from the outside, as protocols; adapters and test doubles implement them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from broker_common.core.domain import Account, Candidate, Claim, Sandbox, Status
    from broker_common.core.events import Event
    from broker_common.core.jobs import Job, JobRun


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


class SandboxStore(Protocol):
    """Sandboxes and claims.

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

    def add(self, sandbox: Sandbox) -> None:
        """Write a sandbox that has no record yet, tombstones included; raises `Conflict` if it has one."""

    def update(self, before: Sandbox, after: Sandbox) -> None:
        """Replace `before` by `after`; raises `Conflict` unless the record has `before`'s status and version.

        Never used to begin or end an allocation: those move a claim as well.
        """

    def remove(self, before: Sandbox) -> None:
        """Delete a record; raises `Conflict` unless it has `before`'s status and version. Absence is success."""

    def read_all(self) -> Iterator[Sandbox]:
        """Read every sandbox, tombstones included, in no order."""

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

    def ping(self) -> int | None:
        """Make sure that the store answers, and return its own time in Unix seconds where it tells it.

        Raises `LayoutMismatch` if it is laid out for another version of this process.
        """


@dataclass(frozen=True, slots=True)
class SkippedAccount:
    """An entry of the provider's list that does not parse; `sandbox_id` if at least that could be read."""

    reason: str
    sandbox_id: str | None = None


@dataclass(frozen=True, slots=True)
class AccountListing:
    """The provider's active sandbox accounts, all pages, each id once."""

    accounts: tuple[Account, ...]
    skipped: tuple[SkippedAccount, ...] = ()


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


class JobQueue(Protocol):
    """Where runs of jobs are asked for and looked up. Kept for 24 hours.

    Raises `QueueUnavailable` at once when the queue cannot be reached.
    """

    def enqueue(self, job: Job, *, request_id: str, force: bool = False) -> str:
        """Ask for a run now; returns its job id."""

    def find(self, job_id: str) -> JobRun:
        """Return a run; raises `JobNotFound`."""

    def ping(self) -> None:
        """Make sure that the queue answers."""


class WipeAnswer(Enum):
    """What the provider said to a delete call that it did not refuse."""

    WIPED = "wiped"
    ACCEPTED = "accepted"
    GONE = "gone"


class Provider(Protocol):
    """The provider's account API. Each call is made at most once; whoever calls decides about a retry."""

    def list_accounts(self) -> AccountListing:
        """List the active sandbox accounts.

        Raises `ListingUnusable` if the answer is empty, truncated or does not parse; `ProviderMisconfigured`,
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
