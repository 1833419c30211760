"""Promise 10 for webhooks: also after crashes and failures, each fact is delivered, in order for each sandbox."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from broker_common.core.errors import BrokerError
from broker_common.core.pool import mark_stale, restore
from broker_common.core.sandbox import Status
from broker_common.core.sending import TAKEN_SEC, WAITS_SEC
from broker_common.core.webhook import DeliveryState
from broker_common.core.webhook_payload import delivery_of
from tests.contract.webhooks import make_endpoint, pool_fact
from tests.fakes import BY, Crashed, FakeClock, Fault, FlakyStore, MemoryStore, add_of, make_account, make_sandbox
from tests.webhook_world import FAILED, OK, SILENT, Receiver, WebhookWorld

if TYPE_CHECKING:
    from broker_common.core.sending import WebhookAnswer
    from broker_common.core.webhook import Delivery, Endpoint

_TROUBLE = st.sampled_from([None, *Fault]).filter(lambda fault: fault is not Fault.CONTENDED)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from("abc"), st.none()),
        st.tuples(st.just("pool"), st.none(), st.none()),
        st.tuples(st.just("deliver"), st.integers(0, 1), st.lists(_TROUBLE, max_size=6)),
        st.tuples(st.just("drain"), st.integers(0, 1), st.lists(_TROUBLE, max_size=6)),
        st.tuples(st.just("wait"), st.sampled_from([1, 5, TAKEN_SEC, 400]), st.none()),
    ),
    max_size=40,
)


class Outside:
    """The pool, two processes that tell what happens in it, and an endpoint that fails at random."""

    def __init__(self, seed: int) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.receiver = Receiver()
        self.receiver.answer = self._answer
        self.is_healthy = False
        self._rng = Random(seed)
        self._started = 0
        self.processes = [self._start() for _ in range(2)]
        self.processes[0].add_endpoint()
        self._changes = 0

    def _start(self) -> WebhookWorld:
        self._started += 1
        return WebhookWorld(
            clock=self.clock, memory=self.memory, wrap=FlakyStore, receiver=self.receiver, seed=self._started
        )

    def _answer(self, _endpoint: Endpoint, delivery: Delivery) -> WebhookAnswer:
        for each in self.memory.deliveries.values():
            if (
                each.sandbox_id is not None
                and each.sandbox_id == delivery.sandbox_id
                and each.version < delivery.version
            ):
                assert each.state is not DeliveryState.PENDING, "an older delivery of the sandbox has not ended"
        if self.is_healthy or self._rng.random() < 0.5:
            return OK
        return self._rng.choice([FAILED, SILENT])

    def change(self, name: str) -> None:
        known, now = self.memory.get(name), self.clock.now()
        if known is None:
            self.memory.commit(add_of(make_sandbox(name)))
        elif known.status is Status.AVAILABLE:
            self.memory.commit(mark_stale(known, by=BY, now=now, last_seen=None))
        else:
            self.memory.commit(restore(known, make_account(name), order=5, by=BY, now=now))

    def pool(self) -> None:
        self._changes += 1
        self.memory.record(pool_fact(f"pool-{self._changes}", at=self.clock.now()))

    def act(self, what: str, number: int, faults: list[Fault | None]) -> None:
        """Have a process work; its next writes fail by these faults. After a crash it starts again."""
        world = self.processes[number]
        assert isinstance(world.store, FlakyStore)
        world.store.fail_writes(*faults)
        try:
            world.deliverer.run() if what == "deliver" else world.drain()
        except Crashed:
            self.processes[number] = self._start()
        except BrokerError:
            pass
        else:
            world.store.fail_writes()

    def settle(self) -> None:
        """Let everything come to its end: first at an endpoint that fails half the time, then without faults."""
        self.act("deliver", 0, [])
        for _ in range(3):
            self.act("drain", 1, [])
            self.clock.advance(10)
        self.is_healthy = True
        for wait in (*WAITS_SEC, TAKEN_SEC, TAKEN_SEC):
            self.act("deliver", 0, [])
            self.act("drain", 0, [])
            self.clock.advance(2 * wait + TAKEN_SEC)
        self.act("drain", 0, [])


@given(steps=_STEPS, seed=st.integers(0, 2**16))
@settings(deadline=None, max_examples=150)
def test_each_fact_is_delivered_in_order_and_nothing_else_is(
    steps: list[tuple[str, object, object]], seed: int
) -> None:
    outside = Outside(seed)
    for what, which, faults in steps:
        match what, which, faults:
            case "change", str(name), _:
                outside.change(name)
            case "pool", _, _:
                outside.pool()
            case (("deliver" | "drain"), int(number), list(given_faults)):
                outside.act(what, number, given_faults)
            case "wait", int(seconds), _:
                outside.clock.advance(seconds)
    outside.settle()
    facts = outside.memory.facts
    expected = {delivery_of(fact, make_endpoint(), now=0).delivery_id for fact in facts}
    assert outside.memory.untold == []
    assert {name for _, name in outside.memory.deliveries} == expected
    assert {each.state for each in outside.memory.deliveries.values()} <= {DeliveryState.DELIVERED}
    assert set(outside.receiver.names) == expected
    by_sandbox: dict[str, list[int]] = defaultdict(list)
    for each in outside.receiver.received:
        if each.sandbox_id is not None and each.version not in by_sandbox[each.sandbox_id]:
            by_sandbox[each.sandbox_id].append(each.version)
    assert all(versions == sorted(versions) for versions in by_sandbox.values())
