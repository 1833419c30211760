"""Serve /metrics and /healthz of a worker and of beat. The metrics of a pool's processes are added up."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from socket import AI_PASSIVE, SHUT_RDWR, SOCK_STREAM, getaddrinfo
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from celery import signals
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, make_wsgi_app, values
from prometheus_client.exposition import ThreadingWSGIServer

from broker_common.adapters.celery_names import task_name
from broker_common.adapters.prometheus_files import ProcessesCollector
from broker_common.core.job_registry import JOBS
from broker_common.startup import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socketserver import BaseRequestHandler
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from broker_common.adapters.prometheus_collectors import CircuitCollector, QueueCollector
    from broker_worker.liveness import Pulse


_MOST_CONNECTIONS = 32
"""Enough, because there are only a few probes and scrapes a minute."""

_log = logging.getLogger(__name__)


def share_metrics_through(directory: str) -> None:
    """Keep the metrics of this process and its forked processes in files of `directory`. Remove old files first.

    Call this before any metric is made.
    """
    for left_over in Path(directory).glob("*.db"):
        left_over.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    # The library reads the variable only when it is imported. Celery's command line imports it, through Flower, before
    # it loads this application.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call] # the library leaves it untyped


def serve_worker(pulse: Pulse, *, address: str, port: int, directory: str, circuit: CircuitCollector) -> None:
    """Serve from the worker's main process, from its start on, even while it waits for Redis."""
    dropped = Counter("broker_messages_dropped_total", "Messages that could not be read and were dropped")

    def count(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        dropped.inc()

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        registry = CollectorRegistry()
        registry.register(ProcessesCollector(directory, compacts=True))
        ProcessCollector(registry=registry)
        registry.register(circuit)
        _serve(registry, pulse, address, port)

    signals.worker_init.connect(serve, weak=False)
    signals.task_rejected.connect(count, weak=False)


def serve_beat(pulse: Pulse, *, address: str, port: int, queues: QueueCollector) -> None:
    """Serve from the start on, even while another beat sends the jobs."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(queues)
    sent = Counter("broker_beat_sent_total", "Jobs that this beat has sent", ["job"], registry=registry)
    names = {task_name(job): sent.labels(job) for job in JOBS}

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        _serve(registry, pulse, address, port)

    def count(sender: str, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        if sender in names:  # pragma: no branch - other names only if somebody adds them to Redis by hand
            names[sender].inc()

    signals.beat_init.connect(serve, weak=False)
    signals.after_task_publish.connect(count, weak=False)


def _serve(registry: CollectorRegistry, pulse: Pulse, address: str, port: int) -> None:
    """Serve in a thread. If the port cannot be opened, end the process with status 2."""
    # Not by start_http_server: it serves before another path can be added, so /healthz would answer 200 at once.
    application = _with_health(make_wsgi_app(registry), pulse)
    try:
        server = make_server(address, port, application, _Server, _Handler)
    except OSError as error:
        refuse(f"METRICS_PORT: Cannot listen on port {port} of {address}: {error.strerror}.")
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    # The processes of a pool must not keep the port open after this process has ended.
    os.register_at_fork(after_in_child=server.socket.close)


class _Server(ThreadingWSGIServer):
    """A server on an IPv4 or IPv6 address. It limits its connections, because each has a thread."""

    request_queue_size = 128
    """The default is 5. Then a few clients at the same time would make others wait and connect again."""

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self.address_family = getaddrinfo(*address, type=SOCK_STREAM, flags=AI_PASSIVE)[0][0]
        super().__init__(address, handler)
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}
        """The open connections, oldest first."""

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's signature
        """Serve a connection. If there are too many, close the oldest one first."""
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                # Its thread waits for the client, and then finds that the connection is closed.
                with suppress(OSError):
                    oldest.shutdown(SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the library's signature
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - the library's signature
        """Do not log that a client has gone. The application answers and logs its own errors."""
        _log.debug("a connection for metrics has broken", exc_info=True)


class _Handler(WSGIRequestHandler):
    """Logs no requests, because probes and scrapes would fill the log."""

    timeout = 10
    """Seconds to wait for a client that does not send and does not read."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _with_health(metrics: WSGIApplication, pulse: Pulse) -> WSGIApplication:
    """Answer /healthz from the pulse, and every other path with the metrics."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/healthz":
            return metrics(environ, start_response)
        problem = pulse.problem()
        status = HTTPStatus.OK if problem is None else HTTPStatus.SERVICE_UNAVAILABLE
        body = {"status": "healthy" if problem is None else "unhealthy", "timestamp": int(time.time())}
        if problem is not None:
            body["error"] = problem
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return answer
