"""The time by which the present request must be answered, known to everything that it calls.

It travels in a context variable and not as an argument, because every call to the store would have to carry it on.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from broker_common.core.ports import Clock

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def deadline_in(seconds: float, clock: Clock) -> Iterator[None]:
    """Give what runs inside at most `seconds`; a deadline that is already nearer holds."""
    token = _deadline.set(min(_deadline.get(), clock.monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def time_left(clock: Clock) -> float:
    """Return the seconds until the present deadline; infinite without one."""
    return _deadline.get() - clock.monotonic()


class Backoff:
    """Growing pauses with full jitter between tries, within the deadline and a bounded number of tries.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, clock: Clock, rng: Random, *, base: float = 0.004, limit: float = 0.25, tries: int = 20) -> None:
        self._clock = clock
        self._rng = rng
        self._step = base
        self._limit = limit
        self._left = tries - 1

    def pause(self, error: Exception, *, need: float = 0.0) -> None:
        """Wait before the next try; raises `error` if no try is left, or less than `need` seconds would be."""
        wait = self._rng.uniform(0, self._step)
        if self._left <= 0 or time_left(self._clock) < wait + need:
            raise error
        self._left -= 1
        self._step = min(self._limit, self._step * 2)
        self._clock.sleep(wait)
