"""The application that is deployed, but whose beat is told to stop while Python runs a destructor in its first tick."""

from __future__ import annotations

import signal

from celery.signals import before_task_publish

from broker_worker.celery_app import app as app  # noqa: PLC0414 - what `celery -A` looks for


class _Dropped:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


@before_task_publish.connect(weak=False)
def _drop(**_: object) -> None:
    _Dropped()
