"""Which request sent a form first. A double click, a reload of the answer, and a second try come later."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker_api.console.memory import Memory
from broker_api.console.session import LONGEST_SEC

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

_MOST = 10_000


class Once:
    """Remembers by which request each form was sent, for each token alone, as long as a session lasts. Thread-safe.

    Each instance of the console remembers those that it was sent itself.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: Memory[str] = Memory(clock, longest_sec=LONGEST_SEC, most_size=_MOST)

    def begin(self, token: str, key: str, request_id: str) -> str | None:
        """Return the id of the request that sent the form of this key first; None if that is `request_id` itself."""
        with self._lock:
            first = self._sent.get(token, key)
            if first is not None:
                return first[1]
            self._sent.put(token, key, request_id, at=self._clock.now())
            return None

    def free(self, token: str, key: str) -> None:
        """Let a form count as not sent, because nothing was done."""
        self._sent.drop(token, key)
