"""Time that passes only in the simulation: many threads of real, blocking code, one at a time and always in the same order.

Each simulated thread is a greenlet; whatever blocks hands control to simpy, which goes on with what is due next.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import greenlet
import simpy

from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ACQUIRED, _GAVE_UP = True, False
LONGEST_WAIT = 1e6
"""Seconds; a time-out beyond this one is none."""


class VirtualTime:
    """A `Clock`, and what starts and resumes the simulated threads."""

    def __init__(self) -> None:
        """Make the calling thread the one that `run` is called from."""
        self._events = simpy.Environment()
        self._hub = greenlet.getcurrent()

    def now(self) -> int:
        return START + int(self._events.now)

    def monotonic(self) -> float:
        return float(self._events.now)

    def sleep(self, seconds: float) -> None:
        self.after(seconds, greenlet.getcurrent().switch)
        self._hub.switch()

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        """Call `act`, which must not block, in so many seconds."""
        event = self._events.timeout(seconds)
        assert event.callbacks is not None
        event.callbacks.append(_ignoring_the_event(act))

    def start(self, act: Callable[[], object]) -> None:
        """Call `act`, which may block, in a thread of its own."""
        self.after(0, greenlet.greenlet(act, parent=self._hub).switch)

    def park(self) -> Any:
        """Block the calling thread until its greenlet is switched to, and return what it is given then."""
        return self._hub.switch()

    def run(self, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until `done` says so, or nothing is left to happen; what is still blocked then ends there."""
        while not done() and self._events.peek() < LONGEST_WAIT:
            self._events.step()

    @contextmanager
    def locks(self) -> Iterator[None]:
        """Have every `threading.Lock` that is made inside block in simulated time."""
        with patch("threading.Lock", lambda: VirtualLock(self)):
            yield


def _ignoring_the_event(act: Callable[[], object]) -> Callable[[Any], None]:
    def call(_: object) -> None:
        act()

    return call


class VirtualLock:
    """A `threading.Lock` of simulated threads; whoever has waited longest is next."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._is_held = False
        self._waiting: deque[greenlet.greenlet] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._is_held:
            self._is_held = True
            return True
        if not blocking or timeout == 0:
            return False
        waiter = greenlet.getcurrent()
        self._waiting.append(waiter)
        if 0 < timeout < LONGEST_WAIT:
            self._time.after(timeout, lambda: self._give_up(waiter))
        return bool(self._time.park())

    def locked(self) -> bool:
        return self._is_held

    def release(self) -> None:
        if self._waiting:
            waiter = self._waiting.popleft()
            self._time.after(0, lambda: waiter.switch(_ACQUIRED))
        else:
            self._is_held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _give_up(self, waiter: greenlet.greenlet) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            waiter.switch(_GAVE_UP)
