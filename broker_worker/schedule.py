"""When beat sends which job, and how several beats agree on one that does.

The schedule is kept in Redis; at every start beat replaces what is there by this one, and keeps only when each job was
sent last. So a changed interval holds from the next start, and a job that is gone from here is gone from there.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.schedules import crontab

from broker_common.adapters.celery_names import JOBS_QUEUE, task_name
from broker_common.core.jobs import Job

if TYPE_CHECKING:
    from broker_common.settings import Settings

_PURGE_HOUR_UTC = 2
# A second beat takes over within these, one after the other.
_LOCK_SEC = 5
_TICK_SEC = 1


def beat_config(settings: Settings) -> dict[str, Any]:
    """Return the part of Celery's configuration that beat uses."""
    schedules = {
        Job.SYNC: timedelta(seconds=settings.sync_interval_sec),
        Job.CLEANUP: timedelta(seconds=settings.cleanup_interval_sec),
        Job.EXPIRE: timedelta(seconds=settings.auto_expiry_interval_sec),
        Job.PURGE_STALE: crontab(hour=_PURGE_HOUR_UTC, minute=0),
    }
    return {
        "beat_schedule": {
            job.value: {
                "task": task_name(job),
                "schedule": schedule,
                "options": {"queue": JOBS_QUEUE},
            }
            for job, schedule in schedules.items()
        },
        "beat_max_loop_interval": _TICK_SEC,
        "redbeat_redis_url": settings.redis_url,
        "redbeat_redis_options": {"socket_connect_timeout": 2, "socket_timeout": 2},
        "redbeat_key_prefix": "sandbox-broker:beat:",
        "redbeat_lock_timeout": _LOCK_SEC,
    }
