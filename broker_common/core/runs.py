"""How a run of a job ends, and how the deletes of one cleanup are added up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from broker_common.core.jobs import JobState
from broker_common.core.telemetry import DeleteOutcome, JobOutcome

if TYPE_CHECKING:
    from collections.abc import Mapping

_OUTCOMES = {
    JobState.SUCCEEDED: JobOutcome.SUCCESS,
    JobState.FAILED: JobOutcome.ERROR,
    JobState.SKIPPED: JobOutcome.SKIPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """The end of a run: its final state, its sentence, and what operators are shown."""

    state: JobState
    message: str
    result: Mapping[str, Any] | None = None
    error: str | None = None

    @property
    def outcome(self) -> JobOutcome:
        """The state as metrics and logs name it."""
        return _OUTCOMES[self.state]


@dataclass(frozen=True, slots=True)
class CleanupTally:
    """How many deletes of one cleanup ended how, and the first error of each outcome."""

    counts: Mapping[DeleteOutcome, int] = field(default_factory=dict)
    errors: Mapping[DeleteOutcome, str] = field(default_factory=dict)

    def add(self, outcome: DeleteOutcome, error: str | None) -> CleanupTally:
        """Return the tally with one more delete."""
        counts = {**self.counts, outcome: self.counts.get(outcome, 0) + 1}
        errors = self.errors if error is None else {outcome: error, **self.errors}
        return replace(self, counts=counts, errors=errors)

    def conclude(self, *, partial: bool = False) -> Conclusion:
        """End the cleanup.

        It failed if the provider's configuration is at fault, or if nothing at all was done because every delete was
        postponed. `partial`: some deletes never reported, because their workers died.
        """
        counts = {outcome: self.counts.get(outcome, 0) for outcome in DeleteOutcome}
        failed = sum(count for outcome, count in counts.items() if outcome.is_failure)
        error = None
        if counts[DeleteOutcome.MISCONFIGURED]:
            error = self.errors.get(DeleteOutcome.MISCONFIGURED, "the provider's configuration is at fault")
        elif 0 < counts[DeleteOutcome.POSTPONED] == sum(counts.values()):
            error = self.errors.get(DeleteOutcome.POSTPONED, "every delete was postponed")
        return Conclusion(
            state=JobState.SUCCEEDED if error is None else JobState.FAILED,
            message=f"Deleted {counts[DeleteOutcome.DELETED]} sandboxes, {failed} failed"
            + (f", {gone} unknown to the provider" if (gone := counts[DeleteOutcome.GONE]) else ""),
            result={outcome.value: count for outcome, count in counts.items()}
            | {"failed": failed}
            | ({"partial": True} if partial else {}),
            error=error,
        )
