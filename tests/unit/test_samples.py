"""Samples are summed up over longer steps, so that a shortage stays visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.core.samples import MOST_SAMPLES, STEPS_SEC, Sample, add_up, minute_of, shortest_step, sum_up
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AllocateOutcome
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Mapping

AT = START - START % 3600
NONE = dict.fromkeys(AllocateOutcome, 0)


def sample(minute: int, available: int | None, waiting: int = 0, **allocates: int) -> Sample:
    by_status: Mapping[Status, int] | None = None if available is None else {Status.AVAILABLE: available}
    return Sample(
        at=AT + 60 * minute,
        by_status=by_status,
        waiting=None if available is None else waiting,
        allocates={AllocateOutcome(name): count for name, count in allocates.items()},
    )


def test_a_minute_begins_at_a_full_multiple_of_60() -> None:
    assert [minute_of(AT + each) for each in (0, 59, 60)] == [AT, AT, AT + 60]


def test_samples_by_the_minute_stay_as_they_are_with_a_zero_for_what_did_not_happen() -> None:
    (found,) = sum_up([sample(1, 4, waiting=2, success=3)], step_sec=60)
    assert found == Sample(
        at=AT + 60,
        by_status={Status.AVAILABLE: 4},
        waiting=2,
        allocates=NONE | {AllocateOutcome.SUCCESS: 3},
    )


def test_a_step_shows_its_worst_minute_and_all_its_allocates() -> None:
    minutes = [sample(0, 4, 9, success=1), sample(1, 0, 2, error=1), sample(2, 0, 5, success=2), sample(5, 7)]
    first, second = sum_up([minutes[3], *minutes[:3]], step_sec=300)
    assert (first.at, first.by_status, first.waiting) == (AT, {Status.AVAILABLE: 0}, 5)
    assert first.allocates == NONE | {AllocateOutcome.SUCCESS: 3, AllocateOutcome.ERROR: 1}
    assert (second.at, second.by_status) == (AT + 300, {Status.AVAILABLE: 7})


def test_a_step_in_which_nobody_counted_has_no_counts() -> None:
    (found,) = sum_up([sample(0, None, success=1), sample(1, None, success=1)], step_sec=300)
    assert (found.by_status, found.waiting) == (None, None)
    assert found.allocates[AllocateOutcome.SUCCESS] == 2


def test_a_step_of_which_nothing_is_known_is_absent() -> None:
    assert [each.at for each in sum_up([sample(0, 1), sample(59, 1)], step_sec=300)] == [AT, AT + 3300]


def test_allocates_of_no_samples_are_zeros() -> None:
    assert add_up([]) == NONE


@pytest.mark.parametrize(("length", "step"), [(1, 60), (60 * MOST_SAMPLES, 60), (60 * MOST_SAMPLES + 1, 300)])
def test_the_shortest_step_gives_no_more_samples_than_an_answer_may_have(length: int, step: int) -> None:
    assert shortest_step(length) == step


def test_the_longest_step_is_for_every_longer_time() -> None:
    assert shortest_step(10**12) == STEPS_SEC[-1]
