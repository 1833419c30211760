"""Beat: redbeat's scheduler, changed to tick while it waits for the lock, and to log one line if Redis is lost.

Its loop is ours, because a signal must not interrupt a tick.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import structlog
from celery import signals
from celery.apps.beat import Beat
from celery.beat import Service
from kombu.exceptions import OperationalError
from redbeat import schedulers as redbeat  # type: ignore[import-untyped] # it ships no types
from redis.exceptions import RedisError

from broker_common.adapters.celery_queue import queue_lengths
from broker_common.core.errors import QueueUnavailable
from broker_worker.liveness import Pulse
from broker_worker.schedule import beat_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from broker_common.settings import Settings
    from broker_worker.clock_watch import ClockWatch

_TELL_QUEUES_SEC = 60

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")


class BeatHealth(Pulse):
    """Watches whether beat ticks, has a correct clock, and sends the due jobs."""

    def __init__(
        self,
        limit_sec: float,
        *,
        clock_problem: Callable[[], str | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(limit_sec, clock_problem=clock_problem, monotonic=monotonic)
        self._due_since: float | None = None

    def fall_due(self) -> None:
        """Note that a job is due. If an earlier due job was not sent, the time counts from that one."""
        if self._due_since is None:
            self._due_since = self._monotonic()

    def send(self) -> None:
        """Note that a job was sent."""
        self._due_since = None

    def problem(self) -> str | None:
        """Say what is wrong; None while the process is healthy."""
        problem = super().problem()
        due_since = self._due_since
        if problem is not None or due_since is None:
            return problem
        waiting_sec = self._monotonic() - due_since
        if waiting_sec <= self._limit_sec:
            return None
        return f"a job has been due for {waiting_sec:.0f} s, but no job was sent"


def set_up_beat(app: Celery, settings: Settings, health: BeatHealth, watch: ClockWatch) -> None:
    """Configure an application for beat. Never call this for a worker.

    The configuration has the password of Redis, and Celery shows a worker's configuration to anyone who inspects it.
    """
    # This handler of redbeat waits silently for its lock, and keeps later handlers from running.
    signals.beat_init.disconnect(redbeat.acquire_distributed_beat_lock)
    scheduler = functools.partial(_Scheduler, health=health, watch=watch)
    # Before its first job, beat connects again. It must not retry for ever, as workers do: without Redis it ends.
    app.conf.update(beat_config(settings), beat_scheduler=scheduler, broker_connection_max_retries=0)
    app.Beat = app.subclass_with_self(_Beat, name="Beat")  # type: ignore[misc] # the stubs do not allow setting it


class _Scheduler(redbeat.RedBeatScheduler):  # type: ignore[misc] # redbeat ships no types
    """redbeat's scheduler. Of several beats, one has the lock and sends. The others try to get it at each tick."""

    lock: Any

    def __init__(self, *args: Any, health: BeatHealth, watch: ClockWatch, **kwargs: Any) -> None:  # noqa: ANN401 - Celery's signature
        self._health = health
        self._watch = watch
        self._logged_problem: str | None = None
        self._queues_told_at = float("-inf")
        super().__init__(*args, **kwargs)

    def tick(self, **kwargs: Any) -> float:  # noqa: ANN401 - Celery's signature
        """Send the due jobs if this beat has the lock. Return after how many seconds to call this again.

        With a wrong clock, this beat sends nothing and gives up the lock, so that another beat can send.
        """
        self._health.beat()
        if self._clock_is_wrong() or (self.lock is None and not self._acquire_lock()):
            return float(self.max_interval)
        self._correct_last_runs()
        self._tell_queues()
        if redbeat.get_redis(self.app).zcount(self.app.redbeat_conf.schedule_key, 0, self._now()):
            self._health.fall_due()
        return float(super().tick(**kwargs))

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's signature
        sent = super().apply_async(*args, **kwargs)
        self._health.send()
        return sent

    def _clock_is_wrong(self) -> bool:
        problem = self._watch.problem()
        if problem is None:
            self._logged_problem = None
            return False
        if self._logged_problem is None:
            self._logged_problem = problem
            _log.error("Beat sends nothing: its clock is wrong", action="beat", outcome="error", error=problem)
        if self.lock is not None:
            self.lock.release()
            self.lock = None
        return True

    def _correct_last_runs(self) -> None:
        """Set a last run that is in the future to now. Else its job would wait as long as the clock was ahead.

        If somebody has removed an entry from Redis, the whole schedule is written again.
        """
        now = self.app.now()
        for name in self.app.redbeat_conf.schedule:
            try:
                entry = self.Entry.from_key(self.Entry.generate_key(self.app, name), app=self.app)
            except KeyError:
                self.setup_schedule()
                return
            if entry.last_run_at is not None and entry.last_run_at > now:
                _log.warning("The last run of a job is in the future; it is set to now", action="beat", job=name)
                entry.reschedule(now)

    def _tell_queues(self) -> None:
        """Log once a minute how many messages wait in each queue. `deploy/terraform` scales workers by this line."""
        now = time.monotonic()
        if now - self._queues_told_at >= _TELL_QUEUES_SEC:
            self._queues_told_at = now
            try:
                lengths = queue_lengths(redbeat.get_redis(self.app))
            except QueueUnavailable as error:  # if Redis is away, the next call of this tick ends beat
                _log.warning("The lengths of the queues are unknown", action="beat", error=error.message)
            else:
                _log.info("Messages that wait in the queues", action="queues", messages=lengths)

    def _now(self) -> float:
        return float(redbeat.to_timestamp(self.app.now()))

    def _acquire_lock(self) -> bool:
        redis = redbeat.get_redis(self.app)
        lock = redis.lock(self.lock_key, timeout=self.lock_timeout)
        # The same as in redbeat. The script of redis-py would add to the remaining time.
        lock.lua_extend = redis.register_script(redbeat.LUA_EXTEND_TO_SCRIPT)
        if not lock.acquire(blocking=False):
            return False
        self.lock = lock
        _log.info("Acquired lock: this beat sends the jobs")
        return True


class _Service(Service):
    """The loop around the scheduler. A signal ends it between two ticks, and never within one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - Celery's signature
        super().__init__(*args, **kwargs)
        # Of the queues and events of Python, only this one may be used by the handler of a signal.
        self._told_to_stop: SimpleQueue[None] = SimpleQueue()

    def start(self, embedded_process: bool = False) -> None:  # noqa: ARG002 - Celery's signature
        """Run until a signal. Without Redis, or if the lock is lost, end the process with status 1."""
        try:
            scheduler = self.scheduler
            _log.info("Beat starts", action="beat")
            signals.beat_init.send(sender=self)
            try:
                while not self._is_told_to_stop_within(scheduler.tick()):
                    pass
            finally:
                self.sync()
        except (RedisError, OperationalError) as error:
            _log.error("Beat ends: Redis does not answer, or the lock was lost", action="beat", error=str(error))
            sys.exit(1)

    def stop(self, wait: bool = False) -> None:  # noqa: ARG002 - Celery's signature
        """End the loop after the tick that runs. The handler of a signal may call this at any time."""
        self._told_to_stop.put(None)

    def _is_told_to_stop_within(self, seconds: float) -> bool:
        try:
            self._told_to_stop.get(timeout=max(seconds, 0))
        except Empty:
            return False
        return True


class _Beat(Beat):
    """Celery's beat without its message at start, and with handlers of signals that cannot fail."""

    Service = _Service

    def __init__(self, *, quiet: bool = True, **kwargs: Any) -> None:  # noqa: ANN401, ARG002 - Celery's signature
        super().__init__(quiet=True, **kwargs)

    def install_sync_handler(self, service: _Service) -> None:  # type: ignore[override] # it is given its own
        """Have SIGTERM and SIGINT stop the loop.

        Celery's handler raises SystemExit. Python drops an exception that is raised in a destructor or in the callback
        of a weak reference, and that is where some signals arrive: beat would go on.
        """
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: service.stop())
