"""How long a request may take, and how many of a process's threads may be held at once."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from broker_api.runtime import runtime
from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from broker_common.core.ports import Clock

MAX_BODY_BYTES = 64 * 1024
HEAD_SEC = 10
"""For the head of a request to come, from its first byte on; a new connection must begin within it."""
BODY_SEC = 10
ANSWER_SEC = 20
"""For an answer to be taken by its client; most fit into the socket's buffer and are gone at once."""
BULK_DEADLINE_SEC = 30.0
"""For calls that go through many records, which an operator makes and waits for."""
_SPARE_THREADS = 2
_LONGEST_QUEUE_SEC = 0.25

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class ThreadBudget:
    """Keeps two threads of a process free of anything that takes long, so that a health check always finds one.

    A request to the store, and a caller who waits for a job, hold one permit each; there are two fewer than threads.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        self._clock = clock
        self._permits = threading.BoundedSemaphore(threads - _SPARE_THREADS)
        self._waiters = threading.BoundedSemaphore((threads - _SPARE_THREADS) // 2)
        self._stuck = False

    @contextmanager
    def store_call(self, seconds: float) -> Iterator[None]:
        """Run what is inside with a permit and a deadline.

        Raises `StoreUnavailable` when no permit comes free soon. Waiting for one takes up a spare thread, so it is
        short, and once it was in vain nobody waits until some request has ended.
        """
        with deadline_in(seconds, self._clock):
            if not self._permits.acquire(blocking=False) and not self._queue():
                raise StoreUnavailable("too many requests are waiting for the store")
            try:
                yield
            finally:
                self._stuck = False
                self._permits.release()

    @contextmanager
    def waiting(self) -> Iterator[bool]:
        """Tell whether the caller may hold its thread for seconds; at most half of the permits go to such callers."""
        may_wait = self._waiters.acquire(blocking=False)
        if may_wait and not self._permits.acquire(blocking=False):
            self._waiters.release()
            may_wait = False
        try:
            yield may_wait
        finally:
            if may_wait:
                self._permits.release()
                self._waiters.release()

    def _queue(self) -> bool:
        if self._stuck:
            return False
        seconds = min(_LONGEST_QUEUE_SEC, time_left(self._clock))
        acquired = seconds > 0 and self._permits.acquire(timeout=seconds)
        self._stuck = not acquired
        return acquired


def store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Run a view within the request's deadline, and only while threads are left for health checks."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        here = runtime()
        with here.threads.store_call(here.settings.request_deadline_sec):
            return view(*args, **kwargs)

    return bounded


def bulk_store_call(view: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Do the same for a view that goes through many records."""

    @wraps(view)
    def bounded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        with runtime().threads.store_call(BULK_DEADLINE_SEC):
            return view(*args, **kwargs)

    return bounded
