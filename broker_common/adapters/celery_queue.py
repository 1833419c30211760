"""The job queue as the API uses it: tasks are sent by name; what they do is the worker's business."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from celery import Celery
from kombu.exceptions import OperationalError

from broker_common.adapters.celery_names import JOBS_QUEUE, task_name
from broker_common.core.errors import JobNotFound, QueueUnavailable

if TYPE_CHECKING:
    from broker_common.adapters.redis_job_runs import RedisJobRuns
    from broker_common.core.jobs import Job, JobRun

_TIMEOUT_SEC = 0.5


class CeleryJobQueue:
    """Implements the `JobQueue` port over Celery's queues in Redis."""

    def __init__(self, redis_url: str, runs: RedisJobRuns) -> None:
        self._app = Celery("sandbox-broker-api", broker=redis_url, set_as_current=False)
        self._app.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            task_publish_retry=False,
            broker_transport_options={
                "socket_timeout": _TIMEOUT_SEC,
                "socket_connect_timeout": _TIMEOUT_SEC,
                "max_retries": 0,
            },
        )
        self._runs = runs

    def enqueue(self, job: Job, *, request_id: str, force: bool = False) -> str:
        """Ask for a run now, and return its job id; `force` is for sync.

        Raises `QueueUnavailable` within about a second.
        """
        job_id = str(uuid.uuid4())
        self._runs.create(job_id, job, requested_by=request_id)
        try:
            self._app.send_task(
                task_name(job),
                kwargs={"force": True} if force else {},
                task_id=job_id,
                queue=JOBS_QUEUE,
            )
        except OperationalError as error:
            with suppress(QueueUnavailable):
                self._runs.discard(job_id)
            raise QueueUnavailable("the job queue cannot be reached; nothing was started") from error
        return job_id

    def find(self, job_id: str) -> JobRun:
        """Return a run; raises `JobNotFound`, `QueueUnavailable`."""
        run = self._runs.find(job_id)
        if run is None:
            raise JobNotFound(f"there is no job {job_id!r}")
        return run

    def ping(self) -> None:
        """Make sure that something can be queued; raises `QueueUnavailable`."""
        self._runs.ping()
