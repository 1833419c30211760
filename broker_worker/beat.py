"""Beat: redbeat's scheduler, made to tick while it waits for its turn, and to end without Redis in one line."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from celery.apps.beat import Beat
from celery.beat import Service
from redbeat import schedulers as redbeat  # type: ignore[import-untyped] # it ships no types
from redis.exceptions import RedisError

from broker_worker.schedule import beat_config

if TYPE_CHECKING:
    from celery import Celery

    from broker_common.settings import Settings
    from broker_worker.liveness import Pulse

_log: structlog.stdlib.BoundLogger = structlog.get_logger("broker")


def set_up_beat(app: Celery, settings: Settings, pulse: Pulse) -> None:
    """Make an application fit for beat, and for nothing else.

    Its configuration holds the password of Redis, which Celery shows to anyone who inspects a worker.
    """
    # redbeat would wait for its lock there, in silence, and keep the handlers after its own from running.
    signals.beat_init.disconnect(redbeat.acquire_distributed_beat_lock)
    scheduler = functools.partial(_Scheduler, pulse=pulse)
    app.conf.update(beat_config(settings), beat_scheduler=scheduler)
    app.Beat = app.subclass_with_self(_Beat, name="Beat")  # type: ignore[misc] # the stubs do not know that it may be set


class _Scheduler(redbeat.RedBeatScheduler):  # type: ignore[misc] # redbeat ships no types
    """redbeat's scheduler; of several one sends, and the others ask for its lock at each tick."""

    def __init__(self, *args: Any, pulse: Pulse, **kwargs: Any) -> None:  # noqa: ANN401 - Celery's signature
        self._pulse = pulse
        super().__init__(*args, **kwargs)

    def tick(self, **kwargs: Any) -> float:  # noqa: ANN401 - Celery's signature
        """Send what is due if it is this one's turn; return after how many seconds to be called again."""
        self._pulse.beat()
        if self.lock is None and not self._takes_its_turn():
            return float(self.max_interval)
        return float(super().tick(**kwargs))

    def _takes_its_turn(self) -> bool:
        redis = redbeat.get_redis(self.app)
        lock = redis.lock(self.lock_key, timeout=self.lock_timeout)
        # As redbeat has it: redis-py's own script would add to the time that is left.
        lock.lua_extend = redis.register_script(redbeat.LUA_EXTEND_TO_SCRIPT)
        if not lock.acquire(blocking=False):
            return False
        self.lock = lock
        _log.info("Acquired lock: this beat sends the jobs")
        return True


class _Service(Service):
    """Celery's loop around the scheduler."""

    def start(self, embedded_process: bool = False) -> None:
        """Run until told to stop; without Redis, or without its turn any more, end the process with 1."""
        try:
            super().start(embedded_process=embedded_process)
        except RedisError as error:
            _log.error("Beat ends: Redis does not answer, or the lock was lost", action="beat", error=str(error))
            sys.exit(1)


class _Beat(Beat):
    """Celery's beat without the banner."""

    Service = _Service

    def __init__(self, *, quiet: bool = True, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 - Celery's signature
        super().__init__(quiet=True, **kwargs)
