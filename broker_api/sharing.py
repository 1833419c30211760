"""Shares new connections evenly among the processes of one server.

All processes accept from one socket, and the kernel wakes all of them. Without this module, the fastest gets most: of
256 connections that were kept, four processes had 5, 46, 97 and 108, and the clients of one waited twice as long as
others. A process that has more connections than another leaves the next one to that one for a moment.
"""

from __future__ import annotations

import mmap

_SLOTS = 512
"""More than there are processes at one time."""
_NONE = -1
_MORE_BY = 2
"""By so many connections more than another process may have, a process accepts all the same."""
_IN_VAIN_SEC = 0.05
"""What no other process took for so long is accepted: those with fewer connections may hang, and count no more."""
_LATER_SEC = 1.0
"""While a connection waits, a process is asked more often than that."""


class Counts:
    """How many connections each process of a server has, in memory that processes forked from this one share."""

    def __init__(self) -> None:
        self.slots = memoryview(mmap.mmap(-1, 4 * _SLOTS)).cast("i")
        """By gunicorn's numbers of the processes, which begin again at the end of the slots."""
        self.slots[:] = memoryview((_NONE).to_bytes(4, "little", signed=True) * _SLOTS).cast("i")

    def note(self, age: int, connections: int) -> None:
        """Note how many connections a process has; `age` is gunicorn's number of it, which no other one has."""
        self.slots[age % _SLOTS] = connections

    def forget(self, age: int) -> None:
        """Forget a process that has ended, or accepts no connection any more."""
        self.slots[age % _SLOTS] = _NONE


OF_THIS_SERVER = Counts()
"""Made before gunicorn forks, so that all of its processes have the same."""


class Share:
    """The part of one process in the connections of its server. Only its event loop uses it."""

    def __init__(self, counts: Counts, age: int) -> None:
        self._counts = counts
        self._age = age
        self._seen = b""
        self._asked_at = self._left_since = 0.0
        self._hung = [_NONE] * _SLOTS
        """What processes had that took no connection. Such a process counts again when its number has changed."""

    def note(self, connections: int) -> None:
        """Tell the other processes how many connections this one has."""
        self._counts.note(self._age, connections)

    def leave(self) -> None:
        """Tell the other processes that this one accepts no connection any more."""
        self._counts.forget(self._age)

    def is_last(self) -> bool:
        """Tell whether no process of the server accepts connections any more, after this one has left."""
        return all(count == _NONE for count in self._counts.slots)

    def should_leave_next(self, connections: int, now: float) -> bool:
        """Tell whether this process, which has so many connections, should leave the next one to another.

        `now` is by the monotonic clock. To be asked each time when a connection could be accepted.
        """
        slots = self._counts.slots
        others = (count for count, hung in zip(slots, self._hung, strict=True) if count not in (_NONE, hung))
        if connections <= min(others, default=connections) + _MORE_BY:
            self._seen = b""
            return False
        seen = slots.tobytes()
        if seen != self._seen or now - self._asked_at > _LATER_SEC:
            # Somebody has accepted a connection since then, or the one that was left is long gone: this one is new.
            self._seen, self._left_since = seen, now
        self._asked_at = now
        if now - self._left_since < _IN_VAIN_SEC:
            return True
        self._seen, self._hung = b"", list(slots)
        return False
