"""Gauges that are read at a scrape: counts of pool and line from the store, breakers' states and queues from Redis."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from broker_common.adapters.redis_breaker import BreakerState
from broker_common.adapters.renewed import Renewed
from broker_common.core.reservation import ReservationState
from broker_common.core.sandbox import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

    from broker_common.core.ports import Clock
    from broker_common.core.reservation import Reservation
    from broker_common.core.store import PoolCount

_GAUGES = {
    Status.AVAILABLE: "Number of sandboxes currently available",
    Status.RESERVED: "Sandboxes that are set aside for reservations",
    Status.ALLOCATED: "Number of sandboxes currently allocated",
    Status.PENDING_DELETION: "Sandboxes that wait to be wiped",
    Status.STALE: "Sandboxes out of service until a sync sees them",
    Status.DELETION_FAILED: "Sandboxes whose deletion needs a person",
}
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class PoolCollector(Collector):
    """The gauges of pool and line; absent while the store is away."""

    def __init__(self, counts: Renewed[PoolCount], clock: Clock) -> None:
        """Show the last count of the pool."""
        self._clock = clock
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        known = self._counts.get()
        if known is None:
            return
        counts = known.by_status
        for status, what in _GAUGES.items():
            yield GaugeMetricFamily(f"broker_pool_{status}", what, value=counts[status])
        total = sum(counts[status] for status in _GAUGES)
        yield GaugeMetricFamily("broker_pool_total", "Sandboxes in the pool", value=total)
        yield GaugeMetricFamily(
            "broker_oldest_pending_deletion_seconds",
            "Age of the deletion that has waited longest",
            value=self._age(known.oldest_pending_deletion),
        )
        yield GaugeMetricFamily("broker_line_length", "Places in the line of tracks that wait", value=known.waiting)
        yield GaugeMetricFamily(
            "broker_line_oldest_seconds",
            "How long the track that waits longest has been in line, of those that are not late",
            value=self._age(known.longest_waiting_since),
        )

    def _age(self, since: int | None) -> int:
        """Return how many seconds ago something began; 0 if there is nothing."""
        return 0 if since is None else max(0, self._clock.now() - since)


class ReservationCollector(Collector):
    """The gauges of reservations; absent while the store is away."""

    def __init__(self, read: Callable[[], Iterable[Reservation]], clock: Clock, *, max_age: float) -> None:
        """Ask `read` for the reservations that are not archived, at most once in `max_age` seconds."""
        self._clock = clock
        self._known = Renewed(lambda: (clock.monotonic(), tuple(read())), clock, max_age=max_age)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges. A reservation is short from when it opens, ten minutes before its start."""
        known = self._known.get()
        if known is None:
            return
        now = self._clock.now()
        states = Counter(each.state_at(now) for each in known)
        by_state = GaugeMetricFamily(
            "broker_reservations", "Reservations that are not archived, by state", labels=["state"]
        )
        for state in ReservationState:
            by_state.add_metric([state.value], states[state])
        yield by_state
        short_by = sum(each.short_by_at(now) for each in known if each.is_open_at(now))
        yield GaugeMetricFamily(
            "broker_reservation_short_by", "Sandboxes that the open reservations lack", value=short_by
        )


class _LabelledGauge(Collector):
    """A gauge with a value for each of its labels; absent while it cannot be read."""

    def __init__(
        self, name: str, what: str, label: str, read: Callable[[], Mapping[str, int]], clock: Clock, *, max_age: float
    ) -> None:
        self._name = name
        self._what = what
        self._label = label
        self._values = Renewed(lambda: (clock.monotonic(), read()), clock, max_age=max_age)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauge."""
        values = self._values.get()
        if values is not None:
            gauge = GaugeMetricFamily(self._name, self._what, labels=[self._label])
            for label, value in values.items():
                gauge.add_metric([label], value)
            yield gauge


class CircuitCollector(_LabelledGauge):
    """The states of the circuit breakers, by their names: 0 closed, 1 half-open, 2 open."""

    def __init__(self, read: Callable[[], Mapping[str, BreakerState]], clock: Clock, *, max_age: float) -> None:
        """Ask `read` at most once in `max_age` seconds."""
        what = "Circuit breaker: 0 closed, 1 half-open, 2 open"
        numbers = partial(_numbers_of, read)
        super().__init__("broker_circuit_state", what, "name", numbers, clock, max_age=max_age)


class QueueCollector(_LabelledGauge):
    """How many messages wait in each queue, without those that a worker has taken."""

    def __init__(self, read: Callable[[], Mapping[str, int]], clock: Clock, *, max_age: float) -> None:
        """Ask `read` at most once in `max_age` seconds."""
        what = "Messages that wait for a worker, by queue"
        super().__init__("broker_queue_messages", what, "queue", read, clock, max_age=max_age)


def _numbers_of(read: Callable[[], Mapping[str, BreakerState]]) -> dict[str, int]:
    return {name: _STATES[state] for name, state in read().items()}
