"""OpenTelemetry in one process: who makes spans, which of them are kept, and where they go.

OpenTelemetry itself reads the standard variables for where to send, what to sample, and how much to hold.
"""

from __future__ import annotations

import atexit
import logging
import os
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker_common.adapters.otel_spans import BoundedProcessor, CleanExporter
from broker_common.adapters.traces import Traces

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from flask import Flask
    from opentelemetry.context import Context
    from requests import PreparedRequest
    from structlog.typing import EventDict

# The library takes commas for separators, and searches in the whole URL.
_PROBES = r"^https?://[^/]*/(healthz|readyz|metrics)(\?.*)?$"
_PORTS = {"http": 80, "https": 443}
_SEMANTICS = "OTEL_SEMCONV_STABILITY_OPT_IN"


def find_problem() -> str | None:
    """Return which limit of spans is no number, in a variable that only OpenTelemetry reads; None if all is well."""
    try:
        SpanLimits()
    except ValueError as error:
        return f"{str(error).partition(' ')[0]}: Must be an integer of at least 0."  # its text begins with the variable
    return None


def start(service: str, *, api_url: str | None = None) -> OtelTraces:
    """Begin to make and send spans of this process. Of all servers, only the one at `api_url` gets a trace's id.

    Never call it before a fork: a thread sends the spans.
    """
    # The names of today. Without this, the libraries use those of years ago.
    os.environ[_SEMANTICS] = "http,database"
    # The settings were checked without the blanks around them. OpenTelemetry keeps some of these blanks.
    os.environ.update({name: value.strip() for name, value in os.environ.items() if name.startswith("OTEL_")})
    # Each failure would be several lines. `CleanExporter` logs what matters.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    set_global_textmap(_Arrivals())
    of_process = {"service.name": f"sandbox-broker-{service}", "service.instance.id": str(uuid.uuid4())}
    # No other detectors: one of them reads the command line, which may have secrets.
    resource = Resource(of_process).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.sampler = _NoLooseCalls(provider.sampler)
    provider.add_span_processor(BoundedProcessor(CleanExporter(OTLPSpanExporter())))
    RequestsInstrumentor().instrument(tracer_provider=provider, request_hook=partial(_tell_api, api_url))
    atexit.register(provider.shutdown)
    return OtelTraces(provider)


class OtelTraces(Traces):
    """Adds spans to requests: to those that come in, and to those that go out."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self.log_fields = (_add_ids,)

    def of_requests(self, app: Flask) -> None:
        """Make a span of each request of `app`, except those of probes and scrapers."""
        FlaskInstrumentor.instrument_app(  # type: ignore[no-untyped-call]
            app, tracer_provider=self.provider, excluded_urls=_PROBES, enable_commenter=False
        )

    def stop(self) -> None:
        """Send the last spans, or give them up after 2 s."""
        self.provider.shutdown()


class _Arrivals(TraceContextTextMapPropagator):
    """Reads the trace of a caller. It gives none to those that we call, unless we do that ourselves.

    Else the libraries would put it into each request to the provider, to the issuer, and to receivers of webhooks.
    """

    def inject(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - the library's signature
        """Do nothing."""


class _NoLooseCalls(Sampler):
    """Leaves out calls that belong to no request and to no task: a worker looks for work every second."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        *args: Any,  # noqa: ANN401 - passed on as they are
        **kwargs: Any,  # noqa: ANN401 - the same
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if kind is SpanKind.CLIENT and not parent.is_valid:
            return SamplingResult(Decision.DROP)
        return self._sampler.should_sample(parent_context, trace_id, name, kind, *args, **kwargs)

    def get_description(self) -> str:
        return self._sampler.get_description()


def _tell_api(api_url: str | None, span: trace.Span, request: PreparedRequest) -> None:
    """Add the id of the trace to a request that goes to the API."""
    if api_url is not None and _is_under(api_url, request.url or ""):
        TraceContextTextMapPropagator().inject(request.headers, context=trace.set_span_in_context(span))


def _is_under(base: str, url: str) -> bool:
    """Tell whether a URL leads to the server of `base`, to a path under its path. The spelling may differ."""
    wanted, found = urlsplit(base), urlsplit(url)
    return _origin(wanted) == _origin(found) and found.path.startswith(f"{wanted.path.rstrip('/')}/")


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    """Return scheme, host in lower case, and port."""
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _add_ids(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Add the ids of the current span to a log line, in the form of W3C Trace Context."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event
