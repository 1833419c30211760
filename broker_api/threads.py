"""Limits how many threads of a process may be busy for long."""

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
    """Keeps two threads of a process free, so that a short call such as a health check finds one.

    A request that calls the store holds one permit. So does a caller that waits for a job. There are two permits fewer
    than threads.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        self._clock = clock
        self._permits = threading.BoundedSemaphore(threads - _SPARE_THREADS)
        self._waiters = threading.BoundedSemaphore((threads - _SPARE_THREADS) // 2)
        self._stuck = False

    @contextmanager
    def store_call(self, seconds: float) -> Iterator[None]:
        """Run the block with a permit, and with a deadline of `seconds`.

        Raises `StoreUnavailable` if no permit comes free soon. A request that waits for a permit uses a spare thread,
        so the wait is short. After a wait without success, no request waits until another request has ended.
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
        """Tell whether the caller may block its thread for seconds. Such callers get at most half of the permits."""
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
