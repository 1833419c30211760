# ruff: noqa: INP001 - gunicorn reads this file by its path; it is no module
"""Gunicorn's configuration for the API: `gunicorn -c deploy/gunicorn.conf.py broker_api.wsgi:app`.

Settings come from the environment (`broker_common/settings.py`). Gunicorn's own variables are not needed.
This file checks the settings and the table before gunicorn forks a worker. A fault ends gunicorn with exit code 2.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# prometheus_client reads this variable when it is imported, and the imports below import it.
_makes_metrics_dir = not os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "")

from broker_api.bounds import BULK_DEADLINE_SEC  # noqa: E402 - after the variable is set
from broker_api.gunicorn_worker import Worker  # noqa: E402 - the same
from broker_api.serving import common_settings  # noqa: E402 - the same
from broker_api.sharing import OF_THIS_SERVER  # noqa: E402 - the same
from broker_common.adapters.prometheus_files import forget_process  # noqa: E402 - the same
from broker_common.settings import Process  # noqa: E402 - the same
from broker_common.startup import read_settings  # noqa: E402 - the same
from broker_common.table_check import check_table  # noqa: E402 - the same

_settings = read_settings(os.environ, process=Process.API)

globals().update(common_settings(_settings))
bind = f"{_settings.api_bind}:{_settings.api_port}"
workers = _settings.api_workers
worker_class = Worker
threads = _settings.api_threads
# From SIGTERM to SIGKILL: the drain, then the longest call that may be running. In this time, a track's call may also
# wait for a thread.
graceful_timeout = math.ceil(_settings.shutdown_drain_sec + max(_settings.request_deadline_sec, BULK_DEADLINE_SEC) + 5)


def on_starting(server: Any) -> None:  # noqa: ANN401, ARG001 - gunicorn's arbiter
    """Check the table once, and empty the directory of metrics.

    The check runs in a process of its own, because clients must be made after a fork.
    """
    trial = multiprocessing.get_context("fork").Process(target=check_table, args=(_settings,))
    trial.start()
    trial.join()
    if trial.exitcode:
        sys.exit(trial.exitcode)
    if _makes_metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="broker-metrics-")
    metrics_dir = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    metrics_dir.mkdir(parents=True, exist_ok=True)
    for file in metrics_dir.glob("*.db"):
        file.unlink()


def post_worker_init(worker: Any) -> None:  # noqa: ANN401, ARG001 - gunicorn's worker
    """Keep the garbage collector away from what was loaded, and call it less often.

    Requests leave few cycles behind. By default it looks for some after each 700 new objects, which a request makes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def child_exit(server: Any, worker: Any) -> None:  # noqa: ANN401 - gunicorn's arbiter and worker
    """Forget the connections of an ended worker, add its counts to few files, and remove its gauges."""
    OF_THIS_SERVER.forget(worker.age)
    try:
        forget_process(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), worker.pid)
    except OSError:  # a full disk must not stop the API
        server.log.exception("the metrics of worker %d could not be compacted", worker.pid)


def on_exit(server: Any) -> None:  # noqa: ANN401, ARG001 - gunicorn's arbiter
    """Remove the directory of metrics, if this file made it."""
    if _makes_metrics_dir:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
