"""The Celery application of worker, beat and Flower: its settings, its tasks, and its log lines at shutdown."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import structlog
from celery import Celery
from celery.apps.worker import (  # type: ignore[attr-defined] # the stubs lack the handler
    Worker,
    install_worker_term_handler,
)
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from kombu import Queue

from broker_common.adapters.celery_names import (
    DELETE_SANDBOX,
    DELETIONS_QUEUE,
    JOBS_QUEUE,
    QUEUES,
    SEND_WEBHOOK,
    WEBHOOKS_QUEUE,
)
from broker_common.core.cleanup import delete_limit_sec
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Every
from broker_worker.messages import check_what_is_received
from broker_worker.tasks import add_tasks, time_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController

    from broker_common.services import WorkerServices
    from broker_common.settings import Settings

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")

# A wipe keeps its own time limit, in a thread, too. Only in a process can Celery enforce one, as the last resort.
_DELETE_MARGIN_SEC = 5
_VISIBILITY_MARGIN_SEC = 60
_MOST_THREADS = 10_000


def create_celery(settings: Settings, get_services: Callable[[], WorkerServices]) -> Celery:
    """Build the application that worker, beat and Flower share. This makes no connection.

    `get_services` is called in each process that runs tasks, after the fork, and by each thread that runs tasks. It
    must always return the same services in one process.
    """
    check_what_is_received()
    app = Celery("sandbox-broker", broker=settings.redis_url, set_as_current=False)
    delete_sec = delete_limit_sec(settings.policy) + _DELETE_MARGIN_SEC
    longest = time_limits(max(delete_sec, *(job.time_limit_sec for job in JOBS.values())))["time_limit"]
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        timezone="UTC",
        # The result of a run is in its own record. Flower gets it from the worker's events.
        task_ignore_result=True,
        result_expires=None,
        task_track_started=True,
        task_send_sent_event=True,
        worker_send_task_events=True,
        # A task is acknowledged when it ends, not when it is fetched. If its process dies, it is delivered again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: if a worker gave up, an operator would have to restart it
        broker_transport_options={
            # Longer than any task. Else a task would be delivered again while it runs.
            "visibility_timeout": longest + _VISIBILITY_MARGIN_SEC,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # Each thread acknowledges its own messages. By default, more than 10 at once would be refused.
            "max_connections": _MOST_THREADS,
            "socket_connect_timeout": 5,
            # Then a silent Redis holds up no thread that acknowledges a message. It does not end the wait for messages:
            # that is the event loop's, and Redis itself answers it after a second.
            "socket_timeout": 10,
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
        task_default_queue=JOBS_QUEUE,
        task_queues=[Queue(name) for name in QUEUES],
        # For every sender, so that a task that is sent again by hand reaches its queue, too.
        task_routes={DELETE_SANDBOX: {"queue": DELETIONS_QUEUE}, SEND_WEBHOOK: {"queue": WEBHOOKS_QUEUE}},
        task_create_missing_queues=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    app.Worker = app.subclass_with_self(_Worker, name="Worker")  # type: ignore[misc] # the stubs do not allow setting it
    add_tasks(app, get_services, delete_limit_sec=delete_sec)
    return app


class _Worker(Worker):
    """Celery's worker, which logs that it stops.

    Its own messages at start and stop are left out, because they are not in the format of the log. The handler of the
    signal logs nothing, because it may interrupt the writing of another line.
    """

    def on_before_init(self, quiet: bool = True, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 - Celery's signature
        # Celery warns of root, in five lines and before there is a log. The operator decides as whom a container runs.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        super().on_before_init(quiet=True, **kwargs)

    def setup_logging(self, colorize: bool | None = None) -> Any:  # noqa: ANN401 - Celery's signature
        handled = super().setup_logging(colorize)
        # Celery has just turned on these warnings. They are about what its next release may do to these settings.
        warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
        return handled

    def install_platform_tweaks(self, worker: WorkController) -> None:
        super().install_platform_tweaks(worker)
        install_worker_term_handler(worker, verbose=False)

    def on_close(self) -> None:
        _log.info("[Scheduler] Received shutdown signal, stopping jobs...")
        super().on_close()

    def on_stopped(self) -> None:
        """Log that the jobs have stopped: all tasks that had begun have ended."""
        for job in JOBS.values():
            if isinstance(job.schedule, Every):
                _log.info(f"[Scheduler] {job.title} job stopped")
        super().on_stopped()
