"""The gauges that are read at a scrape: they follow, they never hold a scrape up, and they are absent, not wrong."""

from __future__ import annotations

import threading
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from prometheus_client import CollectorRegistry

from broker_common.adapters import renewed
from broker_common.adapters.prometheus_collectors import (
    CircuitCollector,
    PoolCollector,
    QueueCollector,
    ReservationCollector,
)
from broker_common.adapters.redis_breaker import BreakerState
from broker_common.adapters.renewed import Renewed
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.counts import Counts
from broker_common.core.errors import QueueUnavailable, StoreUnavailable
from broker_common.core.policy import Policy
from broker_common.core.reservation import Reservation, ReservationStage, ReservationState
from broker_common.core.sandbox import Status
from broker_common.core.store import PoolCount
from deploy.dev.processes import wait_until
from tests.fakes import START, FakeClock, Fault, FlakyStore, MemoryStore, StoreWrapper, make_sandbox

if TYPE_CHECKING:
    from broker_common.core.ports import Clock
    from broker_common.core.store import SandboxStore


def scrape(store: SandboxStore, clock: Clock, *, max_age: float = 2, process: int = 1) -> CollectorRegistry:
    registry = CollectorRegistry()
    counts = Counts(store, clock, Random(process), max_age=max_age, policy=Policy())
    registry.register(PoolCollector(Renewed(counts.latest, clock, max_age=max_age, at_end=counts.give_back), clock))
    return registry


def pool_of(clock: FakeClock) -> MemoryStore:
    store = MemoryStore(clock)
    store.seed(
        *[make_sandbox(f"free-{number}") for number in range(4)],
        *[make_sandbox(f"held-{number}", status=Status.ALLOCATED, dirty=True) for number in range(2)],
        make_sandbox("waits", status=Status.PENDING_DELETION, deletion_requested_at=clock.now() - 90, dirty=True),
        make_sandbox("gone", status=Status.DELETED),
    )
    return store


def test_a_scrape_shows_every_status_and_the_total_without_tombstones() -> None:
    clock = FakeClock()
    registry = scrape(pool_of(clock), clock)
    shown = {
        name: registry.get_sample_value(f"broker_pool_{name}")
        for name in ("available", "reserved", "allocated", "pending_deletion", "stale", "deletion_failed", "total")
    }
    assert shown == {
        "available": 4,
        "reserved": 0,
        "allocated": 2,
        "pending_deletion": 1,
        "stale": 0,
        "deletion_failed": 0,
        "total": 7,
    }
    assert registry.get_sample_value("broker_oldest_pending_deletion_seconds") == 90


@pytest.mark.parametrize(("joined_ago", "oldest"), [(None, 0), (0, 0), (75, 75), (-3, 0)])
def test_a_scrape_shows_how_many_wait_in_line_and_since_when(joined_ago: int | None, oldest: int) -> None:
    clock = FakeClock()
    count = PoolCount(
        by_status=dict.fromkeys(Status, 0),
        oldest_pending_deletion=None,
        began_at=clock.now(),
        counted_by="another",
        waiting=0 if joined_ago is None else 3,
        longest_waiting_since=None if joined_ago is None else clock.now() - joined_ago,
    )
    registry = CollectorRegistry()
    registry.register(PoolCollector(Renewed(lambda: (clock.monotonic(), count), clock, max_age=2), clock))
    assert registry.get_sample_value("broker_line_length") == count.waiting
    assert registry.get_sample_value("broker_line_oldest_seconds") == oldest


def reservation_gauges(*reservations: Reservation, now: int = START) -> dict[str, float | None]:
    clock = FakeClock(now)
    registry = CollectorRegistry()
    registry.register(ReservationCollector(lambda: reservations, clock, max_age=2))
    states = {
        state.value: registry.get_sample_value("broker_reservations", {"state": state}) for state in ReservationState
    }
    return {**states, "short_by": registry.get_sample_value("broker_reservation_short_by")}


def reservation(name: str = "class", **changes: Any) -> Reservation:
    """Return a reservation of 30 sandboxes that starts in an hour, unless changed."""
    fields = {"count": 30, "starts_at": START + 3600, "ends_at": START + 3 * 3600, "created_at": START}
    return Reservation(reservation_id=name, name=name, created_by="op", **(fields | changes))


def test_a_scrape_counts_reservations_by_their_state_at_that_moment() -> None:
    found = reservation_gauges(
        reservation("of tomorrow", starts_at=START + 86_400, ends_at=START + 90_000),
        reservation("being filled", starts_at=START + 601),
        reservation("of now", starts_at=START + 600),
        reservation("of before", starts_at=START - 3600, ends_at=START),
        reservation("not wanted", stage=ReservationStage.CANCELLED),
    )
    found.pop("short_by")
    assert found == {"scheduled": 1, "filling": 1, "open": 1, "ended": 1, "cancelled": 1}


@pytest.mark.parametrize("now", [START + 3000, START + 3600, START + 7199])
def test_what_open_reservations_lack_is_added_up(now: int) -> None:
    short, shorter, full = (
        reservation("short", set_aside=20, drawn=7),
        reservation("shorter", set_aside=5),
        reservation("full", set_aside=10, drawn=20),
    )
    assert reservation_gauges(short, shorter, full, now=now)["short_by"] == 3 + 25


@pytest.mark.parametrize(
    ("changes", "now"),
    [
        ({}, START + 2999),
        ({"hold_sec": 600}, START + 3600 + 600),
        ({}, START + 3 * 3600),
        ({"stage": ReservationStage.CANCELLED}, START + 3600),
    ],
    ids=["before it opens", "after its hold", "after its end", "cancelled"],
)
def test_a_reservation_is_short_only_while_it_is_open_and_filled(changes: dict[str, Any], now: int) -> None:
    assert reservation_gauges(reservation(**changes), now=now)["short_by"] == 0


def test_the_gauges_of_reservations_are_absent_while_the_store_is_away() -> None:
    def away() -> NoReturn:
        raise StoreUnavailable("away")

    registry = CollectorRegistry()
    registry.register(ReservationCollector(away, FakeClock(), max_age=2))
    assert registry.get_sample_value("broker_reservations", {"state": "open"}) is None
    assert registry.get_sample_value("broker_reservation_short_by") is None


def test_the_store_is_read_at_most_once_in_the_maximum_age() -> None:
    clock = FakeClock()
    store = pool_of(clock)
    registry = scrape(store, clock)
    for _ in range(5):
        registry.get_sample_value("broker_pool_total")
    assert store.calls["count"] == 1
    store.seed(make_sandbox("more"))
    clock.advance(2)
    assert registry.get_sample_value("broker_pool_available") == 5


def test_the_gauges_go_on_following_between_scrapes_that_are_far_apart() -> None:
    clock = FakeClock()
    store = pool_of(clock)
    registry = scrape(store, clock, max_age=0.1)
    assert registry.get_sample_value("broker_pool_total") == 7
    assert wait_until(lambda: store.calls["count"] >= 3, 30), "nobody has scraped since"


def test_a_process_shows_what_another_counted_and_follows_it() -> None:
    clock = FakeClock()
    store = pool_of(clock)
    seen_by_reader = FlakyStore(store)
    counter, reader = scrape(store, clock), scrape(seen_by_reader, clock, process=2)
    for total in (7, 8, 9):
        assert wait_until(lambda total=total: counter.get_sample_value("broker_pool_total") == total, 30)  # type: ignore[misc] # bound early
        clock.advance(0.5)
        assert wait_until(lambda total=total: reader.get_sample_value("broker_pool_total") == total, 30)  # type: ignore[misc] # bound early
        store.seed(make_sandbox(f"more-{total}"))
        clock.advance(1.5)
    assert seen_by_reader.calls["read_counts"]
    assert seen_by_reader.calls["count"] == 0


def test_a_process_that_is_no_longer_scraped_lets_another_count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewed, "_SHORTEST_PAUSE_SEC", 0.01)
    monkeypatch.setattr(renewed, "_UNSEEN_LIMIT_SEC", 1)
    clock = FakeClock()
    store = pool_of(clock)
    others = set(threading.enumerate())
    assert scrape(store, clock, max_age=0.1).get_sample_value("broker_pool_total") == 7
    clock.advance(1)
    assert wait_until(lambda: set(threading.enumerate()) <= others, 30)
    store.seed(make_sandbox("more"))
    assert scrape(store, clock, max_age=0.1, process=2).get_sample_value("broker_pool_total") == 8


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the thread look soon whether scrapes go on."""
    monkeypatch.setattr(renewed, "_SHORTEST_PAUSE_SEC", 0.01)


@pytest.mark.usefixtures("impatient")
def test_the_store_is_left_alone_once_scrapes_stay_away() -> None:
    clock = FakeClock()
    store = pool_of(clock)
    others = set(threading.enumerate())
    registry = scrape(store, clock, max_age=0)
    assert registry.get_sample_value("broker_pool_total") == 7
    clock.advance(119)
    reads = store.calls["read_counts"]
    assert wait_until(lambda: store.calls["read_counts"] >= reads + 100, 30), "the next scrape may come after a minute"
    clock.advance(1)
    assert wait_until(lambda: set(threading.enumerate()) <= others, 30)
    store.seed(make_sandbox("more"))
    assert registry.get_sample_value("broker_pool_total") == 8, "and is read again when a scrape comes"


@pytest.mark.usefixtures("impatient")
def test_an_unexpected_failure_leaves_the_gauges_out_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(StoreWrapper):
        def count(self) -> NoReturn:
            raise KeyError("status")

    others = set(threading.enumerate())
    clock = FakeClock()
    registry = scrape(Broken(MemoryStore()), clock, max_age=0)
    assert registry.get_sample_value("broker_pool_total") is None
    clock.advance(120)
    assert wait_until(lambda: set(threading.enumerate()) <= others, 30)
    assert "a gauge could not be read" in caplog.text


def test_the_gauges_are_absent_while_the_store_is_away_and_come_back() -> None:
    clock = FakeClock()
    store = FlakyStore(pool_of(clock))
    registry = scrape(store, clock)
    store.fail("count", Fault.REFUSED)
    assert registry.get_sample_value("broker_pool_total") is None
    assert registry.get_sample_value("broker_oldest_pending_deletion_seconds") is None
    assert registry.get_sample_value("broker_line_length") is None
    clock.advance(2)
    assert registry.get_sample_value("broker_pool_total") == 7


def test_a_scrape_does_not_wait_for_a_slow_store_once_it_knows_the_pool() -> None:
    clock = SystemClock()
    store = FlakyStore(pool_of(FakeClock()))
    registry = scrape(store, clock, max_age=0)
    assert registry.get_sample_value("broker_pool_total") == 7
    may_go_on = threading.Event()
    reads: list[str] = []

    def hold(method: str) -> None:
        reads.append(method)
        may_go_on.wait(30)

    store.before_call = hold
    try:
        assert [registry.get_sample_value("broker_pool_total") for _ in range(3)] == [7, 7, 7]
        assert reads == ["read_counts"], "one renewal at a time"
    finally:
        may_go_on.set()


@pytest.mark.usefixtures("impatient")
def test_the_breakers_state_is_absent_while_it_cannot_be_read() -> None:
    def away() -> NoReturn:
        raise ConnectionError

    others = set(threading.enumerate())
    registry = CollectorRegistry()
    clock = FakeClock()
    registry.register(CircuitCollector(away, clock, max_age=0))
    assert registry.get_sample_value("broker_circuit_state", {"name": "csp"}) is None
    clock.advance(120)
    # Each renewal logs an error: one that went on would log it into the tests that follow.
    assert wait_until(lambda: set(threading.enumerate()) <= others, 30)


def test_the_breakers_state_is_a_number() -> None:
    for state, number in ((BreakerState.CLOSED, 0), (BreakerState.HALF_OPEN, 1), (BreakerState.OPEN, 2)):
        registry = CollectorRegistry()
        states = {"csp": state, "csp_services": BreakerState.OPEN}
        registry.register(CircuitCollector(lambda states=states: states, FakeClock(), max_age=2))  # type: ignore[misc] # bound early
        assert registry.get_sample_value("broker_circuit_state", {"name": "csp"}) == number
        assert registry.get_sample_value("broker_circuit_state", {"name": "csp_services"}) == 2


def test_the_lengths_of_the_queues_are_absent_while_redis_is_away() -> None:
    lengths: dict[str, int] = {"jobs": 3}

    def read() -> dict[str, int]:
        if not lengths:
            raise QueueUnavailable("Redis is away")
        return lengths

    registry = CollectorRegistry()
    registry.register(QueueCollector(read, clock := FakeClock(), max_age=2))
    assert registry.get_sample_value("broker_queue_messages", {"queue": "jobs"}) == 3
    lengths.clear()
    clock.advance(3)
    assert wait_until(lambda: registry.get_sample_value("broker_queue_messages", {"queue": "jobs"}) is None, 30)
