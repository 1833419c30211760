"""Decorators for views that call the store: they set the deadline, and refuse what waited too long for a thread."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker_api.bounds import BULK_DEADLINE_SEC
from broker_api.current import current
from broker_api.runtime import runtime
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

ARRIVED_AT = "broker.arrived_at"
"""In the WSGI environment: when the server had read the request, by the monotonic clock. No header has such a name."""


def store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Run `view` within the deadline of a request. If it waited as long as that for a thread, answer 503."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        return _within(runtime().settings.request_deadline_sec, view, *args, **kwargs)

    return bounded


def held_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Run a view that sets the deadlines of its work itself. If it waited too long for a thread, answer 503."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        _refuse_if_late(runtime().settings.request_deadline_sec)
        return view(*args, **kwargs)

    return bounded


def bulk_store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Do the same with the longer deadline of a view that goes through many records."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        return _within(BULK_DEADLINE_SEC, view, *args, **kwargs)

    return bounded


def _within(
    seconds: float, view: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Answer:
    _refuse_if_late(seconds)
    with deadline_in(seconds, runtime().services.clock):
        return view(*args, **kwargs)


def _refuse_if_late(seconds: float) -> None:
    # A server that does not tell the arrival has no queue that the broker knows of.
    arrived_at = current().environ.get(ARRIVED_AT)
    if arrived_at is not None and runtime().services.clock.monotonic() - arrived_at >= seconds:
        raise StoreUnavailable("the request waited too long for a thread")
