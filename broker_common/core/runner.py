"""Do runs of jobs: decide whether a run may go on, do its work, and record how it ended.

The tasks of the workers call this. They only pass messages on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from broker_common.core.errors import BrokerError, ProviderBusy
from broker_common.core.jobs import Dispatch, JobState
from broker_common.core.runs import CleanupTally, Conclusion
from broker_common.core.telemetry import DeleteOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from broker_common.core.jobs import Jobs, JobSpec, Work
    from broker_common.core.principals import Actor
    from broker_common.core.runs import EndedRun, JobLocks, JobRun, Runs
    from broker_common.core.telemetry import DeleteEnded

_INTERNAL_ERROR = "an internal error; see the log of the worker"


class JobFailed(Exception):
    """A run failed. The reason is already recorded and logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The state of a run when its task is done. `dispatched`: how many wipes the run now waits for."""

    state: JobState
    result: Mapping[str, Any] | None = None
    error: str | None = None
    dispatched: int | None = None


class LogContext(Protocol):
    """Adds to the log lines of a context what they are about."""

    def of_run(self, run: JobRun) -> AbstractContextManager[Any]:
        """Add a run, and who asked for it, to the log lines inside."""

    def of_sandbox(self, sandbox_id: str) -> AbstractContextManager[Any]:
        """Add a sandbox to the log lines inside."""


class JobRunner:
    """Does runs of jobs, and the wipes that they dispatch."""

    def __init__(self, jobs: Jobs, *, work: Work, runs: Runs, locks: JobLocks, log: LogContext) -> None:
        self._jobs = jobs
        self._work = work
        self._runs = runs
        self._locks = locks
        self._log = log

    def run(
        self, name: str, job_id: str, flags: Mapping[str, bool], *, send: Callable[[JobRun, list[str]], None]
    ) -> Report:
        """Do one run from start to end, or dispatch its wipes by `send`.

        A run that has already ended is not done again. Raises `JobFailed` after the failure is recorded,
        `QueueUnavailable`, and any unexpected error.
        """
        job = self._jobs[name]
        run = self._runs.start(job_id, name, request_id=job.request_id(self._work.clock.now()))
        with self._log.of_run(run):
            if run.state.is_final:
                return Report(state=run.state, result=run.result, error=run.error)
            try:
                outcome = self._attempt(job, run, flags, send)
            except BrokerError as error:
                outcome = _failed(job, error.message)
            except Exception:
                self._end(run, _failed(job, _INTERNAL_ERROR))
                raise
            if isinstance(outcome, int):
                return Report(state=run.state, dispatched=outcome)
            self._end(run, outcome)
        if outcome.state is JobState.FAILED:
            raise JobFailed(outcome.error)
        return Report(state=outcome.state, result=outcome.result, error=outcome.error)

    def delete(self, sandbox_id: str, run_id: str, by: Actor) -> DeleteEnded:
        """Make one attempt to wipe a sandbox, and report the outcome to its run. The last report ends the run.

        Raises `ProviderBusy` if nothing was reported and the call must be made again later. Raises `QueueUnavailable`,
        and any unexpected error.
        """
        try:
            # Only here: the log line that ends the run is not about one sandbox.
            with self._log.of_sandbox(sandbox_id):
                deleted = self._work.cleaner.delete_sandbox(sandbox_id, by=by)
        except ProviderBusy:
            raise
        except Exception:
            self._settle(sandbox_id, run_id, DeleteOutcome.WILL_RETRY, _INTERNAL_ERROR)
            raise
        self._settle(sandbox_id, run_id, deleted.outcome, deleted.error)
        return deleted

    def _attempt(
        self, job: JobSpec, run: JobRun, flags: Mapping[str, bool], send: Callable[[JobRun, list[str]], None]
    ) -> Conclusion | int:
        """Do the job's work if it may run now. Return its conclusion, or how many wipes were dispatched."""
        self._work.guard.check()
        if job.is_paused(self._work.store.read_pauses()):
            return _skipped("paused by an operator")
        with self._locks.hold(job.name, owner=run.job_id) as is_held:
            if not is_held:
                return replace(_skipped("the same job is running already"), is_idle=job.is_frequent)
            done = job.work(self._work, run.actor, flags)
            if isinstance(done, Dispatch):
                return self._dispatch(run, done, send)
            result = asdict(done)
            is_idle = job.is_frequent and not any(result.values())
            return Conclusion(state=JobState.SUCCEEDED, message=done.message, result=result, is_idle=is_idle)

    def _dispatch(self, run: JobRun, due: Dispatch, send: Callable[[JobRun, list[str]], None]) -> Conclusion | int:
        before = self._runs.find_open_cleanup()
        if before is not None and before != run.job_id:
            ended = self._runs.end_stalled_cleanup(before)
            if ended is None:
                return _skipped(f"wipes of run {before} are still under way")
            self._record(ended)
        sandbox_ids = self._runs.dispatch(run.job_id, due.find())
        if not sandbox_ids:
            return CleanupTally().conclude()
        send(run, sandbox_ids)
        return len(sandbox_ids)

    def _settle(self, sandbox_id: str, run_id: str, outcome: DeleteOutcome, error: str | None) -> None:
        ended = self._runs.settle(run_id, sandbox_id, outcome, error)
        if ended is not None:
            self._record(ended)

    def _end(self, run: JobRun, conclusion: Conclusion) -> None:
        ended = self._runs.finish(run.job_id, conclusion)
        if ended is not None:
            self._record(ended)

    def _record(self, ended: EndedRun) -> None:
        with self._log.of_run(ended.run):
            self._work.recorder.record(ended.event)


def _failed(job: JobSpec, error: str) -> Conclusion:
    return Conclusion(state=JobState.FAILED, message=f"{job.title} failed", error=error)


def _skipped(reason: str) -> Conclusion:
    return Conclusion(state=JobState.SKIPPED, message=f"Skipped: {reason}", error=reason)
