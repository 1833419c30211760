"""Values of the store that one thread at a time reads for all threads of the process."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable, UnreadableRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

Value = TypeVar("Value")


class SharedRead(Generic[Value]):
    """The last value that was read; safe to use from many threads."""

    def __init__(
        self, read: Callable[[], Value], clock: Clock, *, spacing: Callable[[Value], float] = lambda _: 0.0
    ) -> None:
        """Call `read` again so many seconds after the last time as `spacing` says of the value, or later."""
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
            next_at = known[0] + self._spacing(known[1]) if known is not None else -math.inf
            if (pause := next_at - self._clock.monotonic()) > 0:
                if time_left(self._clock) < pause:
                    raise StoreUnavailable("the deadline is too near for another read of the store")
                self._clock.sleep(pause)
            began = self._clock.monotonic()
            self._known = known = (began, self._read())
            return known
        finally:
            self._reading.release()


class KeptRead(Generic[Value]):
    """A value that is read at most every few seconds, and kept while it cannot be read. Thread-safe."""

    def __init__(self, read: Callable[[], Value], clock: Clock, *, max_age: float, what: str) -> None:
        """Call `read` again when the value is `max_age` seconds old. `what` names the value in messages."""
        self._read = read
        self._clock = clock
        self._max_age = max_age
        self._what = what
        self._reading = threading.Lock()
        self._known: tuple[Value] | None = None
        self._read_at = 0.0

    def current(self) -> Value:
        """Return the value, at most a few seconds old. If it cannot be read now, return the last known one.

        Raises `StoreUnavailable` or `UnreadableRecord` if no value is known yet.
        """
        known = self._known
        if known is not None:
            fresh = self._clock.monotonic() - self._read_at < self._max_age
            if fresh or not self._reading.acquire(blocking=False):
                return known[0]
        elif not self._reading.acquire(timeout=max(0, min(time_left(self._clock), threading.TIMEOUT_MAX))):
            raise StoreUnavailable(f"{self._what} are not known yet, because the store has not answered; try again")
        try:
            if known is None and self._known is not None:
                return self._known[0]
            # Set before the read: while the store is away, it is asked once per `max_age`, not once per request.
            self._read_at = self._clock.monotonic()
            value = self._read()
            self._known = (value,)
        except (StoreUnavailable, UnreadableRecord):
            if known is None:
                raise
            return known[0]
        else:
            return value
        finally:
            self._reading.release()

    def note(self, value: Value) -> None:
        """Keep a value that was read, or written, just now."""
        self._known = (value,)
        self._read_at = self._clock.monotonic()
