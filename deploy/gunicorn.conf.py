# ruff: noqa: INP001 - gunicorn reads this file by its path; it is no module
"""How gunicorn serves the API: `gunicorn -c deploy/gunicorn.conf.py broker_api.wsgi:app`.

Settings come from the environment (`broker_common/settings.py`); none of gunicorn's own variables is needed.
What makes a start impossible is found here, before any worker is forked, and ends gunicorn with exit code 2.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# prometheus_client looks whether this is set when it is imported, which the imports below do.
_makes_metrics_dir = not os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", "")

from gunicorn import glogging  # type: ignore[import-untyped] # noqa: E402 - after the variable is set; it ships no types

from broker_api.bounds import BULK_DEADLINE_SEC  # noqa: E402 - the same
from broker_api.gunicorn_worker import Worker  # noqa: E402 - the same
from broker_common.adapters.prometheus_files import forget_process  # noqa: E402 - the same
from broker_common.logs import configure_logging  # noqa: E402 - the same
from broker_common.settings import Process  # noqa: E402 - the same
from broker_common.startup import check_table, read_settings  # noqa: E402 - the same

_settings = read_settings(os.environ, process=Process.API)


class Logger(glogging.Logger):  # type: ignore[misc] # gunicorn ships no types
    """gunicorn's logger, writing like everything else in the process."""

    def setup(self, cfg: Any) -> None:  # noqa: ANN401 - gunicorn's configuration
        """Hand gunicorn's lines to the process's own handler."""
        super().setup(cfg)
        configure_logging(level=_settings.log_level, fmt=_settings.log_format)


bind = f"{_settings.api_bind}:{_settings.api_port}"
workers = _settings.api_workers
worker_class = Worker
threads = _settings.api_threads
# Longer than load balancers keep an idle connection (60 s is common): they must be the ones to close it.
keepalive = 75
# From SIGTERM to SIGKILL: the drain, then the longest call that may be in flight.
graceful_timeout = math.ceil(_settings.shutdown_drain_sec + max(_settings.request_deadline_sec, BULK_DEADLINE_SEC) + 5)
# Of each process; it is less where the limit of descriptors does not allow so many.
worker_connections = 1000
# Answers are made in memory and sent by the event loop.
sendfile = False
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
# No header of a request says where it came from or which path it names, whatever address it comes from: a proxy's rules
# would be passed by `SCRIPT_NAME`. What a trusted proxy adds is for the application to read (TRUSTED_PROXIES).
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers: dict[str, str] = {}
# A header with an underscore would become the same WSGI variable as its twin with a hyphen.
header_map = "drop"
logger_class = Logger
loglevel = _settings.log_level.lower()
# It would be a socket in the home directory that nobody asked for.
control_socket_disable = True


def on_starting(server: Any) -> None:  # noqa: ANN401, ARG001 - gunicorn's arbiter
    """Look at the table once, from a process of its own (clients are made after a fork); empty the metrics."""
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


def child_exit(server: Any, worker: Any) -> None:  # noqa: ANN401 - gunicorn's arbiter and worker
    """Keep what a worker that is gone has counted, in few files, and forget its gauges."""
    try:
        forget_process(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), worker.pid)
    except OSError:  # a full disk must not end the service
        server.log.exception("the metrics of worker %d could not be compacted", worker.pid)


def on_exit(server: Any) -> None:  # noqa: ANN401, ARG001 - gunicorn's arbiter
    """Remove the metrics directory that was made here."""
    if _makes_metrics_dir:
        shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
