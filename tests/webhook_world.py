"""Webhooks without processes: the deliverer and the sender over a store, a receiver and a clock."""

from __future__ import annotations

import threading
from collections import deque
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING

from broker_common.core.deliveries import Deliverer
from broker_common.core.guard import Guard
from broker_common.core.sending import Sender, WebhookAnswer
from tests.contract.webhooks import make_endpoint
from tests.fakes import BY, START, FakeClock, FakeTableMemory, MemoryStore, RecordingRecorder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker_common.core.sending import DrainResult
    from broker_common.core.store import SandboxStore
    from broker_common.core.webhook import Delivery, Endpoint

OK = WebhookAnswer(200, "ok")
FAILED = WebhookAnswer(500, "it failed")
SILENT = WebhookAnswer(None, "timed out after 15 s")
GONE = WebhookAnswer(410, "gone")


class Receiver:
    """A `WebhookTransport` whose endpoints answer by `answers`, then `OK`; `received` has what reached them."""

    def __init__(self) -> None:
        self.answers: deque[WebhookAnswer] = deque()
        self.answer: Callable[[Endpoint, Delivery], WebhookAnswer] = lambda _endpoint, _delivery: self._next()
        self.during_send: Callable[[], object] = lambda: None
        """Called while each delivery is under way."""
        self.received: list[Delivery] = []
        self._lock = threading.Lock()

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        assert now >= START
        with self._lock:
            self.received.append(delivery)
            answer = self.answer(endpoint, delivery)
        Context().run(self.during_send)  # what others do meanwhile does not have this call's deadline
        return answer

    @property
    def names(self) -> list[str]:
        """The ids of what was received, in order."""
        return [each.delivery_id for each in self.received]

    def _next(self) -> WebhookAnswer:
        return self.answers.popleft() if self.answers else OK


class Handed:
    """A `WebhookQueue` that keeps which endpoints were handed on."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []

    def send(self, endpoint_ids: Sequence[str]) -> None:
        self.sent.append(list(endpoint_ids))


class WebhookWorld:
    """One worker's use cases; `store` is what they see of `memory`."""

    def __init__(
        self,
        *,
        clock: FakeClock | None = None,
        memory: MemoryStore | None = None,
        wrap: Callable[[MemoryStore], SandboxStore] = lambda memory: memory,
        receiver: Receiver | None = None,
        threads: int = 1,
        seed: int = 1,
    ) -> None:
        """Each process needs its own `seed`: attempts are told apart by random ids."""
        self.clock = clock or FakeClock()
        self.memory = memory or MemoryStore(self.clock)
        self.store = wrap(self.memory)
        self.receiver = receiver or Receiver()
        self.queue = Handed()
        self.recorder = RecordingRecorder()
        self.table_memory = FakeTableMemory()
        rng = Random(seed)
        self.guard = Guard(
            store=self.store, memory=self.table_memory, recorder=self.recorder, clock=self.clock, rng=rng
        )
        self.deliverer = Deliverer(
            store=self.store,
            queue=self.queue,
            guard=self.guard,
            recorder=self.recorder,
            clock=self.clock,
            threads=threads,
        )
        self.sender = Sender(
            store=self.store,
            transport=self.receiver,
            guard=self.guard,
            recorder=self.recorder,
            clock=self.clock,
            rng=rng,
            threads=threads,
        )

    def add_endpoint(self, endpoint_id: str = "hook", **changes: object) -> Endpoint:
        """Add an endpoint that was there before all facts."""
        endpoint = make_endpoint(endpoint_id, **changes)
        self.memory.write_endpoint(None, endpoint)
        return endpoint

    def endpoint(self, endpoint_id: str = "hook") -> Endpoint:
        """Return the stored endpoint."""
        found = self.memory.read_endpoint(endpoint_id)
        assert found is not None
        return found

    def delivery(self, delivery_id: str, endpoint_id: str = "hook") -> Delivery:
        """Return a stored delivery."""
        found = self.memory.read_delivery(endpoint_id, delivery_id)
        assert found is not None
        return found

    def drain(self, endpoint_id: str = "hook") -> DrainResult:
        """Send what is due."""
        return self.sender.drain(endpoint_id, by=BY)
