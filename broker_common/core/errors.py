"""Everything that can go wrong, as one tree: each class has a stable code, and its message may be shown.

No class here knows HTTP; the API holds the one table from these classes to status codes.
"""

from __future__ import annotations


class BrokerError(Exception):
    """Base of all errors that the broker raises on purpose.

    `code` is stable and public. The message is written for the caller and holds no secret.
    `retry_after` is in whole seconds, or None where repeating the call is no remedy.
    """

    code = "INTERNAL_ERROR"

    def __init__(self, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class InvalidInput(BrokerError):
    """The request is malformed; the message names the header, field or parameter."""

    code = "VALIDATION_ERROR"


class Unauthorized(BrokerError):
    """The token is missing, unknown or expired."""

    code = "UNAUTHORIZED"


class Forbidden(BrokerError):
    """The token is known, and may not make this call."""

    code = "FORBIDDEN"


class NotSandboxOwner(BrokerError):
    """The sandbox exists, and the calling track is neither its holder nor its last one."""

    code = "NOT_SANDBOX_OWNER"


class RateLimitExceeded(BrokerError):
    """The caller makes more requests than it may."""

    code = "RATE_LIMIT_EXCEEDED"


class SandboxNotFound(BrokerError):
    """No sandbox has this id (or only a tombstone has)."""

    code = "SANDBOX_NOT_FOUND"


class JobNotFound(BrokerError):
    """No job has this id, or it ended more than a day ago."""

    code = "JOB_NOT_FOUND"


class NoSandboxesAvailable(BrokerError):
    """No matching sandbox was free: an ordinary answer of a busy pool, not a fault."""

    code = "NO_SANDBOXES_AVAILABLE"


class LeaseMismatch(BrokerError):
    """The lease that the caller named is not the one at hand."""

    code = "LEASE_MISMATCH"


class InvalidTransition(BrokerError):
    """The sandbox's present status does not allow this change."""

    code = "INVALID_TRANSITION"


class Paused(BrokerError):
    """An operator has paused this operation."""

    code = "PAUSED"


class UnsafeToAct(BrokerError):
    """Base of what keeps a process from acting although the store answers: it could harm those who hold sandboxes."""

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class ClockWrong(UnsafeToAct):
    """This process's clock is too far from the store's."""


class TableChanged(UnsafeToAct):
    """The table is not the one that the broker knew, or cannot be used as it is: an operator must look at it."""

    code = "TABLE_CHANGED"

    def __init__(self, message: str, *, retry_after: int | None = 30) -> None:
        super().__init__(message, retry_after=retry_after)


class UpgradeUnfinished(UnsafeToAct):
    """Processes of the release before may still run, and could not keep what this would write."""

    code = "UPGRADE_UNFINISHED"

    def __init__(self, refused: str, *, retry_after: int | None = 30) -> None:
        """Say what is `refused` until an operator finishes the upgrade."""
        super().__init__(
            f"{refused} is refused until the upgrade is finished: once no process of the release before runs, run"
            " `broker upgrade finish`",
            retry_after=retry_after,
        )


class UnreadableRecord(BrokerError):
    """A stored record is not what this release can read: it stays as it is, for a person or a later release.

    `reason` names the field and holds nothing of its content. `sandbox_id` or `track_id` say whose record it is; the
    pool's own records have neither.
    """

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, record: str, reason: str, *, sandbox_id: str | None = None, track_id: str | None = None) -> None:
        super().__init__(f"{record} cannot be read: {reason}", retry_after=30)
        self.reason = reason
        self.sandbox_id = sandbox_id
        self.track_id = track_id


class StoreUnavailable(BrokerError):
    """The store refused, throttled or could not be reached."""

    code = "SERVICE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 1) -> None:
        super().__init__(message, retry_after=retry_after)


class OutcomeUnknown(StoreUnavailable):
    """The store's answer was lost: the write may or may not have been applied."""


class StoreMisconfigured(StoreUnavailable):
    """The store cannot be used as we are set up (no table, no credentials): a person must mend that."""

    def __init__(self, message: str, *, retry_after: int | None = 30) -> None:
        super().__init__(message, retry_after=retry_after)


class StoreRejected(BrokerError):
    """The store calls a request malformed: a fault of the broker, or of one record. Nothing was written."""


class DeadlineExceeded(StoreUnavailable):
    """Too little of the request's time is left to ask the store once more."""


class QueueUnavailable(BrokerError):
    """The job queue cannot be reached, so nothing was started."""

    code = "QUEUE_UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int | None = 5) -> None:
        super().__init__(message, retry_after=retry_after)


class LayoutMismatch(BrokerError):
    """The table lacks its layout record or its index, or is laid out for another number of shards than this process."""

    code = "LAYOUT_MISMATCH"


class ProviderError(BrokerError):
    """Base of what can go wrong between the broker and the provider."""

    code = "PROVIDER_ERROR"


class ProviderBusy(ProviderError):
    """No call slot came free in time; nothing was sent."""

    code = "PROVIDER_BUSY"


class ProviderCircuitOpen(ProviderError):
    """The circuit breaker is open; nothing was sent."""

    code = "PROVIDER_CIRCUIT_OPEN"


class ProviderSlotsUnavailable(ProviderError):
    """The shared call slots cannot be reached, so no new call may start; nothing was sent."""

    code = "PROVIDER_SLOTS_UNAVAILABLE"


class ProviderMisconfigured(ProviderError):
    """The provider did not take us for its client (3xx, 401, 403, a login page): mend the configuration.

    `outcome_unknown` is true where it may have acted all the same (a page where a success should have been).
    """

    code = "PROVIDER_MISCONFIGURED"

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ProviderRejected(ProviderError):
    """The provider refused this request for good; repeating it is no remedy."""

    code = "PROVIDER_REJECTED"


class ProviderFailing(ProviderError):
    """The provider failed in a way that may pass: busy, an error of its own, or out of reach.

    `outcome_unknown` is true where the provider may have acted all the same (an answer that is lost, late or unclear).
    """

    code = "PROVIDER_FAILING"

    def __init__(self, message: str, *, outcome_unknown: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class ListingUnusable(ProviderError):
    """The provider's account list is empty or does not parse: it must change nothing."""

    code = "PROVIDER_LISTING_UNUSABLE"


class SyncBraked(BrokerError):
    """Too many records are missing from the provider's list to believe it."""

    code = "SYNC_BRAKED"


class ListNotWhole(BrokerError):
    """The provider's list may lack accounts, so nothing could be concluded from what is missing in it."""

    code = "LIST_NOT_WHOLE"
