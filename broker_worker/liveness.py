"""Whether this process still does its work: what /healthz says of a worker and of beat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.bootsteps import StartStopStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from celery.worker.consumer import Consumer

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
        if self._beat_at is None:
            return "it has not begun to work yet"
        idle_sec = self._monotonic() - self._beat_at
        return self._clock_problem() if idle_sec <= self._limit_sec else f"it has not worked for {idle_sec:.0f} s"


def watch_worker(app: Celery, pulse: Pulse) -> None:
    """Have a worker's pulse beat while it takes tasks.

    That is: its event loop turns, which it does only while its consumer is connected, and its pool has processes.
    Celery registers the timer anew with each connection, and drops it when the connection is lost.
    """

    class Watch(StartStopStep):
        def register_with_event_loop(self, consumer: Consumer, hub: Any) -> None:  # noqa: ANN401 - kombu leaves it untyped
            def turn() -> None:
                if consumer.pool.info["processes"]:
                    pulse.beat()

            turn()
            hub.call_repeatedly(_TURN_SEC, turn)

    app.steps["consumer"].add(Watch)
    signals.worker_shutting_down.connect(lambda **_: pulse.stop(), weak=False)
