"""All errors of the broker, as one tree. Each class has a stable code, and a message that a caller may see.

No class here knows HTTP: a table in the API maps these classes to status codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class BrokerError(Exception):
    """Base of all errors that the broker raises on purpose.

    `code` is stable and public. The message is written for the caller and holds no secret. `retry_after` is in whole
    seconds, or None if repeating the call does not help. `details` are for programs: numbers or texts by name.
    """

    code = "INTERNAL_ERROR"

    def __init__(
        self, message: str, *, retry_after: int | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.details = details


class InvalidInput(BrokerError):
    """The request is malformed; the message names the header, field or parameter."""

    code = "VALIDATION_ERROR"


class Unauthorized(BrokerError):
    """The token is missing, unknown or expired."""

    code = "UNAUTHORIZED"


class InvalidToken(Unauthorized):
    """A token was sent, but it is not valid. The message says why, and holds no part of the token."""


class Forbidden(BrokerError):
    """The token is known, but may not make this call."""

    code = "FORBIDDEN"


class NotSandboxOwner(BrokerError):
    """The sandbox exists, but the calling track does not hold it, and was not its last holder."""

    code = "NOT_SANDBOX_OWNER"


class RateLimitExceeded(BrokerError):
    """The caller sends more requests than it may."""

    code = "RATE_LIMIT_EXCEEDED"


class SandboxNotFound(BrokerError):
    """No sandbox has this id, or only a tombstone has it."""

    code = "SANDBOX_NOT_FOUND"


class JobNotFound(BrokerError):
    """No job has this id, or it ended more than a day ago."""

    code = "JOB_NOT_FOUND"


class NoSandboxesAvailable(BrokerError):
    """No matching sandbox was available. For a busy pool this is a normal answer, not a fault."""

    code = "NO_SANDBOXES_AVAILABLE"


class CapacityNotAvailable(BrokerError):
    """So many sandboxes cannot be reserved for that time. `details` say how many can: `could_have`."""

    code = "CAPACITY_NOT_AVAILABLE"


class ReservationNotFound(BrokerError):
    """No reservation has this id, or it ended more than 90 days ago."""

    code = "RESERVATION_NOT_FOUND"


class ReservationNotOpen(BrokerError):
    """The reservation is not open now, or has ended. `details` say when it opens: `opens_at`."""

    code = "RESERVATION_NOT_OPEN"


class WebhookNotFound(BrokerError):
    """No webhook endpoint has this id."""

    code = "WEBHOOK_NOT_FOUND"


class DeliveryNotFound(BrokerError):
    """The endpoint has no delivery of this id, or it was made more than 14 days ago."""

    code = "DELIVERY_NOT_FOUND"


class WebhookLimit(BrokerError):
    """There are as many webhook endpoints as there may be."""

    code = "WEBHOOK_LIMIT"


class VersionMismatch(BrokerError):
    """The caller read another version of the record than the stored one."""

    code = "VERSION_MISMATCH"


class IdempotencyMismatch(BrokerError):
    """The idempotency key was used before, for another request."""

    code = "IDEMPOTENCY_MISMATCH"


class LeaseMismatch(BrokerError):
    """The caller named another lease than the sandbox's latest one."""

    code = "LEASE_MISMATCH"


class AllocationEnded(BrokerError):
    """The lease has ended, so it cannot be extended."""

    code = "ALLOCATION_ENDED"


class DurationLimit(BrokerError):
    """The lease may not last so long. `details` has the latest possible end as `latest_expires_at` (Unix seconds)."""

    code = "DURATION_LIMIT"


class InvalidTransition(BrokerError):
    """The current status of the sandbox, or state of the delivery, does not allow this change."""

    code = "INVALID_TRANSITION"


class Paused(BrokerError):
    """An operator has paused this operation."""

    code = "PAUSED"


class UnsafeToAct(BrokerError):
    """Base of the errors of a process that must not act, because it could harm tracks that hold sandboxes."""

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class ClockWrong(UnsafeToAct):
    """This process's clock is too far from the store's."""


class TableChanged(UnsafeToAct):
    """The table is not the one that the broker knew, or cannot be used as it is. An operator must look at it."""

    code = "TABLE_CHANGED"

    def __init__(self, message: str, *, retry_after: int | None = 30) -> None:
        super().__init__(message, retry_after=retry_after)


class UpgradeUnfinished(UnsafeToAct):
    """Processes of the previous release may still run. They write no facts, and ignore what is new in records."""

    code = "UPGRADE_UNFINISHED"

    def __init__(self, refused: str, *, retry_after: int | None = 30) -> None:
        """`refused` completes "cannot …"."""
        super().__init__(
            f"cannot {refused}: the upgrade is not finished. Stop all processes of the previous release, then run"
            " `broker upgrade finish`",
            retry_after=retry_after,
        )


class UnreadableRecord(BrokerError):
    """This release cannot read a stored record. The record stays as it is, for an operator or a later release.

    `reason` names the field, without its content. `sandbox_id` or `track_id` says whose record it is; both are None for
    a record of the whole pool.
    """

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, record: str, reason: str, *, sandbox_id: str | None = None, track_id: str | None = None) -> None:
        super().__init__(f"{record} cannot be read: {reason}", retry_after=30)
        self.reason = reason
        self.sandbox_id = sandbox_id
        self.track_id = track_id


class StoreUnavailable(BrokerError):
    """The store refused or throttled a request, or cannot be reached."""

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class OutcomeUnknown(StoreUnavailable):
    """The store's answer was lost. The write may have been applied, or not."""


class StoreMisconfigured(StoreUnavailable):
    """The store cannot be used with this configuration (no table, no credentials). An operator must repair it."""

    def __init__(self, message: str, *, retry_after: int | None = 30) -> None:
        super().__init__(message, retry_after=retry_after)


class StoreRejected(BrokerError):
    """The store says that a request is malformed: a fault of the broker, or of one record. Nothing was written."""


class DeadlineExceeded(StoreUnavailable):
    """The request's deadline is too near for another call of the store."""


class QueueUnavailable(BrokerError):
    """The job queue cannot be reached. Nothing was started."""

    code = "QUEUE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class SignInUnavailable(BrokerError):
    """The token's issuer has not told its keys yet, so the token cannot be checked now."""

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class LayoutMismatch(BrokerError):
    """The table has no layout record or no index, or its number of shards differs from this process's."""

    code = "LAYOUT_MISMATCH"


class ProviderError(BrokerError):
    """Base of the errors between the broker and the provider."""

    code = "PROVIDER_ERROR"


class ProviderBusy(ProviderError):
    """No call slot became free in time, or the pace of deletes allows no call yet. Nothing was sent."""

    code = "PROVIDER_BUSY"


class ProviderCircuitOpen(ProviderError):
    """The circuit breaker is open. Nothing was sent."""

    code = "PROVIDER_CIRCUIT_OPEN"


class ProviderSlotsUnavailable(ProviderError):
    """The shared call slots cannot be reached, so no new call may start. Nothing was sent."""

    code = "PROVIDER_SLOTS_UNAVAILABLE"


class ProviderMisconfigured(ProviderError):
    """The provider did not accept us as its client (3xx, 401, 403, a login page). Repair the configuration.

    `outcome_unknown` is true if the provider may have acted all the same: it answered a page instead of a success.
    """

    code = "PROVIDER_MISCONFIGURED"

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ProviderRejected(ProviderError):
    """The provider refused this request for good. Repeating it does not help."""

    code = "PROVIDER_REJECTED"


class ProviderFailing(ProviderError):
    """The provider failed, and may answer later: it is busy, has an internal error, or cannot be reached.

    `outcome_unknown` is true if the provider may have acted all the same: its answer was lost, late or unclear.
    """

    code = "PROVIDER_FAILING"

    def __init__(self, message: str, *, outcome_unknown: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ListingUnusable(ProviderError):
    """The provider's list of accounts is empty or does not parse, so it must not change anything."""

    code = "PROVIDER_LISTING_UNUSABLE"


class SyncBraked(BrokerError):
    """The provider's list lacks so many sandboxes that the broker does not trust it."""

    code = "SYNC_BRAKED"


class ListNotWhole(BrokerError):
    """The provider's list may be incomplete, so an account that it lacks may still exist."""

    code = "LIST_NOT_WHOLE"
