"""How many of a process's threads may be held at once."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.ports import Clock

_SPARE_THREADS = 2
_LONGEST_QUEUE_SEC = 0.25


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
