"""What an operator looks at first, from few reads: the pool, its line, reservations, pauses, jobs and the breaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from broker_common.core.deadline import time_left
from broker_common.core.errors import QueueUnavailable, StoreUnavailable, UnreadableRecord
from broker_common.core.samples import MINUTE_SEC, add_up, minute_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from broker_common.core.inventory import Inventory
    from broker_common.core.known_reservations import KnownReservations
    from broker_common.core.ports import Clock
    from broker_common.core.reservation import Reservation
    from broker_common.core.runs import JobQueue, JobRun
    from broker_common.core.store import Pauses, PoolCount, SandboxStore
    from broker_common.core.telemetry import AllocateOutcome
    from broker_common.core.webhook import Endpoint

_HOUR_MINUTES = 60
_LOOK_AGAIN_SEC = 0.1
_LEFT_SEC = 1.5
"""How much of a request's time is left for the other reads when the wait for a first count ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state of the provider's circuit breaker, as all workers share it.

    `state` is closed, half-open or open. `failures`: the calls in a row that failed; `reason` is the last failure.
    `open_until`: when the next call may try (Unix seconds); None while it is closed.
    """

    state: str
    failures: int = 0
    reason: str | None = None
    open_until: int | None = None


class BreakerRecord(Protocol):
    """Reads the shared state of the breaker."""

    def read(self) -> Breaker:
        """Return the state. Raises `QueueUnavailable` if Redis does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The state of the broker. What could not be read is None, and its `…_error` says why.

    `reservations` are those that are open, and those that are being filled and lack sandboxes. `jobs` has the last run
    of each job that has one. `allocates` are those of the last hour, from `allocates_since` (Unix seconds) on; the last
    minute or two are not in it yet. `endpoints` are those of webhooks.
    """

    count: PoolCount
    last_sync_at: int | None
    pauses: Pauses | None
    pauses_error: str | None
    reservations: Sequence[Reservation]
    endpoints: Sequence[Endpoint]
    jobs: Sequence[JobRun] | None
    jobs_error: str | None
    breaker: Breaker | None
    breaker_error: str | None
    allocates: Mapping[AllocateOutcome, int]
    allocates_since: int


class Overviews:
    """Reads the overview."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        inventory: Inventory,
        reservations: KnownReservations,
        pool_count: Callable[[], PoolCount | None],
        queue: JobQueue,
        breaker: BreakerRecord,
        clock: Clock,
        jobs: Iterable[str],
    ) -> None:
        """Take the count of the pool from `pool_count`, which one process makes for all."""
        self._store = store
        self._inventory = inventory
        self._reservations = reservations
        self._pool_count = pool_count
        self._queue = queue
        self._breaker = breaker
        self._clock = clock
        self._jobs = tuple(jobs)

    def read(self) -> Overview:
        """Return the overview, by at most six reads of the table, with that of the count that the gauges show, too.

        While Redis does not answer, there are no jobs and no breaker. Raises `StoreUnavailable`, also if nobody has
        counted the pool yet.
        """
        count = self._read_count()
        pauses, pauses_error = None, None
        try:
            pauses = self._store.read_pauses()
        except UnreadableRecord as error:
            pauses_error = error.message
        now = self._clock.now()
        since = minute_of(now) - (_HOUR_MINUTES - 1) * MINUTE_SEC
        allocates = add_up(self._store.read_samples(since=since, until=now + 1))
        last_sync_at = self._inventory.last_sync()
        reservations = [each for each in self._reservations.current() if _is_shown(each, now)]
        endpoints = self._store.read_endpoints()
        # Last, because Redis may be slow to fail.
        jobs, breaker, redis_error = self._read_redis()
        return Overview(
            count=count,
            last_sync_at=last_sync_at,
            pauses=pauses,
            pauses_error=pauses_error,
            reservations=sorted(reservations, key=lambda each: (each.starts_at, each.reservation_id)),
            endpoints=endpoints,
            jobs=jobs,
            jobs_error=redis_error if jobs is None else None,
            breaker=breaker,
            breaker_error=redis_error if breaker is None else None,
            allocates=allocates,
            allocates_since=since,
        )

    def _read_count(self) -> PoolCount:
        """Return the latest count of the pool. Waits for the first one of this process."""
        while (count := self._pool_count()) is None:
            if time_left(self._clock) < _LEFT_SEC + _LOOK_AGAIN_SEC:
                raise StoreUnavailable("the pool could not be counted yet; try again")
            self._clock.sleep(_LOOK_AGAIN_SEC)
        return count

    def _read_redis(self) -> tuple[list[JobRun] | None, Breaker | None, str | None]:
        """Return the last run of each job, and the breaker; and what Redis did not give, with the reason.

        Asks Redis no more after its first failure, which may have taken a second.
        """
        jobs, breaker = None, None
        try:
            jobs = [run for job in self._jobs for run in self._queue.read_last(job, limit=1)]
            breaker = self._breaker.read()
        except QueueUnavailable as error:
            return jobs, breaker, error.message
        return jobs, breaker, None


def _is_shown(reservation: Reservation, now: int) -> bool:
    is_short = reservation.is_filled_at(now) and reservation.lacking > 0
    return is_short or reservation.is_open_at(now)
