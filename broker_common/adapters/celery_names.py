"""The names by which the API, beat and the workers meet in Celery: of queues, of tasks, and of what tasks take."""

from __future__ import annotations

from broker_common.core.jobs import Job

JOBS_QUEUE = "jobs"
DELETIONS_QUEUE = "deletions"
"""Of its own, so that workers can be added where the slow deletes are."""
QUEUES = (JOBS_QUEUE, DELETIONS_QUEUE)
DELETE_SANDBOX = "broker.delete_sandbox"


def task_name(job: Job) -> str:
    """Return the name of a job's task."""
    return f"broker.{job}"


ARGUMENTS: dict[str, dict[str, type]] = {
    **{task_name(job): {} for job in Job},
    task_name(Job.SYNC): {"force": bool},
    DELETE_SANDBOX: {"sandbox_id": str, "run_id": str},
}
"""Every task, with its arguments by name."""
