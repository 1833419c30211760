"""The names that the API, beat and the workers share in Celery: queues, tasks, and the arguments of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.core.job_registry import JOBS

if TYPE_CHECKING:
    from broker_common.core.jobs import Jobs

JOBS_QUEUE = "jobs"
DELETIONS_QUEUE = "deletions"
"""A queue of its own, so that workers can be added for the slow deletes alone."""
WEBHOOKS_QUEUE = "webhooks"
"""A queue of its own, so that an endpoint that hangs holds up nothing else."""
QUEUES = (JOBS_QUEUE, DELETIONS_QUEUE, WEBHOOKS_QUEUE)
DELETE_SANDBOX = "broker.delete_sandbox"
SEND_WEBHOOK = "broker.send_webhook"


def task_name(job: str) -> str:
    """Return the name of a job's task."""
    return f"broker.{job}"


def arguments_of(jobs: Jobs) -> dict[str, dict[str, type]]:
    """Return every task that these jobs need, with its arguments by name."""
    flags: dict[str, dict[str, type]] = {
        task_name(name): {flag.name: bool for flag in job.flags} for name, job in jobs.items()
    }
    return flags | {DELETE_SANDBOX: {"sandbox_id": str, "run_id": str}, SEND_WEBHOOK: {"endpoint_id": str}}


ARGUMENTS = arguments_of(JOBS)
"""Every task, with its arguments by name."""
