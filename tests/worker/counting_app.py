"""The application that is deployed, which also notes in Redis each time that its services are built, and for how much."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from unittest.mock import patch

from redis import Redis

from broker_common import services

if TYPE_CHECKING:
    from broker_common.adapters.traces import Traces
    from broker_common.services import WorkerServices
    from broker_common.settings import Settings

_build = services.build_worker_services


def _build_and_note(settings: Settings, *, tasks: int, traces: Traces) -> WorkerServices:
    with Redis.from_url(settings.redis_url) as redis:
        redis.rpush("built", f"{os.getpid()} {tasks}")
    return _build(settings, tasks=tasks, traces=traces)


with patch.object(services, "build_worker_services", _build_and_note):
    from broker_worker.celery_app import app as app  # noqa: PLC0414 - what `celery -A` looks for
