"""Limits how many threads of a process may be busy for long."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.ports import Clock

_SPARE_THREADS = 2
_LONGEST_QUEUE_SEC = 1.0
"""As long as one call to DynamoDB may take. If no permit comes free in this time, DynamoDB does more than pause."""


class ThreadBudget:
    """Keeps two threads of a process free, so that a short call such as a health check finds one.

    A request that calls the store holds one permit. So does a caller that waits for a job. There are two permits fewer
    than threads.
    """

    def __init__(self, threads: int, clock: Clock) -> None:
        self._clock = clock
        self._permits = _Permits(threads - _SPARE_THREADS)
        self._waiters = threading.BoundedSemaphore((threads - _SPARE_THREADS) // 2)
        self._stuck = False

    @contextmanager
    def store_call(self, seconds: float) -> Iterator[None]:
        """Run the block with a permit, and with a deadline of `seconds`. Who asked first gets the next permit.

        Raises `StoreUnavailable` if no permit comes free within a second or the deadline. A request that waits uses a
        spare thread. So after a wait without success, no request waits until another request has ended.
        """
        with deadline_in(seconds, self._clock):
            if not self._permits.acquire(0) and not self._queue():
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
        if may_wait and not self._permits.acquire(0):
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
        acquired = self._permits.acquire(min(_LONGEST_QUEUE_SEC, time_left(self._clock)))
        self._stuck = not acquired
        return acquired


class _Permits:
    """A semaphore that is fair: a permit that comes free belongs to the thread that has waited longest.

    From `threading.Semaphore`, a running thread can take a permit before the waiting thread wakes up, again and again.
    """

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def acquire(self, seconds: float) -> bool:
        """Take a permit, waiting up to `seconds` for it, and tell whether that succeeded."""
        with self._lock:
            if self._free:  # so nobody waits
                self._free -= 1
                return True
            if seconds <= 0:
                return False
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(seconds):
            return True
        with self._lock:
            if turn.is_set():  # at the last moment
                return True
            self._waiting.remove(turn)
            return False

    def release(self) -> None:
        """Give back a permit."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1
