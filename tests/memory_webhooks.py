"""Endpoints, untold facts and deliveries in memory: the part of `MemoryStore` that is `WebhookRecords`."""

from __future__ import annotations

from itertools import takewhile
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from broker_common.core.facts import Fact
from broker_common.core.store import Conflict
from broker_common.core.webhook import DeliveryState
from broker_common.core.webhook_store import DeliveryPage
from tests.memory_cursors import read_cursor, write_cursor

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from broker_common.core.facts import PoolFact
    from broker_common.core.store import SandboxStore
    from broker_common.core.webhook import Delivery, Endpoint

Answer = TypeVar("Answer")

_WRITTEN = attrgetter("state", "tries", "next_try_at", "attempt_id", "last_try_at", "delivered_at")
"""What `write_delivery` compares."""


class MemoryWebhooks:
    """Implements `WebhookRecords`. A fact counts as untold from the very moment that an endpoint exists."""

    facts: list[Fact | PoolFact]

    def __init__(self) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.untold: list[Fact | PoolFact] = []
        """In the order of their writes."""
        self.deliveries: dict[tuple[str, str], Delivery] = {}
        """By endpoint and delivery id, in the order of their writes."""

    if TYPE_CHECKING:

        def _called(self, method: str) -> AbstractContextManager[None]: ...

    def _keep(self, *facts: Fact | PoolFact) -> None:
        """Write facts: as untold, if an endpoint exists."""
        self.facts += facts
        if self.endpoints:
            self.untold += facts

    def read_endpoints(self) -> list[Endpoint]:
        with self._called("read_endpoints"):
            return list(self.endpoints.values())

    def read_endpoint(self, endpoint_id: str) -> Endpoint | None:
        with self._called("read_endpoint"):
            return self.endpoints.get(endpoint_id)

    def write_endpoint(self, before: Endpoint | None, after: Endpoint | None, *, fact: PoolFact | None = None) -> None:
        known = after or before
        assert known is not None, "an endpoint is added, changed or removed"
        with self._called("write_endpoint"):
            stored = self.endpoints.get(known.endpoint_id)
            if stored == after:
                return
            if stored != before:
                raise Conflict("the endpoint was changed by another writer", current=None)
            if after is None:
                del self.endpoints[known.endpoint_id]
            else:
                self.endpoints[known.endpoint_id] = after
            if fact is not None:
                self._keep(fact)

    def find_untold(self, *, limit: int) -> list[Fact | PoolFact]:
        with self._called("find_untold"):
            return sorted(self.untold, key=_order)[:limit]

    def add_delivery(self, delivery: Delivery) -> bool:
        with self._called("add_delivery"):
            key = (delivery.endpoint_id, delivery.delivery_id)
            return self.deliveries.setdefault(key, delivery) is delivery

    def told(self, fact: Fact | PoolFact) -> None:
        with self._called("told"):
            self.untold = [each for each in self.untold if each != fact]

    def read_due_deliveries(self, endpoint_id: str, *, until: int, limit: int) -> list[Delivery]:
        with self._called("read_due_deliveries"):
            due = [
                (each.next_try_at, each.version, each.delivery_id, each)
                for each in self._of(endpoint_id)
                if each.next_try_at is not None and each.next_try_at <= until
            ]
            return [each for *_, each in sorted(due)[:limit]]

    def read_pending(self, endpoint_id: str, sandbox_id: str) -> list[Delivery]:
        with self._called("read_pending"):
            found = [each for each in self._of(endpoint_id) if each.sandbox_id == sandbox_id]
            newest = sorted(found, key=attrgetter("version"), reverse=True)
            return list(takewhile(lambda each: each.state is DeliveryState.PENDING, newest))[::-1]

    def read_delivery(self, endpoint_id: str, delivery_id: str) -> Delivery | None:
        with self._called("read_delivery"):
            return self.deliveries.get((endpoint_id, delivery_id))

    def write_delivery(self, before: Delivery, after: Delivery) -> None:
        key = (before.endpoint_id, before.delivery_id)
        with self._called("write_delivery"):
            stored = self.deliveries.get(key)
            if stored == after:
                return
            if stored is None or _WRITTEN(stored) != _WRITTEN(before):
                raise Conflict("the delivery was changed by another writer", current=None)
            self.deliveries[key] = after

    def list_deliveries(
        self, endpoint_id: str, *, state: DeliveryState | None, limit: int, cursor: str | None
    ) -> DeliveryPage:
        listing = f"deliveries of {endpoint_id} {state}"
        with self._called("list_deliveries"):
            first = read_cursor(listing, cursor, default=0)
            listed = [each for each in self._of(endpoint_id) if state in {None, each.state}]
            listed.sort(key=_place_in_list)
            more = write_cursor(listing, first + limit) if len(listed) > first + limit else None
            return DeliveryPage(tuple(listed[first : first + limit]), more)

    def oldest_untold(self) -> int | None:
        with self._called("oldest_untold"):
            return min((fact.at for fact in self.untold), default=None)

    def _of(self, endpoint_id: str) -> list[Delivery]:
        return [each for each in self.deliveries.values() if each.endpoint_id == endpoint_id]


class WebhooksWrapper:
    """The part of a store's wrapper that passes on the calls of `WebhookRecords`."""

    inner: SandboxStore

    if TYPE_CHECKING:

        def _call(self, method: str, call: Callable[[], Answer]) -> Answer: ...

    def read_endpoints(self) -> list[Endpoint]:
        return self._call("read_endpoints", self.inner.read_endpoints)

    def read_endpoint(self, endpoint_id: str) -> Endpoint | None:
        return self._call("read_endpoint", lambda: self.inner.read_endpoint(endpoint_id))

    def write_endpoint(self, before: Endpoint | None, after: Endpoint | None, *, fact: PoolFact | None = None) -> None:
        self._call("write_endpoint", lambda: self.inner.write_endpoint(before, after, fact=fact))

    def find_untold(self, *, limit: int) -> list[Fact | PoolFact]:
        return self._call("find_untold", lambda: self.inner.find_untold(limit=limit))

    def add_delivery(self, delivery: Delivery) -> bool:
        return self._call("add_delivery", lambda: self.inner.add_delivery(delivery))

    def told(self, fact: Fact | PoolFact) -> None:
        self._call("told", lambda: self.inner.told(fact))

    def read_due_deliveries(self, endpoint_id: str, *, until: int, limit: int) -> list[Delivery]:
        return self._call(
            "read_due_deliveries", lambda: self.inner.read_due_deliveries(endpoint_id, until=until, limit=limit)
        )

    def read_pending(self, endpoint_id: str, sandbox_id: str) -> list[Delivery]:
        return self._call("read_pending", lambda: self.inner.read_pending(endpoint_id, sandbox_id))

    def read_delivery(self, endpoint_id: str, delivery_id: str) -> Delivery | None:
        return self._call("read_delivery", lambda: self.inner.read_delivery(endpoint_id, delivery_id))

    def write_delivery(self, before: Delivery, after: Delivery) -> None:
        self._call("write_delivery", lambda: self.inner.write_delivery(before, after))

    def list_deliveries(
        self, endpoint_id: str, *, state: DeliveryState | None, limit: int, cursor: str | None
    ) -> DeliveryPage:
        return self._call(
            "list_deliveries",
            lambda: self.inner.list_deliveries(endpoint_id, state=state, limit=limit, cursor=cursor),
        )

    def oldest_untold(self) -> int | None:
        return self._call("oldest_untold", self.inner.oldest_untold)


def _place_in_list(delivery: Delivery) -> tuple[int, int]:
    at = {
        DeliveryState.PENDING: delivery.next_try_at,
        DeliveryState.DELIVERED: delivery.delivered_at,
        DeliveryState.EXHAUSTED: delivery.last_try_at,
    }[delivery.state]
    return list(DeliveryState).index(delivery.state), -(at or 0)


def _order(fact: Fact | PoolFact) -> int:
    return fact.version if isinstance(fact, Fact) else fact.at * 1000
