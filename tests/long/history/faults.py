"""The faults: kills, a store that fails, a provider that fails, Redis gone.

Each strikes, lasts a while and is over before the next one; a deck of all of them is dealt again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.long.history.broker import DELETE_SEC, WORKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

    from tests.long.history.broker import Broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """One kind of fault for a broker."""

    name: str
    strike: Callable[[Broker, Random, Callable[[float], None]], int]
    """Strike, wait by the given function, repair it, and return how often it struck."""
    refuses_calls: bool
    """Whether tracks may get a 503 or no answer because of it."""


def deal(rng: Random, number: int) -> list[Disturbance]:
    """Return `count` faults in a random order, each kind equally often."""
    dealt: list[Disturbance] = []
    while len(dealt) < number:
        dealt += rng.sample(DISTURBANCES, len(DISTURBANCES))
    return dealt[:number]


def _store(name: str, *, probability: float, operation: str | None = None, **effect: Any) -> Disturbance:
    rule = {"probability": probability, **effect} | ({} if operation is None else {"operation": operation})

    def strike(broker: Broker, rng: Random, wait: Callable[[float], None]) -> int:
        broker.inject(rule)
        wait(rng.uniform(1.0, 3.0))
        return broker.inject()

    return Disturbance(name=f"store: {name}", strike=strike, refuses_calls=True)


def _provider(name: str, **switches: Any) -> Disturbance:
    def strike(broker: Broker, rng: Random, wait: Callable[[float], None]) -> int:
        broker.switch(**{"delete_seconds": DELETE_SEC, **switches})
        wait(rng.uniform(1.5, 4.0))
        left = broker.switch()
        counting = [key for key in switches if "_next_" in key]
        return sum(switches[key] - left[key] for key in counting) if counting else 1

    return Disturbance(name=f"provider: {name}", strike=strike, refuses_calls=False)


def _kill_a_child_of(names: tuple[str, ...]) -> Callable[[Broker, Random, Callable[[float], None]], int]:
    def strike(broker: Broker, rng: Random, wait: Callable[[float], None]) -> int:
        hits = broker.kill_child(rng.choice(names), rng)
        wait(rng.uniform(0.2, 1.0))
        return hits

    return strike


def _kill(names: tuple[str, ...]) -> Callable[[Broker, Random, Callable[[float], None]], int]:
    def strike(broker: Broker, rng: Random, wait: Callable[[float], None]) -> int:
        broker.stack.kill(rng.choice(names))
        wait(rng.uniform(0.2, 1.0))
        broker.supervise()
        return 1

    return strike


def _restart_redis(broker: Broker, rng: Random, wait: Callable[[float], None]) -> int:
    broker.stack.kill("redis")
    wait(rng.uniform(1.0, 3.0))
    broker.stack.start("redis")
    return 1


def _disturbances() -> Iterator[Disturbance]:
    transaction = "TransactWriteItems"
    conflict = {"CancellationReasons": [{"Code": "TransactionConflict"}, {"Code": "None"}]}
    yield _store("throttled", probability=0.5, error={"code": "ProvisionedThroughputExceededException"})
    yield _store("failing", probability=0.3, error={"code": "InternalServerError", "status": 500})
    yield _store("timing out", probability=0.15, timeout_ms=2000)
    yield _store("resetting connections", probability=0.3, reset=True)
    yield _store(
        "in conflict",
        probability=0.5,
        operation=transaction,
        error={"code": "TransactionCanceledException", "fields": conflict},
    )
    lost = {"abort_bytes": 0}
    yield _store("losing answers of transactions", probability=0.5, operation=transaction, response=lost)
    yield _store("losing answers of updates", probability=0.5, operation="UpdateItem", response=lost)
    yield _store("losing all answers", probability=1.0, response=lost)
    unchecked = {"strip_headers": ["x-amz-crc32"]}
    yield _store("sending empty successes", probability=0.5, response={"truncate_bytes": 0, **unchecked})
    yield _store("cutting answers short", probability=0.5, response={"truncate_frac": 0.5, **unchecked})
    yield _store(
        "sending successes of another type", probability=0.5, response={"set_headers": {"Content-Type": "text/html"}}
    )
    yield _store("answered by something else, with 200", probability=0.5, error={"code": "Welcome", "status": 200})
    api_child, celery_child = _kill_a_child_of(("api",)), _kill_a_child_of(WORKERS)
    yield Disturbance(name="kill -9 of a gunicorn worker", strike=api_child, refuses_calls=True)
    yield Disturbance(name="kill -9 of the API", strike=_kill(("api",)), refuses_calls=True)
    yield Disturbance(name="kill -9 of a Celery child", strike=celery_child, refuses_calls=False)
    yield Disturbance(name="kill -9 of a worker", strike=_kill(WORKERS), refuses_calls=False)
    yield Disturbance(name="kill -9 of beat", strike=_kill(("beat",)), refuses_calls=False)
    yield Disturbance(name="kill -9 and restart of Redis", strike=_restart_redis, refuses_calls=False)
    yield _provider("failing", fail_next_deletes=15, fail_status=500, html_errors=True)
    yield _provider("busy", fail_next_deletes=10, fail_status=429)
    yield _provider("dropping connections before", drop_next_deletes=8, drop_when="before")
    yield _provider("dropping connections after", drop_next_deletes=8, drop_when="after")
    yield _provider("slower than the timeout", delete_seconds=2.5)
    yield _provider("only accepting", delete_answer=202)
    yield _provider("not knowing accounts", delete_answer=404)
    yield _provider("behind a page that says 404", delete_answer=404, html_errors=True)
    yield _provider("saying no by a success", fail_next_deletes=10, fail_status=200)
    yield _provider("refusing the token", unauthorized=True)
    yield _provider("failing to list", fail_next_lists=3)
    yield _provider("cutting lists short", truncated_list=True)
    yield _provider("listing in another order for each page", paging="number", page_size=7, shuffled_list=True)


DISTURBANCES = tuple(_disturbances())
