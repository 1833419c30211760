"""Delete attempts against each other, and against everything that may happen to their sandbox meanwhile."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core import cleanup
from broker_common.core.allocation import Allocation
from broker_common.core.errors import (
    InvalidTransition,
    NoSandboxesAvailable,
    NotSandboxOwner,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.leases import LeaseEnd
from broker_common.core.policy import RecyclePolicy
from broker_common.core.ports import WipeAnswer
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome
from broker_common.core.wipe import confirm_wipe
from tests.fakes import BY, Crashed, Fault, changed, make_account
from tests.interleavings.calls import commute
from tests.interleavings.stage import POLICY, WINDOW, Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Sandbox
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

Answer = WipeAnswer | Exception

FAILING = ProviderFailing("500", outcome_unknown=False)
TIMED_OUT = ProviderFailing("no answer", outcome_unknown=True)
REJECTED = ProviderRejected("400")
MISCONFIGURED = ProviderMisconfigured("401")
ANSWERS = [*WipeAnswer, FAILING, TIMED_OUT, REJECTED, MISCONFIGURED]
AFTER = {
    WipeAnswer.WIPED: Status.AVAILABLE,
    WipeAnswer.ACCEPTED: Status.STALE,
    WipeAnswer.GONE: Status.STALE,
    FAILING: Status.PENDING_DELETION,
    TIMED_OUT: Status.PENDING_DELETION,
    REJECTED: Status.DELETION_FAILED,
    MISCONFIGURED: Status.PENDING_DELETION,
}
"""What becomes of a sandbox after one such answer, under `reuse`."""


def answered(*answers: Answer) -> Callable[[World], Callable[[], object]]:
    """Make a delete of sbx-0 whose calls are answered so."""

    def operation(world: World) -> Callable[[], object]:
        world.provider.answers.extend(answers)
        return lambda: world.cleaner.delete_sandbox("sbx-0", by=BY)

    return operation


def two_deletes(
    schedule: Schedule, first: Answer, second: Answer, *, time: float = 0, recycle: RecyclePolicy = RecyclePolicy.REUSE
) -> Stage:
    stage = Stage(schedule, policy=replace(POLICY, recycle=recycle))
    stage.pending()
    one, two = stage.worlds
    stage.play("one", answered(first)(one))
    second_delete = answered(second)(two)
    if time:
        # Its deadline counts from its own begin, which may come after that time.
        stage.play("two", lambda: (two.store.get("sbx-0"), second_delete()))
        stage.time_passes(time)
    else:
        stage.play("two", second_delete)
    stage.run()
    return stage


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_quarantine_while_a_delete_is_under_way_loses_no_flag_and_no_outcome(
    every_order: Search, answer: Answer
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pending()
        first, operator = stage.worlds
        stage.play("delete", answered(answer)(first))
        stage.play("quarantine", lambda: operator.operations.quarantine("sbx-0", by=BY, reason="odd"))
        results = stage.run()
        record = stage.records()["sbx-0"]
        if not stage.deletes:
            # The flag came just before the take, which is left to the next run.
            assert (record.quarantine, record.is_due_for_deletion(stage.clock.now())) == ("odd", True)
        elif isinstance(results["quarantine"], InvalidTransition):
            # It came when the answer had set the sandbox aside already.
            assert record.status is AFTER[answer] is Status.DELETION_FAILED
        elif record.status is Status.PENDING_DELETION:
            assert AFTER[answer] is Status.PENDING_DELETION
            assert (record.quarantine, record.wipe and record.wipe.attempt_id) == ("odd", None)
        else:
            assert record.status is Status.DELETION_FAILED

    every_order(case)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_of_two_deletes_at_once_one_calls_the_provider_and_its_answer_decides(
    every_order: Search, answer: Answer
) -> None:
    def case(schedule: Schedule) -> None:
        stage = two_deletes(schedule, answer, answer)
        # Only an attempt that is not counted is due again at once.
        assert len(stage.deletes) == 1 or (answer is MISCONFIGURED and len(stage.deletes) == 2)
        assert stage.statuses() == [AFTER[answer]]

    every_order(case)


@pytest.mark.parametrize(("first", "second"), list(combinations_with_replacement(ANSWERS, 2)), ids=str)
def test_a_delete_that_hangs_beyond_its_window_and_is_overtaken_frees_nothing_that_is_in_doubt(
    every_order: Search, first: Answer, second: Answer
) -> None:
    def case(schedule: Schedule) -> None:
        stage = two_deletes(schedule, first, second, time=WINDOW)
        # None where time passed between taking the sandbox and calling for it: then the call does not go out.
        assert len(stage.deletes) <= 2
        assert stage.settle()["sbx-0"].status is not Status.PENDING_DELETION
        assert stage.deletes

    every_order(case)


@pytest.mark.parametrize("recycle", [RecyclePolicy.CONFIRM, RecyclePolicy.RETIRE])
@pytest.mark.parametrize("answer", list(WipeAnswer))
def test_no_order_of_two_deletes_frees_a_sandbox_that_the_policy_keeps(
    every_order: Search, answer: WipeAnswer, recycle: RecyclePolicy
) -> None:
    def case(schedule: Schedule) -> None:
        stage = two_deletes(schedule, answer, answer, time=WINDOW, recycle=recycle)
        assert stage.settle()["sbx-0"].status is (Status.DELETED if recycle is RecyclePolicy.RETIRE else Status.STALE)

    every_order(case)


@pytest.mark.parametrize("answer", [WipeAnswer.WIPED, WipeAnswer.ACCEPTED, WipeAnswer.GONE, TIMED_OUT], ids=str)
def test_a_delete_that_is_killed_at_any_of_its_calls_is_taken_up_by_another_after_its_window(
    every_order: Search, answer: Answer
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pending()
        first, second = stage.worlds
        stage.may_fail(first, Fault.CRASH_BEFORE, Fault.CRASH_AFTER)

        def killed() -> None:
            with suppress(Crashed):
                answered(answer)(first)()

        stage.play("killed", killed)
        stage.play("other", answered(WipeAnswer.WIPED)(second))
        stage.time_passes(WINDOW)
        stage.run()
        assert stage.settle()["sbx-0"].status in {Status.AVAILABLE, Status.STALE}
        assert stage.deletes

    every_order(case, once=True)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_delete_whose_writes_get_lost_is_found_again(every_order: Search, answer: Answer) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule)
        stage.pending()
        first, second = stage.worlds
        stage.may_fail(first, Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)
        stage.play("one", answered(answer)(first))
        stage.play("two", answered(WipeAnswer.WIPED)(second))
        stage.run()
        assert stage.settle()["sbx-0"].status is not Status.PENDING_DELETION
        assert stage.deletes

    every_order(case)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_mark_that_is_repeated_while_its_sandbox_is_wiped_and_given_to_another_is_answered_truly(
    every_order: Search, answer: Answer
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pending()
        worker, api, other = stage.worlds
        stage.play("delete", answered(answer)(worker))
        stage.play("mark", lambda: api.mark("sbx-0", "ann"))
        stage.allocate("bob", other)
        results = stage.run()
        given = isinstance(results["bob"], Allocation)
        assert isinstance(results["mark"], (LeaseEnd, NotSandboxOwner) if given else LeaseEnd)
        assert given or isinstance(results["bob"], NoSandboxesAvailable)
        assert len(stage.deletes) == 1

    every_order(case, once=True)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_a_sync_during_a_delete_frees_nothing_before_it_is_wiped(every_order: Search, answer: Answer) -> None:
    """Also not an account that the provider called gone, and lists: it is wiped first."""

    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pending()
        first, second, third = stage.worlds
        third.provider.accounts = [make_account("sbx-0")]
        stage.play("delete", answered(answer)(first))
        stage.play("sync", partial(third.syncer.run, by=BY))
        stage.play("again", answered(WipeAnswer.WIPED)(second))
        stage.run()
        assert stage.deletes

    every_order(case, once=True)


def test_an_operator_s_retry_during_a_delete_starts_no_second_call_for_an_attempt_that_is_open(
    every_order: Search,
) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pending()
        first, second, operator = stage.worlds
        stage.play("delete", answered(REJECTED)(first))
        stage.play("retry", lambda: operator.operations.retry_deletion("sbx-0", by=BY))
        stage.play("again", answered(WipeAnswer.WIPED)(second))
        results = stage.run()
        retried = not isinstance(results["retry"], InvalidTransition)
        outcomes = [results["delete"].outcome, results["again"].outcome]
        assert len(stage.deletes) == 2 - outcomes.count(DeleteOutcome.NOT_DUE)
        assert len(stage.deletes) == 1 or retried

    every_order(case)


# -- planted bugs


def test_the_search_finds_a_cleanup_that_does_not_take_its_sandbox_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def case(schedule: Schedule) -> None:
        stage = Stage(schedule, processes=3)
        stage.pending()
        first, second, api = stage.worlds
        stage.play("one", answered(WipeAnswer.WIPED)(first))
        stage.play("two", answered(WipeAnswer.WIPED)(second))
        stage.allocate("bob", api)
        stage.run()

    explore(case, commute=commute)

    def without_a_write(self: cleanup.Cleaner, sandbox_id: str, by: Actor) -> DeleteEnded:
        sandbox = self._store.get(sandbox_id)
        assert sandbox is not None
        if not sandbox.is_due_for_deletion(self._clock.now()):
            return DeleteEnded(outcome=DeleteOutcome.NOT_DUE, sandbox_id=sandbox_id)
        with self._provider.admit():
            return self._call(
                changed(sandbox, attempt_id="nobody else's"), by, send_within=cleanup.SEND_WITHIN_SEC, found={}
            )

    monkeypatch.setattr(cleanup.Cleaner, "_delete", without_a_write)
    with pytest.raises(Violation, match="asked to delete"):
        explore(case, commute=commute)


def test_the_search_finds_a_success_that_overlooks_a_call_that_is_still_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(sandbox: Sandbox, **arguments: Any) -> Change:
        return replace(confirm_wipe(changed(sandbox, outcome_unknown=False), **arguments), before=sandbox)

    monkeypatch.setattr(cleanup, "confirm_wipe", trusting)
    with pytest.raises(Violation, match="in doubt"):
        explore(lambda schedule: two_deletes(schedule, WipeAnswer.WIPED, WipeAnswer.WIPED, time=WINDOW))
