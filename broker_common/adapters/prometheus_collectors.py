"""Gauges that are read at a scrape: the pool's counts from the store, the circuit breaker's state from Redis.

A scrape never waits for them for long: one background thread at a time renews what is cached.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from broker_common.adapters.redis_breaker import BreakerState
from broker_common.core.deadline import deadline_in
from broker_common.core.domain import Status
from broker_common.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import Metric

    from broker_common.core.ports import Clock, SandboxStore

FIRST_WAIT_SEC = 1.0
WAIT_SEC = 0.05
_READ_LIMIT_SEC = 3.0
_GAUGES = {
    Status.AVAILABLE: "Sandboxes that may be allocated",
    Status.ALLOCATED: "Sandboxes that a track holds",
    Status.PENDING_DELETION: "Sandboxes that wait to be wiped",
    Status.STALE: "Sandboxes out of service until a sync sees them",
    Status.DELETION_FAILED: "Sandboxes whose deletion needs a person",
}
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}

Value = TypeVar("Value")


class _Renewed(Generic[Value]):
    """A value that is read in the background, at most once in `max_age` seconds and one read at a time."""

    def __init__(self, read: Callable[[], Value], clock: Clock, *, max_age: float) -> None:
        self._read = read
        self._clock = clock
        self._max_age = max_age
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._value: Value | None = None
        self._renewal: threading.Event | None = None

    def get(self) -> Value | None:
        """Return the value, or None while it cannot be read.

        Waits for a renewal up to 50 ms, and then returns what was known before; for the very first up to 1 s.
        """
        with self._lock:
            if self._clock.monotonic() - self._read_at < self._max_age:
                return self._value
            is_first = self._read_at == float("-inf")
            if self._renewal is None:
                self._renewal = threading.Event()
                threading.Thread(target=self._renew, args=(self._renewal,), daemon=True).start()
            renewal = self._renewal
        renewal.wait(FIRST_WAIT_SEC if is_first else WAIT_SEC)
        with self._lock:
            return self._value

    def _renew(self, renewal: threading.Event) -> None:
        value = None
        try:
            value = self._read()
        except BrokerError:
            pass  # absent, not zero: nobody knows the number
        finally:
            with self._lock:
                self._value, self._read_at, self._renewal = value, self._clock.monotonic(), None
            renewal.set()


class PoolCollector(Collector):
    """The pool's gauges; absent while the store is away."""

    def __init__(self, store: SandboxStore, clock: Clock, *, max_age: float) -> None:
        """Read the store at most once in `max_age` seconds."""
        self._store = store
        self._clock = clock
        self._counts = _Renewed(self._read, clock, max_age=max_age)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges."""
        known = self._counts.get()
        if known is None:
            return
        counts, oldest = known
        for status, what in _GAUGES.items():
            yield GaugeMetricFamily(f"broker_pool_{status}", what, value=counts[status])
        total = sum(counts[status] for status in _GAUGES)
        yield GaugeMetricFamily("broker_pool_total", "Sandboxes in the pool", value=total)
        waited = max(0, self._clock.now() - oldest) if oldest is not None else 0
        yield GaugeMetricFamily(
            "broker_oldest_pending_deletion_seconds", "Age of the deletion that has waited longest", value=waited
        )

    def _read(self) -> tuple[Mapping[Status, int], int | None]:
        with deadline_in(_READ_LIMIT_SEC, self._clock):
            return self._store.count(), self._store.oldest_pending_deletion()


class CircuitCollector(Collector):
    """The circuit breaker's state: 0 closed, 1 half-open, 2 open."""

    def __init__(self, read: Callable[[], BreakerState], clock: Clock, *, max_age: float) -> None:
        """Ask `read` at most once in `max_age` seconds."""
        self._state = _Renewed(read, clock, max_age=max_age)

    def collect(self) -> Iterable[Metric]:
        """Yield the gauge."""
        state = self._state.get()
        if state is not None:
            gauge = GaugeMetricFamily(
                "broker_circuit_state", "Circuit breaker: 0 closed, 1 half-open, 2 open", labels=["name"]
            )
            gauge.add_metric(["csp"], _STATES[state])
            yield gauge
