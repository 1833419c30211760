"""A receiver of traces on loopback, which speaks OTLP over HTTP."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


@dataclass(frozen=True)
class Span:
    """A span as it came."""

    service: str
    instance: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    has_failed: bool
    message: str
    events: tuple[tuple[str, dict[str, Any]], ...]
    began_at: int
    ended_at: int


@dataclass
class TraceReceiver:
    """Keeps all spans that came, and all bytes."""

    port: int = 0
    status: int = 200
    raw: list[bytes] = field(default_factory=list)
    _spans: list[Span] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The value of `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[Span]:
        """All spans that came, in the order in which they began."""
        with self._lock:
            return sorted(self._spans, key=lambda span: span.began_at)

    def take(self, body: bytes) -> None:
        """Keep what one request holds."""
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.raw.append(body)
            for of_process in request.resource_spans:
                resource = _read(of_process.resource.attributes)
                for scope in of_process.scope_spans:
                    self._spans += [_span(resource, span) for span in scope.spans]


@contextmanager
def receiving_traces() -> Iterator[TraceReceiver]:
    """Receive traces during the context."""
    receiver = TraceReceiver()

    class Receive(Handler):
        def reply(self) -> None:
            body = self.read_body()
            if receiver.status == 200:
                receiver.take(body)
            self.answer(receiver.status)

    with serving(Receive) as server:
        receiver.port = server.server_port
        yield receiver


def draw(spans: list[Span]) -> str:
    """Return a trace as text: who called whom."""
    known = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id not in known]
    lines: list[str] = []

    def add(span: Span, depth: int) -> None:
        details = [str(span.attributes[key]) for key in _SHOWN if key in span.attributes]
        took = (span.ended_at - span.began_at) / 1e6
        after = (span.began_at - spans[0].began_at) / 1e6
        text = f"{'  ' * depth}{span.name} {' '.join(details)}".rstrip()
        lines.append(f"{after:8.1f} {took:8.1f}  {span.service.removeprefix('sandbox-broker-'):8}{text}")
        for child in [each for each in spans if each.parent_id == span.span_id]:
            add(child, depth + 1)

    for root in roots:
        add(root, 0)
    return "\n".join(lines)


_SHOWN = ("db.collection.name", "http.response.status_code", "server.address", "celery.state")


def _span(resource: dict[str, Any], span: Any) -> Span:
    return Span(
        service=resource["service.name"],
        instance=resource["service.instance.id"],
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_read(span.attributes),
        has_failed=span.status.code == 2,
        message=span.status.message,
        events=tuple((event.name, _read(event.attributes)) for event in span.events),
        began_at=span.start_time_unix_nano,
        ended_at=span.end_time_unix_nano,
    )


def _read(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
