"""Deliver: make the deliveries of new facts, and have those that are due sent.

Facts of one sandbox are told in order, one after the other. A fact counts as told only when all of its deliveries are
stored. So a crash at any point loses nothing: the next run goes on, and finds the deliveries that were stored already.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import BrokerError
from broker_common.core.facts import Fact, by_sandbox
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.telemetry import ItemFailed, WebhooksLagged
from broker_common.core.webhook_payload import delivery_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_common.core.facts import PoolFact
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.store import SandboxStore
    from broker_common.core.webhook import Endpoint

_PAGE = 500
"""How many untold facts are read at a time."""
_TELL_SEC = 60.0
"""How long a run makes deliveries. The next run goes on."""
_HAND_ON_SEC = 2.0
"""How often a run hands on what is due while it makes deliveries."""


class WebhookQueue(Protocol):
    """Hands endpoints that have deliveries due to the workers that send them."""

    def send(self, endpoint_ids: Sequence[str]) -> None:
        """Queue a task for each endpoint, unless the workers have not taken the last ones yet.

        Raises `QueueUnavailable`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverResult:
    """What one run did: facts that it told, and the deliveries that it made of them.

    `failed`: sandboxes whose facts the next run tries again.
    """

    facts: int
    deliveries: int
    failed: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Made {self.deliveries} deliveries of {self.facts} facts"


class Deliverer:
    """Turns facts into deliveries."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        queue: WebhookQueue,
        guard: Guard,
        recorder: Recorder,
        clock: Clock,
        threads: int,
    ) -> None:
        self._store = store
        self._queue = queue
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._threads = threads

    def run(self) -> DeliverResult:
        """Make the deliveries of all untold facts, for up to a minute, and hand on the endpoints that have some due.

        Also records by how much the telling lags. Raises `UnsafeToAct`, `QueueUnavailable` and `StoreUnavailable`.
        """
        self._guard.check()
        counts: Counter[str] = Counter()
        oldest = self._store.oldest_untold()
        if oldest is not None:
            self._tell_all(counts)
            oldest = self._store.oldest_untold()
        lag = self._hand_on()
        if oldest is not None:
            lag = max(lag, self._clock.now() - oldest)
        self._recorder.record(WebhooksLagged(seconds=lag))
        return DeliverResult(facts=counts["facts"], deliveries=counts["deliveries"], failed=counts["failed"])

    def _hand_on(self) -> int:
        """Hand on the endpoints that have deliveries due. Return for how many seconds the first of these is due.

        An endpoint that is down is handed on only when it is probed again. Those of one that fails do not count.
        """
        now, lag = self._clock.now(), 0
        due: list[str] = []
        for endpoint in self._store.read_endpoints():
            if endpoint.disabled_at is not None or (endpoint.probe_at is not None and endpoint.probe_at > now):
                continue
            for first in self._store.read_due_deliveries(endpoint.endpoint_id, until=now, limit=1):
                due.append(endpoint.endpoint_id)
                if endpoint.failing_since is None and first.next_try_at is not None:
                    lag = max(lag, now - first.next_try_at)
        if due:
            self._queue.send(due)
        return lag

    def _tell_all(self, counts: Counter[str]) -> None:
        """Tell untold facts, page by page, and count. One that fails is left out of the pages that follow."""
        ends_at = self._clock.monotonic() + _TELL_SEC
        hand_on_at = self._clock.monotonic() + _HAND_ON_SEC
        failed: set[str] = set()
        held_back = 0
        while self._clock.monotonic() < ends_at:
            self._guard.check()
            # Each page begins with the oldest fact, so those that failed must not fill it.
            groups = by_sandbox(self._store.find_untold(limit=_PAGE + held_back))
            to_tell = {name: facts for name, facts in groups.items() if name not in failed}
            known, held_back = held_back, sum(len(groups[name]) for name in groups.keys() - to_tell.keys())
            if not to_tell and held_back <= known:
                return
            # Read after the facts: an endpoint that was there when a fact was written is among them.
            endpoints = self._store.read_endpoints()
            tellings = for_each(partial(self._tell, endpoints), to_tell.values(), threads=self._threads)
            for name, told in zip(to_tell, tellings, strict=True):
                counts.update(told)
                if told["failed"]:
                    failed.add(name)
            if self._clock.monotonic() >= hand_on_at:
                self._hand_on()
                hand_on_at = self._clock.monotonic() + _HAND_ON_SEC

    def _tell(self, endpoints: Sequence[Endpoint], facts: Sequence[Fact | PoolFact]) -> Counter[str]:
        """Tell the facts of one sandbox in order, up to the first that fails. Return how many."""
        counts: Counter[str] = Counter()
        try:
            for fact in facts:
                self._tell_fact(endpoints, fact, counts)
        except BrokerError as error:
            sandbox_id = facts[0].sandbox_id if isinstance(facts[0], Fact) else None
            self._recorder.record(ItemFailed(job=Job.DELIVER, sandbox_id=sandbox_id, error=error.message))
            counts["failed"] += 1
        return counts

    def _tell_fact(self, endpoints: Sequence[Endpoint], fact: Fact | PoolFact, counts: Counter[str]) -> None:
        """Tell a fact to all endpoints, also if one of them makes an error. Raise that in the end."""
        failed: BrokerError | None = None
        for endpoint in endpoints:
            if _is_for(fact, endpoint):
                try:
                    delivery = delivery_of(fact, endpoint, now=self._clock.now())
                    counts["deliveries"] += self._store.add_delivery(delivery)
                except BrokerError as error:
                    failed = error
        if failed is not None:
            raise failed
        self._store.told(fact)
        counts["facts"] += 1


def _is_for(fact: Fact | PoolFact, endpoint: Endpoint) -> bool:
    """Tell whether an endpoint wants a fact and was there before it. The clocks of two processes may differ."""
    return endpoint.wants(fact.kind) and fact.at >= endpoint.created_at - MAX_DIFFERENCE_SEC
