"""A copy of the pool that one process keeps for operators."""

from __future__ import annotations

import math
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError
from broker_common.core.shared_read import SharedRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock
    from broker_common.core.store import Pool, Reports

MAX_AGE_SEC = 3.0
"""The index tells what has changed, and may be out of date by 2 s. So no sandbox is shown as it was over 5 s ago."""
AHEAD_SEC = MAX_AGE_SEC / 2
"""From this age on the copy is read again aside, so that who looks again and again does not wait for it."""
WHOLE_SEC = 60.0
"""After this time every record is read again, aside. So a record that something else has changed is seen then."""


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="pool-copy", daemon=True).start()


class PoolCopy:
    """The sandboxes and tombstones of the pool. One thread at a time reads them for all.

    A sandbox whose version has not changed is not read again for a minute: a large pool takes seconds, and costs much.
    """

    def __init__(
        self, reports: Reports, clock: Clock, *, aside: Callable[[Callable[[], None]], None] = _in_thread
    ) -> None:
        """Read again by `aside` what nobody waits for: it runs a function, usually in a thread."""
        self._reports = reports
        self._clock = clock
        self._aside = aside
        self._shared = SharedRead(self._read, clock)
        self._reading_aside = threading.Lock()
        self._last: Pool | None = None
        self._wholes: deque[Pool] = deque(maxlen=1)
        """The pool as it was read aside, if no read has used it yet."""
        self._whole_at = -math.inf

    def get(self, *, max_age: float = MAX_AGE_SEC) -> tuple[float, Pool]:
        """Return when the copy was read (by the monotonic clock), at most `max_age` seconds ago, and the copy.

        Raises `StoreUnavailable` if the deadline passes first.
        """
        now = self._clock.monotonic()
        found = self._shared.get(not_before=now - max_age)
        if (now - found[0] >= AHEAD_SEC or self._is_whole_due()) and self._reading_aside.acquire(blocking=False):
            try:
                self._aside(partial(self._read_aside, not_before=now))
            except RuntimeError:  # no thread can be started, and nobody needs it yet
                self._reading_aside.release()
        return found

    def _is_whole_due(self) -> bool:
        return self._clock.monotonic() - self._whole_at >= WHOLE_SEC

    def _read(self) -> Pool:
        base = self._wholes.pop() if self._wholes else self._last
        if base is None:
            self._whole_at = self._clock.monotonic()
        known = base.sandboxes if base is not None else ()
        self._last = self._reports.read_all(with_accounts=False, consistent=True, known=known)
        return self._last

    def _read_aside(self, *, not_before: float) -> None:
        try:
            if self._is_whole_due():
                began = self._clock.monotonic()
                self._wholes.append(self._reports.read_all(with_accounts=False, consistent=True))
                self._whole_at, not_before = began, math.inf
            self._shared.get(not_before=not_before)
        except BrokerError:
            return  # who needs a younger copy reads it, and is told why that fails
        finally:
            self._reading_aside.release()
