"""A flood of facts in the simulation: the real deliverer and sender work through it while tracks allocate.

The store has their calls at the same table: each takes time, and is charged to the partitions of DynamoDB that it
writes to. Reads are not charged, because a partition serves three times as many, and these are few. The index shows
marks and deliveries at once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

from broker_common.adapters.recorders import Recorders
from broker_common.core import deliveries, sending
from broker_common.core.deliveries import Deliverer
from broker_common.core.facts import Fact, allocated
from broker_common.core.guard import Guard
from broker_common.core.lease import candidate_of
from broker_common.core.sending import Sender, WebhookAnswer
from broker_common.core.webhook import DeliveryState
from tests.contract.webhooks import make_endpoint
from tests.fakes import BY, FakeTableMemory, make_claim, make_sandbox
from tests.long.simulation.table import SimulatedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from broker_common.core.facts import Change, PoolFact
    from broker_common.core.webhook import Delivery, Endpoint
    from tests.long.simulation.table import TableConditions
    from tests.scheduler.schedule import Schedule

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

ENDPOINT_ID = "hook"
DELIVER_EVERY_SEC = 2.0
"""`broker.deliver`."""
DELIVERY_UNITS = 2
"""What a write of a delivery costs in the table: with its payload it has between 1 and 2 KB."""
_READ_AT_ONCE = 8
"""So many partitions the store reads at the same time (`dynamo_webhooks.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """Facts that are untold at the start, and one worker process for each of the two jobs."""

    facts: int = 50_000
    is_sent: bool = True
    """Whether the endpoint is enabled. Else the facts are only told."""
    processor_sec: float = 0.004
    """The processor time that a process needs for each fact: to tell it, or to send it (`make bench`)."""
    threads: int = 8
    """`services.BULK_THREADS`."""
    answer_sec: float = 0.02
    """How long the receiver takes to answer."""


class FloodedStore(SimulatedStore):
    """A simulated store with one endpoint. So each fact is written with a mark beside it."""

    def __init__(self, schedule: Schedule, rng: Random, conditions: TableConditions, flood: Flood) -> None:
        super().__init__(schedule, rng, conditions)
        endpoint = make_endpoint(ENDPOINT_ID, disabled_at=None if flood.is_sent else 1)
        self.endpoints[ENDPOINT_ID] = endpoint
        self.teller = Processor(schedule, flood.processor_sec)
        self.facts_told = 0
        self._marks: dict[str, Fact] = {}
        """The untold facts in the order of their writes."""
        self._pending: dict[str, Delivery] = {}
        self._by_sandbox: defaultdict[str, dict[str, Delivery]] = defaultdict(dict)
        for number in range(flood.facts):
            sandbox = make_sandbox(f"told-{number}")
            self._keep(allocated(candidate_of(sandbox), make_claim(sandbox, f"earlier-{number}"), by=BY))

    def _keep(self, *facts: Fact | PoolFact) -> None:
        self._marks.update({_name(fact): fact for fact in facts if isinstance(fact, Fact)})

    def _transact(self, keys: tuple[str, ...], act: Callable[[], object]) -> object:  # type: ignore[override] # of any answer
        """Charge the mark, too: each transaction here writes a fact of the sandbox that is its first key."""
        return super()._transact((*keys, keys[0]), act)

    def _index_places(self, change: Change) -> list[str]:
        mark = [] if change.fact is None else [self._mark_partition(change.sandbox_id)]
        return super()._index_places(change) + mark

    def find_untold(self, *, limit: int) -> list[Fact | PoolFact]:
        facts = list(islice(self._marks.values(), limit))
        for _ in range(2 + len(facts) // _READ_AT_ONCE):
            self._time.sleep(self._latency())
        return [*facts]

    def oldest_untold(self) -> int | None:
        self._time.sleep(self._latency())
        return next((fact.at for fact in self._marks.values()), None)

    def told(self, fact: Fact | PoolFact) -> None:
        assert isinstance(fact, Fact), "the pool has no facts in this simulation"
        self.teller.work()
        self._write_plain("told", fact.sandbox_id, 1, [self._mark_partition(fact.sandbox_id)])
        del self._marks[_name(fact)]
        self.facts_told += 1

    def add_delivery(self, delivery: Delivery) -> bool:
        self._write_plain("add_delivery", ENDPOINT_ID, DELIVERY_UNITS, [_place(delivery)])
        self._store_delivery(delivery)
        return True

    def read_due_deliveries(self, endpoint_id: str, *, until: int, limit: int) -> list[Delivery]:
        self._time.sleep(2 * self._latency())
        due = (each for each in self._pending.values() if each.next_try_at is not None and each.next_try_at <= until)
        return list(islice(due, limit))

    def read_pending(self, endpoint_id: str, sandbox_id: str) -> list[Delivery]:
        self._time.sleep(self._latency())
        return list(self._by_sandbox[sandbox_id].values())

    def write_delivery(self, before: Delivery, after: Delivery) -> None:
        self._write_plain("write_delivery", ENDPOINT_ID, DELIVERY_UNITS, [_place(before), _place(after)])
        assert self._pending[before.delivery_id] == before, "one process sends, so nobody comes between"
        self._store_delivery(after)

    def _store_delivery(self, delivery: Delivery) -> None:
        of_sandbox = self._by_sandbox[delivery.sandbox_id or ""]
        if delivery.state is DeliveryState.PENDING:
            self._pending[delivery.delivery_id] = of_sandbox[delivery.delivery_id] = delivery
        else:
            del self._pending[delivery.delivery_id], of_sandbox[delivery.delivery_id]

    def _write_plain(self, method: str, key: str, units: int, places: Iterable[str]) -> None:
        """Write one item without a transaction, and its entries of the index."""

        def write() -> None:
            travel = self._latency() / 2
            self._time.sleep(travel)
            self._charge(key, units, places)
            self._time.sleep(travel)

        self._insist(method, write)

    def _mark_partition(self, sandbox_id: str) -> str:
        return f"untold#{self._segment(sandbox_id)}"


class Processor:
    """The processor of a process: its threads have it one after the other."""

    def __init__(self, schedule: Schedule, seconds: float) -> None:
        self._time = schedule.time
        self._seconds = seconds
        self._free_at = 0.0

    def work(self) -> None:
        """Wait for the processor, and use it for one fact."""
        now = self._time.monotonic()
        self._free_at = max(now, self._free_at) + self._seconds
        self._time.sleep(self._free_at - now)


class Workers:
    """A process that tells facts, and one that sends their deliveries to a receiver that accepts all."""

    def __init__(self, schedule: Schedule, store: FloodedStore, flood: Flood) -> None:
        recorder = Recorders([])
        rng, clock = Random(1), schedule.time
        guard = Guard(store=store, memory=FakeTableMemory(), recorder=recorder, clock=clock, rng=rng)
        self.sent = 0
        """How many deliveries were sent."""
        self._store = store
        self._schedule = schedule
        self._answer_sec = flood.answer_sec
        self._processor = Processor(schedule, flood.processor_sec)
        self._deliverer = Deliverer(
            store=store, queue=self, guard=guard, recorder=recorder, clock=clock, threads=flood.threads
        )
        self._sender = Sender(
            store=store,
            transport=_Receiver(self._receive),
            guard=guard,
            recorder=recorder,
            clock=clock,
            rng=rng,
            threads=flood.threads,
        )

    @property
    def told(self) -> int:
        """How many facts were told."""
        return self._store.facts_told

    def run(self) -> None:
        """Start `broker.deliver` again and again."""
        while True:
            self._deliverer.run()
            self._schedule.time.sleep(DELIVER_EVERY_SEC)

    def send(self, endpoint_ids: Sequence[str]) -> None:
        """Implement `WebhookQueue`: a task for each endpoint. The sender ignores one whose endpoint it drains already."""
        for each in endpoint_ids:
            self._schedule.start(lambda each=each: self._sender.drain(each, by=BY))  # type: ignore[misc] # bound in the loop

    def _receive(self) -> None:
        self._processor.work()
        self._schedule.time.sleep(self._answer_sec)
        self.sent += 1


class _Receiver:
    """Implements `WebhookTransport`."""

    def __init__(self, receive: Callable[[], None]) -> None:
        self._receive = receive

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        self._receive()
        return WebhookAnswer(200, "ok")


@contextmanager
def simulated_threads(schedule: Schedule) -> Iterator[None]:
    """Make the threads of deliverer and sender tasks of the schedule."""

    def for_each(work: Callable[[Item], Outcome], items: Iterable[Item], *, threads: int) -> list[Outcome]:
        left = deque(enumerate(items))
        outcomes: dict[int, Outcome] = {}

        def serve() -> None:
            while left:
                number, item = left.popleft()
                outcomes[number] = work(item)

        schedule.together([serve] * min(threads, len(left)))
        return [outcomes[number] for number in sorted(outcomes)]

    with patch.object(deliveries, "for_each", for_each), patch.object(sending, "for_each", for_each):
        yield


def _name(fact: Fact) -> str:
    return f"{fact.sandbox_id}#{fact.version}#{fact.kind}"


def _place(delivery: Delivery) -> str:
    """Return the partition of the index that has a delivery."""
    name = "delivery" if delivery.state is DeliveryState.PENDING else delivery.state
    return f"{name}#{delivery.endpoint_id}"
