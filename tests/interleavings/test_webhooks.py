"""Processes that tell facts and send deliveries at the same time: none lost, none made up, in order for each sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.pool import mark_stale
from broker_common.core.sending import TAKEN_SEC
from broker_common.core.webhook import DeliveryState
from broker_common.core.webhook_payload import delivery_of
from tests.contract.webhooks import make_delivery, make_endpoint
from tests.fakes import BY, START, Crashed, FlakyStore, MemoryStore, add_of, make_sandbox
from tests.lifecycle import Violation
from tests.scheduler.schedule import present_task, stop
from tests.scheduler.strategies import choose
from tests.webhook_world import GONE, OK, Receiver, WebhookWorld

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sending import WebhookAnswer
    from broker_common.core.webhook import Delivery, Endpoint
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule

_NO_STEPS = {"ping", "has_sandboxes", "oldest_untold", "read_endpoint"}
"""Calls whose place does not matter here."""


class Watched(Receiver):
    """What each process sends to. A delivery may come only after all older ones of its sandbox have ended."""

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__()
        self._memory = memory

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        older = [
            each.delivery_id
            for each in self._memory.deliveries.values()
            if each.endpoint_id == delivery.endpoint_id
            and each.sandbox_id == delivery.sandbox_id
            and each.version < delivery.version
            and each.state is DeliveryState.PENDING
        ]
        if older:
            raise Violation(f"{delivery.delivery_id} was sent before {older}")
        return super().send(endpoint, delivery, now=now)


class Scene:
    """Two processes over one store. One of them may crash before or after any of its calls: each possibility is played."""

    def __init__(self, schedule: Schedule, *, crashes: bool = False) -> None:
        self.schedule = schedule
        self.memory = MemoryStore(schedule.time)
        self.receiver = Watched(self.memory)
        self._may_crash = crashes
        self.endpoint = make_endpoint()
        self.memory.write_endpoint(None, self.endpoint)
        self.worlds = [self._process(number) for number in range(2)]

    def _process(self, number: int) -> WebhookWorld:
        def wrap(memory: MemoryStore) -> FlakyStore:
            store = FlakyStore(memory)
            store.before_call = lambda method: None if method in _NO_STEPS else self._step(number, method)
            return store

        return WebhookWorld(
            clock=self.schedule.time, memory=self.memory, wrap=wrap, receiver=self.receiver, seed=number
        )

    def _step(self, number: int, method: str) -> None:
        stop(method, by=number)
        if number or not self._may_crash or present_task() is None:
            return
        if choose(self.schedule, 2):
            self._may_crash = False
            self.schedule.steps.append(("fault", "crash"))
            raise Crashed

    def play(self, name: str, work: Callable[[], object]) -> None:
        def until_it_crashes() -> object:
            try:
                return work()
            except Crashed:
                return None

        self.schedule.add(name, until_it_crashes)

    def fact(self, version: int = 1) -> str:
        """Have a sandbox change, and return the id of the delivery of its fact."""
        if version == 1:
            self.memory.commit(add_of(make_sandbox("7")))
        else:
            known = self.memory.get("7")
            assert known is not None
            self.memory.commit(mark_stale(known, by=BY, now=START, last_seen=None))
        return delivery_of(self.memory.facts[-1], self.endpoint, now=START).delivery_id

    def finish(self) -> None:
        """Do, without a crash, what the next runs of the job and its workers do."""
        self._may_crash = False
        world = WebhookWorld(clock=self.schedule.time, memory=self.memory, receiver=self.receiver, seed=9)
        for _ in range(3):
            world.deliverer.run()
            world.drain()
            world.clock.advance(TAKEN_SEC)

    def of(self, endpoint_id: str = "hook") -> list[str]:
        return [name for endpoint, name in self.memory.deliveries if endpoint == endpoint_id]


@pytest.mark.parametrize(("crashes", "facts"), [(False, 2), (True, 1)])
def test_two_runs_of_deliver_make_one_delivery_of_each_fact_in_order(
    every_order: Search, *, crashes: bool, facts: int
) -> None:
    def case(schedule: Schedule) -> None:
        scene = Scene(schedule, crashes=crashes)
        names = [scene.fact(version) for version in range(1, facts + 1)]
        for name, world in zip(("ann", "bob"), scene.worlds, strict=True):
            scene.play(name, world.deliverer.run)
        schedule.run()
        if scene.memory.untold:
            raise Violation("a run that did not crash has left facts untold")
        if scene.of() != names:
            raise Violation(f"there are {scene.of()} of {names}")

    every_order(case, once=True)


def test_an_endpoint_that_is_added_while_facts_are_told_gets_every_fact_from_then_on(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        scene = Scene(schedule)
        scene.fact()
        later: list[str] = []

        def add() -> None:
            stop("write_endpoint", by="operator")
            scene.memory.write_endpoint(None, make_endpoint("new", created_at=START))
            stop("commit", by="track")
            later.append(scene.fact(2))

        scene.play("deliver", scene.worlds[0].deliverer.run)
        scene.play("operator", add)
        schedule.run()
        scene.finish()
        if later[0] not in scene.of("new"):
            raise Violation("the fact was told without the new endpoint")

    every_order(case)


@pytest.mark.parametrize(("crashes", "number"), [(False, 2), (True, 1)])
def test_two_drains_send_the_deliveries_of_a_sandbox_in_order_and_once_unless_one_crashes(
    every_order: Search, *, crashes: bool, number: int
) -> None:
    def case(schedule: Schedule) -> None:
        scene = Scene(schedule, crashes=crashes)
        sent = [
            make_delivery("7", version, fact_at=START, created_at=START, next_try_at=START)
            for version in range(1, number + 1)
        ]
        for each in sent:
            scene.memory.add_delivery(each)
        for name, world in zip(("ann", "bob"), scene.worlds, strict=True):
            scene.play(name, world.drain)
        schedule.run()
        crashed = ("fault", "crash") in schedule.steps
        scene.finish()
        received = scene.receiver.names
        if list(dict.fromkeys(received)) != [each.delivery_id for each in sent]:
            raise Violation(f"{received} were received")
        if len(received) > number + crashed:
            raise Violation("a delivery was sent twice without a crash")

    every_order(case, once=True)


def test_a_slow_answer_never_changes_the_outcome_of_a_later_try(every_order: Search) -> None:
    """A process is suspended while it sends, for longer than its take lasts."""

    def case(schedule: Schedule) -> None:
        scene = Scene(schedule)
        scene.memory.add_delivery(make_delivery("7", fact_at=START, created_at=START, next_try_at=START))
        states: list[DeliveryState] = []
        scene.receiver.during_send = lambda: stop("answer")

        def pass_time() -> None:
            stop("time passes", by="time")
            schedule.time.advance(TAKEN_SEC)

        def watch() -> None:
            [stored] = scene.memory.deliveries.values()
            if states and states[-1] is not DeliveryState.PENDING and stored.state is not states[-1]:
                raise Violation("a delivery that has ended was changed")
            states.append(stored.state)

        schedule.after_step = watch
        scene.play("ann", scene.worlds[0].drain)
        scene.play("time", pass_time)
        scene.play("bob", scene.worlds[1].drain)
        schedule.run()
        scene.finish()
        [stored] = scene.memory.deliveries.values()
        if (stored.state, stored.tries) != (DeliveryState.DELIVERED, 1):
            raise Violation(f"it is {stored.state} after {stored.tries} tries")

    every_order(case, once=True)


@pytest.mark.parametrize(("crashes", "facts"), [(False, 2), (True, 1)])
def test_facts_are_told_and_sent_at_the_same_time_in_order(every_order: Search, *, crashes: bool, facts: int) -> None:
    def case(schedule: Schedule) -> None:
        scene = Scene(schedule, crashes=crashes)
        names = [scene.fact(version) for version in range(1, facts + 1)]
        scene.play("deliver", scene.worlds[0].deliverer.run)
        scene.play("drain", scene.worlds[1].drain)
        schedule.run()
        scene.finish()
        if scene.receiver.names != names:
            raise Violation(f"{scene.receiver.names} were received, of {names}")

    every_order(case, once=True)


def test_a_new_address_is_never_judged_by_what_the_old_one_answered(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        scene = Scene(schedule)
        scene.memory.add_delivery(make_delivery("7", fact_at=START, created_at=START, next_try_at=START))
        asked: list[str] = []

        def answer(endpoint: Endpoint, _: Delivery) -> WebhookAnswer:
            asked.append(endpoint.url)
            return GONE if endpoint.url == scene.endpoint.url else OK

        def change() -> None:
            stop("write_endpoint", by="operator")
            current = scene.memory.read_endpoint("hook")
            assert current is not None
            if current.disabled_at is None:
                scene.memory.write_endpoint(current, replace(current, version=2, url="https://new.example"))

        scene.receiver.answer = answer
        scene.play("drain", scene.worlds[0].drain)
        scene.play("operator", change)
        schedule.run()
        stored = scene.memory.read_endpoint("hook")
        assert stored is not None
        if stored.version == 2 and stored.disabled_at is not None:
            raise Violation(f"the new address is disabled; asked were {asked}")

    every_order(case)
