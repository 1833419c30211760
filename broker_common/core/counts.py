"""Count the pool: one process at a time counts it for all, which read its count from the store.

The record of counts names the process that may count, and until when. Each write of it is conditional on the record
that was read. So one process gets this right, and one that lost it never replaces a newer count. The write that stores
a count also keeps the right for the next one.

Clocks of machines differ, so a process reads the end of another's right from the clock only when it first sees a
record, and never waits longer than its own right would last. From then on its own monotonic clock counts. This is how
a lease ends in Amazon's DynamoDB Lock Client. A process whose clock is ahead may take the right too early. It then
keeps the right, and no process takes it back: the pool is counted once too often.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import StoreUnavailable
from broker_common.core.ids import new_id
from broker_common.core.store import Conflict, CountRecord, PoolCount

if TYPE_CHECKING:
    from random import Random

    from broker_common.core.ports import Clock
    from broker_common.core.store import SandboxStore

COUNT_LIMIT_SEC = 3.0
"""How long one count may take, with its reads and writes of the record."""
_SLACK_SEC = 2.0
"""How late the next count of the same process may begin."""
_LOOK_AGAIN_SEC = 0.2
_EARLIER_SEC = 0.1
"""So much earlier than after `max_age` a process looks for the next count, and so approaches the time of its writes."""


class Counts:
    """The latest count of the pool; for use by one thread."""

    def __init__(self, store: SandboxStore, clock: Clock, rng: Random, *, max_age: float) -> None:
        """Expect that the process that may count does so every `max_age` seconds."""
        self._store = store
        self._clock = clock
        self._rng = rng
        self._me = new_id(rng)
        self._max_age = max_age
        self._right_sec = math.ceil(max_age + COUNT_LIMIT_SEC + _SLACK_SEC)
        self._record = CountRecord()
        """The record as this process last read or wrote it."""
        self._right_ends_at = -math.inf
        self._looked_at = -math.inf
        self._known_since = -math.inf
        """About when the count of the record was stored; -inf if this process did not look shortly before."""
        self._began_at = -math.inf
        """When that count began, by our monotonic clock."""

    def latest(self) -> tuple[float, PoolCount]:
        """Return the latest count of the pool, and about when it was stored (by this process's monotonic clock).

        For a count of this process that is when it began. It is -inf if this process cannot tell.

        Counts the pool if this process may, also if it gets that right now. A count is shown for at most twice the
        time of a right. Takes at most `COUNT_LIMIT_SEC`. Raises `StoreUnavailable`, also if there is no count yet.
        """
        with deadline_in(COUNT_LIMIT_SEC, self._clock):
            while True:
                self._note(self._store.read_counts(), self._clock.monotonic())
                if self._may_count():
                    return self._count()
                is_shown = self._clock.monotonic() - self._began_at <= 2 * self._right_sec
                if self._record.count is not None and is_shown:
                    return self._known_since, self._record.count
                if time_left(self._clock) < _LOOK_AGAIN_SEC:
                    raise StoreUnavailable("another process is counting the pool; try again")
                self._clock.sleep(_LOOK_AGAIN_SEC)

    def _note(self, record: CountRecord, now: float) -> None:
        wall_time = self._clock.now()
        if record != self._record:
            self._right_ends_at = now + min(max(0, record.counting_until - wall_time), self._right_sec)
        if record.count is not None and record.count != self._record.count:
            looked_before = now - self._looked_at < self._max_age + 1
            self._known_since = now - _EARLIER_SEC if looked_before else -math.inf
            self._began_at = now - max(0, wall_time - record.count.began_at)
        self._record, self._looked_at = record, now

    def _may_count(self) -> bool:
        """Tell whether this process has the right to count. Takes the right if that of another has ended."""
        if self._record.counter == self._me:
            return True
        return self._clock.monotonic() >= self._right_ends_at and self._write(self._record, self._clock.monotonic())

    def _count(self) -> tuple[float, PoolCount]:
        """Count the pool and store the count, unless another process has the right by now."""
        began = self._clock.monotonic()
        began_at = self._clock.now()
        count = PoolCount(
            by_status=self._store.count(),
            oldest_pending_deletion=self._store.oldest_pending_deletion(),
            began_at=began_at,
            counted_by=self._me,
        )
        self._write(replace(self._record, count=count), began)
        return began, count

    def _write(self, record: CountRecord, now: float) -> bool:
        """Write a record that gives this process the right to count; return False if another process came first.

        If the store takes no writes, each process counts for itself.
        """
        until = self._clock.now() + self._right_sec
        mine = replace(record, turn=new_id(self._rng), counter=self._me, counting_until=until)
        try:
            self._store.write_counts(mine, instead_of=self._record.turn)
        except Conflict:
            return False
        except StoreUnavailable:
            return True
        self._note(mine, now)
        return True
