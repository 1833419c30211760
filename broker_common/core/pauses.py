"""Which operations an operator has paused, known to every process within seconds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable, UnreadableRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.ports import Clock, Pauses, SandboxStore

MAX_AGE_SEC = 3.0
"""Callers rely on five seconds; a read of the store may take up the rest."""


class PauseBoard:
    """The pauses as the store has them, read at most every few seconds by one thread at a time."""

    def __init__(self, store: SandboxStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._reading = threading.Lock()
        self._known: Pauses | None = None
        self._read_at = 0.0

    def current(self) -> Pauses:
        """Return the pauses, at most a few seconds old; what was known last if they cannot be read now.

        Raises `StoreUnavailable` or `UnreadableRecord` if nothing is known yet.
        """
        known = self._known
        if known is not None:
            fresh = self._clock.monotonic() - self._read_at < MAX_AGE_SEC
            if fresh or not self._reading.acquire(blocking=False):
                return known
        elif not self._reading.acquire(timeout=max(0, min(time_left(self._clock), threading.TIMEOUT_MAX))):
            raise StoreUnavailable("whether an operator has paused this is not known yet")
        try:
            if known is None and self._known is not None:
                return self._known
            # Set before the read: while the store is away it is asked once per age, not once per request.
            self._read_at = self._clock.monotonic()
            self._known = self._store.read_pauses()
        except (StoreUnavailable, UnreadableRecord):
            if known is None:
                raise
            return known
        else:
            return self._known
        finally:
            self._reading.release()

    def set(self, changes: Mapping[str, bool]) -> Pauses:
        """Pause or resume the named operations, and return all pauses."""
        self._known = self._store.set_pauses(changes)
        self._read_at = self._clock.monotonic()
        return self._known
