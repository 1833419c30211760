"""A value that a background thread reads, so that nobody who asks for it waits long."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

FIRST_WAIT_SEC = 1.0
WAIT_SEC = 0.05
_SHORTEST_PAUSE_SEC = 1.0
"""Between renewals that no scrape requests."""
_LOOK_AGAIN_SEC = 0.25
"""If a read found the old value, it is repeated after this time, or after a sixtieth of `max_age` if that is longer."""
_UNSEEN_LIMIT_SEC = 120.0
"""How long after the last scrape the thread ends: longer than a usual scrape interval."""

_log = logging.getLogger(__name__)

Value = TypeVar("Value")
Answer = TypeVar("Answer")


class Renewed(Generic[Value]):
    """A value that one background thread reads, at most once in `max_age` seconds, while somebody asks for it.

    A read may take longer than a scrape may wait, and the last scrape may be a minute ago. So the thread also reads
    between scrapes: the shown value is no older than `max_age` plus one read. The thread ends when the scrapes stop.
    If another process renews the value and is not done yet, the thread soon reads again, so its value may be older by
    that process's read and by the pause until the next look.
    """

    def __init__(
        self,
        read: Callable[[], tuple[float, Value]],
        clock: Clock,
        *,
        max_age: float,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Take a `read` that returns since when its value is known (by the monotonic clock), and the value.

        The thread calls `at_end` before it ends.
        """
        self._read = read
        self._at_end = at_end
        self._clock = clock
        self._max_age = max_age
        self._look_again = max(_LOOK_AGAIN_SEC, max_age / 60)
        self._changed = threading.Condition()
        self._value: Value | None = None
        self._fresh_until = float("-inf")
        self._reads = 0
        self._scraped_at = float("-inf")
        self._wanted = False
        self._renewing = False
        self._began_at = float("-inf")

    def get(self) -> Value | None:
        """Return the value, or None while it cannot be read.

        Waits up to 50 ms for a value that is young enough, and then returns the previous one. If there is no previous
        value (at the first scrape, or after a long time without scrapes), it waits up to 1 s.
        """
        with self._changed:
            now = self._scraped_at = self._clock.monotonic()
            if now < self._fresh_until:
                return self._value
            if not self._renewing:
                self._renewing, self._began_at, self._value = True, now, None
                threading.Thread(target=self._renew, daemon=True).start()
            self._wanted = True
            self._changed.notify_all()
            reads = self._reads
            limit = WAIT_SEC if self._value is not None else max(WAIT_SEC, self._began_at + FIRST_WAIT_SEC - now)
            self._changed.wait_for(lambda: self._reads != reads, limit)
            return self._value

    def _renew(self) -> None:
        while True:
            began = self._clock.monotonic()
            since, value = self._try(self._read) or (began, None)
            with self._changed:
                self._value, self._wanted = value, False
                self._fresh_until = max(since + self._max_age, began + min(self._max_age, self._look_again))
                self._reads += 1
                self._changed.notify_all()
                shortest = _SHORTEST_PAUSE_SEC if since >= began else self._look_again
                pause = max(self._fresh_until - self._clock.monotonic(), shortest)
                self._changed.wait_for(lambda: self._wanted, pause)
                if self._is_scraped():
                    continue
            self._try(self._at_end)
            with self._changed:
                if not self._is_scraped():
                    self._renewing = False
                    return

    def _is_scraped(self) -> bool:
        return self._clock.monotonic() - self._scraped_at < _UNSEEN_LIMIT_SEC

    def _try(self, call: Callable[[], Answer]) -> Answer | None:
        try:
            return call()
        except BrokerError:
            return None  # absent, not zero: the number is not known
        except Exception:  # noqa: BLE001 - an error that ended the thread would leave an old number in place
            _log.exception("a gauge could not be read")
            return None
