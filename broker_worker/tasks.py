"""The Celery tasks: thin shells that record a run, lock, call one use case, and say how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject
from structlog.contextvars import bound_contextvars

from broker_common.adapters.celery_names import DELETE_SANDBOX, DELETIONS_QUEUE, task_name
from broker_common.core.errors import BrokerError, ProviderBusy
from broker_common.core.jobs import Job, JobState
from broker_common.core.principals import job_actor
from broker_common.core.runs import CleanupTally, Conclusion
from broker_common.core.telemetry import DeleteOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery, Task

    from broker_common.adapters.redis_job_runs import Ended, Run
    from broker_common.core.expiry import ExpiryResult
    from broker_common.core.purge import PurgeResult
    from broker_common.core.store import Pauses
    from broker_common.core.sync import SyncResult
    from broker_common.services import WorkerServices

TITLES = {Job.SYNC: "Sync", Job.CLEANUP: "Cleanup", Job.EXPIRE: "Auto-expiry", Job.PURGE_STALE: "Purge"}
_REQUEST_ID_WORDS = {Job.SYNC: "sync", Job.CLEANUP: "cleanup", Job.EXPIRE: "expiry", Job.PURGE_STALE: "purge-stale"}
_MESSAGES_AT_ONCE = 100
"""As many go to Redis in one round trip; the first deletes begin while the rest is still on its way."""
_INTERNAL_ERROR = "an internal error, which the worker has logged"


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOut:
    """A run goes on in that many tasks, the last of which ends it."""

    handed_out: int


class JobFailed(Exception):
    """A run failed for a reason that is recorded and logged: Celery shall show it, without a traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long tasks may run, in seconds; past it they are stopped."""

    job: float
    delete: float

    @staticmethod
    def of(soft: float) -> dict[str, float]:
        """Return Celery's options: an exception first, and the end of the process if that does not help."""
        return {"soft_time_limit": soft, "time_limit": soft + 10}


def add_tasks(app: Celery, get_services: Callable[[], WorkerServices], limits: TimeLimits) -> None:
    """Register the tasks. `get_services` is called in the process that runs a task, never before the fork."""
    options: dict[str, Any] = {
        "bind": True,
        "throws": (JobFailed, BrokerError),
        **TimeLimits.of(limits.job),
    }

    @app.task(name=task_name(Job.SYNC), **options)
    def sync(task: Task[Any, Any], *, force: bool = False) -> dict[str, Any]:
        services = get_services()
        return _run(
            services,
            Job.SYNC,
            _id(task),
            lambda _: _succeeded(services.syncer.run(by=job_actor(Job.SYNC), force=force)),
        )

    @app.task(name=task_name(Job.EXPIRE), **options)
    def expire(task: Task[Any, Any]) -> dict[str, Any]:
        services = get_services()
        return _run(
            services, Job.EXPIRE, _id(task), lambda _: _succeeded(services.expirer.run(by=job_actor(Job.EXPIRE)))
        )

    @app.task(name=task_name(Job.PURGE_STALE), **options)
    def purge_stale(task: Task[Any, Any]) -> dict[str, Any]:
        services = get_services()
        return _run(
            services,
            Job.PURGE_STALE,
            _id(task),
            lambda _: _succeeded(services.purger.run(by=job_actor(Job.PURGE_STALE))),
        )

    @app.task(name=task_name(Job.CLEANUP), **options)
    def cleanup(task: Task[Any, Any]) -> dict[str, Any]:
        services = get_services()

        def hand_out(run: Run) -> Conclusion | HandedOut:
            return _clean_up(services, run, send)

        def send(run: Run, sandbox_ids: list[str]) -> None:
            with app.producer_or_acquire() as producer, producer.batch(max_size=_MESSAGES_AT_ONCE):
                for sandbox_id in sandbox_ids:
                    delete_sandbox.apply_async(
                        kwargs={"sandbox_id": sandbox_id, "run_id": run.job_id},
                        headers={"run_request_id": run.request_id},
                        producer=producer,
                    )

        return _run(services, Job.CLEANUP, _id(task), hand_out)

    @app.task(name=DELETE_SANDBOX, **options | TimeLimits.of(limits.delete), queue=DELETIONS_QUEUE)
    def delete_sandbox(task: Task[Any, Any], *, sandbox_id: str, run_id: str) -> dict[str, Any]:
        with bound_contextvars(request_id=task.request.get("run_request_id")):
            return _delete_sandbox(get_services(), sandbox_id, run_id)


def _run(
    services: WorkerServices, job: Job, job_id: str, work: Callable[[Run], Conclusion | HandedOut]
) -> dict[str, Any]:
    """Do one run from its start to its end, and return what Flower shows.

    A run that has ended before is not done again.
    """
    request_id = f"job-{_REQUEST_ID_WORDS[job]}-{services.clock.now()}"
    run = services.runs.start(job_id, job, request_id=request_id)
    with _context_of(run):
        if run.state.is_final:
            return _shown(run.state, run.result, run.error)
        try:
            conclusion = _attempt(services, run, work)
        except BrokerError as error:
            conclusion = _failed(job, error.message)
        except Exception:
            _end(services, run, _failed(job, _INTERNAL_ERROR))
            raise
        if isinstance(conclusion, HandedOut):
            return asdict(conclusion)
        _end(services, run, conclusion)
    if conclusion.state is JobState.FAILED:
        raise JobFailed(conclusion.error)
    return _shown(conclusion.state, conclusion.result, conclusion.error)


def _attempt(
    services: WorkerServices, run: Run, work: Callable[[Run], Conclusion | HandedOut]
) -> Conclusion | HandedOut:
    services.guard.check()
    if _is_paused(run.job, services.store.read_pauses()):
        return _skipped("paused by an operator")
    with services.locks.hold(run.job, owner=run.job_id) as is_held:
        if not is_held:
            return _skipped("the same job is running already")
        return work(run)


def _clean_up(services: WorkerServices, run: Run, send: Callable[[Run, list[str]], None]) -> Conclusion | HandedOut:
    """Hand out the deletes that are due; the last of them ends the run."""
    before = services.runs.find_open_cleanup()
    if before is not None and before != run.job_id:
        ended = services.runs.end_stalled_cleanup(before)
        if ended is None:
            return _skipped(f"deletes of run {before} are still under way")
        _record(services, ended)
    sandbox_ids = services.runs.hand_out(run.job_id, services.cleaner.find_due())
    if not sandbox_ids:
        return CleanupTally().conclude()
    send(run, sandbox_ids)
    return HandedOut(handed_out=len(sandbox_ids))


def _delete_sandbox(services: WorkerServices, sandbox_id: str, run_id: str) -> dict[str, Any]:
    try:
        with bound_contextvars(sandbox_id=sandbox_id):  # not beyond: the line that ends the run is of no one sandbox
            deleted = services.cleaner.delete_sandbox(sandbox_id, by=job_actor(Job.CLEANUP))
    except ProviderBusy as busy:
        # Back to the queue. The wait for a call slot that has just ended keeps this from turning in circles.
        raise Reject(busy, requeue=True) from busy
    except Exception:
        _settle(services, sandbox_id, run_id, DeleteOutcome.WILL_RETRY, _INTERNAL_ERROR)
        raise
    _settle(services, sandbox_id, run_id, deleted.outcome, deleted.error)
    return _shown(deleted.outcome, None, deleted.error)


def _settle(services: WorkerServices, sandbox_id: str, run_id: str, outcome: DeleteOutcome, error: str | None) -> None:
    ended = services.runs.settle(run_id, sandbox_id, outcome, error)
    if ended is not None:
        _record(services, ended)


def _end(services: WorkerServices, run: Run, conclusion: Conclusion) -> None:
    ended = services.runs.finish(run.job_id, conclusion)
    if ended is not None:  # pragma: no branch - only where two deliveries of a run end at the same moment
        _record(services, ended)


def _record(services: WorkerServices, ended: Ended) -> None:
    with _context_of(ended.run):
        services.recorder.record(ended.event)


def _context_of(run: Run) -> Any:  # noqa: ANN401 - a context manager that structlog leaves untyped
    asked = {} if run.requested_by is None else {"requested_by": run.requested_by}
    return bound_contextvars(request_id=run.request_id, **asked)


def _id(task: Task[Any, Any]) -> str:
    """Return a task's id, which is its run's."""
    return str(task.request.id)


def _is_paused(job: Job, pauses: Pauses) -> bool:
    paused = {Job.SYNC: pauses.sync, Job.CLEANUP: pauses.cleanup, Job.EXPIRE: pauses.expire}
    return paused.get(job) is not None


def _succeeded(result: SyncResult | ExpiryResult | PurgeResult) -> Conclusion:
    return Conclusion(state=JobState.SUCCEEDED, message=result.message, result=asdict(result))


def _failed(job: Job, error: str) -> Conclusion:
    return Conclusion(state=JobState.FAILED, message=f"{TITLES[job]} failed", error=error)


def _skipped(reason: str) -> Conclusion:
    return Conclusion(state=JobState.SKIPPED, message=f"Skipped: {reason}", error=reason)


def _shown(state: JobState | DeleteOutcome, result: Any, error: str | None) -> dict[str, Any]:  # noqa: ANN401 - a JSON object
    return {"state": state.value, **(result or {}), **({} if error is None else {"error": error})}
