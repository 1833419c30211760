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
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.concurrency import get_implementation
from celery.concurrency.thread import TaskPool as ThreadPool

from broker_common.adapters.dynamo_time import make_time_reader
from broker_common.adapters.system_clock import SystemClock
from broker_common.logs import configure_logging
from broker_common.services import build_circuit_collector, build_worker_services, connect_redis
from broker_common.settings import Process
from broker_common.startup import read_settings
from broker_common.table_check import check_table
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
    get_services = functools.cache(lambda: build_worker_services(settings, tasks=tasks_at_once))
    signals.setup_logging.connect(partial(_set_up_logging, settings), weak=False)
    app = create_celery(settings, get_services)
    if command == "worker":
        watch = _watch_clock(settings)
        pulse = Pulse(settings.liveness_limit_sec, clock_problem=watch.problem)
        directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or _own_directory()
        share_metrics_through(directory)
        signals.worker_init.connect(lambda **_: check_table(settings), weak=False)
        signals.worker_process_init.connect(lambda **_: get_services(), weak=False)

        @signals.worker_init.connect(weak=False)
        def build_before_threads(sender: Any, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
            """Build the services for a pool of threads.

            It sends no `worker_process_init`, and several threads would each build them.
            """
            nonlocal tasks_at_once
            if get_implementation(sender.pool_cls) is ThreadPool:
                tasks_at_once = sender.concurrency
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
            serve_beat(health, address=settings.api_bind, port=settings.metrics_port)
        signals.beat_init.connect(lambda **_: watch.start(), weak=False)
        set_up_beat(app, settings, health, watch)
    elif command == "flower":
        set_up_flower(settings, os.environ)
    return app


def _set_up_logging(settings: Settings, **_: object) -> None:
    configure_logging(level=settings.log_level, fmt=settings.log_format)
    leave_out_frequent_tasks()


def _watch_clock(settings: Settings) -> ClockWatch:
    reader = make_time_reader(region=settings.aws_region, endpoint_url=settings.ddb_endpoint_url, timeout_sec=1)
    return ClockWatch(reader, SystemClock())


def _own_directory() -> str:
    """Make a directory that is removed when this process ends."""
    directory = tempfile.mkdtemp(prefix="sandbox-broker-metrics-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


app = _create()
