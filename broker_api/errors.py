"""The one table of errors: for each code, its status, what it means, what the caller does then, and who raises it.

The handlers answer by it, and the API's description is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from broker_api.bounds import BODY_SEC, HEAD_SEC, MAX_BODY_BYTES
from broker_common.core import errors as core
from broker_common.core.store import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping


class RequestInvalid(core.InvalidInput):
    """What the caller sent is malformed; `details` has the messages by header, parameter or field."""

    def __init__(self, details: Mapping[str, list[str]], *, message: str | None = None) -> None:
        super().__init__(message or " ".join(f"{name}: {' '.join(texts)}" for name, texts in details.items()))
        self.details = details


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One line of the table.

    `kinds` are the classes that have this code; none where HTTP itself refuses. `message`, `retry_after` (seconds) and
    `details` are those of an example; where there are no `kinds`, every answer has this message. It is empty where no
    call of the API answers with this code: only jobs, the CLI and processes at their start meet it.
    """

    code: str
    status: HTTPStatus
    meaning: str
    remedy: str
    kinds: tuple[type[core.BrokerError], ...] = ()
    message: str = ""
    retry_after: int | None = None
    details: Mapping[str, list[str]] | None = None


ERRORS = (
    ErrorCode(
        "VALIDATION_ERROR",
        HTTPStatus.BAD_REQUEST,
        "A header, parameter or field is missing, malformed, repeated or unknown (see `details`); or it is not HTTP.",
        "Correct the request.",
        kinds=(core.InvalidInput, RequestInvalid),
        message="colour: Unknown field.",
        details={"colour": ["Unknown field."]},
    ),
    ErrorCode(
        "UNAUTHORIZED",
        HTTPStatus.UNAUTHORIZED,
        "The token is missing, unknown or expired.",
        "Send a valid one.",
        kinds=(core.Unauthorized,),
        message="the token is unknown",
    ),
    ErrorCode(
        "FORBIDDEN",
        HTTPStatus.FORBIDDEN,
        "The token is valid, but lacks the role that this call needs, or is not for this track.",
        "Use a token that has the role, and is for the track.",
        kinds=(core.Forbidden,),
        message="this call needs the role operator, and the token has only viewer",
    ),
    ErrorCode(
        "NOT_SANDBOX_OWNER",
        HTTPStatus.FORBIDDEN,
        "The calling track is neither the sandbox's holder nor its last one.",
        "Leave the sandbox alone: it belongs to another track, or to none.",
        kinds=(core.NotSandboxOwner,),
        message="sandbox '2009521' is not held by this track",
    ),
    ErrorCode(
        "NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "There is no such path.",
        "Correct the path.",
        message=HTTPStatus.NOT_FOUND.description,
    ),
    ErrorCode(
        "SANDBOX_NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "No sandbox has this id, or it was removed from the pool.",
        "Check the id.",
        kinds=(core.SandboxNotFound,),
        message="there is no sandbox '2009521'",
    ),
    ErrorCode(
        "JOB_NOT_FOUND",
        HTTPStatus.NOT_FOUND,
        "No run has this id, or it ended more than 24 hours ago.",
        "Check the id, or start the job again.",
        kinds=(core.JobNotFound,),
        message="there is no job '3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11'",
    ),
    ErrorCode(
        "METHOD_NOT_ALLOWED",
        HTTPStatus.METHOD_NOT_ALLOWED,
        "The path exists, but not for this method.",
        "Use a method that the header `Allow` names.",
        message=HTTPStatus.METHOD_NOT_ALLOWED.description,
    ),
    ErrorCode(
        "REQUEST_TIMEOUT",
        HTTPStatus.REQUEST_TIMEOUT,
        f"The request was not sent in time: its head must come within {HEAD_SEC} s, its body within {BODY_SEC} s more.",
        "Send the same request again, as a whole.",
        message=HTTPStatus.REQUEST_TIMEOUT.description,
    ),
    ErrorCode(
        "NO_SANDBOXES_AVAILABLE",
        HTTPStatus.CONFLICT,
        "No sandbox that matches was free.",
        "Send the same request again after `Retry-After`, until you give up.",
        kinds=(core.NoSandboxesAvailable,),
        message="no sandbox is available",
        retry_after=30,
    ),
    ErrorCode(
        "LEASE_MISMATCH",
        HTTPStatus.CONFLICT,
        "The sandbox is not, or no longer, held under this `lease_id`.",
        "Do nothing: the allocation that it names has ended.",
        kinds=(core.LeaseMismatch,),
        message="sandbox '2009521' is not held under this lease_id",
    ),
    ErrorCode(
        "INVALID_TRANSITION",
        HTTPStatus.CONFLICT,
        "The sandbox's status does not allow this.",
        "Read the sandbox.",
        kinds=(core.InvalidTransition,),
        message="sandbox 2009521 is allocated and cannot become deletion_failed",
    ),
    ErrorCode(
        "CONFLICT",
        HTTPStatus.CONFLICT,
        "Another process changed the record first.",
        "Read it again, and decide again.",
        kinds=(Conflict,),
    ),
    ErrorCode(
        "SYNC_BRAKED",
        HTTPStatus.CONFLICT,
        "Too many sandboxes are missing from the provider's list to believe it.",
        "Look at the provider; if the list is right, start the sync with `force`.",
        kinds=(core.SyncBraked,),
    ),
    ErrorCode(
        "LIST_NOT_WHOLE",
        HTTPStatus.CONFLICT,
        "The provider's list may lack accounts, so the sync took no sandbox out of service.",
        "Wait for the next sync; if it fails, too, look at the provider.",
        kinds=(core.ListNotWhole,),
    ),
    ErrorCode(
        "PAYLOAD_TOO_LARGE",
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body is larger than {MAX_BODY_BYTES} bytes.",
        "Send a smaller one.",
        message=f"the body must not be larger than {MAX_BODY_BYTES} bytes",
    ),
    ErrorCode(
        "URI_TOO_LONG",
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "Path and query are too long: 4,000 bytes fit.",
        "Shorten them.",
        message=HTTPStatus.REQUEST_URI_TOO_LONG.description,
    ),
    ErrorCode(
        "EXPECTATION_FAILED",
        HTTPStatus.EXPECTATION_FAILED,
        "The header `Expect` asks for something other than `100-continue`.",
        "Leave it out.",
        message=HTTPStatus.EXPECTATION_FAILED.description,
    ),
    ErrorCode(
        "RATE_LIMIT_EXCEEDED",
        HTTPStatus.TOO_MANY_REQUESTS,
        "The caller makes more requests than it may.",
        "Send the same request again after `Retry-After`.",
        kinds=(core.RateLimitExceeded,),
        message="too many requests",
        retry_after=1,
    ),
    ErrorCode(
        "REQUEST_HEADER_FIELDS_TOO_LARGE",
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The headers are too many or too long: 60 of 8,000 bytes each fit.",
        "Send fewer or shorter ones.",
        message=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE.description,
    ),
    ErrorCode(
        "INTERNAL_ERROR",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "A fault of the broker.",
        "Send the same request once more; then give the operator the `request_id`.",
        kinds=(core.StoreRejected,),
        message="an unexpected error occurred; the request_id leads to it in the log",
    ),
    ErrorCode(
        "PROVIDER_ERROR",
        HTTPStatus.BAD_GATEWAY,
        "The provider could not be asked, or did not do what it was asked.",
        "Look at the log of the run.",
        kinds=(core.ProviderError,),
    ),
    ErrorCode(
        "PROVIDER_MISCONFIGURED",
        HTTPStatus.BAD_GATEWAY,
        "The provider does not accept the broker as its client.",
        "Check `CSP_BASE_URL` and `CSP_API_TOKEN`.",
        kinds=(core.ProviderMisconfigured,),
    ),
    ErrorCode(
        "PROVIDER_REJECTED",
        HTTPStatus.BAD_GATEWAY,
        "The provider refused this request for good.",
        "Find out why at the provider, then retry the deletion.",
        kinds=(core.ProviderRejected,),
    ),
    ErrorCode(
        "PROVIDER_FAILING",
        HTTPStatus.BAD_GATEWAY,
        "The provider failed in a way that may pass.",
        "Wait: a later run asks it again.",
        kinds=(core.ProviderFailing,),
    ),
    ErrorCode(
        "PROVIDER_LISTING_UNUSABLE",
        HTTPStatus.BAD_GATEWAY,
        "The provider's list of accounts is empty or cannot be read, so the sync changed nothing.",
        "Look at the provider; a later sync reads the list again.",
        kinds=(core.ListingUnusable,),
    ),
    ErrorCode(
        "SERVICE_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "DynamoDB is slow, throttled or away, its answer was lost, or a record in it cannot be read; or this process's"
        " clock is wrong.",
        "Send the same request again after `Retry-After`.",
        kinds=(
            core.StoreUnavailable,
            core.OutcomeUnknown,
            core.StoreMisconfigured,
            core.DeadlineExceeded,
            core.UnreadableRecord,
            core.UnsafeToAct,
            core.ClockWrong,
        ),
        message="DynamoDB does not answer",
        retry_after=1,
    ),
    ErrorCode(
        "PAUSED",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "An operator has paused allocation.",
        "Send the same request again after `Retry-After`.",
        kinds=(core.Paused,),
        message="allocation is paused by an operator",
        retry_after=30,
    ),
    ErrorCode(
        "TABLE_CHANGED",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The DynamoDB table is not the one that the broker knew, was restored, or lacks its layout record or index.",
        "Tell an operator, and send the same request again after `Retry-After`.",
        kinds=(core.TableChanged,),
        message="the table has no record of a sandbox, although a sync had succeeded",
        retry_after=30,
    ),
    ErrorCode(
        "UPGRADE_UNFINISHED",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Processes of an older release may still run, and could not keep what this call would write.",
        "Have an operator run `broker upgrade finish` once no old process runs; then send the same request again.",
        kinds=(core.UpgradeUnfinished,),
        message=(
            "cannot set aside a sandbox that is held: the upgrade is not finished. Stop all processes of the previous"
            " release, then run `broker upgrade finish`"
        ),
        retry_after=30,
    ),
    ErrorCode(
        "QUEUE_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis is away; nothing was started.",
        "Send the same request again after `Retry-After`.",
        kinds=(core.QueueUnavailable,),
        message="the job queue cannot be reached; nothing was started",
        retry_after=5,
    ),
    ErrorCode(
        "LAYOUT_MISMATCH",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The table has no layout record or index, or is laid out for another number of shards than this process.",
        "Compare the settings with the table (`broker check`).",
        kinds=(core.LayoutMismatch,),
    ),
    ErrorCode(
        "PROVIDER_BUSY",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "No call slot came free in time, so nothing was sent to the provider.",
        "Wait: a later run tries again.",
        kinds=(core.ProviderBusy,),
    ),
    ErrorCode(
        "PROVIDER_CIRCUIT_OPEN",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The circuit breaker is open, so nothing was sent to the provider.",
        "Wait: the breaker tries again by itself.",
        kinds=(core.ProviderCircuitOpen,),
    ),
    ErrorCode(
        "PROVIDER_SLOTS_UNAVAILABLE",
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis is away, so no call to the provider may start; nothing was sent.",
        "Repair Redis; a later run tries again.",
        kinds=(core.ProviderSlotsUnavailable,),
    ),
)
"""In the order of the statuses."""

ERROR_CODES: Mapping[str, ErrorCode] = {error.code: error for error in ERRORS}
ERROR_OF: Mapping[type[core.BrokerError], ErrorCode] = {kind: error for error in ERRORS for kind in error.kinds}
"""By class; a test finds a class that has no line, and one that has two."""
ANSWERED = tuple(error.code for error in ERRORS if error.message)
"""The codes that calls of the API answer with."""
