"""Gives each request an id, for its answer and its log lines, and logs how it was answered."""

from __future__ import annotations

import logging
import re
import time
import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

import structlog
from flask import g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

if TYPE_CHECKING:
    from flask import Flask, Response

HEADER = "X-Request-ID"
PATTERN = "[A-Za-z0-9._-]{1,128}"
_VALID = re.compile(PATTERN)
# Probes and scrapers call these every few seconds. Nobody reads their log lines while the answer is 200.
_PROBED = frozenset({"/healthz", "/readyz", "/metrics"})

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")


def register_tracing(app: Flask) -> None:
    """Give every request of `app` an id, and log its answer."""
    app.before_request(_begin)
    app.after_request(_show)
    app.teardown_request(_end)


def choose_request_id(given: str) -> str:
    """Return `given` if it is a valid id, else a new id."""
    return given if _VALID.fullmatch(given) else str(uuid.uuid4())


def request_id() -> str:
    """Return the id of the current request."""
    return cast("str", g.request_id)


def _begin() -> None:
    g.began_at = time.monotonic()
    chosen = choose_request_id(request.environ.get("HTTP_X_REQUEST_ID", ""))
    g.request_id = chosen
    # A thread serves many requests, so values of the previous one must not stay.
    clear_contextvars()
    bind_contextvars(request_id=chosen)


def _show(response: Response) -> Response:
    response.headers[HEADER] = g.request_id
    _write_line(response.status_code)
    return response


def _write_line(status: int) -> None:
    """Log the answer, with the route's template. The path is not logged, because callers can put anything into it."""
    route = request.url_rule.rule if request.url_rule else None
    # A parameter of a path may have the name of one of our own fields, which count.
    details = {
        **(request.view_args or {}),
        "route": route,
        "action": "request",
        "method": request.method,
        "status": status,
        "latency_ms": round((time.monotonic() - g.began_at) * 1000, 1),
    }
    _log.log(
        logging.DEBUG if route in _PROBED and status == HTTPStatus.OK else logging.INFO,
        "Request answered",
        **{name: value for name, value in details.items() if value is not None},
    )


def _end(_error: BaseException | None) -> None:
    clear_contextvars()
