"""The schedule of the jobs, and how several beats agree on one that sends them.

The schedule is in Redis. Each start of beat replaces it, and keeps only the times at which the jobs were last sent. So
a changed interval counts from the next start, and a job that is removed here is removed from Redis, too.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from celery.schedules import crontab

from broker_common.adapters.celery_names import JOBS_QUEUE, task_name
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Daily

if TYPE_CHECKING:
    from broker_common.core.jobs import Every, Jobs
    from broker_common.settings import Settings

# If a beat dies, another one takes over within the sum of these.
_LOCK_SEC = 5
_TICK_SEC = 1


def beat_config(settings: Settings, jobs: Jobs = JOBS) -> dict[str, Any]:
    """Return the part of Celery's configuration that beat uses."""
    return {
        "beat_schedule": {
            str(name): {
                "task": task_name(name),
                "schedule": _schedule(job.schedule, settings),
                "options": {"queue": JOBS_QUEUE},
            }
            for name, job in jobs.items()
        },
        "beat_max_loop_interval": _TICK_SEC,
        "redbeat_redis_url": settings.redis_url,
        "redbeat_redis_options": {"socket_connect_timeout": 2, "socket_timeout": 2},
        "redbeat_key_prefix": "sandbox-broker:beat:",
        "redbeat_lock_timeout": _LOCK_SEC,
    }


def _schedule(schedule: Every | Daily, settings: Settings) -> timedelta | crontab:
    if isinstance(schedule, Daily):
        return crontab(hour=schedule.hour, minute=0)
    return timedelta(seconds=getattr(settings, schedule.setting) if schedule.setting else schedule.seconds)
