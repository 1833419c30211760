"""What a process of the console remembers for each token. No person sees what another one may see."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

Value = TypeVar("Value")


class Memory(Generic[Value]):
    """Keeps values for `longest_sec`, and of all tokens together `most_size`, in the measure that `put` is given.

    Thread-safe. What is too old is dropped as values come and are asked for, so that sessions that ended leave nothing.
    """

    def __init__(self, clock: Clock, *, longest_sec: int, most_size: int) -> None:
        self._clock = clock
        self._longest_sec = longest_sec
        self._most_size = most_size
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str], tuple[int, Value, int]] = OrderedDict()
        self._size = 0

    def put(self, token: str, name: str, value: Value, *, at: int, size: int = 1) -> None:
        """Remember a value that was true at a time. The oldest ones are dropped."""
        key = _owner(token), name
        with self._lock:
            self._drop(key)
            self._kept[key] = (at, value, size)
            self._size += size
            self._drop_oldest()

    def get(self, token: str, name: str) -> tuple[int, Value] | None:
        """Return of when the value is, and the value; None if there is none that is young enough."""
        with self._lock:
            self._drop_oldest()
            found = self._kept.get((_owner(token), name))
        return found[:2] if found is not None and self._is_young(found[0]) else None

    def drop(self, token: str, name: str) -> None:
        """Drop one value."""
        with self._lock:
            self._drop((_owner(token), name))

    def forget(self, token: str) -> None:
        """Drop every value of this token."""
        owner = _owner(token)
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                self._drop(key)

    def _drop_oldest(self) -> None:
        while self._kept:
            oldest = next(iter(self._kept))
            if self._size <= self._most_size and self._is_young(self._kept[oldest][0]):
                break
            self._drop(oldest)

    def _is_young(self, at: int) -> bool:
        return 0 <= self._clock.now() - at <= self._longest_sec

    def _drop(self, key: tuple[bytes, str]) -> None:
        found = self._kept.pop(key, None)
        self._size -= found[2] if found is not None else 0


def _owner(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
