"""Forms that must be done once, although the API has no key for that: a double click, or a page that is reloaded."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker_api.console.memory import Memory
from broker_api.console.session import LONGEST_SEC

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

_MOST = 10_000


class Once:
    """Remembers the keys of forms that were sent, for each token alone, as long as a session lasts. Thread-safe.

    Each instance of the console remembers those that it was sent itself.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: Memory[bool] = Memory(clock, longest_sec=LONGEST_SEC, most_size=_MOST)

    def begin(self, token: str, key: str) -> bool:
        """Tell whether the form of this key is sent for the first time. The next time it is not, unless it is freed."""
        with self._lock:
            if self._sent.get(token, key) is not None:
                return False
            self._sent.put(token, key, True, at=self._clock.now())  # noqa: FBT003 - what is kept is of no matter
            return True

    def free(self, token: str, key: str) -> None:
        """Let a form be sent again, because nothing was done."""
        self._sent.drop(token, key)
