"""Count the pool: one process at a time counts it for all, which read its count from the store.

The record of counts names the process that has the right to count, and until when. Each write of it is conditional on
the record that was read. So one process gets the right, and one that lost it never replaces a newer count. The write
that stores a count also keeps the right for the next one. A process that needs no more counts gives the right back.

Clocks of machines differ, so a process reads the end of another's right from the clock only when it first sees a
record, and never waits longer than its own right would last. From then on its own monotonic clock counts. This is how
a lease ends in Amazon's DynamoDB Lock Client. A process whose clock is ahead may take the right too early. It then
keeps the right, and no process takes it back: the pool is counted once too often.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from broker_common.core.deadline import deadline_in, time_left
from broker_common.core.errors import DeadlineExceeded, StoreUnavailable, UnreadableRecord
from broker_common.core.ids import new_id
from broker_common.core.sandbox import Status
from broker_common.core.store import RETURN_RANKS, Conflict, CountRecord, PoolCount

if TYPE_CHECKING:
    from random import Random

    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock
    from broker_common.core.store import SandboxStore

COUNT_LIMIT_SEC = 3.0
"""How long one count may take, with the looks at the record before it."""
_WRITE_LIMIT_SEC = 1.5
"""How long storing the count may take after that."""
_SLACK_SEC = 2.0
"""How late the next count of the same process may be stored: it may begin late, and the write takes time."""
_LOOK_AGAIN_SEC = 0.2
_OUTLOOK_SEC = 15.0
"""How long a process uses what it read of the line and of the next returns: each read costs as much as a count."""
_EARLIER_SEC = 0.1
"""A process that found a new count looks for the next one this much before `max_age` has passed.

So its looks move, step by step, to the moments at which counts are stored.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outlook:
    """The fields of a `PoolCount` that are read less often than the others."""

    waiting: int
    longest_waiting_since: int | None
    returns: tuple[int, ...]


class Counts:
    """The latest count of the pool; for use by one thread."""

    def __init__(self, store: SandboxStore, clock: Clock, rng: Random, *, max_age: float, policy: Policy) -> None:
        """Expect that the process with the right to count does so every `max_age` seconds."""
        self._store = store
        self._clock = clock
        self._rng = rng
        self._me = new_id(rng)
        self._max_age = max_age
        self._policy = policy
        self._right_sec = math.ceil(max_age + COUNT_LIMIT_SEC + _SLACK_SEC)
        self._record = CountRecord()
        """The record as this process last read or wrote it."""
        self._right_ends_at = -math.inf
        self._looked_at = -math.inf
        self._known_since = -math.inf
        """About when the count of the record was stored; -inf if this process did not look shortly before."""
        self._began_at = -math.inf
        """When that count began, by our monotonic clock."""
        self._outlook: tuple[float, _Outlook] | None = None
        """What was last read of the line and of the next returns, and when."""

    def latest(self) -> tuple[float, PoolCount]:
        """Return a time of this process's monotonic clock, and the latest count of the pool.

        The time is when this process began the count, or about when another stored it; -inf if that is not known.

        Counts the pool if this process has the right to, or can take it. A count is shown for at most twice the time
        of a right. Takes at most `COUNT_LIMIT_SEC`, and `_WRITE_LIMIT_SEC` to store a count. Raises `StoreUnavailable`,
        also if there is no count yet.
        """
        with deadline_in(COUNT_LIMIT_SEC, self._clock):
            try:
                known = self._find()
            except UnreadableRecord:  # that of a later release is never changed, so each process counts for itself
                return self._count()
            if known is not None:
                return self._known_since, known
            began, count = self._count()
        self._try_to_write(replace(self._record, count=count, counting_until=self._new_end()))
        return began, count

    def give_back(self) -> None:
        """Give the right to count back, so that another process can take it at once; to be called after the last count.

        If the store takes no writes, the right ends in its time.
        """
        if self._record.counter == self._me:
            self._try_to_write(replace(self._record, counting_until=0))

    def _find(self) -> PoolCount | None:
        """Return the count of another process; wait for its first one. Return None if this process may count."""
        while True:
            self._note(self._store.read_counts())
            if self._may_count():
                return None
            is_shown = self._clock.monotonic() - self._began_at <= 2 * self._right_sec
            if self._record.count is not None and is_shown:
                return self._record.count
            if time_left(self._clock) < _LOOK_AGAIN_SEC:
                raise StoreUnavailable("another process is counting the pool; try again")
            self._clock.sleep(_LOOK_AGAIN_SEC)

    def _may_count(self) -> bool:
        """Tell whether this process has the right to count. Takes the right if that of another has ended."""
        if self._record.counter == self._me:
            return True
        if self._clock.monotonic() < self._right_ends_at:
            return False
        try:
            self._write(replace(self._record, counting_until=self._new_end()))
        except Conflict:
            return False
        except DeadlineExceeded:
            raise
        except StoreUnavailable:
            pass  # it takes no writes, so each process counts for itself
        return True

    def _count(self) -> tuple[float, PoolCount]:
        """Count the pool; return when that began (by our monotonic clock), and the count."""
        began = self._clock.monotonic()
        began_at = self._clock.now()
        outlook = self._look_ahead(began, began_at)
        return began, PoolCount(
            by_status=self._store.count(),
            oldest_pending_deletion=self._store.oldest_pending_deletion(),
            began_at=began_at,
            counted_by=self._me,
            waiting=outlook.waiting,
            longest_waiting_since=outlook.longest_waiting_since,
            returns=outlook.returns,
        )

    def _look_ahead(self, began: float, now: int) -> _Outlook:
        """Return what is known of the line and of the next returns, for a count that began at these times."""
        if self._outlook is None or began - self._outlook[0] >= _OUTLOOK_SEC:
            self._outlook = (began, self._read_outlook(now))
        return self._outlook[1]

    def _read_outlook(self, now: int) -> _Outlook:
        policy, most = self._policy, RETURN_RANKS[-1]
        places = self._store.read_line()
        since = (each.joined_at for each in places if each.is_live(now))
        in_use = self._store.read_next_due(Status.ALLOCATED, limit=most)
        back = sorted(
            [
                *self._store.read_next_due(Status.PENDING_DELETION, limit=most),
                *(at + policy.expiry_buffer_sec + policy.cool_down_sec for at in in_use),
            ]
        )
        return _Outlook(
            waiting=sum(each.is_kept(now, policy.line_grace_sec) for each in places),
            longest_waiting_since=min(since, default=None),
            returns=tuple(back[rank - 1] for rank in RETURN_RANKS if rank <= len(back)),
        )

    def _try_to_write(self, record: CountRecord) -> None:
        """Write a record in our name, unless another process has the right by now or the store takes no writes."""
        with suppress(Conflict, StoreUnavailable), deadline_in(_WRITE_LIMIT_SEC, self._clock):
            self._write(record)

    def _write(self, record: CountRecord) -> None:
        mine = replace(record, turn=new_id(self._rng), counter=self._me)
        self._store.write_counts(mine, instead_of=self._record.turn)
        self._note(mine)

    def _new_end(self) -> int:
        """Return until when a right lasts that is written now."""
        return self._clock.now() + self._right_sec

    def _note(self, record: CountRecord) -> None:
        """Remember a record that was just read or written, and since when it is known."""
        now, wall_time = self._clock.monotonic(), self._clock.now()
        if record != self._record:
            self._right_ends_at = now + min(max(0, record.counting_until - wall_time), self._right_sec)
        if record.count is not None and record.count != self._record.count:
            looked_before = now - self._looked_at < self._max_age + 1
            self._known_since = now - _EARLIER_SEC if looked_before else -math.inf
            self._began_at = now - max(0, wall_time - record.count.began_at)
        self._record, self._looked_at = record, now
