"""Queues that send tasks by name, and do not know what they do: the API's for jobs, and the one for webhooks.

A queue is a list in Redis. A message that a worker has taken is no longer in it.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from broker_common.adapters.celery_names import JOBS_QUEUE, QUEUES, SEND_WEBHOOK, WEBHOOKS_QUEUE, task_name
from broker_common.core.errors import JobNotFound, QueueUnavailable
from broker_common.core.job_registry import JOBS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from broker_common.core.jobs import Jobs
    from broker_common.core.principals import Actor
    from broker_common.core.runs import JobRun, Runs

_TIMEOUT_SEC = 0.5


class CeleryJobQueue:
    """Implements the `JobQueue` port over Celery's queues in Redis."""

    def __init__(self, redis_url: str, runs: Runs, jobs: Jobs = JOBS) -> None:
        self._app = _sender("sandbox-broker-api", redis_url)
        self._runs = runs
        self._jobs = jobs

    def enqueue(self, job: str, *, by: Actor, flags: Mapping[str, bool]) -> str:
        """Request a run now, and return its job id; raises `QueueUnavailable` within about a second."""
        job_id = str(uuid.uuid4())
        self._runs.create(job_id, job, by=by)
        try:
            self._app.send_task(
                task_name(job),
                kwargs={flag: True for flag, is_on in flags.items() if is_on},
                task_id=job_id,
                queue=JOBS_QUEUE,
            )
        except OperationalError as error:
            with suppress(QueueUnavailable):
                self._runs.discard(job_id, job)
            raise QueueUnavailable("the job queue cannot be reached; nothing was started") from error
        return job_id

    def find(self, job_id: str) -> JobRun:
        """Return a run; raises `JobNotFound`, `QueueUnavailable`."""
        run = self._runs.find(job_id)
        if run is None:
            raise JobNotFound(f"there is no job {job_id!r}")
        return run

    def read_last(self, job: str | None, *, limit: int) -> list[JobRun]:
        """Return the last runs of one job, or of all, newest first; raises `QueueUnavailable`."""
        return self._runs.read_last(list(self._jobs) if job is None else [job], limit=limit)

    def ping(self) -> None:
        """Check that a job can be queued; raises `QueueUnavailable`."""
        self._runs.ping()


class CeleryWebhookQueue:
    """Implements the `WebhookQueue` port over Celery's queue in Redis."""

    def __init__(self, redis_url: str, redis: Redis) -> None:
        self._app = _sender("sandbox-broker-deliver", redis_url)
        self._redis: Any = redis  # its stubs cannot tell its answers from those of the asynchronous one

    def send(self, endpoint_ids: Sequence[str]) -> None:
        """Queue a task for each endpoint, unless some still wait: without a worker, the queue never grows."""
        try:
            if self._redis.llen(WEBHOOKS_QUEUE):
                return
            for endpoint_id in endpoint_ids:
                self._app.send_task(SEND_WEBHOOK, kwargs={"endpoint_id": endpoint_id}, queue=WEBHOOKS_QUEUE)
        except (OperationalError, RedisError) as error:
            raise QueueUnavailable("the queue of the webhooks cannot be reached") from error


def queue_lengths(redis: Redis) -> dict[str, int]:
    """Return how many messages wait in each queue; raises `QueueUnavailable`."""
    pipe: Any = redis.pipeline(transaction=False)
    for name in QUEUES:
        pipe.llen(name)
    try:
        return dict(zip(QUEUES, pipe.execute(), strict=True))
    except RedisError as error:
        raise QueueUnavailable("the lengths of the queues cannot be read") from error


def _sender(name: str, redis_url: str) -> Celery:
    """Make an application that only sends tasks, and fails at once if Redis does not answer."""
    app = Celery(name, broker=redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        task_ignore_result=True,
        task_publish_retry=False,
        broker_transport_options={
            "socket_timeout": _TIMEOUT_SEC,
            "socket_connect_timeout": _TIMEOUT_SEC,
            "max_retries": 0,
        },
    )
    return app
