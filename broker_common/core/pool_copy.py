"""A copy of the pool that one process keeps for operators."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from broker_common.core.shared_read import SharedRead

if TYPE_CHECKING:
    from broker_common.core.ports import Clock
    from broker_common.core.store import Pool, Reports

MAX_AGE_SEC = 3.0
"""The index tells what has changed, and may be out of date by 2 s. So no sandbox is shown as it was over 5 s ago."""
WHOLE_SEC = 60.0
"""After this time every record is read again. So a record that something else has changed is seen then."""


class PoolCopy:
    """The sandboxes and tombstones of the pool. One thread at a time reads them for all.

    A sandbox whose version has not changed is not read again for a minute: a large pool takes seconds, and costs much.
    """

    def __init__(self, reports: Reports, clock: Clock) -> None:
        self._reports = reports
        self._clock = clock
        self._shared = SharedRead(self._read, clock)
        self._last: Pool | None = None
        self._whole_at = -math.inf

    def get(self, *, max_age: float = MAX_AGE_SEC) -> tuple[float, Pool]:
        """Return when the copy was read (by the monotonic clock), at most `max_age` seconds ago, and the copy.

        Raises `StoreUnavailable` if the deadline passes first.
        """
        return self._shared.get(not_before=self._clock.monotonic() - max_age)

    def _read(self) -> Pool:
        began, last = self._clock.monotonic(), self._last
        is_whole = last is None or began - self._whole_at >= WHOLE_SEC
        known = () if last is None or is_whole else last.sandboxes
        self._last = self._reports.read_all(with_accounts=False, consistent=True, known=known)
        if is_whole:
            self._whole_at = began
        return self._last
