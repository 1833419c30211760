"""The health checks and metrics of the console.

They answer everybody who reaches the port, like those of the API. The process cannot tell who is behind a proxy, so the
proxy keeps these paths inside. They have no data of the broker.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

from broker_api.console.runtime import runtime
from broker_api.current import current
from broker_api.metrics import serve_metrics
from broker_common.adapters.prometheus_recorder import LATENCY_BUCKETS

if TYPE_CHECKING:
    from flask import Response

    from broker_common.core.ports import Clock

blueprint = Blueprint("health", __name__)
_OTHER = "other"
_MOST_LABELS = 1024


@blueprint.get("/healthz")
def healthz() -> dict[str, Any]:
    """Say that the process runs."""
    return {"status": "healthy", "timestamp": runtime().clock.now()}


@blueprint.get("/readyz")
def readyz() -> dict[str, Any]:
    """Say that the process can serve pages. It can while the API is away: it shows the last known state."""
    return {"status": "ready", "timestamp": runtime().clock.now()}


def register_metrics(app: Flask, registry: CollectorRegistry, clock: Clock) -> None:
    """Count and time every page of `app`, and serve /metrics, with the memory and processor time of the process."""
    serve_metrics(app, registry, collectors=(ProcessCollector(registry=None),))
    pages = Counter(
        "broker_console_requests_total",
        "Requests that the console answered",
        ["method", "endpoint", "status"],
        registry=registry,
    )
    latency = Histogram(
        "broker_console_request_seconds",
        "Time from a request's arrival at the console to its answer",
        ["method", "endpoint"],
        buckets=LATENCY_BUCKETS,
        registry=registry,
    )
    pages_of, latency_of = lru_cache(_MOST_LABELS)(pages.labels), lru_cache(_MOST_LABELS)(latency.labels)

    @app.after_request
    def count(response: Response) -> Response:
        request = current()
        # Labels come from closed sets: a path or method that a caller invents does not become a label.
        endpoint = request.url_rule.rule if request.url_rule is not None else _OTHER
        method = request.method if request.method in {"GET", "HEAD", "POST"} else _OTHER
        pages_of(method, endpoint, response.status_code).inc()
        latency_of(method, endpoint).observe(clock.monotonic() - request.began_at)
        return response
