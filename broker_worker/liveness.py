"""Tell whether a worker or beat still does its work. /healthz answers this."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery import signals
from celery.bootsteps import StartStopStep
from celery.worker.state import active_requests
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer
    from celery.worker.request import Request
    from redis import Redis

_TURN_SEC = 1
# After its time limit, a task whose process was ended needs a moment until Celery knows it.
_HANGS_AFTER_SEC = 30


class Pulse:
    """When a process last worked. Its main thread writes this; the thread that serves /healthz reads it."""

    def __init__(
        self,
        limit_sec: float,
        *,
        clock_problem: Callable[[], str | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call the process unhealthy `limit_sec` after its last beat, and while its clock has a problem."""
        self._limit_sec = limit_sec
        self._clock_problem = clock_problem
        self._monotonic = monotonic
        self._beat_at: float | None = None
        self._is_stopping = False

    def beat(self) -> None:
        """Note that the process works."""
        self._beat_at = self._monotonic()

    def stop(self) -> None:
        """Note that the process was told to stop. From now on it has no limit, because running tasks may take long."""
        self._is_stopping = True

    def problem(self) -> str | None:
        """Say what is wrong; None while the process is healthy."""
        if self._is_stopping:
            return None
        if problem := self._clock_problem():
            return problem
        if self._beat_at is None:
            return "it has not started to work yet"
        idle_sec = self._monotonic() - self._beat_at
        return None if idle_sec <= self._limit_sec else f"it has not worked for {idle_sec:.0f} s"


def watch_worker(app: Celery, pulse: Pulse, redis: Redis, *, monotonic: Callable[[], float] = time.monotonic) -> None:
    """Make the pulse of a worker beat while the worker does its work.

    A worker works if its event loop turns, its pool can work, no task hangs, and it takes the work that waits in its
    queues. The event loop turns only while the consumer is connected. Celery registers the timer again with each
    connection, and drops it when the connection is lost.
    """
    work = _Work(redis)
    tasks = _Tasks(monotonic)

    class Watch(StartStopStep):
        def register_with_event_loop(self, consumer: Consumer, hub: Any) -> None:  # noqa: ANN401 - kombu leaves it untyped
            def turn() -> None:
                if _can_work(consumer.pool) and not tasks.hang() and work.is_taken(consumer):
                    pulse.beat()

            turn()
            hub.call_repeatedly(_TURN_SEC, turn)

    app.steps["consumer"].add(Watch)
    signals.worker_shutting_down.connect(lambda **_: pulse.stop(), weak=False)


def _can_work(pool: Any) -> bool:  # noqa: ANN401 - Celery leaves its pools untyped
    """Tell whether a pool of processes has one left. A pool of threads lives as long as this process."""
    return bool(pool.info.get("processes", True))


class _Tasks:
    """Tells whether a task runs longer than it may. A thread that hangs can only be ended with its process."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # When each task was first seen at work. Only the main thread adds to it. Celery's own set of tasks cannot be
        # iterated here, because the threads of the pool add to it meanwhile.
        self._seen_at: WeakKeyDictionary[Request, float | None] = WeakKeyDictionary()
        signals.task_received.connect(self._note, weak=False)

    def hang(self) -> bool:
        """Tell whether a task has run for longer than its time limit and a margin."""
        now = self._monotonic()
        for request, seen_at in self._seen_at.items():
            if request not in active_requests:
                continue
            if seen_at is None:
                self._seen_at[request] = now
            # Every task of this broker has a time limit.
            elif now - seen_at > request.task.time_limit + _HANGS_AFTER_SEC:  # type: ignore[operator]
                return True
        return False

    def _note(self, request: Request | None = None, **_: object) -> None:
        if request is not None:
            self._seen_at[request] = None


class _Work:
    """Tells whether a worker takes the work that waits for it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._has_taken = False
        # A message that cannot be read was also taken from the queue.
        for signal in (signals.task_received, signals.task_rejected):
            signal.connect(self._note, weak=False)

    def is_taken(self, consumer: Consumer) -> bool:
        """Tell whether the worker took a task since the last call, cannot take more now, or has no task to take."""
        has_taken, self._has_taken = self._has_taken, False
        return has_taken or len(active_requests) >= consumer.pool.num_processes or not self._waits(consumer)

    def _note(self, **_: object) -> None:
        self._has_taken = True

    def _waits(self, consumer: Consumer) -> bool:
        """Tell whether one of the consumer's queues has work. If Redis does not answer, assume that it has."""
        try:
            queues = consumer.task_consumer.queues  # type: ignore[attr-defined] # the stubs leave it out
            return any(self._redis.llen(queue.name) for queue in queues)
        except RedisError:
            return True
