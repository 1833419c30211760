"""The deadline of the current request, which all code that the request runs can read.

A context variable holds the deadline, so that it need not be a parameter of every call of the store.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from broker_common.core.ports import Clock

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class deadline_in:  # noqa: N801 - used as a function; as a generator it would take twice as long
    """Limit a `with` block to `seconds`. An earlier deadline still applies."""

    __slots__ = ("_clock", "_seconds", "_token")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock

    def __enter__(self) -> None:
        self._token = _deadline.set(min(_deadline.get(), self._clock.monotonic() + self._seconds))

    def __exit__(self, *_: object) -> None:
        _deadline.reset(self._token)


def time_left(clock: Clock) -> float:
    """Return the seconds until the current deadline; infinite if there is no deadline."""
    return _deadline.get() - clock.monotonic()


class Backoff:
    """Pauses between tries: they grow, have full jitter, and end at the deadline or after `tries` tries.

    `base` and `limit` are the longest first pause and the longest pause of all, in seconds.
    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, clock: Clock, rng: Random, *, base: float = 0.004, limit: float = 0.25, tries: int = 20) -> None:
        self._clock = clock
        self._rng = rng
        self._step = base
        self._limit = limit
        self._left = tries - 1

    def pause(self, error: Exception, *, need: float = 0.0) -> None:
        """Wait before the next try.

        Raises `error` if no try is left, or if fewer than `need` seconds would be left after the wait.
        """
        wait = self._rng.uniform(0, self._step)
        if self._left <= 0 or time_left(self._clock) < wait + need:
            raise error
        self._left -= 1
        self._step = min(self._limit, self._step * 2)
        self._clock.sleep(wait)
