"""Whether the API answers. While it does not, pages do not wait for it again and again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

READ_SEC = (2.0, 5.0)
"""For pages: to connect, and to answer. An API that hangs must not hold all threads of the console."""
AWAY_SEC = 5
"""After a call without an answer, no page asks for so long. Then one does."""


class Reach:
    """Remembers since when the API has not answered, for all threads of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tried_at: float | None = None

    def may_ask(self) -> bool:
        """Tell whether to ask. While the API is away, only one caller in `AWAY_SEC` hears yes."""
        with self._lock:
            now = self._clock.monotonic()
            if self._tried_at is not None:
                if now - self._tried_at < AWAY_SEC:
                    return False
                self._tried_at = now
            return True

    def note(self, *, answered: bool) -> None:
        """Remember how a call went."""
        with self._lock:
            self._tried_at = None if answered else self._clock.monotonic()
