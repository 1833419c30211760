"""What is only counted, timed or logged: the vocabulary of the `Recorder` port. What is stored are `facts`.

Outcomes come from closed sets, so that they can be labels of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AllocateOutcome(StrEnum):
    """How an allocate ended."""

    SUCCESS = "success"
    IDEMPOTENT = "idempotent"
    NO_SANDBOXES = "no_sandboxes"
    ERROR = "error"


class MarkOutcome(StrEnum):
    """How a mark-for-deletion ended."""

    SUCCESS = "success"
    REPEATED = "repeated"
    NOT_OWNER = "not_owner"
    NOT_FOUND = "not_found"
    ERROR = "error"


class DeleteOutcome(StrEnum):
    """How the attempt to delete one sandbox ended."""

    DELETED = "deleted"
    GONE = "gone"
    WILL_RETRY = "will_retry"
    GAVE_UP = "gave_up"
    """The provider refused it for good, or its attempts are used up: a person must look."""
    MISCONFIGURED = "misconfigured"
    """The provider does not take us for its client; not counted as an attempt."""
    POSTPONED = "postponed"
    """Nothing was sent: an open breaker, a pause, no slots or no store within reach."""
    RESTED = "rested"
    """It was wiped before, has rested since, and is available again; nothing was sent."""
    NOT_DUE = "not_due"
    """Somebody else has it, or had it."""

    @property
    def is_failure(self) -> bool:
        """Tell whether the provider was asked and did not wipe the sandbox: what the jobs' sentence calls failed."""
        return self in {DeleteOutcome.WILL_RETRY, DeleteOutcome.GAVE_UP, DeleteOutcome.MISCONFIGURED}


class StoreOutcome(StrEnum):
    """How one call of the store's engine ended."""

    SUCCESS = "success"
    CONDITION_FAILED = "condition_failed"
    THROTTLED = "throttled"
    """Refused for now, also because others are at work on the same records."""
    ERROR = "error"
    UNANSWERED = "unanswered"


class RateOutcome(StrEnum):
    """What the rate limit did with a request, where that is not simply to let it pass."""

    LIMITED = "limited"
    UNCHECKED = "unchecked"
    """Let pass because nobody could count it."""


class StopReason(StrEnum):
    """What a process stops acting for."""

    CLOCK = "clock"
    TABLE = "table"


class ProviderOutcome(StrEnum):
    """How one call to the provider ended."""

    SUCCESS = "success"
    FAILING = "failing"
    REJECTED = "rejected"
    MISCONFIGURED = "misconfigured"
    UNUSABLE = "unusable"
    """Answered, but not by a list that can be used."""


class JobOutcome(StrEnum):
    """How a run of a job ended."""

    SUCCESS = "success"
    ERROR = "error"
    SKIPPED = "skipped"


class RefusalReason(StrEnum):
    """Why a sync did not take in an account that is listed as active."""

    ID_TAKEN = "id_taken"
    """Its `id` is the account of another sandbox's record."""
    ID_CHANGED = "id_changed"
    """Its sandbox's record has another account, and must keep it for now."""
    AMBIGUOUS = "ambiguous"
    """It shares `id` or `csp_id` with another entry of the list, or is listed in two states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateEnded:
    """A track asked for a sandbox and was answered. `conflicts` counts the candidates that others had taken.

    `code` is that of the `BrokerError` it was answered with; none for a success, or an error nobody foresaw.
    """

    outcome: AllocateOutcome
    seconds: float
    conflicts: int
    track_id: str
    sandbox_id: str | None = None
    lease_id: str | None = None
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkEnded:
    """A track gave a sandbox back and was answered; `code` as in `AllocateEnded`."""

    outcome: MarkOutcome
    track_id: str
    sandbox_id: str
    lease_id: str | None = None
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReleased:
    """An operator ended an allocation."""

    sandbox_id: str
    lease_id: str
    track_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationExpired:
    """An allocation past its time was ended, by the job or on the spot by its track's next allocate."""

    sandbox_id: str
    lease_id: str
    track_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSkipped:
    """A sync did not take in an entry of the provider's list."""

    reason: str
    sandbox_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRefused:
    """A sync did not take in an account that the provider lists as active.

    `sandbox_id` is what the list says, `held_by` the sandbox whose record stands in the way.
    """

    reason: RefusalReason
    sandbox_id: str
    held_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteContradicted:
    """The provider answered a delete with 404, and lists the account as active: it goes back to be wiped.

    `attempts` counts this one; at the limit a person must look.
    """

    sandbox_id: str
    attempts: int
    lease_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgressed:
    """A sync that has much to write is so far with it."""

    change: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailed:
    """One item of a job failed; the run went on, and the next one will try it again."""

    job: str
    sandbox_id: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSynced:
    """A sync wrote these changes; `braked` if it left the missing ones alone because they are too many.

    `tombstones_listed`: how many sandboxes are deleted here and still listed by the provider.
    """

    synced: int
    stale: int
    tombstones_listed: int = 0
    braked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEnded:
    """The attempt to delete one sandbox ended."""

    outcome: DeleteOutcome
    sandbox_id: str
    lease_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChecked:
    """A request was refused by the rate limit, or could not be counted."""

    outcome: RateOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionsStopped:
    """A look at the store found that this process must not act; told again by each look that finds it."""

    reason: StopReason
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUnreadable:
    """A stored record could not be read; said once a minute for each record by each process that meets it."""

    error: str
    sandbox_id: str | None = None
    track_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCalled:
    """The store's engine was called once; `operation` is the engine's name for it."""

    operation: str
    outcome: StoreOutcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCalled:
    """The provider was called once: `operation` is list or delete."""

    operation: str
    outcome: ProviderOutcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A run of a job ended."""

    job: str
    outcome: JobOutcome
    seconds: float
    message: str
    error: str | None = None


Event = (
    AllocateEnded
    | MarkEnded
    | AllocationReleased
    | AllocationExpired
    | AccountSkipped
    | AccountRefused
    | DeleteContradicted
    | SyncProgressed
    | ItemFailed
    | PoolSynced
    | DeleteEnded
    | JobEnded
    | RateChecked
    | ActionsStopped
    | RecordUnreadable
    | StoreCalled
    | ProviderCalled
)
