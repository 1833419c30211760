"""Locks for tasks, in place of those of `threading`."""

from __future__ import annotations

from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.scheduler.schedule import Deadlock, Gate, present_task, stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


class Lock:
    """Replaces `threading.Lock`: a task that waits for it is not ready until it is free. Any waiting task may be next."""

    def __init__(self) -> None:
        self._is_taken = False
        self._is_free = Gate(is_open=True)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        task = present_task()
        if self._is_taken or (task and task.schedule.strategy.stops_at_locks):
            if blocking and timeout != 0:
                self._is_free.wait("take a lock", timeout=inf if timeout < 0 else timeout)
            else:
                stop("take a lock")
        if self._is_taken:
            if blocking and timeout < 0:
                raise Deadlock("no task can release this lock")
            return False
        self._is_taken = True
        self._is_free.close()
        return True

    def locked(self) -> bool:
        return self._is_taken

    def release(self) -> None:
        assert self._is_taken
        self._is_taken = False
        self._is_free.open()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def known_locks() -> Iterator[None]:
    """Make each `threading.Lock` that is created in the context a `Lock` of this module."""
    with patch("threading.Lock", Lock):
        yield
