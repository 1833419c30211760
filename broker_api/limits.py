"""Decorators for views that call the store: they set the deadline, and take one of the limited threads."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker_api.bounds import BULK_DEADLINE_SEC
from broker_api.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Run `view` within the deadline of a request, and only while threads stay free for health checks."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        here = runtime()
        with here.threads.store_call(here.settings.request_deadline_sec):
            return view(*args, **kwargs)

    return bounded


def bulk_store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Do the same with the longer deadline of a view that goes through many records."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        with runtime().threads.store_call(BULK_DEADLINE_SEC):
            return view(*args, **kwargs)

    return bounded
