"""Cleanup: one attempt at a time, every answer of the provider, and never a call that is not covered by a record."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest

from broker_common.core.cleanup import SEND_WITHIN_SEC, delete_limit_sec
from broker_common.core.deadline import time_left
from broker_common.core.errors import (
    ProviderBusy,
    ProviderCircuitOpen,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
    ProviderSlotsUnavailable,
)
from broker_common.core.facts import Fact, FactKind
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.ports import ServicesRemoval, WipeAnswer
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome, ServicesOutcome, ServicesRemovalEnded
from tests.fakes import BY, Crashed, FakeServices, Fault, LosingStore, flat, make_sandbox
from tests.world import World, flaky_world

FAILING = ProviderFailing("500 from the provider", outcome_unknown=False)
TIMED_OUT = ProviderFailing("no answer in time", outcome_unknown=True)
REUSE, CONFIRM, RETIRE = RecyclePolicy


def answering(world: World, *answers: WipeAnswer | Exception) -> World:
    world.provider.answers.extend(answers)
    return world


def delete(world: World) -> DeleteEnded:
    return world.cleaner.delete_sandbox("sbx-0", by=BY)


# -- what the provider says


@pytest.mark.parametrize(
    ("answer", "doubt", "policy", "status", "dirty"),
    [
        (WipeAnswer.WIPED, False, REUSE, Status.AVAILABLE, False),
        (WipeAnswer.WIPED, False, CONFIRM, Status.STALE, False),
        (WipeAnswer.WIPED, False, RETIRE, Status.DELETED, False),
        (WipeAnswer.WIPED, True, REUSE, Status.STALE, False),
        (WipeAnswer.WIPED, True, CONFIRM, Status.STALE, False),
        (WipeAnswer.WIPED, True, RETIRE, Status.DELETED, False),
        (WipeAnswer.ACCEPTED, False, REUSE, Status.STALE, False),
        (WipeAnswer.ACCEPTED, False, CONFIRM, Status.STALE, False),
        (WipeAnswer.ACCEPTED, False, RETIRE, Status.DELETED, False),
        (WipeAnswer.GONE, False, REUSE, Status.STALE, True),
        (WipeAnswer.GONE, False, CONFIRM, Status.STALE, True),
        (WipeAnswer.GONE, False, RETIRE, Status.DELETED, True),
        (WipeAnswer.GONE, True, REUSE, Status.STALE, True),
    ],
)
def test_an_answer_leads_where_the_recycle_policy_says(
    answer: WipeAnswer, doubt: bool, policy: RecyclePolicy, status: Status, dirty: bool
) -> None:
    world = answering(World(policy=Policy(recycle=policy)), answer)
    world.pending(outcome_unknown=doubt)
    ended = delete(world)
    record = world.record("sbx-0")
    assert (record.status, record.dirty) == (status, dirty)
    assert flat(record).attempt_id is None
    assert ended.outcome is (DeleteOutcome.GONE if answer is WipeAnswer.GONE else DeleteOutcome.DELETED)
    assert (ended.sandbox_id, ended.lease_id) == ("sbx-0", "lease-1")
    assert (ended.error is not None, flat(record).gone_at is not None) == (dirty, dirty)


def test_wiped_sandboxes_are_found_by_the_next_allocate(world: World) -> None:
    given_back = [world.pending(f"sbx-{number}").sandbox_id for number in range(2)]
    for sandbox_id in given_back * 2:
        world.cleaner.delete_sandbox(sandbox_id, by=BY)
    world.clock.advance(3)
    assert world.allocate("track-2").claim.sandbox_id in given_back


@pytest.mark.parametrize("error", [FAILING, TIMED_OUT])
def test_a_failure_that_may_pass_is_tried_again_later(plain: World, error: ProviderFailing) -> None:
    plain.pending()
    ended = delete(answering(plain, error))
    record = plain.record("sbx-0")
    assert (ended.outcome, ended.error) == (DeleteOutcome.WILL_RETRY, error.message)
    assert (record.status, flat(record).deletion_retry_count) == (Status.PENDING_DELETION, 1)
    assert (flat(record).deletion_last_error, flat(record).outcome_unknown) == (error.message, error.outcome_unknown)
    assert list(plain.cleaner.find_due()) == []
    plain.clock.advance(120)
    assert list(plain.cleaner.find_due()) == ["sbx-0"]


@pytest.mark.parametrize(
    ("errors", "status"),
    [([FAILING], Status.AVAILABLE), ([TIMED_OUT, FAILING], Status.STALE)],
    ids=["believed", "waits for a sync"],
)
def test_a_success_is_believed_unless_an_attempt_before_it_was_not_answered(
    plain: World, errors: list[ProviderFailing], status: Status
) -> None:
    plain.pending()
    for error in errors:
        delete(answering(plain, error))
        plain.clock.advance(240)
    assert delete(plain).outcome is DeleteOutcome.DELETED
    assert plain.record("sbx-0").status is status


def test_the_doubt_of_one_lease_does_not_reach_the_next(plain: World) -> None:
    plain.pending(outcome_unknown=True)
    delete(plain)
    plain.sync(World.accounts(1))
    plain.clock.advance(2)
    plain.allocate()
    plain.mark()
    delete(plain)
    assert plain.record("sbx-0").status is Status.AVAILABLE


def test_the_back_off_doubles_within_its_bounds_and_stops_growing_at_its_limit() -> None:
    for seed in range(20):
        world = World(seed=seed)
        world.pending()
        for attempt, full in enumerate([60, 120, 240, 480, 960, 1920, 3600]):
            delete(answering(world, FAILING))
            record = world.record("sbx-0")
            assert flat(record).deletion_retry_count == attempt + 1
            assert flat(record).next_attempt_at
            wait = flat(record).next_attempt_at - world.clock.now()
            assert full <= wait <= min(2 * full, 3600)
            assert record.status_order == flat(record).next_attempt_at
            world.clock.advance(wait)


def test_the_back_off_is_jittered() -> None:
    waits = set()
    for seed in range(20):
        world = World(seed=seed, policy=Policy(deletion_backoff_base_sec=1000))
        world.pending()
        delete(answering(world, FAILING))
        waits.add(flat(world.record("sbx-0")).next_attempt_at)
    assert len(waits) > 10


def test_the_last_attempt_puts_the_sandbox_aside(plain: World) -> None:
    plain.pending(deletion_retry_count=7)
    ended = delete(answering(plain, FAILING))
    record = plain.record("sbx-0")
    assert ended.outcome is DeleteOutcome.GAVE_UP
    assert (record.status, flat(record).deletion_retry_count) == (Status.DELETION_FAILED, 8)
    assert flat(record).deletion_last_error == FAILING.message
    assert record.dirty
    plain.clock.advance(100_000)
    assert list(plain.cleaner.find_due()) == []


def test_a_refusal_puts_the_sandbox_aside_at_once(plain: World) -> None:
    plain.pending()
    ended = delete(answering(plain, ProviderRejected("400 no such thing")))
    record = plain.record("sbx-0")
    assert (ended.outcome, ended.error) == (DeleteOutcome.GAVE_UP, "400 no such thing")
    assert (record.status, flat(record).deletion_last_error) == (Status.DELETION_FAILED, "400 no such thing")


def test_a_fault_of_configuration_is_no_attempt(plain: World) -> None:
    plain.pending(deletion_retry_count=7)
    ended = delete(answering(plain, ProviderMisconfigured("401")))
    record = plain.record("sbx-0")
    assert (ended.outcome, ended.error) == (DeleteOutcome.MISCONFIGURED, "401")
    assert (record.status, flat(record).deletion_retry_count) == (Status.PENDING_DELETION, 7)
    assert (flat(record).attempt_id, flat(record).outcome_unknown) == (None, False)
    assert list(plain.cleaner.find_due()) == ["sbx-0"]


# -- taking the sandbox


def test_the_provider_is_only_asked_about_a_sandbox_that_this_attempt_has_taken(plain: World) -> None:
    plain.pending()
    delete(plain)
    (call,) = plain.provider.deletes
    assert call.external_id == "uuid-sbx-0"
    assert call.record
    assert (call.record.status, flat(call.record).next_attempt_at) == (
        Status.PENDING_DELETION,
        plain.clock.now() + plain.policy.attempt_window_sec,
    )
    assert flat(call.record).attempt_id


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.PENDING_DELETION])
def test_a_sandbox_in_any_other_status_is_left_alone(plain: World, status: Status) -> None:
    sandbox = make_sandbox("sbx-0", status=status)
    plain.memory.seed(sandbox)
    assert delete(plain).outcome is DeleteOutcome.NOT_DUE
    assert plain.provider.deletes == []
    assert plain.record("sbx-0") == sandbox


def test_what_has_no_record_or_is_not_due_is_left_alone(plain: World) -> None:
    assert plain.cleaner.delete_sandbox("nobody", by=BY).outcome is DeleteOutcome.NOT_DUE
    plain.pending(next_attempt_at=plain.clock.now() + 1)
    assert delete(plain).outcome is DeleteOutcome.NOT_DUE
    assert plain.provider.deletes == []


def test_a_second_delivery_of_the_same_delete_finds_it_taken(plain: World) -> None:
    plain.pending()
    second: list[DeleteEnded] = []
    plain.provider.during_delete = lambda _: second.append(delete(plain))
    assert delete(plain).outcome is DeleteOutcome.DELETED
    assert [ended.outcome for ended in second] == [DeleteOutcome.NOT_DUE]
    assert len(plain.provider.deletes) == 1


def test_of_two_workers_the_one_that_writes_first_calls() -> None:
    world = World(wrap=LosingStore)
    world.pending()
    assert delete(world).outcome is DeleteOutcome.NOT_DUE
    assert world.provider.deletes == []
    assert delete(world).outcome is DeleteOutcome.DELETED


def test_an_attempt_that_took_too_long_to_begin_is_given_up_uncounted() -> None:
    world, store = flaky_world()
    world.pending()
    store.before_call = lambda method: world.clock.advance(SEND_WITHIN_SEC + 0.1) if method == "update" else None
    ended = delete(world)
    assert ended.outcome is DeleteOutcome.POSTPONED
    assert world.provider.deletes == []
    record = world.record("sbx-0")
    assert (flat(record).attempt_id, flat(record).deletion_retry_count, flat(record).outcome_unknown) == (
        None,
        0,
        False,
    )
    assert list(world.cleaner.find_due()) == ["sbx-0"]


def test_an_attempt_that_begins_just_in_time_is_sent() -> None:
    world, store = flaky_world()
    world.pending()
    waits = [SEND_WITHIN_SEC]
    store.before_call = lambda method: world.clock.advance(waits.pop()) if method == "update" and waits else None
    assert delete(world).outcome is DeleteOutcome.DELETED


# -- how long a wipe may take


def test_every_call_of_the_store_in_a_wipe_has_the_wipe_s_deadline() -> None:
    world, store = flaky_world()
    world.pending()
    left: list[float] = []
    store.before_call = lambda _: left.append(time_left(world.clock))
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert len(left) > 2
    assert max(left) <= delete_limit_sec(world.policy)
    assert time_left(world.clock) == math.inf, "it ends with the wipe"


def test_a_wipe_that_has_too_little_time_left_to_store_its_outcome_calls_nobody() -> None:
    world, store = flaky_world()
    before = world.pending()
    too_long = delete_limit_sec(world.policy) - world.policy.attempt_window_sec + 0.1
    store.before_call = lambda method: world.clock.advance(too_long) if method == "get" else None
    assert delete(world).outcome is DeleteOutcome.POSTPONED
    assert world.provider.deletes == []
    assert world.record("sbx-0") == before


# -- services that the student left


def with_services(*answers: ServicesRemoval | Exception, **policy: Any) -> tuple[World, FakeServices]:
    services = FakeServices()
    services.answers.extend(answers)
    world = World(services=services, policy=Policy(services_limit_sec=20, attempt_window_sec=80, **policy))
    world.pending()
    return world, services


def last_fact(world: World) -> Fact:
    fact = world.memory.facts[-1]
    assert isinstance(fact, Fact)
    return fact


def test_services_are_removed_before_the_account_is_deleted_and_the_wipe_s_fact_says_so() -> None:
    world, services = with_services(ServicesRemoval(outcome=ServicesOutcome.REMOVED, removed=3))
    services.during_remove = lambda _: events.append("services")
    world.provider.during_delete = lambda _: events.append("account")
    events: list[str] = []
    account = world.record("sbx-0").external_id
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert events == ["services", "account"]
    assert [external_id for external_id, _ in services.removals] == [account]
    fact = last_fact(world)
    assert fact.kind is FactKind.WIPED
    assert fact.details == {"services": "removed", "services_removed": 3, "services_left": 0}
    assert world.recorder.of(ServicesRemovalEnded) == [
        ServicesRemovalEnded(outcome=ServicesOutcome.REMOVED, sandbox_id="sbx-0", lease_id="lease-1", removed=3)
    ]


@pytest.mark.parametrize(
    "removal",
    [
        ServicesRemoval(outcome=ServicesOutcome.FAILED, error="sign in: HTTP 503"),
        ServicesRemoval(outcome=ServicesOutcome.SKIPPED, error="the breaker is open"),
        ServicesRemoval(outcome=ServicesOutcome.PARTIAL, removed=2, left=1, error="delete service: HTTP 500"),
        ServicesRemoval(outcome=ServicesOutcome.SHADOW, left=4),
        ServicesRemoval(outcome=ServicesOutcome.NONE),
    ],
)
def test_the_account_is_deleted_also_if_services_are_left(removal: ServicesRemoval) -> None:
    world, _ = with_services(removal)
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert world.record("sbx-0").status is Status.AVAILABLE
    details = last_fact(world).details
    assert (details["services"], details["services_left"]) == (removal.outcome, removal.left)
    assert details.get("services_error") == removal.error


def test_an_unexpected_error_of_the_removal_is_named_without_its_text() -> None:
    world, _ = with_services(ValueError("header with a s3cret"))
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert last_fact(world).details["services_error"] == (
        "the removal of services failed with an unexpected ValueError"
    )


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (FAILING, FactKind.WIPE_FAILED),
        (ProviderRejected("400"), FactKind.NEEDS_ATTENTION),
        (WipeAnswer.GONE, FactKind.STALE),
    ],
)
def test_the_fact_of_a_failed_wipe_says_what_became_of_the_services(
    answer: WipeAnswer | Exception, kind: FactKind
) -> None:
    world, _ = with_services(ServicesRemoval(outcome=ServicesOutcome.REMOVED, removed=1))
    delete(answering(world, answer))
    fact = last_fact(world)
    assert (fact.kind, fact.details["services"], fact.details["services_removed"]) == (kind, "removed", 1)
    assert fact.details["error"]


def test_without_a_removal_the_fact_of_a_wipe_says_nothing_of_services(plain: World) -> None:
    plain.pending()
    delete(plain)
    fact = plain.memory.facts[-1]
    assert isinstance(fact, Fact)
    assert (fact.kind, dict(fact.details)) == (FactKind.WIPED, {})


def test_a_removal_has_its_limit_and_the_delete_call_its_own_time_after_it() -> None:
    world, services = with_services()
    services.during_remove = lambda _: world.clock.advance(20)
    sent: list[float] = []

    def note(external_id: str, *, send_within: float) -> WipeAnswer:
        sent.append(send_within)
        return WipeAnswer.WIPED

    world.provider.delete_account = note  # type: ignore[method-assign]
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert services.removals[0][1] == 20
    assert sent == [SEND_WITHIN_SEC]


def test_the_time_that_the_take_needs_is_not_added_to_the_removal_s() -> None:
    services = FakeServices()
    policy = Policy(services_limit_sec=20, attempt_window_sec=80)
    world, store = flaky_world(services=services, policy=policy)
    world.pending()
    waits = [4.0]
    store.before_call = lambda method: world.clock.advance(waits.pop()) if method == "update" and waits else None
    assert delete(world).outcome is DeleteOutcome.DELETED
    assert services.removals[0][1] == 16


def test_a_removal_that_took_too_long_postpones_the_delete_call_uncounted() -> None:
    world, services = with_services()
    services.during_remove = lambda _: world.clock.advance(20 + SEND_WITHIN_SEC + 0.1)
    assert delete(world).outcome is DeleteOutcome.POSTPONED
    assert world.provider.deletes == []
    record = flat(world.record("sbx-0"))
    assert (record.attempt_id, record.deletion_retry_count, record.outcome_unknown) == (None, 0, False)
    services.during_remove = lambda _: None
    assert delete(world).outcome is DeleteOutcome.DELETED


def test_no_service_is_removed_if_recording_the_attempt_took_too_long() -> None:
    services = FakeServices()
    world, store = flaky_world(services=services, policy=Policy(services_limit_sec=20, attempt_window_sec=80))
    world.pending()
    store.before_call = lambda method: world.clock.advance(SEND_WITHIN_SEC + 0.1) if method == "update" else None
    assert delete(world).outcome is DeleteOutcome.POSTPONED
    assert services.removals == []


def test_services_are_removed_only_from_an_account_that_is_taken() -> None:
    world, services = with_services()
    taken: list[str | None] = []
    services.during_remove = lambda _: taken.append(flat(world.record("sbx-0")).attempt_id)
    delete(world)
    assert len(taken) == 1
    assert taken[0] is not None
    world.allocate()
    assert delete(world).outcome is DeleteOutcome.NOT_DUE
    assert len(services.removals) == 1


def test_the_account_is_not_deleted_if_the_table_became_another_one_while_services_were_removed() -> None:
    world, services = with_services()

    def restored(_: str) -> None:
        world.table_memory.replace("another")
        world.clock.advance(6)

    services.during_remove = restored
    ended = delete(world)
    assert ended.outcome is DeleteOutcome.POSTPONED
    assert world.provider.deletes == []


# -- lost and overtaken attempts


def die_in_a_delete(world: World) -> None:
    """Have a worker killed while the provider answers it."""

    def killed(_: str) -> None:
        world.provider.during_delete = lambda _: None
        raise Crashed

    world.provider.during_delete = killed
    with pytest.raises(Crashed):
        delete(world)


def test_an_attempt_whose_worker_died_is_repeated_after_its_window_and_leaves_a_doubt(plain: World) -> None:
    plain.pending()
    die_in_a_delete(plain)
    plain.clock.advance(plain.policy.attempt_window_sec - 1)
    assert delete(plain).outcome is DeleteOutcome.NOT_DUE
    plain.clock.advance(1)
    assert delete(plain).outcome is DeleteOutcome.DELETED
    record = plain.record("sbx-0")
    assert (record.status, record.dirty) == (Status.STALE, False)


def test_lost_attempts_are_counted_until_a_person_must_look(plain: World) -> None:
    plain.set_policy(deletion_max_attempts=3)
    plain.pending()
    for _ in range(3):
        die_in_a_delete(plain)
        plain.clock.advance(plain.policy.attempt_window_sec)
    assert delete(plain).outcome is DeleteOutcome.GAVE_UP
    assert plain.record("sbx-0").status is Status.DELETION_FAILED
    assert len(plain.provider.deletes) == 3


@pytest.mark.parametrize(
    ("late", "quick"),
    list(product([WipeAnswer.WIPED, WipeAnswer.GONE, FAILING, ProviderRejected("400")], [WipeAnswer.WIPED, FAILING])),
)
def test_an_attempt_that_was_overtaken_changes_nothing(
    plain: World, late: WipeAnswer | Exception, quick: WipeAnswer | Exception
) -> None:
    plain.pending()
    after: list[object] = []

    def hang(_: str) -> None:
        plain.provider.during_delete = lambda _: None
        plain.clock.advance(plain.policy.attempt_window_sec)
        delete(answering(plain, quick))
        after.append(plain.record("sbx-0"))
        answering(plain, late)

    plain.provider.during_delete = hang
    ended = delete(plain)
    assert ended.outcome is DeleteOutcome.NOT_DUE
    assert ended.error
    assert after == [plain.record("sbx-0")]
    assert plain.record("sbx-0").status is not Status.AVAILABLE


def test_a_late_outcome_never_touches_the_next_holder(plain: World) -> None:
    plain.pending()

    def hang(_: str) -> None:
        plain.provider.during_delete = lambda _: None
        plain.clock.advance(plain.policy.attempt_window_sec)
        delete(plain)
        plain.sync(World.accounts(1))
        plain.clock.advance(2)
        plain.allocate("next")

    plain.provider.during_delete = hang
    assert delete(plain).outcome is DeleteOutcome.NOT_DUE
    record = plain.record("sbx-0")
    assert (record.status, flat(record).allocated_to_track) == (Status.ALLOCATED, "next")


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.REFUSED])
def test_a_take_whose_outcome_is_unknown_sends_nothing(fault: Fault) -> None:
    world, store = flaky_world()
    world.pending()
    store.fail("update", fault)
    assert delete(world).outcome is DeleteOutcome.POSTPONED
    assert world.provider.deletes == []
    world.clock.advance(world.policy.attempt_window_sec)
    assert delete(world).outcome is DeleteOutcome.DELETED


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.REFUSED])
def test_an_outcome_that_could_not_be_written_is_found_by_a_later_attempt(fault: Fault) -> None:
    world, store = flaky_world()
    world.pending()
    store.fail("update", None, fault)
    assert delete(world).outcome is DeleteOutcome.POSTPONED
    assert world.record("sbx-0").status is Status.PENDING_DELETION
    world.clock.advance(world.policy.attempt_window_sec)
    delete(world)
    assert world.record("sbx-0").status is Status.STALE


# -- when nothing may be sent


@pytest.mark.parametrize("refused", [ProviderCircuitOpen("open"), ProviderSlotsUnavailable("no Redis")])
def test_without_a_way_to_the_provider_nothing_is_taken_and_nothing_counted(plain: World, refused: Exception) -> None:
    before = plain.pending()
    plain.provider.admit_error = refused
    assert delete(plain).outcome is DeleteOutcome.POSTPONED
    assert plain.record("sbx-0") == before
    assert list(plain.cleaner.find_due()) == ["sbx-0"]


def test_a_busy_provider_is_for_the_caller_to_wait_for(plain: World) -> None:
    before = plain.pending()
    plain.provider.admit_error = ProviderBusy("all slots are taken")
    with pytest.raises(ProviderBusy):
        delete(plain)
    assert plain.record("sbx-0") == before
    assert plain.recorder.of(DeleteEnded) == []


def test_a_paused_cleanup_sends_nothing_and_says_so(plain: World) -> None:
    before = plain.pending()
    plain.pauses.set({"cleanup": True}, by=BY)
    ended = delete(plain)
    assert ended.outcome is DeleteOutcome.POSTPONED
    assert ended.error
    assert "paused" in ended.error
    assert plain.record("sbx-0") == before


def test_a_store_that_is_away_postpones() -> None:
    world, store = flaky_world()
    world.pending()
    store.fail("get", Fault.REFUSED)
    ended = delete(world)
    assert (ended.outcome, ended.error) == (DeleteOutcome.POSTPONED, "the store refused")


def test_every_attempt_is_recorded_once(plain: World) -> None:
    plain.pending()
    ended = [delete(answering(plain, FAILING)), delete(plain)]
    assert plain.recorder.of(DeleteEnded) == ended


def test_only_what_is_due_is_found(plain: World) -> None:
    now = plain.clock.now()
    plain.pending("due", status_order=now - 5, next_attempt_at=now - 5)
    plain.pending("now")
    plain.pending("later", status_order=now + 1, next_attempt_at=now + 1)
    plain.memory.seed(*[make_sandbox(f"{status}", status=status, status_order=1) for status in Status if status is not Status.PENDING_DELETION])  # fmt: skip
    assert sorted(plain.cleaner.find_due()) == ["due", "now"]
    assert plain.memory.calls["read_all"] == plain.memory.calls["get"] == 0


def test_a_wiped_sandbox_lies_at_a_new_random_place_of_the_ring() -> None:
    places = set()
    for seed in range(10):
        world = World(seed=seed)
        world.pending()
        delete(world)
        places.add(world.record("sbx-0").status_order)
    assert len(places) == 10


def test_a_page_where_a_success_should_have_been_leaves_a_doubt() -> None:
    world = World()
    world.pending()
    page = ProviderMisconfigured("an HTML page", outcome_unknown=True)
    assert delete(answering(world, page)).outcome is DeleteOutcome.MISCONFIGURED
    delete(world)
    assert world.record("sbx-0").status is Status.STALE
