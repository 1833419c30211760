"""Leaves Celery's own lines about tasks that run every few seconds out of the log. They would be most of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker_common.adapters.celery_names import SEND_WEBHOOK, task_name
from broker_common.core.job_registry import JOBS

if TYPE_CHECKING:
    from collections.abc import Container

_LOGGERS = ("celery.worker.strategy", "celery.app.trace", "celery.beat")
"""They say that a task is received, has succeeded, and was sent by the schedule."""


def leave_out_frequent_tasks() -> None:
    """Log what goes wrong with frequent tasks, and at the level DEBUG all of it; else nothing. May be called again."""
    frequent = {SEND_WEBHOOK, *(task_name(job.name) for job in JOBS.values() if job.is_frequent)}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.filters = [each for each in logger.filters if not isinstance(each, _LeaveOut)]
        if not logger.isEnabledFor(logging.DEBUG):
            logger.addFilter(_LeaveOut(frequent))


class _LeaveOut(logging.Filter):
    def __init__(self, tasks: Container[object]) -> None:
        super().__init__()
        self._tasks = tasks

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a line is logged."""
        if record.levelno > logging.INFO or not record.args:
            return True
        # Celery gives the name of the task as the field `name`, and beat as the last of its arguments.
        named = record.args[-1] if isinstance(record.args, tuple) else record.args.get("name")
        return not (isinstance(named, str) and named in self._tasks)
