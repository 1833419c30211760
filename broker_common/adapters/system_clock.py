"""The machine's clock."""

from __future__ import annotations

import time


class SystemClock:
    """Implements the `Clock` port."""

    def now(self) -> int:
        """Return the time in Unix seconds."""
        return int(time.time())

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start, never running backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        time.sleep(seconds)
