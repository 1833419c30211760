"""What is counted and timed about every HTTP request, and where it is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import g, request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_flask_exporter import PrometheusMetrics  # type: ignore[import-untyped] # it ships no types
from prometheus_flask_exporter.multiprocess import (  # type: ignore[import-untyped] # the same
    GunicornInternalPrometheusMetrics,
)

from broker_api.runtime import services
from broker_common.adapters.prometheus_recorder import LATENCY_BUCKETS

if TYPE_CHECKING:
    from flask import Flask, Response

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"


def register_metrics(app: Flask) -> None:
    """Count and time every request of an application, refused and unknown ones too, and serve /metrics.

    With `PROMETHEUS_MULTIPROC_DIR` set, /metrics adds up all worker processes; without it an application has a registry
    of its own. The exporter's default metrics have other names than the contract's, so it exports only ours.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        exporter = GunicornInternalPrometheusMetrics.for_app_factory(export_defaults=False)
    else:
        exporter = PrometheusMetrics.for_app_factory(export_defaults=False, registry=CollectorRegistry())
    exporter.init_app(app)
    requests = Counter(
        "http_requests_total",
        "HTTP requests answered",
        ["method", "endpoint", "status"],
        registry=exporter.registry,
    )
    latency = Histogram(
        "broker_request_latency_seconds",
        "Time from a request's arrival at the application to its answer",
        ["method", "endpoint"],
        buckets=LATENCY_BUCKETS,
        registry=exporter.registry,
    )

    @app.before_request
    def begin() -> None:
        g.started = services().clock.monotonic()

    @app.after_request
    def count(response: Response) -> Response:
        # Labels come from closed sets: neither a path nor a method that a caller makes up becomes one.
        endpoint = request.url_rule.rule if request.url_rule is not None else _OTHER
        method = request.method if request.method in _METHODS else _OTHER
        requests.labels(method, endpoint, str(response.status_code)).inc()
        latency.labels(method, endpoint).observe(services().clock.monotonic() - g.started)
        return response
