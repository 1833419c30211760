"""Counts and times every HTTP request, and serves the metrics of all processes of the API."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_flask_exporter import PrometheusMetrics  # type: ignore[import-untyped] # it ships no types

from broker_api.current import current
from broker_api.runtime import runtime_of
from broker_common.adapters.prometheus_collectors import PoolCollector, ReservationCollector
from broker_common.adapters.prometheus_files import ProcessesCollector
from broker_common.adapters.prometheus_recorder import LATENCY_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask, Response
    from prometheus_client.registry import Collector

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"
_MOST_LABELS = 1024
"""More than there are label sets of requests."""


class _Exporter(PrometheusMetrics):  # type: ignore[misc] # it ships no types
    """The exporter, changed so that it serves one registry, which may hold collectors.

    With several processes, the original makes an empty registry at each scrape, and answers 500 to `name[]`.
    """

    def __init__(self, registry: CollectorRegistry, served: CollectorRegistry) -> None:
        # Its default metrics do not have this API's names.
        super().__init__(app=None, export_defaults=False, registry=registry)
        self._served = served

    def generate_metrics(self, accept_header: str | None = None, names: list[str] | None = None) -> tuple[str, str]:
        """Return the text of a scrape and its content type. With `names`, only these series are in it."""
        named = [name for name in names or () if name]
        encode, content_type = choose_encoder(accept_header or "")
        # The restricted registry has everything of a registry that an encoder uses.
        chosen = self._served.restricted_registry(named) if named else self._served
        return encode(chosen).decode(), content_type


def serve_metrics(app: Flask, registry: CollectorRegistry, *, collectors: Iterable[Collector]) -> None:
    """Serve /metrics with what `collectors` find at each scrape.

    With `PROMETHEUS_MULTIPROC_DIR` set, /metrics adds up the counts of all worker processes, including ended ones.
    Without it, /metrics shows `registry`. There are no `process_*` series: each scrape would show another process, and
    a counter that jumps between processes has no rate.
    """
    served = CollectorRegistry(support_collectors_without_names=True)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        served.register(ProcessesCollector(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    else:
        served.register(registry)
    for collector in collectors:
        served.register(collector)
    _Exporter(registry, served).init_app(app)


def register_metrics(app: Flask, registry: CollectorRegistry) -> None:
    """Count and time every request of `app`, also refused and unknown ones. Serve this and the pool's gauges."""
    here = runtime_of(app)
    pool = PoolCollector(here.services.pool_count, here.services.clock)
    reservations = ReservationCollector(
        here.services.reservations.current, here.services.clock, max_age=here.settings.pool_gauge_cache_sec
    )
    serve_metrics(app, registry, collectors=(pool, reservations))
    requests = Counter(
        "http_requests_total", "HTTP requests answered", ["method", "endpoint", "status"], registry=registry
    )
    latency = Histogram(
        "broker_request_latency_seconds",
        "Time from a request's arrival at the application to its answer",
        ["method", "endpoint"],
        buckets=LATENCY_BUCKETS,
        registry=registry,
    )

    # `labels` takes a lock and makes strings at each call.
    requests_of, latency_of = lru_cache(_MOST_LABELS)(requests.labels), lru_cache(_MOST_LABELS)(latency.labels)
    clock = here.services.clock

    @app.after_request
    def count(response: Response) -> Response:
        # Labels come from closed sets: a path or method that a caller invents does not become a label.
        request = current()
        rule, method = request.url_rule, request.method
        endpoint = rule.rule if rule is not None else _OTHER
        if method not in _METHODS:
            method = _OTHER
        requests_of(method, endpoint, response.status_code).inc()
        latency_of(method, endpoint).observe(clock.monotonic() - request.began_at)
        return response
