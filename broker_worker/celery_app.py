"""The module that `celery -A broker_worker.celery_app worker|beat|flower` loads. Only this one reads the environment.

Flower, and the commands that inspect a worker, need the same settings as beat.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.concurrency import get_implementation
from celery.concurrency.thread import TaskPool as ThreadPool

from broker_common.adapters.dynamo_time import make_time_reader
from broker_common.adapters.system_clock import SystemClock
from broker_common.adapters.traces import NO_TRACES
from broker_common.logs import configure_logging
from broker_common.services import (
    build_circuit_collector,
    build_queue_collector,
    build_worker_services,
    connect_redis,
)
from broker_common.settings import Process
from broker_common.startup import read_settings
from broker_common.table_check import check_table
from broker_common.traces import start_traces
from broker_worker.app import create_celery
from broker_worker.beat import BeatHealth, set_up_beat
from broker_worker.clock_watch import ClockWatch
from broker_worker.flower import set_up_flower
from broker_worker.liveness import Pulse, watch_worker
from broker_worker.monitoring import serve_beat, serve_worker, share_metrics_through
from broker_worker.quiet import leave_out_frequent_tasks

if TYPE_CHECKING:
    from celery import Celery

    from broker_common.settings import Settings


def _create() -> Celery:
    command = next((word for word in sys.argv[1:] if word in {"worker", "beat", "flower"}), None)
    process = Process.WORKER if command == "worker" else Process.BEAT
    settings = read_settings(os.environ, process=process)
    tasks_at_once = 1
    watched = _Watched(settings, process)
    get_services = functools.cache(lambda: build_worker_services(settings, tasks=tasks_at_once, traces=watched.traces))
    signals.setup_logging.connect(watched.set_up_logging, weak=False)
    app = create_celery(settings, get_services)
    if command == "worker":
        watch = _watch_clock(settings)
        pulse = Pulse(settings.liveness_limit_sec, clock_problem=watch.problem)
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or _own_directory()
        share_metrics_through(directory)
        signals.worker_init.connect(lambda **_: check_table(settings), weak=False)
        watched.trace_each_process()
        signals.worker_process_init.connect(lambda **_: get_services(), weak=False)

        @signals.worker_init.connect(weak=False)
        def build_before_threads(sender: Any, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
            """Build the services for a pool of threads.

            It sends no `worker_process_init`, and several threads would each build them.
            """
            nonlocal tasks_at_once
            if get_implementation(sender.pool_cls) is ThreadPool:
                tasks_at_once = sender.concurrency
                watched.start_traces()
                get_services()

        if settings.metrics_port:  # pragma: no branch - the tests start a beat without it, and no worker
            signals.worker_init.connect(lambda **_: watch.start(), weak=False)
            watch_worker(app, pulse, connect_redis(settings))
            serve_worker(
                pulse,
                address=settings.api_bind,
                port=settings.metrics_port,
                directory=directory,
                circuit=build_circuit_collector(settings),
            )
    elif command == "beat":
        watch = _watch_clock(settings)
        health = BeatHealth(settings.liveness_limit_sec, clock_problem=watch.problem)
        if settings.metrics_port:
            serve_beat(
                health,
                address=settings.api_bind,
                port=settings.metrics_port,
                queues=build_queue_collector(settings),
            )
        signals.beat_init.connect(lambda **_: watch.start(), weak=False)
        signals.beat_init.connect(watched.start_traces, weak=False)
        set_up_beat(app, settings, health, watch)
    elif command == "flower":
        set_up_flower(settings, os.environ)
    return app


class _Watched:
    """The log and the traces of this process."""

    def __init__(self, settings: Settings, process: Process) -> None:
        self.traces = NO_TRACES
        self._settings = settings
        self._process = process

    def set_up_logging(self, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        """Send log lines to stdout, in the broker's format."""
        configure_logging(level=self._settings.log_level, fmt=self._settings.log_format, fields=self.traces.log_fields)
        leave_out_frequent_tasks()

    def start_traces(self, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        """Start the traces that the settings ask for. Call it after the fork."""
        self.traces = start_traces(self._settings, self._process)
        if self.traces is not NO_TRACES:
            self.set_up_logging()  # again, with the ids of traces

    def trace_each_process(self) -> None:
        """Start the traces of each process of a pool, and stop them at its end."""
        signals.worker_process_init.connect(self.start_traces, weak=False)
        # Celery ends these processes without Python's own end.
        signals.worker_process_shutdown.connect(lambda **_: self.traces.stop(), weak=False)


def _watch_clock(settings: Settings) -> ClockWatch:
    reader = make_time_reader(region=settings.aws_region, endpoint_url=settings.ddb_endpoint_url, timeout_sec=1)
    return ClockWatch(reader, SystemClock())


def _own_directory() -> str:
    """Make a directory that is removed when this process ends."""
    directory = tempfile.mkdtemp(prefix="sandbox-broker-metrics-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


app = _create()
