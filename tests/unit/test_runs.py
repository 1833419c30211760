"""Runs over records in memory, and how the deletes of a cleanup add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.jobs import JobState
from broker_common.core.runs import CleanupTally, principal_of_earlier_release
from broker_common.core.telemetry import DeleteOutcome, JobOutcome
from tests.memory_runs import MemoryJobLocks, MemoryJobRuns
from tests.runs_suite import LocksContract, RunsContract

if TYPE_CHECKING:
    from collections.abc import Callable


class TestRunsInMemory(RunsContract):
    @pytest.fixture
    def kept(self) -> MemoryJobRuns:
        return MemoryJobRuns()

    @pytest.fixture
    def queue_a_delete(self, kept: MemoryJobRuns) -> Callable[[], None]:
        def queue() -> None:
            kept.queued_deletes += 1

        return queue


class TestLocksInMemory(LocksContract):
    @pytest.fixture
    def locks(self) -> MemoryJobLocks:
        return MemoryJobLocks()


@pytest.mark.parametrize(("requested_by", "principal"), [("req-1", "admin"), (None, "job:sync")])
def test_a_run_whose_record_names_nobody_was_asked_for_by_the_only_operator_of_then_or_scheduled(
    requested_by: str | None, principal: str
) -> None:
    assert principal_of_earlier_release("sync", requested_by) == principal


def tally(*outcomes: DeleteOutcome) -> CleanupTally:
    total = CleanupTally()
    for number, outcome in enumerate(outcomes):
        total = total.add(outcome, f"reason {number}")
    return total


@pytest.mark.parametrize("state", JobState)
def test_a_run_has_ended_unless_it_is_queued_or_running(state: JobState) -> None:
    assert state.is_final == (state.value not in {"queued", "running"})


def test_a_cleanup_of_nothing_succeeds() -> None:
    conclusion = tally().conclude()

    assert (conclusion.state, conclusion.message) == (JobState.SUCCEEDED, "Deleted 0 sandboxes, 0 failed")
    assert conclusion.outcome is JobOutcome.SUCCESS
    assert conclusion.result == dict.fromkeys([*(outcome.value for outcome in DeleteOutcome), "failed"], 0)


def test_what_was_given_up_or_left_to_a_retry_or_a_person_is_failed_in_the_sentence_and_in_the_result() -> None:
    conclusion = tally(*DeleteOutcome).conclude()

    assert conclusion.message == "Deleted 1 sandboxes, 3 failed, 1 unknown to the provider"
    assert conclusion.result == dict.fromkeys([outcome.value for outcome in DeleteOutcome], 1) | {"failed": 3}


@pytest.mark.parametrize(
    ("outcomes", "error"),
    [
        ([DeleteOutcome.DELETED, DeleteOutcome.MISCONFIGURED, DeleteOutcome.MISCONFIGURED], "reason 1"),
        ([DeleteOutcome.POSTPONED, DeleteOutcome.POSTPONED], "reason 0"),
        ([DeleteOutcome.POSTPONED, DeleteOutcome.MISCONFIGURED], "reason 1"),
    ],
)
def test_a_fault_of_configuration_or_nothing_but_delay_fails_with_the_first_reason(
    outcomes: list[DeleteOutcome], error: str
) -> None:
    conclusion = tally(*outcomes).conclude()

    assert (conclusion.state, conclusion.error) == (JobState.FAILED, error)


@pytest.mark.parametrize("other", [DeleteOutcome.DELETED, DeleteOutcome.WILL_RETRY, DeleteOutcome.GAVE_UP])
def test_a_cleanup_that_did_something_succeeds_though_some_was_postponed(other: DeleteOutcome) -> None:
    assert tally(DeleteOutcome.POSTPONED, other).conclude().state is JobState.SUCCEEDED


def test_a_partial_end_says_so() -> None:
    result = tally(DeleteOutcome.DELETED).conclude(partial=True).result

    assert result is not None
    assert (result["deleted"], result["partial"]) == (1, True)
