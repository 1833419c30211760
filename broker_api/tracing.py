"""Gives each request an id, for its answer and its log lines, and logs how it was answered."""

from __future__ import annotations

import logging
import re
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars

from broker_api import current
from broker_api.current import Request

if TYPE_CHECKING:
    from flask import Flask, Response

    from broker_common.core.ports import Clock

HEADER = "X-Request-ID"
PATTERN = "[A-Za-z0-9._-]{1,128}"
_VALID = re.compile(PATTERN)
# Probes and scrapers call these every few seconds. Nobody reads their log lines while the answer is 200.
_PROBED = frozenset({"/healthz", "/readyz", "/metrics"})

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")


def register_tracing(app: Flask, clock: Clock) -> None:
    """Give every request of `app` an id, and log its answer.

    Register this before anything that looks at the current request.
    """
    app.request_class = Request

    @app.before_request
    def begin() -> None:
        request = current.begin(app)
        request.began_at = clock.monotonic()
        request.request_id = chosen = choose_request_id(request.environ.get("HTTP_X_REQUEST_ID", ""))
        # A thread serves many requests, so values of the previous one must not stay.
        clear_contextvars()
        bind_contextvars(request_id=chosen)

    @app.after_request
    def show(response: Response) -> Response:
        request = current.current()
        response.headers[HEADER] = request.request_id
        _write_line(request, response.status_code, clock.monotonic() - request.began_at)
        return response

    app.teardown_request(_end)


def choose_request_id(given: str) -> str:
    """Return `given` if it is a valid id, else a new id."""
    return given if _VALID.fullmatch(given) else str(uuid.uuid4())


def request_id() -> str:
    """Return the id of the current request."""
    return current.current().request_id


def _write_line(request: Request, status: int, seconds: float) -> None:
    """Log the answer, with the route's template. The path is not logged, because callers can put anything into it."""
    route = request.url_rule.rule if request.url_rule else None
    # A parameter of a path may have the name of one of our own fields, which count.
    details = {
        **(request.view_args or {}),
        "route": route,
        "action": "request",
        "method": request.method,
        "status": status,
        "latency_ms": round(seconds * 1000, 1),
    }
    _log.log(
        logging.DEBUG if route in _PROBED and status == HTTPStatus.OK else logging.INFO,
        "Request answered",
        **{name: value for name, value in details.items() if value is not None},
    )


def _end(_error: BaseException | None) -> None:
    current.end()
    clear_contextvars()
