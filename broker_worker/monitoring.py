"""What a worker and beat serve to those that watch them: /metrics (a pool's processes added up) and /healthz."""

from __future__ import annotations

import json
import os
import threading
import time
from http import HTTPStatus
from pathlib import Path
from socket import AI_PASSIVE, SOCK_STREAM, getaddrinfo
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from celery import signals
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, make_wsgi_app, values
from prometheus_client.exposition import ThreadingWSGIServer

from broker_common.adapters.celery_names import task_name
from broker_common.adapters.prometheus_files import ProcessesCollector
from broker_common.core.jobs import Job
from broker_common.startup import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socketserver import BaseRequestHandler
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from broker_common.adapters.prometheus_collectors import CircuitCollector
    from broker_worker.liveness import Pulse


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

    def serve(**_: Any) -> None:  # noqa: ANN401 - Celery's signature
        registry = CollectorRegistry()
        registry.register(ProcessesCollector(directory, compacts=True))
        ProcessCollector(registry=registry)
        registry.register(circuit)
        _serve(registry, pulse, address, port)

    signals.worker_init.connect(serve, weak=False)


def serve_beat(pulse: Pulse, *, address: str, port: int) -> None:
    """Serve from the start on, also while another beat is the one that sends."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    sent = Counter("broker_beat_sent_total", "Jobs that this beat has sent", ["job"], registry=registry)
    names = {task_name(job): sent.labels(job.value) for job in Job}

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
    """A server on an address of either family."""

    def __init__(self, address: tuple[str, int], handler: type[BaseRequestHandler]) -> None:
        self.address_family = getaddrinfo(*address, type=SOCK_STREAM, flags=AI_PASSIVE)[0][0]
        super().__init__(address, handler)


class _Handler(WSGIRequestHandler):
    """Serves in silence: a line for each probe and scrape would drown the log."""

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
