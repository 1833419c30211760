"""Send: in order for each sandbox, again after a failure at the times of the schedule, and bounded at a dead endpoint."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.errors import TableChanged
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.sending import (
    DRAIN_SEC,
    GIVE_UP_SEC,
    PROBE_SEC,
    TAKEN_SEC,
    WAITS_SEC,
    DrainResult,
    WebhookAnswer,
)
from broker_common.core.telemetry import DeliveryEnded, DeliveryOutcome, EndpointDisabled, ItemFailed
from broker_common.core.webhook import Delivery, DeliveryState
from tests.contract.webhooks import delivered, make_delivery
from tests.fakes import BY, START, Fault, FlakyStore
from tests.webhook_world import FAILED, GONE, OK, SILENT, WebhookWorld

if TYPE_CHECKING:
    from typing import Any

NAME = "7:1:sandbox_updated"


@pytest.fixture
def world() -> WebhookWorld:
    world = WebhookWorld()
    world.add_endpoint()
    return world


def flaky() -> tuple[WebhookWorld, FlakyStore]:
    world = WebhookWorld(wrap=FlakyStore)
    world.add_endpoint()
    assert isinstance(world.store, FlakyStore)
    return world, world.store


def due(sandbox_id: str | None = "7", version: int = 1, **changes: Any) -> Delivery:
    """Return a delivery that is due at the start."""
    return make_delivery(
        sandbox_id, version, **{"fact_at": START, "created_at": START, "next_try_at": START, **changes}
    )


def add(world: WebhookWorld, *deliveries: Delivery) -> None:
    for each in deliveries:
        assert world.memory.add_delivery(each)


def pending(world: WebhookWorld) -> list[str]:
    return [name for (_, name), each in world.memory.deliveries.items() if each.state is DeliveryState.PENDING]


# -- one delivery


def test_what_is_due_is_sent_once_as_it_is_stored(world: WebhookWorld) -> None:
    add(world, due(payload='{"a": 1}'))
    assert world.drain() == DrainResult(delivered=1, failed=0)
    assert [each.payload for each in world.receiver.received] == ['{"a": 1}']
    stored = world.delivery(NAME)
    assert stored == replace(
        due(payload='{"a": 1}'),
        state=DeliveryState.DELIVERED,
        tries=1,
        next_try_at=None,
        last_try_at=START,
        last_status=200,
        last_answer="ok",
        delivered_at=START,
    )
    assert world.drain() == DrainResult(delivered=0, failed=0)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_answer_of_success_ends_a_delivery(world: WebhookWorld, status: int) -> None:
    world.receiver.answers.append(WebhookAnswer(status, "fine"))
    add(world, due())
    assert world.drain().delivered == 1
    assert world.delivery(NAME).state is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [None, 100, 199, 300, 302, 400, 404, 429, 500, 503])
def test_any_other_answer_fails_the_try(world: WebhookWorld, status: int | None) -> None:
    world.receiver.answers.append(WebhookAnswer(status, "no"))
    add(world, due())
    assert world.drain() == DrainResult(delivered=0, failed=1)
    stored = world.delivery(NAME)
    assert (stored.state, stored.tries, stored.attempt_id) == (DeliveryState.PENDING, 1, None)
    assert (stored.last_try_at, stored.last_status, stored.last_answer) == (START, status, "no")


def test_a_delivery_is_tried_ten_times_at_the_times_of_the_schedule_and_then_never_again(world: WebhookWorld) -> None:
    world.receiver.answer = lambda _endpoint, _delivery: FAILED
    add(world, due())
    for wait in WAITS_SEC:
        assert world.drain().failed == 1
        next_try_at = world.delivery(NAME).next_try_at
        assert next_try_at is not None
        assert wait <= next_try_at - world.clock.now() <= wait * 1.1 + 1
        world.clock.advance(next_try_at - world.clock.now() - 1)
        assert world.drain() == DrainResult(delivered=0, failed=0)
        world.clock.advance(1)
    assert world.drain().failed == 1
    stored = world.delivery(NAME)
    assert (stored.state, stored.tries, stored.next_try_at) == (DeliveryState.EXHAUSTED, 10, None)
    world.clock.advance(10**6)
    assert world.drain() == DrainResult(delivered=0, failed=0)
    outcomes = [event.outcome for event in world.recorder.of(DeliveryEnded)]
    assert outcomes == [*[DeliveryOutcome.FAILED] * 9, DeliveryOutcome.EXHAUSTED]


def test_each_try_is_recorded_with_the_answer_in_words_if_it_failed(world: WebhookWorld) -> None:
    world.receiver.answers.extend([SILENT, OK])
    world.receiver.during_send = lambda: world.clock.advance(2)
    add(world, due())
    world.drain()
    world.clock.advance(10)
    world.drain()
    failed, succeeded = world.recorder.of(DeliveryEnded)
    assert failed == DeliveryEnded(
        outcome=DeliveryOutcome.FAILED,
        endpoint_id="hook",
        delivery_id=NAME,
        seconds=2,
        sandbox_id="7",
        error="timed out after 15 s",
    )
    assert succeeded == replace(failed, outcome=DeliveryOutcome.DELIVERED, error=None)


# -- a take


def test_while_a_delivery_is_sent_nobody_else_sends_it(world: WebhookWorld) -> None:
    other = WebhookWorld(clock=world.clock, memory=world.memory, seed=2)
    add(world, due())
    world.receiver.during_send = other.drain
    world.drain()
    assert (world.receiver.names, other.receiver.names) == ([NAME], [])


def test_a_delivery_whose_sender_crashed_is_sent_again_when_its_take_is_over() -> None:
    world, store = flaky()
    add(world, due())
    store.fail("write_delivery", None, Fault.REFUSED)
    world.drain()
    assert world.recorder.of(ItemFailed)[0].sandbox_id == "7"
    stored = world.delivery(NAME)
    assert (stored.state, stored.tries) == (DeliveryState.PENDING, 0)
    assert stored.attempt_id is not None
    world.clock.advance(TAKEN_SEC - 1)
    world.drain()
    assert len(world.receiver.received) == 1
    world.clock.advance(1)
    world.drain()
    assert world.receiver.names == [NAME, NAME]
    assert world.delivery(NAME).state is DeliveryState.DELIVERED


def test_a_delivery_that_another_process_takes_first_is_left_to_it() -> None:
    world, store = flaky()
    add(world, due(), due(version=2))
    store.just_before("write_delivery", lambda: world.memory.write_delivery(due(), replace(due(), attempt_id="theirs")))
    assert world.drain() == DrainResult(delivered=0, failed=0)
    assert world.receiver.received == []


def test_a_take_that_took_too_long_is_dropped_and_the_delivery_is_due_at_once() -> None:
    world, store = flaky()
    add(world, due())
    store.just_before("write_delivery", lambda: world.clock.advance(6))
    world.drain()
    assert (world.receiver.received, world.delivery(NAME)) == ([], due())
    world.drain()
    assert world.receiver.names == [NAME]


def test_an_outcome_is_not_written_over_what_another_writer_made_of_the_delivery(world: WebhookWorld) -> None:
    def be_late() -> None:
        taken = world.delivery(NAME)
        world.memory.write_delivery(taken, delivered(taken, at=START + 70))

    add(world, due(), due(version=2))
    world.receiver.answers.append(FAILED)
    world.receiver.during_send = be_late
    world.drain()
    assert world.delivery(NAME).delivered_at == START + 70
    assert world.receiver.names == [NAME]
    assert world.recorder.of(DeliveryEnded) == []


# -- order


def test_the_deliveries_of_a_sandbox_are_sent_in_the_order_of_versions(world: WebhookWorld) -> None:
    versions = [100, 9, 20, 3]
    add(world, *(due(version=version) for version in versions))
    world.drain()
    assert [each.version for each in world.receiver.received] == sorted(versions)


def test_newer_ones_wait_for_an_older_one_that_fails_and_no_other_sandbox_does(world: WebhookWorld) -> None:
    add(world, due(), due(version=2), due(version=3), due("8"), due(None, 5), due(None, 6))
    world.receiver.answer = lambda _, each: FAILED if each.delivery_id == NAME else OK
    world.drain()
    assert world.receiver.names == [NAME, "8:1:sandbox_updated", "pool-5", "pool-6"]
    waits = {world.delivery(f"7:{version}:sandbox_updated").next_try_at for version in (1, 2, 3)}
    assert len(waits) == 1
    assert None not in waits
    world.receiver.answer = lambda *_: OK
    world.clock.advance(6)
    world.drain()
    assert [each.version for each in world.receiver.received[4:]] == [1, 2, 3]


def test_one_that_is_made_later_waits_for_an_older_one_that_is_not_due(world: WebhookWorld) -> None:
    add(world, due(next_try_at=START + 300, tries=1), due(version=2), due(version=3, next_try_at=START + 900))
    world.drain()
    assert world.receiver.received == []
    assert world.delivery("7:2:sandbox_updated").next_try_at == START + 300
    assert world.delivery("7:3:sandbox_updated").next_try_at == START + 900


def test_newer_ones_follow_an_exhausted_one(world: WebhookWorld) -> None:
    add(world, due(tries=9), due(version=2))
    world.receiver.answers.append(FAILED)
    world.drain()
    assert world.delivery(NAME).state is DeliveryState.EXHAUSTED
    assert world.delivery("7:2:sandbox_updated").state is DeliveryState.DELIVERED


def test_behind_one_that_another_process_sends_now_newer_ones_are_left_as_they_are(world: WebhookWorld) -> None:
    taken = due(attempt_id="theirs", next_try_at=START + TAKEN_SEC)
    add(world, taken, due(version=2))
    world.drain()
    assert world.receiver.received == []
    assert world.delivery("7:2:sandbox_updated") == due(version=2)


def test_one_that_is_sent_again_by_hand_waits_for_nothing_and_nothing_waits_for_it(world: WebhookWorld) -> None:
    world.receiver.answer = lambda _, each: FAILED if each.version == 1 else OK
    add(world, due(), delivered(due(version=2), at=START), due(version=3))
    world.drain()
    assert sorted(each.version for each in world.receiver.received) == [1, 3]
    assert world.delivery("7:3:sandbox_updated").state is DeliveryState.DELIVERED
    assert pending(world) == [NAME]


def test_to_move_one_that_another_process_has_just_written_is_left_to_it() -> None:
    world, store = flaky()
    add(world, due(next_try_at=START + 300, tries=1), due(version=2), due(version=3))
    second = due(version=2)
    store.just_before(
        "write_delivery", lambda: world.memory.write_delivery(second, replace(second, next_try_at=START + 1))
    )
    world.drain()
    assert world.delivery("7:2:sandbox_updated").next_try_at == START + 1
    assert world.delivery("7:3:sandbox_updated").next_try_at == START


# -- an endpoint that fails


def test_a_drain_ends_after_eight_failures_in_a_row(world: WebhookWorld) -> None:
    world.receiver.answer = lambda _endpoint, _delivery: SILENT
    add(world, *(due(f"sbx-{number}") for number in range(20)))
    assert world.drain() == DrainResult(delivered=0, failed=8)
    assert world.endpoint().failing_since == START


def test_failures_between_successes_do_not_end_a_drain(world: WebhookWorld) -> None:
    world.receiver.answers.extend([*[FAILED] * 7, OK, *[FAILED] * 7])
    add(world, *(due(f"sbx-{number}") for number in range(20)))
    assert world.drain() == DrainResult(delivered=6, failed=14)
    assert world.endpoint().failing_since is None


def test_while_an_endpoint_fails_one_delivery_is_tried_and_the_rest_if_it_succeeds(world: WebhookWorld) -> None:
    world.receiver.answer = lambda _endpoint, _delivery: FAILED
    add(world, *(due(f"sbx-{number}") for number in range(20)))
    world.drain()
    world.clock.advance(60)
    assert world.drain() == DrainResult(delivered=0, failed=1)
    assert world.endpoint().failing_since == START
    world.receiver.answer = lambda _endpoint, _delivery: OK
    world.clock.advance(PROBE_SEC - 1)
    assert world.drain() == DrainResult(delivered=0, failed=0)
    world.clock.advance(1)
    assert world.drain() == DrainResult(delivered=20, failed=0)
    assert (pending(world), world.endpoint().failing_since, world.endpoint().probe_at) == ([], None, None)


def test_an_endpoint_that_is_down_is_probed_by_one_process_at_a_time(world: WebhookWorld) -> None:
    endpoint = world.endpoint()
    world.memory.write_endpoint(endpoint, replace(endpoint, failing_since=START - 10))
    add(world, due("8"), due("9"))
    other = WebhookWorld(clock=world.clock, memory=world.memory)
    world.receiver.during_send = other.drain
    world.receiver.answers.append(FAILED)
    world.drain()
    assert (len(world.receiver.received), other.receiver.received) == (1, [])


def test_of_two_that_probe_at_the_same_moment_one_tries() -> None:
    world, store = flaky()
    endpoint = replace(world.endpoint(), failing_since=START - 10)
    world.memory.write_endpoint(world.endpoint(), endpoint)
    add(world, due("8"))
    store.just_before(
        "write_endpoint",
        lambda: world.memory.write_endpoint(endpoint, replace(endpoint, probe_at=START + PROBE_SEC + 1)),
    )
    assert world.drain() == DrainResult(delivered=0, failed=0)
    assert world.receiver.received == []


def test_where_nothing_is_due_no_probe_is_taken_from_one_that_will_be(world: WebhookWorld) -> None:
    endpoint = replace(world.endpoint(), failing_since=START - 10)
    world.memory.write_endpoint(world.endpoint(), endpoint)
    world.drain()
    assert world.endpoint() == endpoint


def test_followers_of_one_that_must_wait_are_in_no_probes_way(world: WebhookWorld) -> None:
    endpoint = world.endpoint()
    world.memory.write_endpoint(endpoint, replace(endpoint, failing_since=START - 10))
    add(world, due(next_try_at=START + 300, tries=1), *(due(version=number) for number in range(2, 30)))
    add(world, due("8", next_try_at=START))
    assert world.drain().delivered == 1
    assert world.receiver.names == [NAME.replace("7", "8", 1)]


def test_a_sandbox_with_very_many_lets_others_have_their_turn(world: WebhookWorld) -> None:
    add(world, *(due(version=number) for number in range(1, 70)))
    assert world.drain().delivered == 69
    assert [each.version for each in world.receiver.received] == list(range(1, 70))


def test_one_failure_at_the_end_of_a_drain_does_not_slow_the_next_one_down(world: WebhookWorld) -> None:
    world.receiver.answers.extend([OK, FAILED])
    add(world, due("1"), due("2"), *(due(f"sbx-{number}", next_try_at=START + 9) for number in range(20)))
    world.drain()
    assert world.endpoint().failing_since == START
    world.clock.advance(9)
    world.receiver.answers.append(FAILED)
    assert world.drain().delivered == 20


def test_one_that_must_wait_does_not_keep_the_one_try_from_another(world: WebhookWorld) -> None:
    endpoint = world.endpoint()
    world.memory.write_endpoint(endpoint, replace(endpoint, failing_since=START - 10))
    add(world, due(next_try_at=START + 300, tries=1), due(version=2), due("8", next_try_at=START))
    assert world.drain().delivered == 1
    assert world.receiver.names == ["8:1:sandbox_updated"]


def test_an_endpoint_that_failed_for_five_days_is_disabled_and_a_fact_says_so(world: WebhookWorld) -> None:
    world.receiver.answer = lambda _endpoint, _delivery: FAILED
    times = [*range(0, GIVE_UP_SEC, 24 * 3600), GIVE_UP_SEC - PROBE_SEC, GIVE_UP_SEC]
    add(world, *(due(f"sbx-{time}", next_try_at=START + time) for time in times))
    for time in times:
        assert world.endpoint().disabled_at is None
        world.clock.advance(START + time - world.clock.now())
        world.drain()
    endpoint = world.endpoint()
    assert (endpoint.disabled_at, endpoint.disabled_reason) == (START + GIVE_UP_SEC, "it has failed for five days")
    [fact] = world.memory.facts
    assert fact == PoolFact(
        kind=PoolFactKind.WEBHOOK_DISABLED,
        fact_id=fact.fact_id if isinstance(fact, PoolFact) else "",
        at=START + GIVE_UP_SEC,
        principal=BY.principal,
        request_id=BY.request_id,
        details={"endpoint_id": "hook", "reason": "it has failed for five days"},
    )
    assert world.memory.untold == [fact]
    assert world.recorder.of(EndpointDisabled) == [
        EndpointDisabled(endpoint_id="hook", reason="it has failed for five days")
    ]
    assert world.drain() == DrainResult(delivered=0, failed=0)


@pytest.mark.parametrize("quiet_days", [4, 20])
def test_an_endpoint_with_nothing_to_be_sent_for_days_is_not_disabled_by_its_next_failure(
    world: WebhookWorld, quiet_days: int
) -> None:
    world.receiver.answer = lambda _endpoint, _delivery: FAILED
    add(world, due())
    while world.delivery(NAME).state is DeliveryState.PENDING:
        world.drain()
        world.clock.advance(60)
    world.clock.advance(quiet_days * 24 * 3600)
    add(world, due("8", next_try_at=world.clock.now()))
    assert world.drain().failed == 1
    assert (world.endpoint().disabled_at, world.endpoint().failing_since) == (None, world.clock.now())


@pytest.mark.parametrize("changes", [None, {"version": 2}, {"disabled_at": START, "disabled_reason": "by hand"}])
def test_an_endpoint_that_is_removed_or_changed_is_sent_nothing_more_soon_after(
    world: WebhookWorld, changes: dict[str, Any] | None
) -> None:
    before = world.endpoint()
    add(world, *(due(f"sbx-{number}") for number in range(20)))

    def change() -> None:
        world.clock.advance(0.5)
        if len(world.receiver.received) == 3:
            world.memory.write_endpoint(before, None if changes is None else replace(before, **changes))

    world.receiver.during_send = change
    world.drain()
    assert 3 < len(world.receiver.received) <= 3 + 4


def test_an_endpoint_that_wants_no_more_is_disabled_at_once_and_its_deliveries_wait(world: WebhookWorld) -> None:
    world.receiver.answers.append(GONE)
    add(world, due(), due("8"))
    assert world.drain() == DrainResult(delivered=0, failed=1)
    assert world.endpoint().disabled_reason == "it answered 410, so it wants no more deliveries"
    assert len(pending(world)) == 2
    assert world.recorder.of(DeliveryEnded)[0].outcome is DeliveryOutcome.DISABLED
    assert world.drain() == DrainResult(delivered=0, failed=0)


@pytest.mark.parametrize("change", [{"version": 2, "url": "https://new.example"}, {"disabled_at": START}])
def test_an_endpoint_that_an_operator_changes_meanwhile_is_not_judged_by_what_was_before(
    world: WebhookWorld, change: dict[str, Any]
) -> None:
    world.receiver.answers.append(GONE)
    changed = replace(world.endpoint(), **change)
    world.receiver.during_send = lambda: world.memory.write_endpoint(world.endpoint(), changed)
    add(world, due())
    world.drain()
    assert world.endpoint() == changed
    assert world.memory.facts == []


def test_an_endpoint_that_another_process_found_failing_is_judged_all_the_same(world: WebhookWorld) -> None:
    def note() -> None:
        world.memory.write_endpoint(world.endpoint(), replace(world.endpoint(), failing_since=START - 9))

    world.receiver.answers.append(GONE)
    world.receiver.during_send = note
    add(world, due())
    world.drain()
    assert world.endpoint().disabled_at == START


def test_an_endpoint_that_is_removed_meanwhile_stays_so(world: WebhookWorld) -> None:
    removed = world.endpoint()
    world.receiver.during_send = lambda: world.memory.write_endpoint(removed, None)
    world.receiver.answers.append(FAILED)
    add(world, due(), due("8"))
    world.drain()
    assert world.memory.read_endpoints() == []
    assert world.drain() == DrainResult(delivered=0, failed=0)


# -- a drain


def test_what_becomes_due_while_a_drain_goes_on_is_sent_by_it(world: WebhookWorld) -> None:
    arriving = [due("8"), due(version=2)]
    world.receiver.during_send = lambda: add(world, arriving.pop()) if arriving else None
    add(world, due())
    assert world.drain().delivered == 3


def test_more_than_a_page_is_sent_by_one_drain(world: WebhookWorld) -> None:
    add(world, *(due(f"sbx-{number}") for number in range(450)))
    assert world.drain().delivered == 450


def test_a_drain_begins_no_other_try_when_its_time_is_over(world: WebhookWorld) -> None:
    world.receiver.during_send = lambda: world.clock.advance(DRAIN_SEC / 4)
    add(world, *(due(version=version) for version in range(1, 6)), due("8", version=9))
    assert world.drain().delivered == 4
    assert [each.version for each in world.receiver.received] == [1, 2, 3, 4]


def test_a_second_drain_of_the_same_endpoint_in_the_same_process_ends_at_once(world: WebhookWorld) -> None:
    results: list[DrainResult] = []
    world.add_endpoint("other")
    add(world, due(), due("8"), due("9", endpoint_id="other"))

    def again() -> None:
        world.receiver.during_send = lambda: None
        results.extend([world.drain(), world.drain("other")])

    world.receiver.during_send = again
    assert world.drain().delivered == 2
    assert results == [DrainResult(delivered=0, failed=0), DrainResult(delivered=1, failed=0)]


def test_deliveries_of_several_sandboxes_are_sent_at_the_same_time() -> None:
    world = WebhookWorld(threads=4)
    world.add_endpoint()
    all_here = threading.Barrier(4, timeout=30)
    world.receiver.during_send = all_here.wait
    add(world, *(due(f"sbx-{number}") for number in range(4)))
    assert world.drain().delivered == 4


def test_nothing_is_sent_from_a_table_that_is_not_the_known_one(world: WebhookWorld) -> None:
    add(world, due())
    world.guard.check()
    world.memory.identity = "another"
    world.clock.advance(60)
    with pytest.raises(TableChanged):
        world.drain()
    assert world.receiver.received == []
    world.memory.identity = "the-table"
    world.clock.advance(60)
    assert world.drain().delivered == 1
