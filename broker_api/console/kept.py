"""What pages made of answers that do not change for a while. A page that renews itself need not ask again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

KEPT_SEC = 60
_MOST = 50
"""What is kept, of all people together. One is some tens of kilobytes."""
Made = TypeVar("Made")


class Kept:
    """Keeps what `make` returned for `KEPT_SEC`, for each token alone. No person sees what another one may see."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str], tuple[int, object]] = OrderedDict()

    def get(self, token: str, name: str, make: Callable[[], Made | None]) -> Made | None:
        """Return what is kept under `name`, or what `make` returns now. None is not kept."""
        key, now = (_owner(token), name), self._clock.now()
        with self._lock:
            found = self._kept.get(key)
        if found is not None and 0 <= now - found[0] < KEPT_SEC:
            return cast("Made", found[1])
        # Without the lock, because it calls the API. Two requests at the same time may both do it.
        made = make()
        if made is not None:
            with self._lock:
                self._kept[key] = (now, made)
                self._kept.move_to_end(key)
                while len(self._kept) > _MOST:
                    self._kept.popitem(last=False)
        return made

    def forget(self, token: str) -> None:
        """Drop what was made for this token."""
        owner = _owner(token)
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                del self._kept[key]


def _owner(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
