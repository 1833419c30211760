"""Turns errors into HTTP answers, in the shape that the caller prefers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flask import Response, jsonify
from gunicorn.http.errors import NoMoreData, ParseException  # type: ignore[import-untyped] # it ships no types
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed

from broker_api.current import current
from broker_api.errors import ERROR_CODES, ERROR_OF, ERRORS, RequestInvalid
from broker_api.runtime import runtime
from broker_common.core import errors as core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask
    from werkzeug.datastructures import MIMEAccept

JSON = "application/json"
PROBLEM = "application/problem+json"

_INTERNAL = ERROR_CODES[core.BrokerError.code]
_OF_HTTP = {error.status: error for error in ERRORS if not error.kinds}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What an answer says of one error."""

    status: int
    code: str
    message: str
    request_id: str
    retry_after: int | None = None
    details: Mapping[str, object] | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the body in plain JSON."""
        return {"error": {"code": self.code, "message": self.message} | self._others()}

    def as_problem(self, base_path: str) -> dict[str, Any]:
        """Return the body in the shape of RFC 9457. `type` leads to the page of the API's description."""
        known = ERROR_CODES.get(self.code)
        return {
            "type": f"{base_path}/docs#{self.code}" if known else "about:blank",
            "title": known.meaning if known else HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.message,
            # It only names this error. There is nothing to read at this address.
            "instance": f"#{self.request_id}",
            "code": self.code,
        } | self._others()

    def _others(self) -> dict[str, Any]:
        others = {"request_id": self.request_id, "retry_after": self.retry_after, "details": self.details}
        return {name: value for name, value in others.items() if value is not None}


def register_error_handlers(app: Flask) -> None:
    """Answer every error of `app` in the API's shape."""
    app.register_error_handler(core.BrokerError, _answer_broker_error)
    app.register_error_handler(HTTPException, _answer_http_exception)
    # gunicorn and werkzeug raise these for a body that ends early, or whose chunks are malformed.
    app.register_error_handler(ClientDisconnected, _answer_unreadable_body)
    app.register_error_handler(ParseException, _answer_unreadable_body)
    app.register_error_handler(NoMoreData, _answer_unreadable_body)
    app.register_error_handler(Exception, _answer_unexpected)


def prefers_problem(accept: MIMEAccept) -> bool:
    """Tell whether the caller prefers errors in the shape of RFC 9457.

    It does if `accept` names that type and does not prefer plain JSON. A wildcard does not ask for it. A caller that
    names both types takes plain JSON for answers that are no errors.
    """
    is_named = PROBLEM in (media_type.lower() for media_type in accept.values())
    return is_named and accept.best_match((PROBLEM, JSON)) == PROBLEM


def describe(status: int) -> tuple[str, str]:
    """Return the code and the message of an error of which only the status is known."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _INTERNAL.code, _INTERNAL.message
    name = HTTPStatus(status)
    if name in _OF_HTTP:
        return _OF_HTTP[name].code, _OF_HTTP[name].message
    code = core.InvalidInput.code if name is HTTPStatus.BAD_REQUEST else name.name
    return code, name.description or name.phrase


def _answer_broker_error(error: core.BrokerError) -> Response:
    known = ERROR_OF.get(type(error))
    if known is None:
        return _answer_unexpected(error)
    is_internal = known.status == HTTPStatus.INTERNAL_SERVER_ERROR
    quiet = logging.WARNING if known.status > HTTPStatus.INTERNAL_SERVER_ERROR else logging.DEBUG
    _log.log(logging.ERROR if is_internal else quiet, "answered %d %s: %s", known.status, known.code, error.message)
    response = _answer(
        known.status,
        known.code,
        known.message if is_internal else error.message,
        retry_after=error.retry_after,
        details=None if is_internal else error.details,
    )
    if isinstance(error, core.Unauthorized):
        # RFC 6750, section 3.1: a request that had no token is told no error.
        is_invalid = isinstance(error, core.InvalidToken)
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"' if is_invalid else "Bearer"
    return response


def _answer_http_exception(error: HTTPException) -> Response:
    status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _answer_unexpected(error)
    response = _answer(status, *describe(status))
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(sorted(_methods_of_path() or error.valid_methods))
    return response


def _methods_of_path() -> set[str]:
    """Return the methods of the call that has just the request's path; empty if the path has an id.

    werkzeug also names the methods of a call that would take the last part of the path for an id.
    """
    request = current()
    return {
        method
        for rule in request.app.url_map.iter_rules()
        if rule.rule == request.path
        for method in rule.methods or ()
    }


def _answer_unreadable_body(_error: Exception) -> Response:
    return _answer_broker_error(RequestInvalid({"body": ["Must be complete, and its chunks well-formed."]}))


def _answer_unexpected(error: Exception) -> Response:
    _log.error("unexpected error", exc_info=error)
    return _answer(_INTERNAL.status, _INTERNAL.code, _INTERNAL.message)


def _answer(
    status: int,
    code: str,
    message: str,
    *,
    retry_after: int | None = None,
    details: Mapping[str, object] | None = None,
) -> Response:
    request = current()
    fault = Fault(
        status=status,
        code=code,
        message=message,
        request_id=request.request_id,
        retry_after=retry_after,
        details=details,
    )
    if prefers_problem(request.accept_mimetypes):
        response = jsonify(fault.as_problem(runtime().settings.api_base_path))
        response.mimetype = PROBLEM
    else:
        response = jsonify(fault.as_json())
    response.status_code = status
    response.vary.add("Accept")
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response
