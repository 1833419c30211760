"""The request that is being served, with what the parts of the API and of the console note of it.

Flask looks for `request`, `g` and `current_app` again at each use, which took a tenth of an allocation's instructions.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import flask
from flask.globals import request_ctx

if TYPE_CHECKING:
    from broker_common.core.errors import BrokerError
    from broker_common.core.ports import Allowance
    from broker_common.core.principals import Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The calling track, with the other headers of its request."""

    track_id: str
    idempotency_key: str
    prefix: str
    track_name: str | None
    reservation_id: str | None


class Request(flask.Request):
    """A request of an application that `register_tracing` was called for."""

    app: flask.Flask
    before: Token[Request] | None = None
    """What restores the request that was current before it; None until it is the current one."""
    request_id: str
    began_at: float
    """When it came to the application, by the monotonic clock."""
    identity: Principal | BrokerError | None = None
    """Whose token it has, or why that is not known; None until somebody asks."""
    caller: Caller
    """The calling track; only of a track's calls."""
    allowance: Allowance | None = None
    """What the rate limit says, if it was asked and is known."""


_current: ContextVar[Request] = ContextVar("current")


def begin(app: flask.Flask) -> Request:
    """Return the request that Flask begins to serve, which `current` returns from now on."""
    request = cast("Request", request_ctx.request)
    request.app = app
    request.before = _current.set(request)
    return request


def end() -> None:
    """Forget the request that Flask has served. One application may have called another in the same thread."""
    before = cast("Request", request_ctx.request).before
    if before is not None:
        _current.reset(before)


def current() -> Request:
    """Return the current request; only while one is served."""
    return _current.get()
