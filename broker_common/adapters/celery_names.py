"""The names by which the API, beat and the workers meet in Celery: of queues, and of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.jobs import Job

JOBS_QUEUE = "jobs"
DELETIONS_QUEUE = "deletions"
"""Of its own, so that workers can be added where the slow deletes are."""
DELETE_SANDBOX = "broker.delete_sandbox"


def task_name(job: Job) -> str:
    """Return the name of a job's task."""
    return f"broker.{job}"
