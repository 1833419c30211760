"""Whether the API answers. While it does not, pages do not wait for it again and again.

One slow path says nothing of the others. So a path without an answer is left alone for a while, and the API counts as
away if nothing listens there, or if a second path has no answer and none had one in between.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker_api.bounds import CONSOLE_THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.ports import Clock

READ_SEC = (2.0, 5.0)
"""For pages: to connect, and to answer. An API that hangs must not hold all threads of the console."""
AWAY_SEC = 5
"""After a call without an answer, no page asks for so long. Then one does."""
PATHS_IN_A_ROW = 2
"""If so many paths have no answer one after the other, the API counts as away."""
MOST_READS = CONSOLE_THREADS - 4
"""So many reads may wait for the API at once. The other threads serve what is known, files, and forms."""
_PLACE_SEC = 1.0
_FORGOTTEN_SEC = 60


class Reach:
    """Remembers which paths of the API have no answer, for all threads of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._reads = threading.BoundedSemaphore(MOST_READS)
        self._tried_at: dict[str, float] = {}
        """By path: when a caller last asked, of the paths whose last call had no answer."""
        self._in_a_row: set[str] = set()
        self._away_at: float | None = None

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Hold a place for a read. False: there was none within a second, so that nothing may be read."""
        has_place = self._reads.acquire(timeout=_PLACE_SEC)
        try:
            yield has_place
        finally:
            if has_place:
                self._reads.release()

    def may_ask(self, path: str) -> bool:
        """Tell whether to read `path`. Of what does not answer, only one caller in `AWAY_SEC` hears yes."""
        with self._lock:
            now, tried_at = self._clock.monotonic(), self._tried_at.get(path)
            if self._away_at is not None:
                # Another path tells more than one that may be slow alone.
                if now - self._away_at < (AWAY_SEC if tried_at is None else 2 * AWAY_SEC):
                    return False
                self._away_at = now
            elif tried_at is not None and now - tried_at < AWAY_SEC:
                return False
            if tried_at is not None:
                self._tried_at[path] = now
            return True

    def note_answer(self, path: str) -> None:
        """Remember that a call of `path` was answered. So the API is there."""
        with self._lock:
            self._away_at = None
            self._in_a_row.clear()
            self._tried_at.pop(path, None)

    def note_silence(self, path: str, *, no_connection: bool) -> None:
        """Remember that a call of `path` had no answer. `no_connection`: nothing listens at the API's address."""
        with self._lock:
            now = self._clock.monotonic()
            if no_connection:
                self._away_at = now
                return
            self._tried_at = {name: at for name, at in self._tried_at.items() if now - at < _FORGOTTEN_SEC}
            # A path that was silent before tells nothing new.
            if path not in self._tried_at:
                self._in_a_row.add(path)
            self._tried_at[path] = now
            if len(self._in_a_row) >= PATHS_IN_A_ROW:
                self._away_at = now
