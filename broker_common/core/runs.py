"""Runs of jobs: what is recorded of one, and what may happen to it.

A run ends once, however often its tasks are delivered; each rule is a decision over what is recorded now. `JobRuns`
keeps the records and knows no rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from broker_common.core.jobs import JobState
from broker_common.core.principals import Actor, job_actor
from broker_common.core.telemetry import DeleteOutcome, JobEnded, JobOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

Value = TypeVar("Value")

KEPT_SEC = 24 * 3600
"""For how long a run is kept after its last change."""
_EARLIER_OPERATOR = "admin"
"""Every operator's name in the release that recorded no principals."""
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

    @property
    def result(self) -> dict[str, int]:
        """The counts as operators are shown them."""
        counts = {outcome: self.counts.get(outcome, 0) for outcome in DeleteOutcome}
        failed = sum(count for outcome, count in counts.items() if outcome.is_failure)
        return {outcome.value: count for outcome, count in counts.items()} | {"failed": failed}

    def conclude(self, *, partial: bool = False) -> Conclusion:
        """End the cleanup.

        It failed if the provider's configuration is at fault, or if nothing at all was done because every delete was
        postponed. `partial`: some deletes never reported, because their workers died.
        """
        result, postponed = self.result, self.counts.get(DeleteOutcome.POSTPONED, 0)
        error = None
        if self.counts.get(DeleteOutcome.MISCONFIGURED):
            error = self.errors.get(DeleteOutcome.MISCONFIGURED, "the provider's configuration is at fault")
        elif 0 < postponed == sum(self.counts.values()):
            error = self.errors.get(DeleteOutcome.POSTPONED, "every delete was postponed")
        return Conclusion(
            state=JobState.SUCCEEDED if error is None else JobState.FAILED,
            message=f"Deleted {result[DeleteOutcome.DELETED]} sandboxes, {result['failed']} failed"
            + (f", {gone} unknown to the provider" if (gone := result[DeleteOutcome.GONE]) else ""),
            result=result | ({"partial": True} if partial else {}),
            error=error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """What is recorded of one run. Times are those of `JobRuns`, in Unix seconds."""

    job_id: str
    job: str
    state: JobState
    principal: str
    """Who asked for it; `job:<name>` if it was scheduled."""
    requested_by: str | None = None
    """The request id of the call that asked for it; None if it was scheduled."""
    request_id: str | None = None
    """The run's own, for its log lines; None until it starts."""
    queued_at: float | None = None
    """When it was asked for; None if it was scheduled."""
    started_at: float | None = None
    progressed_at: float | None = None
    """When it started, when the last of its deletes reported, or when it ended."""
    result: Mapping[str, Any] | None = None
    error: str | None = None
    tally: CleanupTally = field(default_factory=CleanupTally)

    @property
    def ended_at(self) -> float | None:
        """When it ended; None until then."""
        return self.progressed_at if self.state.is_final else None

    @property
    def actor(self) -> Actor:
        """By whom, and by which run, its changes are made."""
        return Actor(principal=self.principal, request_id=self.request_id)


def principal_of_earlier_release(job: str, requested_by: str | None) -> str:
    """Return who asked for a run whose record names nobody, because an earlier release made it."""
    return job_actor(job).principal if requested_by is None else _EARLIER_OPERATOR


class RunView(Protocol):
    """What is kept of one run, as one change of it sees it."""

    @property
    def run(self) -> JobRun | None:
        """The run; None if it is not known, or its record cannot be read."""

    @property
    def now(self) -> float:
        """The time that all processes share."""

    def is_open_delete(self, sandbox_id: str) -> bool:
        """Tell whether the run waits for a sandbox's delete."""

    def count_open_deletes(self) -> int:
        """Count the deletes that the run waits for."""

    def read_open_deletes(self) -> list[str]:
        """Return the sandboxes whose deletes the run waits for."""

    def count_queued_deletes(self) -> int:
        """Count the deletes, of any run, that no worker has taken yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChange:
    """What is to be kept of a run from now on. One that has ended waits for no delete any more."""

    run: JobRun
    dispatch: tuple[str, ...] = ()
    """The sandboxes whose deletes it waits for from now on; it is then the run that dispatched last."""
    settle: str | None = None
    """The sandbox whose delete it waits for no longer."""


class JobRuns(Protocol):
    """Keeps the records of runs, each for `KEPT_SEC` after its last change.

    A record that cannot be read, such as one of another release, counts as unknown. Every method raises
    `QueueUnavailable` if the records are out of reach.
    """

    def change(self, job_id: str, decide: Callable[[RunView], tuple[RunChange | None, Value]]) -> Value:
        """Make the change that `decide` returns with a value, and return the value.

        The change is made only if nothing that `decide` saw has changed meanwhile; else `decide` is called again.
        """

    def read(self, job_id: str) -> JobRun | None:
        """Return a run."""

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        """Return the last runs of these jobs, those first that became known last; `limit` at most."""

    def read_last_dispatch(self) -> str | None:
        """Return the id of the run that dispatched deletes last."""

    def forget(self, job_id: str, job: str) -> None:
        """Forget a run."""

    def ping(self) -> None:
        """Make sure that records can be written."""


class JobLocks(Protocol):
    """One run of a job at a time, over all workers. It saves work; nothing relies on it."""

    def hold(self, job: str, *, owner: str) -> AbstractContextManager[bool]:
        """Hold a job's lock inside the context; yields False if somebody else holds it.

        An owner that holds it already, in a run that was cut off, enters again. Raises `QueueUnavailable`.
        """


class JobQueue(Protocol):
    """Where runs of jobs are asked for and looked up. Kept for 24 hours.

    Raises `QueueUnavailable` at once when the queue cannot be reached.
    """

    def enqueue(self, job: str, *, by: Actor, flags: Mapping[str, bool]) -> str:
        """Ask for a run now; returns its job id."""

    def find(self, job_id: str) -> JobRun:
        """Return a run; raises `JobNotFound`."""

    def read_last(self, job: str | None, *, limit: int) -> list[JobRun]:
        """Return the last runs of one job, or of all if `job` is None, newest first."""

    def ping(self) -> None:
        """Make sure that the queue answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has just ended, and the event that says so."""

    run: JobRun
    event: JobEnded


class Runs:
    """Begins, follows and ends runs. Every method raises `QueueUnavailable` if the records are out of reach.

    A cleanup whose deletes have made no progress for `stall_limit_sec`, with none left in their queue, has lost some.
    """

    def __init__(self, kept: JobRuns, *, stall_limit_sec: float) -> None:
        self._kept = kept
        self._stall_limit_sec = stall_limit_sec

    def ping(self) -> None:
        """Make sure that records can be written."""
        self._kept.ping()

    def create(self, job_id: str, job: str, *, by: Actor) -> None:
        """Record a run that is about to be queued."""

        def decide(view: RunView) -> tuple[RunChange, None]:
            run = JobRun(
                job_id=job_id,
                job=job,
                state=JobState.QUEUED,
                principal=by.principal,
                requested_by=by.request_id,
                queued_at=view.now,
            )
            return RunChange(run=run), None

        self._kept.change(job_id, decide)

    def discard(self, job_id: str, job: str) -> None:
        """Forget a run that could not be queued."""
        self._kept.forget(job_id, job)

    def find(self, job_id: str) -> JobRun | None:
        """Return a run."""
        return self._kept.read(job_id)

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        """Return the last runs of these jobs, newest first, `limit` at most."""
        return self._kept.read_last(jobs, limit=limit)

    def start(self, job_id: str, job: str, *, request_id: str) -> JobRun:
        """Record that a run starts, and return it; one that was started or even ended before is returned as it is."""

        def decide(view: RunView) -> tuple[RunChange | None, JobRun]:
            known = view.run
            if known is not None and known.state is not JobState.QUEUED:
                return None, known
            scheduled = JobRun(job_id=job_id, job=job, state=JobState.QUEUED, principal=job_actor(job).principal)
            started_at = view.now
            run = replace(
                known or scheduled,
                state=JobState.RUNNING,
                request_id=request_id,
                started_at=started_at,
                progressed_at=started_at,
            )
            return RunChange(run=run), run

        return self._kept.change(job_id, decide)

    def finish(self, job_id: str, conclusion: Conclusion) -> EndedRun | None:
        """Record how a run ended; None if it has ended before, or is not known any more."""

        def decide(view: RunView) -> tuple[RunChange | None, EndedRun | None]:
            run = view.run
            if run is None or run.state.is_final:
                return None, None
            return _end(view, run, conclusion)

        return self._kept.change(job_id, decide)

    def dispatch(self, job_id: str, sandbox_ids: Iterable[str]) -> list[str]:
        """Record whose deletes a cleanup waits for, and return those that have not reported.

        For a run that has dispatched before (its task is delivered again) that is what is still out of the first time.
        """
        ids = list(dict.fromkeys(sandbox_ids))

        def decide(view: RunView) -> tuple[RunChange | None, list[str]]:
            out = sorted(view.read_open_deletes())
            if out:
                return None, out
            run = view.run
            if run is None or run.state.is_final or not ids:
                return None, []
            return RunChange(run=replace(run, progressed_at=view.now), dispatch=tuple(ids)), ids

        return self._kept.change(job_id, decide)

    def settle(self, job_id: str, sandbox_id: str, outcome: DeleteOutcome, error: str | None) -> EndedRun | None:
        """Add one delete's outcome to its cleanup; the last one ends the run, and only that call returns it.

        A delete that reports twice counts once, and one that reports after its run was ended counts no more.
        """

        def decide(view: RunView) -> tuple[RunChange | None, EndedRun | None]:
            run = view.run
            if run is None or run.state.is_final or not view.is_open_delete(sandbox_id):
                return None, None
            run = replace(run, progressed_at=view.now, tally=run.tally.add(outcome, error))
            if view.count_open_deletes() == 1:
                return _end(view, run, run.tally.conclude())
            return RunChange(run=run, settle=sandbox_id), None

        return self._kept.change(job_id, decide)

    def find_open_cleanup(self) -> str | None:
        """Return the id of the cleanup whose deletes have not all reported."""
        job_id = self._kept.read_last_dispatch()
        run = None if job_id is None else self._kept.read(job_id)
        return None if run is None or run.state.is_final else run.job_id

    def end_stalled_cleanup(self, job_id: str) -> EndedRun | None:
        """End a cleanup, as partial, if deletes of it were lost; None if it goes on, or has ended."""

        def decide(view: RunView) -> tuple[RunChange | None, EndedRun | None]:
            run = view.run
            if run is None or run.state.is_final or view.count_queued_deletes():
                return None, None
            if view.now - (run.progressed_at or 0) <= self._stall_limit_sec:
                return None, None
            return _end(view, run, run.tally.conclude(partial=True))

        return self._kept.change(job_id, decide)


def _end(view: RunView, run: JobRun, conclusion: Conclusion) -> tuple[RunChange, EndedRun]:
    now = view.now
    run = replace(run, state=conclusion.state, result=conclusion.result, error=conclusion.error, progressed_at=now)
    event = JobEnded(
        job=run.job,
        outcome=conclusion.outcome,
        seconds=max(0.0, now - (run.started_at or now)),
        message=conclusion.message,
        error=conclusion.error,
    )
    return RunChange(run=run), EndedRun(run=run, event=event)
