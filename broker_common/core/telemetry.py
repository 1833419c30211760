"""Telemetry: what the core counts, times or logs through the `Recorder` port. What it stores is in `facts`.

Outcomes are closed sets, so that they can be labels of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class AllocateOutcome(StrEnum):
    """How an allocate ended."""

    SUCCESS = "success"
    IDEMPOTENT = "idempotent"
    NO_SANDBOXES = "no_sandboxes"
    WAITING = "waiting"
    ERROR = "error"


class WaitOutcome(StrEnum):
    """How a track's wait in the line ended."""

    SERVED = "served"
    GAVE_UP = "gave_up"


class MarkOutcome(StrEnum):
    """How a mark-for-deletion ended."""

    SUCCESS = "success"
    REPEATED = "repeated"
    NOT_OWNER = "not_owner"
    NOT_FOUND = "not_found"
    ERROR = "error"


class ExtendOutcome(StrEnum):
    """How a request to extend a lease ended."""

    SUCCESS = "success"
    UNCHANGED = "unchanged"
    """The lease lasted long enough already."""
    LIMIT = "limit"
    ENDED = "ended"
    NOT_OWNER = "not_owner"
    NOT_FOUND = "not_found"
    ERROR = "error"


class DeleteOutcome(StrEnum):
    """How one attempt to wipe a sandbox ended."""

    DELETED = "deleted"
    GONE = "gone"
    WILL_RETRY = "will_retry"
    GAVE_UP = "gave_up"
    """The provider refused it for good, or no attempts are left. An operator must look at it."""
    MISCONFIGURED = "misconfigured"
    """The provider does not accept the broker as a client. This does not count as an attempt."""
    POSTPONED = "postponed"
    """Nothing was sent: the breaker is open, wipes are paused, or the call slots or the store cannot be reached."""
    RESTED = "rested"
    """It was wiped earlier, has rested, and is available again. Nothing was sent."""
    NOT_DUE = "not_due"
    """Another process has taken it, or has finished with it."""

    @property
    def is_failure(self) -> bool:
        """Tell whether the provider was asked and did not wipe the sandbox. Job messages call this failed."""
        return self in {DeleteOutcome.WILL_RETRY, DeleteOutcome.GAVE_UP, DeleteOutcome.MISCONFIGURED}


class ServicesOutcome(StrEnum):
    """How the removal of the services that a student left in an account ended."""

    NONE = "none"
    """There were none."""
    REMOVED = "removed"
    """All are gone."""
    PARTIAL = "partial"
    """Some are left, because the provider did not delete them, or because the time was over."""
    SHADOW = "shadow"
    """Some are there. They were only counted, because the removal is in shadow mode."""
    FAILED = "failed"
    """It is not known whether there are any: the sign-in, the switch to the account or the list failed."""
    SKIPPED = "skipped"
    """Nothing was sent: the circuit breaker of the removal is open."""


class DeliveryOutcome(StrEnum):
    """How one try to deliver a fact to an endpoint ended."""

    DELIVERED = "delivered"
    FAILED = "failed"
    """It is tried again."""
    EXHAUSTED = "exhausted"
    """It failed, and there is no other try."""
    DISABLED = "disabled"
    """The endpoint wants no more deliveries, so it is disabled."""


class StoreOutcome(StrEnum):
    """How one call to the store's engine ended."""

    SUCCESS = "success"
    CONDITION_FAILED = "condition_failed"
    THROTTLED = "throttled"
    """Refused for now: too many requests, or another transaction used the same records."""
    ERROR = "error"
    UNANSWERED = "unanswered"


class RateOutcome(StrEnum):
    """What the rate limit did with a request that it did not just count and let pass."""

    LIMITED = "limited"
    UNCHECKED = "unchecked"
    """Let pass, because it could not be counted."""


class StopReason(StrEnum):
    """Why a process stops acting."""

    CLOCK = "clock"
    TABLE = "table"


class ProviderOutcome(StrEnum):
    """How one call to the provider ended."""

    SUCCESS = "success"
    FAILING = "failing"
    REJECTED = "rejected"
    MISCONFIGURED = "misconfigured"
    UNUSABLE = "unusable"
    """It answered, but without a usable list."""


class JobOutcome(StrEnum):
    """How a run of a job ended."""

    SUCCESS = "success"
    ERROR = "error"
    SKIPPED = "skipped"


class RefusalReason(StrEnum):
    """Why a sync refused an account that is listed as active."""

    ID_TAKEN = "id_taken"
    """Its `id` is the account of another sandbox's record."""
    ID_CHANGED = "id_changed"
    """Its sandbox's record has another account, and must keep it for now."""
    AMBIGUOUS = "ambiguous"
    """It shares `id` or `csp_id` with another entry of the list, or is listed in two states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateEnded:
    """A request to allocate ended. `conflicts` counts the candidates that others had taken.

    `code` is the code of the `BrokerError` in the answer; None after a success or an unexpected error.
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
class WaitEnded:
    """A track left the line: it got a sandbox, gave its place up, or did not come back."""

    outcome: WaitOutcome
    seconds: float
    track_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkEnded:
    """A request to mark a sandbox for deletion ended. `code` is as in `AllocateEnded`."""

    outcome: MarkOutcome
    track_id: str
    sandbox_id: str
    lease_id: str | None = None
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionEnded:
    """A request to extend a lease ended. `track_id` may be None in an operator's. `code` is as in `AllocateEnded`."""

    outcome: ExtendOutcome
    sandbox_id: str
    track_id: str | None = None
    lease_id: str | None = None
    code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationReleased:
    """An operator ended a lease."""

    sandbox_id: str
    lease_id: str
    track_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationExpired:
    """A lease whose time is over was ended, by the expiry job or by the next allocate of its track."""

    sandbox_id: str
    lease_id: str
    track_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSkipped:
    """A sync skipped an entry of the provider's list, because it does not parse."""

    reason: str
    sandbox_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRefused:
    """A sync refused an account that the provider lists as active.

    `sandbox_id` is the id in the list. `held_by` is the sandbox whose record is the reason.
    """

    reason: RefusalReason
    sandbox_id: str
    held_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteContradicted:
    """The provider answered a delete call with 404, but lists the account as active. So it must be wiped again.

    `attempts` includes this one. At the limit, an operator must look at the sandbox.
    """

    sandbox_id: str
    attempts: int
    lease_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncProgressed:
    """How far a long sync is with its writes."""

    change: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemFailed:
    """A job failed for one item. The run goes on, and the next run tries the item again.

    `sandbox_id` is None if the item is not a sandbox.
    """

    job: str
    sandbox_id: str | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSynced:
    """A sync has made its writes. `braked`: too many sandboxes are missing, so it did not change the missing ones.

    `tombstones_listed`: how many tombstones have an account that the provider still lists.
    """

    synced: int
    stale: int
    tombstones_listed: int = 0
    braked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEnded:
    """One attempt to wipe a sandbox ended."""

    outcome: DeleteOutcome
    sandbox_id: str
    lease_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesRemovalEnded:
    """The removal of the services in a sandbox's account ended, before its delete call.

    `removed` and `left` are numbers of services; in shadow mode all are left.
    """

    outcome: ServicesOutcome
    sandbox_id: str
    lease_id: str | None = None
    removed: int = 0
    left: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryEnded:
    """One try to deliver a fact ended. `sandbox_id` is None for a fact of the pool, and for a test."""

    outcome: DeliveryOutcome
    endpoint_id: str
    delivery_id: str
    seconds: float
    sandbox_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointDisabled:
    """An endpoint of webhooks was disabled, because it wants no more deliveries or fails for too long."""

    endpoint_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhooksLagged:
    """By how much the telling lags: the age of the oldest fact that was not tried at an endpoint that works."""

    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChecked:
    """A request was refused by the rate limit, or could not be counted."""

    outcome: RateOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionsStopped:
    """A check of the store found that this process must not act. Every check that finds this records it."""

    reason: StopReason
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordUnreadable:
    """A stored record could not be read. Each process records this at most once a minute for each record."""

    error: str
    sandbox_id: str | None = None
    track_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCalled:
    """One call to the store's engine. `operation` is the engine's name for the call."""

    operation: str
    outcome: StoreOutcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCalled:
    """One call to the provider. `operation` is list or delete, or one of the removal of services."""

    operation: str
    outcome: ProviderOutcome
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """A run of a job ended. `is_idle`: it did nothing, and the job runs every few seconds."""

    job: str
    outcome: JobOutcome
    seconds: float
    message: str
    error: str | None = None
    is_idle: bool = False


Event = (
    AllocateEnded
    | WaitEnded
    | MarkEnded
    | ExtensionEnded
    | AllocationReleased
    | AllocationExpired
    | AccountSkipped
    | AccountRefused
    | DeleteContradicted
    | SyncProgressed
    | ItemFailed
    | PoolSynced
    | DeleteEnded
    | ServicesRemovalEnded
    | DeliveryEnded
    | EndpointDisabled
    | WebhooksLagged
    | JobEnded
    | RateChecked
    | ActionsStopped
    | RecordUnreadable
    | StoreCalled
    | ProviderCalled
)
