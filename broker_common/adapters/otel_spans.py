"""Takes out of each span all that could be a secret, and sends the rest, in the background.

The instrumentations note URLs, statements, texts of errors and headers. A list of what is allowed keeps all of that
out, also what a later release adds.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_KEPT = frozenset(
    {
        "celery.state",
        "celery.task_name",
        "db.collection.name",
        "db.operation.name",
        "db.response.status_code",
        "db.system.name",
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "messaging.message.id",
    }
)
_KEPT_OF_CALLS = _KEPT | {"server.address", "server.port"}
"""A request that comes in has them from its caller, who may write anything there."""
_KEPT_OF_ERRORS = frozenset({"exception.type"})
_STOP_MILLIS = 2000
_REPORT_SEC = 60.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("broker")


def clean(span: ReadableSpan) -> ReadableSpan:
    """Return a span with only the attributes that are allowed, and without the texts of errors."""
    attributes = span.attributes or {}
    kept = _KEPT_OF_CALLS if span.kind is SpanKind.CLIENT else _KEPT
    name = span.name
    if span.kind is SpanKind.SERVER and "http.route" not in attributes:
        # The library would name it by its path, and no route says which parts of it are safe.
        name = str(attributes.get("http.request.method", "HTTP"))
    if attributes.get("db.system.name") == "redis":
        # It is named by its commands, and a pipeline may have hundreds of the same.
        name = " ".join(dict.fromkeys(name.split()))
    return ReadableSpan(
        name=name,
        context=_without_state(span.context),
        parent=span.parent,
        resource=span.resource,
        attributes={key: value for key, value in attributes.items() if key in kept},
        events=[
            Event(
                event.name,
                {key: value for key, value in (event.attributes or {}).items() if key in _KEPT_OF_ERRORS},
                event.timestamp,
            )
            for event in span.events
        ],
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _without_state(context: SpanContext | None) -> SpanContext | None:
    """Leave out `tracestate`, in which a caller may write anything."""
    if context is None:
        return None
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


class CleanExporter(SpanExporter):
    """Sends spans through another exporter, and logs at most once a minute how many were lost, and why."""

    def __init__(self, exporter: SpanExporter, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._exporter = exporter
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lost: Counter[str] = Counter()
        self._reported_at = -_REPORT_SEC
        self._is_reported = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. Those that the receiver does not take are lost, and so are those that cannot be cleaned."""
        cleaned = [each for each in map(self._clean, spans) if each is not None]
        result = self._exporter.export(cleaned)
        if result is not SpanExportResult.SUCCESS:
            self.lose(len(cleaned), "not_taken")
        self._report()
        return result

    def lose(self, spans: int, reason: str) -> None:
        """Count spans that were lost. The next export reports them, if a minute has passed since the last report."""
        with self._lock:
            self._lost[reason] += spans

    def shutdown(self) -> None:
        """End the attempts to send."""
        self._exporter.shutdown()

    def _clean(self, span: ReadableSpan) -> ReadableSpan | None:
        try:
            return clean(span)
        except Exception:  # noqa: BLE001 - one span must not take those beside it along
            self.lose(1, "not_cleaned")
            return None

    def _report(self) -> None:
        now = self._monotonic()
        with self._lock:
            lost = self._lost
            is_due = bool(lost) and now - self._reported_at >= _REPORT_SEC
            if is_due:
                self._lost = Counter()
        if is_due:
            _log.warning(
                "Spans of traces are lost",
                action="export_traces",
                outcome="error",
                lost_spans=lost.total(),
                reasons=dict(lost),
            )
            self._reported_at, self._is_reported = now, True
        elif not lost and self._is_reported:
            _log.info("No more spans of traces are lost", action="export_traces", outcome="success")
            self._is_reported = False


class BoundedProcessor(BatchSpanProcessor):
    """Sends spans from a thread of its own. When it stops, it waits 2 s at most for what is still to be sent."""

    def __init__(
        self, exporter: CleanExporter, *, max_queue_size: int | None = None, max_export_batch_size: int | None = None
    ) -> None:
        """Begin to send. What is not given is taken from the variables of OpenTelemetry."""
        super().__init__(exporter, max_queue_size=max_queue_size, max_export_batch_size=max_export_batch_size)
        self._exporter = exporter
        # The library logs only that it drops spans, and not how many.
        self._waiting = self._batch_processor._queue  # noqa: SLF001 - there is no public way to see that it is full

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span until it is sent. If too many wait, the oldest one is lost."""
        if len(self._waiting) == self._waiting.maxlen:
            self._exporter.lose(1, "queue_full")
        super().on_end(span)

    def shutdown(self) -> None:
        """Send what is left, or give it up."""
        # The public method takes no time limit, and waits for 30 s.
        self._batch_processor.shutdown(timeout_millis=_STOP_MILLIS)
