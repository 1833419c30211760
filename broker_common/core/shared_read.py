"""A value of the store that one thread at a time reads for all threads of the process."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

Value = TypeVar("Value")


class SharedRead(Generic[Value]):
    """The last value that was read; safe to use from many threads."""

    def __init__(self, read: Callable[[], Value], clock: Clock, *, spacing: float = 0.0) -> None:
        """Call `read` at most once in `spacing` seconds."""
        self._read = read
        self._clock = clock
        self._spacing = spacing
        self._reading = threading.Lock()
        self._known: tuple[float, Value] | None = None

    def get(self, *, not_before: float) -> tuple[float, Value]:
        """Return when a read began (by the monotonic clock), and its value. It began at `not_before` or later.

        If `not_before` is in the future, it begins now: after all that this thread did before.

        Waits for another thread's read, and for the time between two reads. Raises the errors of `read`, and
        `StoreUnavailable` if the deadline passes first.
        """
        known = self._known
        if known is not None and known[0] >= not_before:
            return known
        if not self._reading.acquire(timeout=max(0, min(time_left(self._clock), threading.TIMEOUT_MAX))):
            raise StoreUnavailable("another request reads the same from the store, and takes too long")
        try:
            known = self._known
            if known is not None and known[0] >= not_before:
                return known
            last = known[0] if known is not None else -math.inf
            if (pause := last + self._spacing - self._clock.monotonic()) > 0:
                if time_left(self._clock) < pause:
                    raise StoreUnavailable("the deadline is too near for another read of the store")
                self._clock.sleep(pause)
            began = self._clock.monotonic()
            self._known = known = (began, self._read())
            return known
        finally:
            self._reading.release()
