"""Every error code that a call may answer: its status, what it means, what the caller does then, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from broker_api.bounds import BODY_SEC, HEAD_SEC, MAX_BODY_BYTES
from broker_api.errors import describe, make_body

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """An error as the description has it; `message`, `retry_after` (seconds) and `details` are those of its example."""

    status: HTTPStatus
    meaning: str
    remedy: str
    message: str
    retry_after: int | None = None
    details: Mapping[str, list[str]] | None = None


ERROR_CODES = {
    "VALIDATION_ERROR": ErrorCode(
        HTTPStatus.BAD_REQUEST,
        "A header, parameter or field is missing, malformed, given twice or unknown (see `details`); or it is no HTTP.",
        "Mend the request.",
        "colour: Unknown field.",
        details={"colour": ["Unknown field."]},
    ),
    "UNAUTHORIZED": ErrorCode(
        HTTPStatus.UNAUTHORIZED,
        "The token is missing, unknown or expired.",
        "Send a valid one.",
        "the token is unknown",
    ),
    "FORBIDDEN": ErrorCode(
        HTTPStatus.FORBIDDEN,
        "The token is valid, but lacks the role that this call needs, or is not for this track.",
        "Use a token that has the role, and is for the track.",
        "this call needs the role operator, and the token has only viewer",
    ),
    "NOT_SANDBOX_OWNER": ErrorCode(
        HTTPStatus.FORBIDDEN,
        "The calling track is neither the sandbox's holder nor its last one.",
        "Leave the sandbox alone: it is another track's, or nobody's.",
        "sandbox '2009521' is not held by this track",
    ),
    "NOT_FOUND": ErrorCode(HTTPStatus.NOT_FOUND, "There is no such path.", "Mend the path.", describe(404)[1]),
    "SANDBOX_NOT_FOUND": ErrorCode(
        HTTPStatus.NOT_FOUND,
        "No sandbox has this id, or it was removed from the pool.",
        "Check the id.",
        "there is no sandbox '2009521'",
    ),
    "JOB_NOT_FOUND": ErrorCode(
        HTTPStatus.NOT_FOUND,
        "No run has this id, or it ended more than 24 hours ago.",
        "Check the id, or start the job again.",
        "there is no job '3f4d9f0a-3f2b-4dd1-9a54-3d1d8d0f6c11'",
    ),
    "METHOD_NOT_ALLOWED": ErrorCode(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "The path is there, and not for this method.",
        "Use one that the header `Allow` names.",
        describe(405)[1],
    ),
    "REQUEST_TIMEOUT": ErrorCode(
        HTTPStatus.REQUEST_TIMEOUT,
        f"The request was not sent in time: its head must come within {HEAD_SEC} s, its body within {BODY_SEC} s more.",
        "Send the same request again, as a whole.",
        describe(408)[1],
    ),
    "NO_SANDBOXES_AVAILABLE": ErrorCode(
        HTTPStatus.CONFLICT,
        "No sandbox that matches was free.",
        "Send the same request again after `Retry-After`, until you give up.",
        "no sandbox is available",
        retry_after=30,
    ),
    "LEASE_MISMATCH": ErrorCode(
        HTTPStatus.CONFLICT,
        "The sandbox is not, or no longer, held under this `lease_id`.",
        "Nothing: the allocation that it names has ended.",
        "sandbox '2009521' is not held under this lease_id",
    ),
    "INVALID_TRANSITION": ErrorCode(
        HTTPStatus.CONFLICT,
        "The sandbox's status does not allow this.",
        "Read the sandbox.",
        "sandbox 2009521 is allocated and cannot become deletion_failed",
    ),
    "PAYLOAD_TOO_LARGE": ErrorCode(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body is larger than {MAX_BODY_BYTES} bytes.",
        "Send a smaller one.",
        describe(413)[1],
    ),
    "URI_TOO_LONG": ErrorCode(
        HTTPStatus.REQUEST_URI_TOO_LONG,
        "Path and query are too long: 4,000 bytes fit.",
        "Shorten them.",
        describe(414)[1],
    ),
    "EXPECTATION_FAILED": ErrorCode(
        HTTPStatus.EXPECTATION_FAILED,
        "The header `Expect` asks for something else than `100-continue`.",
        "Leave it out.",
        describe(417)[1],
    ),
    "RATE_LIMIT_EXCEEDED": ErrorCode(
        HTTPStatus.TOO_MANY_REQUESTS,
        "The caller makes more requests than it may.",
        "Send the same request again after `Retry-After`.",
        "too many requests",
        retry_after=1,
    ),
    "REQUEST_HEADER_FIELDS_TOO_LARGE": ErrorCode(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "The headers are too many or too long: 60 of 8,000 bytes each fit.",
        "Send less.",
        describe(431)[1],
    ),
    "INTERNAL_ERROR": ErrorCode(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "A fault of the broker.",
        "Send the same request once more; then give the operator the `request_id`.",
        describe(500)[1],
    ),
    "SERVICE_UNAVAILABLE": ErrorCode(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "DynamoDB is slow, throttled or away, its answer was lost, or a record in it cannot be read; or this process's"
        " clock is wrong.",
        "Send the same request again after `Retry-After`.",
        "DynamoDB does not answer",
        retry_after=1,
    ),
    "PAUSED": ErrorCode(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "An operator has paused allocation.",
        "Send the same request again after `Retry-After`.",
        "allocation is paused by an operator",
        retry_after=30,
    ),
    "TABLE_CHANGED": ErrorCode(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "The DynamoDB table is not the one that the broker knew, was restored, or lacks its layout record or index.",
        "Tell an operator, and send the same request again after `Retry-After`.",
        "the table has no record of a sandbox, although a sync had succeeded",
        retry_after=30,
    ),
    "UPGRADE_UNFINISHED": ErrorCode(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "A process of the release before this one may run, which could not keep what this asks for.",
        "Once no such process runs, have an operator run `broker upgrade finish`.",
        "facts are complete once no process of the release before runs: then run `broker upgrade finish`",
        retry_after=30,
    ),
    "QUEUE_UNAVAILABLE": ErrorCode(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Redis is away; nothing was started.",
        "Send the same request again after `Retry-After`.",
        "the job queue cannot be reached; nothing was started",
        retry_after=5,
    ),
}
"""By code, in the order of the statuses."""


def example_of_error(code: str) -> dict[str, Any]:
    """Return the body of an answer with this code."""
    error = ERROR_CODES[code]
    optional = {"retry_after": error.retry_after, "details": error.details}
    body = make_body(code, error.message, "0f3c1f0e-6f0a-4f5e-9a4e-2f1d8d0f6c11")
    return {"error": body | {name: value for name, value in optional.items() if value is not None}}
