"""Whether facts have to be told to anybody, as one process knows it."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

MAX_AGE_SEC = 3.0
"""How old the knowledge that there is no endpoint may be.

A write is sent again for up to 7 seconds (six tries of a second, and the pauses between them). So 10 seconds after an
endpoint was added, no fact is stored any more without being told to it.
"""


class Audience:
    """Knows whether there are endpoints; reads it at most every `MAX_AGE_SEC`. Thread-safe.

    The answer may be wrong in one direction: without fresh knowledge, there is somebody. Then a fact is marked as
    untold, and the next run of the job `deliver` takes the mark away.
    """

    def __init__(self, read: Callable[[], bool], clock: Clock) -> None:
        """Call `read` to find out whether there is an endpoint."""
        self._read = read
        self._clock = clock
        self._reading = threading.Lock()
        self._asked_at = -math.inf
        self._is_known_absent = False

    def is_absent(self) -> bool:
        """Tell whether there surely is no endpoint. Never waits for a read of another thread."""
        if self._is_fresh():
            return self._is_known_absent
        if not self._reading.acquire(blocking=False):
            return False
        try:
            if not self._is_fresh():
                # While the store is away, it is asked once per `MAX_AGE_SEC`, not once per fact.
                self._is_known_absent, self._asked_at = False, self._clock.monotonic()
                self._is_known_absent = not self._read()
        except BrokerError:
            return False
        finally:
            self._reading.release()
        return self._is_known_absent

    def forget(self) -> None:
        """Ask again for the next fact: this process has just added or removed an endpoint."""
        self._asked_at = -math.inf

    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._asked_at < MAX_AGE_SEC
