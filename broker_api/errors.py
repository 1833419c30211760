"""From errors to HTTP answers: the one table of status codes, and the shape of every error body."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING

from flask import Response, g, jsonify
from gunicorn.http.errors import NoMoreData, ParseException  # type: ignore[import-untyped] # it ships no types
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed

from broker_api.bounds import MAX_BODY_BYTES
from broker_common.core import errors as core
from broker_common.core.store import Conflict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask


class RequestInvalid(core.InvalidInput):
    """What the caller sent is malformed; `details` has the messages by header, parameter or field."""

    def __init__(self, details: Mapping[str, list[str]], *, message: str | None = None) -> None:
        super().__init__(message or " ".join(f"{name}: {' '.join(texts)}" for name, texts in details.items()))
        self.details = details


STATUS_OF: Mapping[type[core.BrokerError], int] = {
    core.InvalidInput: 400,
    RequestInvalid: 400,
    core.Unauthorized: 401,
    core.Forbidden: 403,
    core.NotSandboxOwner: 403,
    core.RateLimitExceeded: 429,
    core.SandboxNotFound: 404,
    core.JobNotFound: 404,
    core.NoSandboxesAvailable: 409,
    core.LeaseMismatch: 409,
    core.InvalidTransition: 409,
    Conflict: 409,
    core.SyncBraked: 409,
    core.ListNotWhole: 409,
    core.Paused: 503,
    core.UnsafeToAct: 503,
    core.ClockWrong: 503,
    core.TableChanged: 503,
    core.StoreUnavailable: 503,
    core.OutcomeUnknown: 503,
    core.StoreMisconfigured: 503,
    core.DeadlineExceeded: 503,
    core.StoreRejected: 500,
    core.QueueUnavailable: 503,
    core.LayoutMismatch: 503,
    core.UnreadableRecord: 503,
    core.UpgradeUnfinished: 503,
    core.ProviderError: 502,
    core.ProviderBusy: 503,
    core.ProviderCircuitOpen: 503,
    core.ProviderSlotsUnavailable: 503,
    core.ProviderMisconfigured: 502,
    core.ProviderRejected: 502,
    core.ProviderFailing: 502,
    core.ListingUnusable: 502,
}
"""Every subclass of `BrokerError` has its line: which of them an API call meets is not for this table to know."""

_CODES_OF_HTTP = {400: "VALIDATION_ERROR", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE", 414: "URI_TOO_LONG"}
_MESSAGES_OF_HTTP = {413: f"the body must not be larger than {MAX_BODY_BYTES} bytes"}
_INTERNAL_MESSAGE = "an unexpected error occurred; the request_id leads to it in the log"

_log = logging.getLogger(__name__)


def register_error_handlers(app: Flask) -> None:
    """Answer every error of an application in the contract's shape."""
    app.register_error_handler(core.BrokerError, _answer_broker_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    # What gunicorn and werkzeug raise where a body is read whose chunks are malformed, or that ends early.
    app.register_error_handler(ClientDisconnected, _answer_unreadable_body)
    app.register_error_handler(ParseException, _answer_unreadable_body)
    app.register_error_handler(NoMoreData, _answer_unreadable_body)
    app.register_error_handler(Exception, _answer_unexpected)


def describe(status: int) -> tuple[str, str]:
    """Return code and message of an error that is known by its status alone."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return core.BrokerError.code, _INTERNAL_MESSAGE
    name = HTTPStatus(status)
    message = _MESSAGES_OF_HTTP.get(status) or name.description or name.phrase
    return _CODES_OF_HTTP.get(status, name.name), message


def make_body(code: str, message: str, request_id: str) -> dict[str, object]:
    """Return what every error's body holds under `error`."""
    return {"code": code, "message": message, "request_id": request_id}


def _answer_broker_error(error: core.BrokerError) -> Response:
    status = STATUS_OF.get(type(error))
    if status is None:
        return _answer_unexpected(error)
    is_internal = status == HTTPStatus.INTERNAL_SERVER_ERROR
    quiet = logging.WARNING if status > HTTPStatus.INTERNAL_SERVER_ERROR else logging.DEBUG
    _log.log(
        logging.ERROR if is_internal else quiet,
        "answered %d %s: %s",
        status,
        error.code,
        error.message,
    )
    code, message = describe(status) if is_internal else (error.code, error.message)
    response = _error(
        status,
        code,
        message,
        retry_after=error.retry_after,
        details=error.details if isinstance(error, RequestInvalid) else None,
    )
    if isinstance(error, core.Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _answer_http_exception(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer_unexpected(error)
    response = _error(status, *describe(status))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
    return response


def _answer_unreadable_body(_error: Exception) -> Response:
    return _answer_broker_error(RequestInvalid({"body": ["Must be sent whole, and its chunks well-formed."]}))


def _answer_unexpected(error: Exception) -> Response:
    _log.error("unexpected error", exc_info=error)
    return _error(HTTPStatus.INTERNAL_SERVER_ERROR, *describe(HTTPStatus.INTERNAL_SERVER_ERROR))


def _error(
    status: int,
    code: str,
    message: str,
    *,
    retry_after: int | None = None,
    details: Mapping[str, list[str]] | None = None,
) -> Response:
    body = make_body(code, message, g.request_id)
    if retry_after is not None:
        body["retry_after"] = retry_after
    if details is not None:
        body["details"] = details
    response = jsonify({"error": body})
    response.status_code = status
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response
