"""The records of job runs, and the rules by which they change.

A run ends once, even if its tasks are delivered several times. Each rule decides from the current record. `JobRuns`
only stores the records.
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
"""How long the record of a run is kept after its last change."""
KEPT_IDLE_SEC = 600
"""How long it is kept if the run did nothing and its job runs every few seconds."""
_EARLIER_OPERATOR = "admin"
"""The principal of all operators, for runs of the release that recorded no principals."""
_OUTCOMES = {
    JobState.SUCCEEDED: JobOutcome.SUCCESS,
    JobState.FAILED: JobOutcome.ERROR,
    JobState.SKIPPED: JobOutcome.SKIPPED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """How a run ended: its final state, its message, and the result that operators see."""

    state: JobState
    message: str
    result: Mapping[str, Any] | None = None
    error: str | None = None
    is_idle: bool = False
    """It did nothing, and the job runs every few seconds."""

    @property
    def outcome(self) -> JobOutcome:
        """The state as metrics and logs name it."""
        return _OUTCOMES[self.state]


@dataclass(frozen=True, slots=True)
class CleanupTally:
    """Counts the wipes of one cleanup by outcome, and keeps the first error of each outcome."""

    counts: Mapping[DeleteOutcome, int] = field(default_factory=dict)
    errors: Mapping[DeleteOutcome, str] = field(default_factory=dict)

    def add(self, outcome: DeleteOutcome, error: str | None) -> CleanupTally:
        """Return the tally with one more wipe."""
        counts = {**self.counts, outcome: self.counts.get(outcome, 0) + 1}
        errors = self.errors if error is None else {outcome: error, **self.errors}
        return replace(self, counts=counts, errors=errors)

    @property
    def result(self) -> dict[str, int]:
        """The counts that operators see."""
        counts = {outcome: self.counts.get(outcome, 0) for outcome in DeleteOutcome}
        failed = sum(count for outcome, count in counts.items() if outcome.is_failure)
        return {outcome.value: count for outcome, count in counts.items()} | {"failed": failed}

    def conclude(self, *, partial: bool = False) -> Conclusion:
        """Return how the cleanup ended.

        It failed if the provider's configuration is wrong, or if every wipe was postponed, so that nothing was done.
        `partial`: some wipes never reported, because their workers died.
        """
        result, postponed = self.result, self.counts.get(DeleteOutcome.POSTPONED, 0)
        error = None
        if self.counts.get(DeleteOutcome.MISCONFIGURED):
            error = self.errors.get(DeleteOutcome.MISCONFIGURED, "the provider's configuration is wrong")
        elif 0 < postponed == sum(self.counts.values()):
            error = self.errors.get(DeleteOutcome.POSTPONED, "every wipe was postponed")
        return Conclusion(
            state=JobState.SUCCEEDED if error is None else JobState.FAILED,
            message=f"Deleted {result[DeleteOutcome.DELETED]} sandboxes, {result['failed']} failed"
            + (f", {gone} unknown to the provider" if (gone := result[DeleteOutcome.GONE]) else ""),
            result=result | ({"partial": True} if partial else {}),
            error=error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """The record of one run. Times are Unix seconds of the clock of `JobRuns`."""

    job_id: str
    job: str
    state: JobState
    principal: str
    """Who asked for it; `job:<name>` if it was scheduled."""
    requested_by: str | None = None
    """The request id of the call that asked for it; None if it was scheduled."""
    request_id: str | None = None
    """The request id of the run itself, for its log lines; None until it starts."""
    queued_at: float | None = None
    """When it was asked for; None if it was scheduled."""
    started_at: float | None = None
    progressed_at: float | None = None
    """When it started, when one of its wipes last reported, or when it ended."""
    result: Mapping[str, Any] | None = None
    error: str | None = None
    tally: CleanupTally = field(default_factory=CleanupTally)

    @property
    def ended_at(self) -> float | None:
        """When it ended; None until then."""
        return self.progressed_at if self.state.is_final else None

    @property
    def actor(self) -> Actor:
        """Who makes the changes of this run."""
        return Actor(principal=self.principal, request_id=self.request_id)


def principal_of_earlier_release(job: str, requested_by: str | None) -> str:
    """Return the principal of a run whose record has none, because an earlier release wrote it."""
    return job_actor(job).principal if requested_by is None else _EARLIER_OPERATOR


class RunView(Protocol):
    """The stored state of one run, as one change reads it."""

    @property
    def run(self) -> JobRun | None:
        """The run; None if it is unknown, or its record cannot be read."""

    @property
    def now(self) -> float:
        """The time by a clock that all processes share."""

    def is_open_delete(self, sandbox_id: str) -> bool:
        """Tell whether the run waits for the wipe of a sandbox."""

    def count_open_deletes(self) -> int:
        """Count the wipes that the run waits for."""

    def read_open_deletes(self) -> list[str]:
        """Return the ids of the sandboxes whose wipes the run waits for."""

    def count_queued_deletes(self) -> int:
        """Count the wipes, of any run, that no worker has taken yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChange:
    """The new state of a run. A run that has ended waits for no more wipes."""

    run: JobRun
    dispatch: tuple[str, ...] = ()
    """The sandboxes whose wipes it now waits for. If there are any, it becomes the run that dispatched last."""
    settle: str | None = None
    """The sandbox whose wipe it no longer waits for."""
    kept_sec: int = KEPT_SEC
    """How long the record is kept."""


class JobRuns(Protocol):
    """Stores the records of runs, each for `KEPT_SEC` after its last change.

    A record that cannot be read, for example one of another release, counts as unknown. Every method raises
    `QueueUnavailable` if the records cannot be reached.
    """

    def change(self, job_id: str, decide: Callable[[RunView], tuple[RunChange | None, Value]]) -> Value:
        """Make the change that `decide` returns, and return the value that comes with it.

        The change is made only if nothing that `decide` read has changed meanwhile. Else `decide` is called again.
        """

    def read(self, job_id: str) -> JobRun | None:
        """Return a run; None if it is unknown."""

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        """Return at most `limit` runs of these jobs. The run that became known last comes first."""

    def read_last_dispatch(self) -> str | None:
        """Return the id of the run that dispatched wipes last."""

    def forget(self, job_id: str, job: str) -> None:
        """Remove the record of a run."""

    def ping(self) -> None:
        """Make sure that records can be written."""


class JobLocks(Protocol):
    """Lets only one run of a job work at a time, over all workers. This saves work; no rule relies on it."""

    def hold(self, job: str, *, owner: str) -> AbstractContextManager[bool]:
        """Hold a job's lock inside the context. Yields False if another owner holds it.

        An owner may enter again if it already holds the lock, because its run was cut off. Raises `QueueUnavailable`.
        """


class JobQueue(Protocol):
    """Queues runs of jobs, and finds them for 24 hours.

    Every method raises `QueueUnavailable` at once if the queue cannot be reached.
    """

    def enqueue(self, job: str, *, by: Actor, flags: Mapping[str, bool]) -> str:
        """Queue a run, and return its job id."""

    def find(self, job_id: str) -> JobRun:
        """Return a run. Raises `JobNotFound`."""

    def read_last(self, job: str | None, *, limit: int) -> list[JobRun]:
        """Return the last runs of one job, or of all jobs if `job` is None, newest first."""

    def ping(self) -> None:
        """Make sure that the queue answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has just ended, and its telemetry."""

    run: JobRun
    event: JobEnded


class Runs:
    """Starts, follows and ends runs. Every method raises `QueueUnavailable` if the records cannot be reached.

    A cleanup has lost wipes if it made no progress for `stall_limit_sec` and no wipe is left in the queue.
    """

    def __init__(self, kept: JobRuns, *, stall_limit_sec: float) -> None:
        self._kept = kept
        self._stall_limit_sec = stall_limit_sec

    def ping(self) -> None:
        """Make sure that records can be written."""
        self._kept.ping()

    def create(self, job_id: str, job: str, *, by: Actor) -> None:
        """Record a run before it is queued."""

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
        """Remove the record of a run that could not be queued."""
        self._kept.forget(job_id, job)

    def find(self, job_id: str) -> JobRun | None:
        """Return a run; None if it is unknown."""
        return self._kept.read(job_id)

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        """Return at most `limit` runs of these jobs, newest first."""
        return self._kept.read_last(jobs, limit=limit)

    def start(self, job_id: str, job: str, *, request_id: str) -> JobRun:
        """Record that a run starts, and return it. A run that has already started or ended is returned unchanged."""

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
        """Record how a run ended. Return None if it has already ended, or is no longer known."""

        def decide(view: RunView) -> tuple[RunChange | None, EndedRun | None]:
            run = view.run
            if run is None or run.state.is_final:
                return None, None
            return _end(view, run, conclusion)

        return self._kept.change(job_id, decide)

    def dispatch(self, job_id: str, sandbox_ids: Iterable[str]) -> list[str]:
        """Record the sandboxes whose wipes a cleanup waits for, and return them.

        A run whose task is delivered again may have dispatched wipes before. Then this records nothing, and returns
        the sandboxes whose wipes have not reported.
        """
        ids = list(dict.fromkeys(sandbox_ids))

        def decide(view: RunView) -> tuple[RunChange | None, list[str]]:
            unreported = sorted(view.read_open_deletes())
            if unreported:
                return None, unreported
            run = view.run
            if run is None or run.state.is_final or not ids:
                return None, []
            return RunChange(run=replace(run, progressed_at=view.now), dispatch=tuple(ids)), ids

        return self._kept.change(job_id, decide)

    def settle(self, job_id: str, sandbox_id: str, outcome: DeleteOutcome, error: str | None) -> EndedRun | None:
        """Add the outcome of one wipe to its cleanup. The last wipe ends the run; only that call returns the run.

        A wipe that reports twice counts once. A wipe that reports after its run has ended does not count.
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
        """Return the id of the cleanup whose wipes have not all reported; None if there is none."""
        job_id = self._kept.read_last_dispatch()
        run = None if job_id is None else self._kept.read(job_id)
        return None if run is None or run.state.is_final else run.job_id

    def end_stalled_cleanup(self, job_id: str) -> EndedRun | None:
        """End a cleanup as partial if it has lost wipes. Return None if it goes on, or has already ended."""

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
        is_idle=conclusion.is_idle,
    )
    kept_sec = KEPT_IDLE_SEC if conclusion.is_idle else KEPT_SEC
    return RunChange(run=run, kept_sec=kept_sec), EndedRun(run=run, event=event)
