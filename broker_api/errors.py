"""The one table of errors: for each code its status, its meaning, what the caller does next, and its classes.

The error handlers answer by this table, and the API's description is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from broker_api.bounds import BODY_SEC, HEAD_SEC, MAX_BODY_BYTES
from broker_common.core import errors as core
from broker_common.core.allocation import RETRY_AFTER_EMPTY_SEC, RETRY_AFTER_PAUSE_SEC
from broker_common.core.store import Conflict, ReservationFull

if TYPE_CHECKING:
    from collections.abc import Mapping


class RequestInvalid(core.InvalidInput):
    """The request is malformed. `details` has the messages by header, parameter or field."""

    def __init__(self, details: Mapping[str, list[str]], *, message: str | None = None) -> None:
        told = message or " ".join(f"{name}: {' '.join(texts)}" for name, texts in details.items())
        super().__init__(told, details=details)


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One line of the table.

    `kinds` are the classes that have this code. It is empty for the codes that come from HTTP alone: every answer with
    such a code has this `message`. Otherwise `message`, `retry_after` (seconds) and `details` are those of an example.
    `message` is empty for a code that no call of the API answers. Only jobs, the command line and starting processes
    meet such a code.
    """

    code: str
    status: HTTPStatus
    meaning: str
    remedy: str
    kinds: tuple[type[core.BrokerError], ...] = ()
    message: str = ""
    retry_after: int | None = None
    details: Mapping[str, object] | None = None


def _answered(
    example: core.BrokerError,
    status: HTTPStatus,
    meaning: str,
    remedy: str,
    *,
    more_kinds: tuple[type[core.BrokerError], ...] = (),
) -> ErrorCode:
    """Return the line of a code that calls answer; `example` is an error that may be raised."""
    return ErrorCode(
        example.code,
        status,
        meaning,
        remedy,
        kinds=(type(example), *more_kinds),
        message=example.message,
        retry_after=example.retry_after,
        details=example.details,
    )


def _of_http(status: HTTPStatus, meaning: str, remedy: str, *, code: str = "", message: str = "") -> ErrorCode:
    """Return the line of a status that HTTP itself has; by default it has HTTP's name and words."""
    return ErrorCode(code or status.name, status, meaning, remedy, message=message or status.description)


def _in_jobs(
    kind: type[core.BrokerError],
    status: HTTPStatus,
    meaning: str,
    remedy: str,
    *,
    more_kinds: tuple[type[core.BrokerError], ...] = (),
) -> ErrorCode:
    """Return the line of a code that no call answers."""
    return ErrorCode(kind.code, status, meaning, remedy, kinds=(kind, *more_kinds))


ERRORS = (
    _answered(
        RequestInvalid({"colour": ["Unknown field."]}),
        HTTPStatus.BAD_REQUEST,
        "A header, parameter or field is missing, malformed, repeated or unknown (see `details`), or the request is"
        " not HTTP.",
        "Correct the request.",
        more_kinds=(core.InvalidInput,),
    ),
    _answered(
        core.InvalidToken("the token is unknown"),
        HTTPStatus.UNAUTHORIZED,
        "The token is missing, unknown, expired, or no valid access token of the issuer. The message says which.",
        "Send a valid token.",
        more_kinds=(core.Unauthorized,),
    ),
    _answered(
        core.Forbidden("this call needs the role operator, and the token has only viewer"),
        HTTPStatus.FORBIDDEN,
        "The token is valid, but it lacks the role that this call needs, or it is not for this track.",
        "Use a token that has the role and is for the track.",
    ),
    _answered(
        core.NotSandboxOwner("sandbox '2009521' is not held by this track"),
        HTTPStatus.FORBIDDEN,
        "The calling track does not hold the sandbox, and did not hold it last.",
        "Leave the sandbox alone. It is not this track's.",
    ),
    _of_http(HTTPStatus.NOT_FOUND, "There is no such path.", "Correct the path."),
    _answered(
        core.SandboxNotFound("there is no sandbox '2009521'"),
        HTTPStatus.NOT_FOUND,
        "No sandbox has this id, or it was removed from the pool.",
        "Check the id.",
    ),
    _answered(
        core.JobNotFound("there is no job '3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11'"),
        HTTPStatus.NOT_FOUND,
        "No run has this id, or the run ended more than 24 hours ago.",
        "Check the id, or start the job again.",
    ),
    _answered(
        core.ReservationNotFound("there is no reservation '0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e'"),
        HTTPStatus.NOT_FOUND,
        "No reservation has this id, or it ended more than 90 days ago.",
        "Check the id.",
    ),
    _answered(
        core.WebhookNotFound("there is no webhook endpoint '7c9e6679-7425-40de-944b-e07fc1f90ae7'"),
        HTTPStatus.NOT_FOUND,
        "No webhook endpoint has this id, or it was removed.",
        "Check the id.",
    ),
    _answered(
        core.DeliveryNotFound("the endpoint has no delivery '2009521:1759574955000:sandbox_allocated'"),
        HTTPStatus.NOT_FOUND,
        "The endpoint has no delivery of this id, or it was made more than 14 days ago.",
        "Check the id. To send an older fact again, replay.",
    ),
    _of_http(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "The path exists, but not for this method.",
        "Use a method that the header `Allow` names.",
    ),
    _of_http(
        HTTPStatus.REQUEST_TIMEOUT,
        f"The request was not sent in time. Its head must arrive within {HEAD_SEC} s, and its body within {BODY_SEC} s"
        " after that.",
        "Send the whole request again.",
    ),
    _answered(
        core.NoSandboxesAvailable(
            "no sandbox is available",
            retry_after=RETRY_AFTER_EMPTY_SEC,
            details={
                "available": 0,
                "reserved": 20,
                "waiting": 3,
                "pending_deletion": 4,
                "next_due_at": 1759575300,
            },
        ),
        HTTPStatus.CONFLICT,
        "No sandbox that matches was free.",
        "Send the same request again after `Retry-After`, until you give up, or wait in line with `Prefer: wait=30`."
        " `details` says why. If its `line` is `full`, no more tracks can wait.",
    ),
    _answered(
        core.LeaseMismatch("sandbox '2009521' is not held under this lease_id"),
        HTTPStatus.CONFLICT,
        "The sandbox is not held under this `lease_id`, or is no longer.",
        "Do nothing. The lease that you named has ended.",
    ),
    _answered(
        core.AllocationEnded("no track holds sandbox '2009521': its lease has ended"),
        HTTPStatus.CONFLICT,
        "The lease has ended, so it cannot be extended.",
        "Allocate a sandbox again. The old one is wiped.",
    ),
    _answered(
        core.DurationLimit(
            "the lease on sandbox '2009521' can last until 2025-10-04 18:49:15 UTC at most",
            details={"latest_expires_at": 1759603755},
        ),
        HTTPStatus.CONFLICT,
        "The lease may not last so long. `details.latest_expires_at` has its latest possible end.",
        "Ask for an earlier end, or ask an operator to extend the lease.",
    ),
    _answered(
        core.InvalidTransition("sandbox 2009521 is allocated and cannot become deletion_failed"),
        HTTPStatus.CONFLICT,
        "The status of the sandbox, or the state of the delivery, does not allow this.",
        "Read it again, and decide again.",
    ),
    _answered(
        core.CapacityNotAvailable("only 12 sandboxes can be reserved for that time", details={"could_have": 12}),
        HTTPStatus.CONFLICT,
        "So many sandboxes cannot be reserved for that time. `details.could_have` says how many can be.",
        "Ask for fewer, or for another time (`GET /v1/admin/capacity`).",
    ),
    _answered(
        core.ReservationNotOpen(
            "reservation '0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e' opens at 2026-12-01 07:50:00 UTC",
            details={"opens_at": 1796111400, "state": "scheduled"},
        ),
        HTTPStatus.CONFLICT,
        "The reservation is not open yet (`details.opens_at` says when it opens), or is over (`details.state`).",
        "Wait until it opens. If it is over, leave out `X-Reservation-ID`, or book another.",
    ),
    _answered(
        core.VersionMismatch("the reservation '0f6f6a52-9a3e-4c55-8a9f-6f0d3d0c1b7e' has another version"),
        HTTPStatus.CONFLICT,
        "The reservation or endpoint was changed since you read it.",
        "Read it again, and decide again.",
    ),
    _answered(
        core.WebhookLimit("there are 20 endpoints already: remove one first"),
        HTTPStatus.CONFLICT,
        "There are as many webhook endpoints as there may be.",
        "Remove one that is not needed, then register the new one.",
    ),
    _in_jobs(
        Conflict,
        HTTPStatus.CONFLICT,
        "Another process changed the record first.",
        "Read the record again, and decide again.",
        more_kinds=(ReservationFull,),
    ),
    _in_jobs(
        core.SyncBraked,
        HTTPStatus.CONFLICT,
        "Too many sandboxes are missing from the provider's list. The broker does not trust such a list.",
        "Look at the provider. If the list is right, start the sync with `force`.",
    ),
    _in_jobs(
        core.ListNotWhole,
        HTTPStatus.CONFLICT,
        "The provider's list may lack accounts, so the sync took no sandbox out of service.",
        "Wait for the next sync. If that fails too, look at the provider.",
    ),
    _of_http(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body is larger than {MAX_BODY_BYTES} bytes.",
        "Send a smaller body.",
        code="PAYLOAD_TOO_LARGE",
        message=f"the body must not be larger than {MAX_BODY_BYTES} bytes",
    ),
    _of_http(
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "Path and query together are longer than 4,000 bytes.",
        "Shorten them.",
        code="URI_TOO_LONG",
    ),
    _of_http(
        HTTPStatus.EXPECTATION_FAILED,
        "The header `Expect` asks for something other than `100-continue`.",
        "Leave out the header.",
    ),
    _answered(
        core.IdempotencyMismatch("this Idempotency-Key was sent before, with another body"),
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "The same `Idempotency-Key` was sent before, with another body.",
        "Send another key for another request.",
    ),
    _answered(
        core.RateLimitExceeded("too many requests", retry_after=1),
        HTTPStatus.TOO_MANY_REQUESTS,
        "The caller makes more requests than it may.",
        "Send the same request again after `Retry-After`.",
    ),
    _of_http(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "There are more than 60 headers, or one is longer than 8,000 bytes.",
        "Send fewer or shorter headers.",
    ),
    ErrorCode(
        "INTERNAL_ERROR",
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The broker has a fault.",
        "Send the same request once more. If it fails again, give the operator the `request_id`.",
        kinds=(core.StoreRejected,),
        message="an unexpected error occurred. The operator finds it in the log by the request_id",
    ),
    _in_jobs(
        core.ProviderError,
        HTTPStatus.BAD_GATEWAY,
        "The provider could not be asked, or did not do what it was asked.",
        "Look at the log of the run.",
    ),
    _in_jobs(
        core.ProviderMisconfigured,
        HTTPStatus.BAD_GATEWAY,
        "The provider does not accept the broker as its client.",
        "Check `CSP_BASE_URL` and `CSP_API_TOKEN`.",
    ),
    _in_jobs(
        core.ProviderRejected,
        HTTPStatus.BAD_GATEWAY,
        "The provider refused this request, and will refuse it again.",
        "Find out why at the provider, then retry the deletion.",
    ),
    _in_jobs(
        core.ProviderFailing,
        HTTPStatus.BAD_GATEWAY,
        "The provider failed in a way that may pass.",
        "Wait. A later run asks it again.",
    ),
    _in_jobs(
        core.ListingUnusable,
        HTTPStatus.BAD_GATEWAY,
        "The provider's list of accounts is empty or cannot be read, so the sync changed nothing.",
        "Look at the provider. A later sync reads the list again.",
    ),
    _answered(
        core.StoreUnavailable("DynamoDB does not answer"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "DynamoDB is slow, throttled or away, its answer was lost, or a record in it cannot be read. Or the clock of"
        " this process is wrong. Or the issuer of a JWT does not answer, and its keys are not known yet.",
        "Send the same request again after `Retry-After`.",
        more_kinds=(
            core.OutcomeUnknown,
            core.StoreMisconfigured,
            core.DeadlineExceeded,
            core.UnreadableRecord,
            core.UnsafeToAct,
            core.ClockWrong,
            core.SignInUnavailable,
        ),
    ),
    _answered(
        core.Paused("allocation is paused by an operator", retry_after=RETRY_AFTER_PAUSE_SEC),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "An operator has paused allocation.",
        "Send the same request again after `Retry-After`.",
    ),
    _answered(
        core.TableChanged("the table has no record of a sandbox, although a sync had succeeded"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The DynamoDB table is not the one that the broker knew, was restored, or lacks its layout record or index.",
        "Inform an operator, and send the same request again after `Retry-After`.",
    ),
    _answered(
        core.UpgradeUnfinished("set aside a sandbox that is held"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Processes of an older release may still run. They could not keep what this call would write.",
        "Ask an operator to stop all old processes and run `broker upgrade finish`. Then send the same request again.",
    ),
    _answered(
        core.QueueUnavailable("the job queue cannot be reached; nothing was started"),
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis is away, so nothing was started.",
        "Send the same request again after `Retry-After`.",
    ),
    _in_jobs(
        core.LayoutMismatch,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The table has no layout record or no index, or it has another number of shards than this process expects.",
        "Compare the settings with the table (`broker check`).",
    ),
    _in_jobs(
        core.ProviderBusy,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "No call slot came free in time, so nothing was sent to the provider.",
        "Wait. A later run tries again.",
    ),
    _in_jobs(
        core.ProviderCircuitOpen,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The circuit breaker is open, so nothing was sent to the provider.",
        "Wait. The breaker tries again by itself.",
    ),
    _in_jobs(
        core.ProviderSlotsUnavailable,
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis is away, so no call to the provider may start. Nothing was sent.",
        "Repair Redis. A later run tries again.",
    ),
)
"""In the order of the statuses."""

ERROR_CODES: Mapping[str, ErrorCode] = {error.code: error for error in ERRORS}
ERROR_OF: Mapping[type[core.BrokerError], ErrorCode] = {kind: error for error in ERRORS for kind in error.kinds}
"""By class. A test fails for a class that has no line, or two."""
ANSWERED = tuple(error.code for error in ERRORS if error.message)
"""The codes that calls of the API answer."""
