"""Deliver: each fact becomes one delivery to each endpoint that wants it, in order, and what is due is handed on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import QueueUnavailable, TableChanged
from broker_common.core.job_names import Job
from broker_common.core.telemetry import ItemFailed, WebhooksLagged
from tests.contract.webhooks import delivered, lives, make_delivery, make_endpoint, pool_fact
from tests.fakes import START, Fault, FlakyStore
from tests.webhook_world import WebhookWorld


@pytest.fixture
def world() -> WebhookWorld:
    return WebhookWorld()


def of(world: WebhookWorld, endpoint_id: str = "hook") -> list[str]:
    """Return the ids of the deliveries to an endpoint, in the order in which they were made."""
    return [name for endpoint, name in world.memory.deliveries if endpoint == endpoint_id]


def names(*facts: object) -> list[str]:
    return [f"{fact.sandbox_id}:{fact.version}:{fact.kind.replace('.', '_')}" for fact in facts]  # type: ignore[attr-defined]


def lag(world: WebhookWorld) -> int:
    return world.recorder.of(WebhooksLagged)[-1].seconds


def test_each_fact_becomes_a_delivery_to_each_endpoint_in_order_once(world: WebhookWorld) -> None:
    world.add_endpoint("one")
    world.add_endpoint("two")
    facts = lives(world.memory, "7")
    world.memory.record(pool_fact("paused"))
    result = world.deliverer.run()
    assert (result.facts, result.deliveries, result.failed) == (4, 8, 0)
    assert result.message == "Made 8 deliveries of 4 facts"
    for endpoint_id in ("one", "two"):
        assert [each for each in of(world, endpoint_id) if each != "paused"] == names(*facts)
        assert "paused" in of(world, endpoint_id)
    assert world.memory.untold == []
    again = world.deliverer.run()
    assert (again.facts, again.deliveries) == (0, 0)


def test_the_id_of_a_delivery_has_no_full_stop_because_it_is_signed_up_to_one(world: WebhookWorld) -> None:
    world.add_endpoint()
    lives(world.memory, "7")
    world.memory.record(pool_fact("paused"))
    world.deliverer.run()
    assert len(of(world)) > 1
    assert not [name for name in of(world) if "." in name]


def test_an_endpoint_gets_only_the_kinds_that_it_wants_also_while_it_is_disabled(world: WebhookWorld) -> None:
    world.add_endpoint("picky", kinds=("sandbox.allocated", "pool.paused"))
    world.add_endpoint("off", disabled_at=START, disabled_reason="by hand")
    facts = lives(world.memory, "7")
    world.memory.record(pool_fact("paused"))
    world.deliverer.run()
    assert sorted(of(world, "picky")) == sorted([*names(facts[1]), "paused"])
    assert len(of(world, "off")) == 4
    assert world.queue.sent == [["picky"]]


def test_an_endpoint_gets_no_fact_that_is_surely_older_than_itself(world: WebhookWorld) -> None:
    world.add_endpoint("old")
    world.memory.record(pool_fact("before", at=START - MAX_DIFFERENCE_SEC - 1))
    world.memory.record(pool_fact("by a clock behind", at=START - MAX_DIFFERENCE_SEC))
    world.add_endpoint("new", created_at=START)
    world.deliverer.run()
    assert of(world, "new") == ["by a clock behind"]
    assert len(of(world, "old")) == 2


def test_facts_count_as_told_if_no_endpoint_is_left(world: WebhookWorld) -> None:
    endpoint = world.add_endpoint()
    lives(world.memory, "7")
    world.memory.write_endpoint(endpoint, None)
    assert world.deliverer.run().facts == 3
    assert (world.memory.untold, world.memory.deliveries, world.queue.sent) == ([], {}, [])


def test_an_endpoint_that_is_added_while_a_page_is_read_gets_the_facts_of_that_page() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint("one")

    def add_another() -> None:
        world.memory.write_endpoint(None, make_endpoint("two", created_at=START))
        lives(world.memory, "7")

    world.memory.record(pool_fact("before"))
    world.store.just_before("find_untold", add_another)
    world.deliverer.run()
    assert len(of(world, "two")) == 4


def test_many_pages_of_facts_are_told_in_one_run(world: WebhookWorld) -> None:
    world.add_endpoint()
    for number in range(400):
        lives(world.memory, f"sbx-{number}")
    assert world.deliverer.run().facts == 1200
    assert len(of(world)) == 1200


def test_a_run_ends_after_a_minute_and_the_next_one_goes_on() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    for number in range(400):
        lives(world.memory, f"sbx-{number}")
    world.store.just_before("add_delivery", lambda: world.clock.advance(60))
    assert world.deliverer.run().facts == 500
    assert world.queue.sent == [["hook"], ["hook"]]
    assert lag(world) == 60
    assert world.deliverer.run().facts == 700


def test_a_long_run_hands_on_what_is_due_every_two_seconds() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    for number in range(600):
        lives(world.memory, f"sbx-{number}")
    world.store.just_before("add_delivery", lambda: world.clock.advance(2))
    assert world.deliverer.run().facts == 1800
    assert world.queue.sent == [["hook"], ["hook"]]


def test_the_facts_of_one_sandbox_wait_for_one_that_fails_and_all_others_are_told() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    first, second = lives(world.memory, "7"), lives(world.memory, "8")
    world.memory.record(pool_fact("paused", at=START + 99))
    world.store.fail("add_delivery", None, Fault.REFUSED)
    result = world.deliverer.run()
    assert (result.facts, result.deliveries, result.failed) == (5, 5, 1)
    assert world.recorder.of(ItemFailed) == [ItemFailed(job=Job.DELIVER, sandbox_id="7", error="the store refused")]
    assert of(world) == [*names(first[0]), *names(*second), "paused"]
    assert world.memory.untold == first[1:]
    assert world.deliverer.run().facts == 2
    assert of(world)[-2:] == names(*first[1:])


def test_an_error_of_one_endpoint_keeps_no_fact_from_the_others_and_no_order_from_itself() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint("one")
    world.add_endpoint("two")
    facts = lives(world.memory, "7")
    world.store.fail("add_delivery", Fault.REFUSED)
    assert world.deliverer.run().failed == 1
    assert (of(world, "one"), of(world, "two")) == ([], names(facts[0]))
    assert world.memory.untold == facts
    world.deliverer.run()
    assert of(world, "one") == of(world, "two") == names(*facts)


def test_more_facts_that_fail_than_a_page_holds_are_in_no_other_fact_s_way() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    for number in range(400):
        lives(world.memory, f"sbx-{number}")
    in_page = 167
    world.store.fail("add_delivery", *[Fault.REFUSED] * in_page)
    result = world.deliverer.run()
    assert (result.facts, result.failed) == (1200 - 3 * in_page, in_page)
    assert world.deliverer.run().facts == 3 * in_page


def test_a_fact_of_the_pool_that_fails_is_told_by_the_next_run() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    world.memory.record(pool_fact("paused"))
    world.store.fail("told", Fault.REFUSED)
    assert world.deliverer.run().failed == 1
    assert world.recorder.of(ItemFailed)[0].sandbox_id is None
    result = world.deliverer.run()
    assert (result.facts, result.deliveries) == (1, 0)
    assert of(world) == ["paused"]


def test_an_endpoint_is_handed_on_while_it_has_something_due_and_is_enabled(world: WebhookWorld) -> None:
    endpoint = world.add_endpoint()
    world.deliverer.run()
    assert world.queue.sent == []
    world.memory.add_delivery(make_delivery("7", created_at=START, fact_at=START, next_try_at=START + 5))
    world.deliverer.run()
    world.clock.advance(5)
    world.deliverer.run()
    assert world.queue.sent == [["hook"]]
    world.memory.write_endpoint(endpoint, replace(endpoint, disabled_at=START, disabled_reason="by hand"))
    world.deliverer.run()
    assert len(world.queue.sent) == 1


def test_a_queue_that_is_away_loses_no_fact(world: WebhookWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise QueueUnavailable("Redis is away")

    world.add_endpoint()
    lives(world.memory, "7")
    with monkeypatch.context() as patch:
        patch.setattr(world.queue, "send", refuse)
        with pytest.raises(QueueUnavailable):
            world.deliverer.run()
    assert len(of(world)) == 3
    world.deliverer.run()
    assert world.queue.sent == [["hook"]]


def test_nothing_is_told_from_a_table_that_is_not_the_known_one(world: WebhookWorld) -> None:
    world.add_endpoint()
    lives(world.memory, "7")
    world.guard.check()
    world.memory.identity = "another"
    world.clock.advance(60)
    with pytest.raises(TableChanged):
        world.deliverer.run()
    assert of(world) == []


# -- the lag


def test_nothing_lags_while_everything_was_told_and_sent(world: WebhookWorld) -> None:
    world.add_endpoint()
    world.deliverer.run()
    assert lag(world) == 0
    world.memory.add_delivery(delivered(make_delivery("7", created_at=START, fact_at=START), at=START))
    world.clock.advance(1000)
    world.deliverer.run()
    assert lag(world) == 0


def test_a_fact_that_cannot_be_told_lags_by_its_age() -> None:
    world = WebhookWorld(wrap=FlakyStore)
    assert isinstance(world.store, FlakyStore)
    world.add_endpoint()
    world.memory.record(pool_fact("old", at=START - 100))
    world.store.fail("told", Fault.REFUSED)
    world.deliverer.run()
    assert lag(world) == 100


def test_a_delivery_lags_since_it_is_due_also_if_its_fact_is_old_as_in_a_replay(world: WebhookWorld) -> None:
    world.add_endpoint()
    world.memory.add_delivery(make_delivery("7", fact_at=START - 50, created_at=START, next_try_at=START))
    world.clock.advance(30)
    world.deliverer.run()
    assert lag(world) == 30


def test_a_delivery_that_waited_for_its_next_try_lags_from_then_on(world: WebhookWorld) -> None:
    world.add_endpoint()
    world.memory.add_delivery(make_delivery("7", fact_at=START - 5000, created_at=START - 5000, next_try_at=START))
    world.clock.advance(30)
    world.deliverer.run()
    assert lag(world) == 30


def test_an_endpoint_that_fails_or_is_disabled_does_not_lag(world: WebhookWorld) -> None:
    world.add_endpoint("failing", failing_since=START)
    world.add_endpoint("off", disabled_at=START, disabled_reason="by hand")
    for endpoint_id in ("failing", "off"):
        due = make_delivery("7", endpoint_id=endpoint_id, fact_at=START, created_at=START, next_try_at=START)
        world.memory.add_delivery(due)
    world.clock.advance(1000)
    world.deliverer.run()
    assert lag(world) == 0
    assert world.queue.sent == [["failing"]]


def test_a_fact_by_a_clock_ahead_does_not_lag(world: WebhookWorld) -> None:
    world.add_endpoint()
    world.memory.add_delivery(make_delivery("7", fact_at=START + 9, created_at=START, next_try_at=START))
    world.deliverer.run()
    assert lag(world) == 0
