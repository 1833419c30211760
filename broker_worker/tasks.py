"""The Celery tasks. They pass messages to the core's `JobRunner` and `Sender`, and return their reports to Celery."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celery.exceptions import Reject
from structlog.contextvars import bound_contextvars

from broker_common.adapters.celery_names import DELETE_SANDBOX, SEND_WEBHOOK, task_name
from broker_common.core.errors import BrokerError, ProviderBusy
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.principals import Actor, job_actor
from broker_common.core.runner import JobFailed, JobRunner
from broker_common.core.sending import DRAIN_LIMIT_SEC

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from enum import StrEnum

    from celery import Celery, Task

    from broker_common.core.jobs import Jobs, JobSpec
    from broker_common.core.runs import JobRun
    from broker_common.services import WorkerServices

_MESSAGES_AT_ONCE = 100
"""So many messages go to Redis in one round trip. The first wipes begin while the other messages are still sent."""


def time_limits(soft: float) -> dict[str, Any]:
    """Return Celery's options: at `soft` seconds an exception, and 10 s later the end of the process.

    Celery enforces them in a pool of processes only.
    """
    return {"soft_time_limit": soft, "time_limit": soft + 10}


def add_tasks(
    app: Celery, get_services: Callable[[], WorkerServices], *, delete_limit_sec: float, jobs: Jobs = JOBS
) -> None:
    """Register a task for each job, the task that wipes a sandbox, and the one that sends an endpoint's deliveries.

    `get_services` is called in the process and in the thread that run a task, never before the fork.
    """

    def runner() -> JobRunner:
        services = get_services()
        return JobRunner(jobs, work=services, runs=services.runs, locks=services.locks, log=_LogContext())

    delete_sandbox = _add_delete(app, runner, delete_limit_sec)
    _add_send_webhook(app, get_services)

    def send(run: JobRun, sandbox_ids: list[str]) -> None:
        headers: Any = {"run_request_id": run.request_id, "run_principal": run.principal}
        with app.producer_or_acquire() as producer, producer.batch(max_size=_MESSAGES_AT_ONCE):
            for sandbox_id in sandbox_ids:
                delete_sandbox.apply_async(
                    kwargs={"sandbox_id": sandbox_id, "run_id": run.job_id},
                    headers=headers,
                    producer=producer,
                )

    for job in jobs.values():
        _add_job(app, job, runner, send)


def _add_job(
    app: Celery, job: JobSpec, runner: Callable[[], JobRunner], send: Callable[[JobRun, list[str]], None]
) -> None:
    @app.task(name=task_name(job.name), **_options(job.time_limit_sec))
    def run(task: Task[Any, Any], **flags: bool) -> dict[str, Any]:
        report = runner().run(job.name, str(task.request.id), flags, send=send)
        if report.dispatched is not None:
            return {"dispatched": report.dispatched}
        return _shown(report.state, report.result, report.error)


def _add_delete(app: Celery, runner: Callable[[], JobRunner], limit_sec: float) -> Task[Any, Any]:
    @app.task(name=DELETE_SANDBOX, **_options(limit_sec))
    def delete_sandbox(task: Task[Any, Any], *, sandbox_id: str, run_id: str) -> dict[str, Any]:
        by = Actor(
            # A message of an earlier release has no principal.
            principal=task.request.get("run_principal") or job_actor(Job.CLEANUP).principal,
            request_id=task.request.get("run_request_id"),
        )
        with _bound(by):
            try:
                deleted = runner().delete(sandbox_id, run_id, by)
            except ProviderBusy as busy:
                # Back to the queue. This cannot loop fast: the task has just waited for a call slot, or for the pace.
                raise Reject(busy, requeue=True) from busy
        return _shown(deleted.outcome, None, deleted.error)

    task: Task[Any, Any] = delete_sandbox
    return task


def _add_send_webhook(app: Celery, get_services: Callable[[], WorkerServices]) -> None:
    @app.task(name=SEND_WEBHOOK, **_options(DRAIN_LIMIT_SEC))
    def send_webhook(task: Task[Any, Any], *, endpoint_id: str) -> dict[str, Any]:  # noqa: ARG001 - all tasks are bound
        by = job_actor(Job.DELIVER)
        with _bound(by):
            return asdict(get_services().sender.drain(endpoint_id, by=by))


def _options(limit_sec: float) -> dict[str, Any]:
    return {
        "bind": True,
        # Only for this application. By default Celery adds a task to every application of the process.
        "shared": False,
        # These errors are already recorded and logged, so Celery shows them without a traceback.
        "throws": (JobFailed, BrokerError),
        **time_limits(limit_sec),
    }


class _LogContext:
    """Implements the `LogContext` port by structlog's context variables."""

    def of_run(self, run: JobRun) -> AbstractContextManager[Any]:
        return _bound(run.actor, **({} if run.requested_by is None else {"requested_by": run.requested_by}))

    def of_sandbox(self, sandbox_id: str) -> AbstractContextManager[Any]:
        return bound_contextvars(sandbox_id=sandbox_id)


def _bound(by: Actor, **details: str) -> AbstractContextManager[Any]:
    return bound_contextvars(request_id=by.request_id, principal=by.principal, **details)


def _shown(state: StrEnum, result: Any, error: str | None) -> dict[str, Any]:  # noqa: ANN401 - a JSON object
    return {"state": state.value, **(result or {}), **({} if error is None else {"error": error})}
