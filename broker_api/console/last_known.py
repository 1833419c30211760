"""The last answers of the API, which pages show while it is away."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.ports import Clock

_MOST = 200
"""Answers that are kept: for a few people, the pages that each looks at."""
_LONGEST_SEC = 3600


class LastKnown:
    """Keeps the last answer to each question of each token. No person sees what another one may see."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, str], tuple[int, dict[str, Any]]] = OrderedDict()

    def keep(self, token: str, path: str, parameters: Mapping[str, object], body: dict[str, Any]) -> None:
        """Remember an answer. The oldest ones are dropped."""
        key = _key(token, path, parameters)
        with self._lock:
            self._kept[key] = (self._clock.now(), body)
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)

    def find(self, token: str, path: str, parameters: Mapping[str, object]) -> tuple[int, dict[str, Any]] | None:
        """Return when the last answer came, and the answer; None if there is none of the last hour."""
        with self._lock:
            found = self._kept.get(_key(token, path, parameters))
        return found if found is not None and found[0] >= self._clock.now() - _LONGEST_SEC else None

    def forget(self, token: str) -> None:
        """Drop every answer to this token."""
        owner = _owner(token)
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                del self._kept[key]


def _key(token: str, path: str, parameters: Mapping[str, object]) -> tuple[bytes, str]:
    return _owner(token), f"{path}?{sorted(parameters.items())}"


def _owner(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
