"""What is counted and timed about every HTTP request, and where all that the API's processes count is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from flask import g, request
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_flask_exporter import PrometheusMetrics  # type: ignore[import-untyped] # it ships no types

from broker_api.runtime import runtime_of, services
from broker_common.adapters.prometheus_collectors import PoolCollector
from broker_common.adapters.prometheus_files import ProcessesCollector
from broker_common.adapters.prometheus_recorder import LATENCY_BUCKETS

if TYPE_CHECKING:
    from flask import Flask, Response

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"


class _Exporter(PrometheusMetrics):  # type: ignore[misc] # it ships no types
    """The exporter, serving a registry that is made once and may hold collectors.

    By itself, where several processes are added up, it makes an empty registry at each scrape, and answers 500 to
    `name[]`.
    """

    def __init__(self, registry: CollectorRegistry, served: CollectorRegistry) -> None:
        # Its default metrics have other names than the contract's.
        super().__init__(app=None, export_defaults=False, registry=registry)
        self._served = served

    def generate_metrics(self, accept_header: str | None = None, names: list[str] | None = None) -> tuple[str, str]:
        """Return the text of a scrape, of the series in `names` if there are any, and its content type."""
        named = [name for name in names or () if name]
        encode, content_type = choose_encoder(accept_header or "")
        # The restricted registry has all of a registry that an encoder uses.
        chosen = self._served.restricted_registry(named) if named else self._served
        return encode(chosen).decode(), content_type


def register_metrics(app: Flask, registry: CollectorRegistry) -> None:
    """Count and time every request of an application, refused and unknown ones too, and serve /metrics.

    With `PROMETHEUS_MULTIPROC_DIR` set, /metrics adds up what all worker processes have counted, also those that are
    gone; without it, it shows `registry`. Beside that stand the pool's gauges. There is no process_*: it would be that
    of whichever process answers, and a counter that jumps from one process's value to another's has no rate.
    """
    served = CollectorRegistry(support_collectors_without_names=True)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        served.register(ProcessesCollector(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
    else:
        served.register(registry)
    here = runtime_of(app)
    served.register(PoolCollector(here.services.store, here.services.clock, max_age=here.settings.pool_gauge_cache_sec))
    _Exporter(registry, served).init_app(app)
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
