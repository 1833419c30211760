"""The id of each request: taken over from the caller or made here, on every answer and every log line."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, cast

from flask import g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

if TYPE_CHECKING:
    from flask import Flask, Response

HEADER = "X-Request-ID"
PATTERN = "[A-Za-z0-9._-]{1,128}"
_VALID = re.compile(PATTERN)


def register_tracing(app: Flask) -> None:
    """Give every request of an application its id."""
    app.before_request(_begin)
    app.after_request(_show)
    app.teardown_request(_end)


def choose_request_id(given: str) -> str:
    """Return the caller's id if it is a valid one, else a new one."""
    return given if _VALID.fullmatch(given) else str(uuid.uuid4())


def request_id() -> str:
    """Return the id of the present request."""
    return cast("str", g.request_id)


def _begin() -> None:
    g.request_id = choose_request_id(request.environ.get("HTTP_X_REQUEST_ID", ""))
    # A thread serves one request after the other: nothing may be left from the one before.
    clear_contextvars()
    bind_contextvars(request_id=g.request_id)


def _show(response: Response) -> Response:
    response.headers[HEADER] = g.request_id
    return response


def _end(_error: BaseException | None) -> None:
    clear_contextvars()
