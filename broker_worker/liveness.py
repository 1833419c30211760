"""Whether this process still does its work: what /healthz says of a worker and of beat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.bootsteps import StartStopStep
from celery.worker.state import active_requests
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer
    from redis import Redis

_TURN_SEC = 1


class Pulse:
    """When a process was last seen at work; written by its main thread, read by the one that serves /healthz."""

    def __init__(
        self,
        limit_sec: float,
        *,
        clock_problem: Callable[[], str | None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Call the process dead `limit_sec` after its last beat, and unwell while its clock has a problem."""
        self._limit_sec = limit_sec
        self._clock_problem = clock_problem
        self._monotonic = monotonic
        self._beat_at: float | None = None
        self._is_stopping = False

    def beat(self) -> None:
        """Note that the process is at work."""
        self._beat_at = self._monotonic()

    def stop(self) -> None:
        """Note that the process was told to stop: what it finishes now may take its time."""
        self._is_stopping = True

    def problem(self) -> str | None:
        """Say what is wrong; None while the process is well."""
        if self._is_stopping:
            return None
        if problem := self._clock_problem():
            return problem
        if self._beat_at is None:
            return "it has not begun to work yet"
        idle_sec = self._monotonic() - self._beat_at
        return None if idle_sec <= self._limit_sec else f"it has not worked for {idle_sec:.0f} s"


def watch_worker(app: Celery, pulse: Pulse, redis: Redis) -> None:
    """Have a worker's pulse beat while it does its work.

    That is: its event loop turns, which it does only while its consumer is connected; its pool has processes; and its
    queues do not keep work that it could take. Celery registers the timer again with each connection, and drops it when
    the connection is lost.
    """
    work = _Work(redis)

    class Watch(StartStopStep):
        def register_with_event_loop(self, consumer: Consumer, hub: Any) -> None:  # noqa: ANN401 - kombu leaves it untyped
            def turn() -> None:
                if consumer.pool.info["processes"] and work.goes_on(consumer):
                    pulse.beat()

            turn()
            hub.call_repeatedly(_TURN_SEC, turn)

    app.steps["consumer"].add(Watch)
    signals.worker_shutting_down.connect(lambda **_: pulse.stop(), weak=False)


class _Work:
    """Whether a worker takes the work that waits for it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._has_taken = False
        # What cannot be read is off the queue, too.
        for signal in (signals.task_received, signals.task_rejected):
            signal.connect(self._note, weak=False)

    def goes_on(self, consumer: Consumer) -> bool:
        """Tell whether it has taken something since the last call, cannot take more now, or finds nothing to take."""
        has_taken, self._has_taken = self._has_taken, False
        return has_taken or len(active_requests) >= consumer.pool.num_processes or not self._waits(consumer)

    def _note(self, **_: object) -> None:
        self._has_taken = True

    def _waits(self, consumer: Consumer) -> bool:
        """Tell whether one of the consumer's queues holds work; so it seems where Redis refuses to say."""
        try:
            queues = consumer.task_consumer.queues  # type: ignore[attr-defined] # the stubs leave it out
            return any(self._redis.llen(queue.name) for queue in queues)
        except RedisError:
            return True
