"""The recorder that counts the allocates of each minute, and adds them to the sample of that minute."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in
from broker_common.core.errors import BrokerError
from broker_common.core.samples import MINUTE_SEC, minute_of
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker_common.core.ports import Clock
    from broker_common.core.telemetry import Event

WRITE_LIMIT_SEC = 3.0
"""How long one write may take."""
_LOOK_AGAIN_SEC = 1.0
"""How often the thread looks at the clock, which may be set."""

_log = logging.getLogger(__name__)


class MinuteCounts:
    """Counts allocates by outcome, and writes the counts of each minute once it is over; safe to use from many threads.

    A thread writes, which runs only while there are counts to write. If a write fails, its counts are lost: they are
    for pictures, and `/metrics` has all.
    """

    def __init__(
        self,
        write: Callable[[int, Mapping[AllocateOutcome, int]], None],
        clock: Clock,
        *,
        delay_sec: float = 0.0,
    ) -> None:
        """Write the counts of a minute `delay_sec` after its end, so that not all processes write at the same time."""
        self._write = write
        self._clock = clock
        self._delay_sec = delay_sec
        self._changed = threading.Condition()
        self._counts: dict[int, Counter[AllocateOutcome]] = {}
        self._is_writing = False
        self._is_closed = False

    def record(self, event: Event) -> None:
        """Count an allocate."""
        if not isinstance(event, AllocateEnded):
            return
        minute = minute_of(self._clock.now())
        with self._changed:
            self._counts.setdefault(minute, Counter())[event.outcome] += 1
            if not self._is_writing and not self._is_closed:
                threading.Thread(target=self._write_minutes, name="minute-counts", daemon=True).start()
                self._is_writing = True

    def close(self) -> None:
        """Write what is counted so far, also of the current minute. To be called once no more requests are served."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_writing, WRITE_LIMIT_SEC)
            left, self._counts = self._counts, {}
        self._write_all(left)

    def _write_minutes(self) -> None:
        while True:
            with self._changed:
                over = self._take_over()
                if not over and (self._is_closed or not self._counts):
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                if not over:
                    self._changed.wait_for(lambda: self._is_closed, _LOOK_AGAIN_SEC)
            self._write_all(over)

    def _take_over(self) -> dict[int, Counter[AllocateOutcome]]:
        """Take the counts of the minutes that are over."""
        now = self._clock.now()
        over = [minute for minute in self._counts if now >= minute + MINUTE_SEC + self._delay_sec]
        return {minute: self._counts.pop(minute) for minute in over}

    def _write_all(self, counts: Mapping[int, Counter[AllocateOutcome]]) -> None:
        for minute, allocates in counts.items():
            try:
                with deadline_in(WRITE_LIMIT_SEC, self._clock):
                    self._write(minute, allocates)
            except BrokerError:
                continue
            except Exception:  # noqa: BLE001 - an error that ended the thread would end the counts of this process
                _log.exception("the allocates of a minute could not be added to its sample")
