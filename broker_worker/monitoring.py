"""What a worker and beat serve to those that watch them: /metrics (a pool's processes added up) and /healthz."""

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

    from broker_common.adapters.prometheus_collectors import CircuitCollector
    from broker_worker.liveness import Pulse


_MOST_CONNECTIONS = 32
"""Probes and scrapes are a few a minute."""

_log = logging.getLogger(__name__)


def share_metrics_through(directory: str) -> None:
    """Have the metrics of this process and of those that it forks kept in files of one directory, emptied first.

    To be called before any metric is made.
    """
    for left_over in Path(directory).glob("*.db"):
        left_over.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    # The library looks at the variable when it is imported, and Celery's command line imports it (through Flower)
    # before it loads this application.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call] # the library leaves it untyped


def serve_worker(pulse: Pulse, *, address: str, port: int, directory: str, circuit: CircuitCollector) -> None:
    """Serve from the worker's main process, from its start on, also while it waits for Redis."""
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


def serve_beat(pulse: Pulse, *, address: str, port: int) -> None:
    """Serve from the start on, also while another beat is the one that sends."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    sent = Counter("broker_beat_sent_total", "Jobs that this beat has sent", ["job"], registry=registry)
    names = {task_name(job): sent.labels(job) for job in JOBS}

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        _serve(registry, pulse, address, port)

    def count(sender: str, **_: Any) -> None:  # noqa: ANN401 - Celery's signature
        if sender in names:  # pragma: no branch - others only where somebody puts them into Redis by hand
            names[sender].inc()

    signals.beat_init.connect(serve, weak=False)
    signals.after_task_publish.connect(count, weak=False)


def _serve(registry: CollectorRegistry, pulse: Pulse, address: str, port: int) -> None:
    """Serve in a thread; a port that cannot be had ends the process with 2."""
    # Not by start_http_server, which serves before it can be told of another path: /healthz would be green at once.
    application = _with_health(make_wsgi_app(registry), pulse)
    try:
        server = make_server(address, port, application, _Server, _Handler)
    except OSError as error:
        refuse(f"METRICS_PORT: Nothing can listen on port {port} of {address}: {error.strerror}.")
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    # A pool's processes must not hold the port when this one is gone.
    os.register_at_fork(after_in_child=server.socket.close)


class _Server(ThreadingWSGIServer):
    """A server on an address of either family. Its connections, each of which has a thread, are bounded."""

    request_queue_size = 128
    """By itself it is 5: a few clients at once would have the others' kernels wait and try again."""

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self.address_family = getaddrinfo(*address, type=SOCK_STREAM, flags=AI_PASSIVE)[0][0]
        super().__init__(address, handler)
        self._lock = threading.Lock()
        self._open: dict[Any, None] = {}
        """The connections in the order in which they came."""

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the library's signature
        """Serve a connection; where there are too many, the oldest one makes room for it."""
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                # Its thread, which waits for the client, then finds that there is none.
                with suppress(OSError):
                    oldest.shutdown(SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the library's signature
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 - the library's signature
        """Say nothing of a client that has gone; what goes wrong in the application is answered and logged there."""
        _log.debug("a connection for metrics has broken", exc_info=True)


class _Handler(WSGIRequestHandler):
    """Serves in silence: a line for each probe and scrape would drown the log."""

    timeout = 10
    """Seconds to wait for a client that sends nothing, or takes nothing."""

    def log_message(self, *_: object) -> None:
        """Leave it out."""


def _with_health(metrics: WSGIApplication, pulse: Pulse) -> WSGIApplication:
    """Answer /healthz from the pulse, and leave every other path to the metrics."""

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
