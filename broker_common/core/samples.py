"""Samples of the pool, one a minute; what the store keeps for the job `watch`, and the port for that.

`watch` writes the counts of a minute. The processes of the API add how many allocates they answered in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AllocateOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from broker_common.core.facts import PoolFact

MINUTE_SEC = 60
KEPT_SEC = 30 * 24 * 3600
"""How long a sample is kept."""
STEPS_SEC = (MINUTE_SEC, 5 * MINUTE_SEC, 15 * MINUTE_SEC, 3600, 4 * 3600, 24 * 3600)
"""The lengths of time that samples can be summed up for."""
MOST_SAMPLES = 1500
"""How many samples one answer has at most: a little more than the minutes of a day."""


def minute_of(moment: int) -> int:
    """Return when the minute of a moment began."""
    return moment - moment % MINUTE_SEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was known of a minute, or of a longer step, that began at `at` (Unix seconds).

    `by_status` and `waiting` (the length of the line) are None if `watch` did not count in this time. Outcomes that
    `allocates` lacks did not happen, or were not added.
    """

    at: int
    by_status: Mapping[Status, int] | None = None
    waiting: int | None = None
    allocates: Mapping[AllocateOutcome, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLevel:
    """Whether the pool was last told to be low, or to have recovered; and when the count began that showed it."""

    is_low: bool = False
    counted_at: int = 0


class WatchRecords(Protocol):
    """The records of the job `watch`. It is a part of `store.SandboxStore`, whose docstring says what holds for all."""

    def write_sample(self, sample: Sample) -> None:
        """Write the counts of a sample over those of its minute. Its allocates are not written."""

    def add_allocates(self, minute: int, allocates: Mapping[AllocateOutcome, int]) -> None:
        """Add to the allocates of the sample of a minute. After `OutcomeUnknown`, they may have been added."""

    def read_samples(self, *, since: int, until: int) -> Sequence[Sample]:
        """Return the samples of the minutes that began in [since, until), in order. Absent minutes are left out.

        Up to 100 minutes are one read. A sample that cannot be read is left out.
        """

    def read_ending(self, *, until: int) -> Iterator[tuple[str, int]]:
        """Read the ids and versions of allocated sandboxes whose lease ends at `until` or earlier (an index read).

        Reads only these. A version that cannot be read is 0.
        """

    def read_level(self) -> PoolLevel:
        """Return the level that was told last."""

    def write_level(self, before: PoolLevel, after: PoolLevel, fact: PoolFact) -> None:
        """Write the level, and the fact that tells it: both or nothing. Raises `Conflict` unless `before` is stored."""


def sum_up(samples: Sequence[Sample], *, step_sec: int) -> list[Sample]:
    """Return one sample for each step that has some, in order. Steps begin at full multiples of `step_sec`.

    Allocates are added up. The counts are those of the minute in which the fewest sandboxes were available, and of
    these, of the one with the longest line: so they show a shortage, however short it was.
    """
    steps: dict[int, list[Sample]] = {}
    for each in samples:
        steps.setdefault(each.at - each.at % step_sec, []).append(each)
    return [_sum_of(at, found) for at, found in sorted(steps.items())]


def _sum_of(at: int, samples: Sequence[Sample]) -> Sample:
    worst = min((each for each in samples if each.by_status is not None), key=_scarcity, default=None)
    return Sample(
        at=at,
        by_status=worst.by_status if worst else None,
        waiting=worst.waiting if worst else None,
        allocates=add_up(samples),
    )


def _scarcity(sample: Sample) -> tuple[int, int]:
    return (sample.by_status or {}).get(Status.AVAILABLE, 0), -(sample.waiting or 0)


def add_up(samples: Sequence[Sample]) -> dict[AllocateOutcome, int]:
    """Return the allocates of all samples by outcome; 0 for an outcome that did not happen."""
    return {outcome: sum(each.allocates.get(outcome, 0) for each in samples) for outcome in AllocateOutcome}


def shortest_step(length_sec: int) -> int:
    """Return the shortest step with which one answer can have all samples of a time of this length."""
    return next((step for step in STEPS_SEC if length_sec <= step * MOST_SAMPLES), STEPS_SEC[-1])
