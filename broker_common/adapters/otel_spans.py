"""Takes out of each span all that could be a secret, and sends the rest, in the background.

The instrumentations note URLs, statements, texts of errors and headers. A list of what is allowed keeps all of that
out, also what a later release adds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status

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
        context=span.context,
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


class CleanExporter(SpanExporter):
    """Sends spans through another exporter, and logs at most once a minute that they are not taken."""

    def __init__(self, exporter: SpanExporter, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._exporter = exporter
        self._monotonic = monotonic
        self._lost = 0
        self._reported_at = -_REPORT_SEC
        self._is_reported = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans. Those that the receiver does not take are lost."""
        result = self._exporter.export([clean(span) for span in spans])
        if result is SpanExportResult.SUCCESS:
            self._note_success()
        else:
            self._note_failure(len(spans))
        return result

    def shutdown(self) -> None:
        """End the attempts to send."""
        self._exporter.shutdown()

    def _note_success(self) -> None:
        if self._is_reported:
            _log.info("The receiver of traces takes spans again", action="export_traces", outcome="success")
        self._is_reported, self._lost = False, 0

    def _note_failure(self, spans: int) -> None:
        self._lost += spans
        now = self._monotonic()
        if now - self._reported_at < _REPORT_SEC:
            return
        _log.warning(
            "The receiver of traces takes no spans, so they are lost",
            action="export_traces",
            outcome="error",
            lost_spans=self._lost,
        )
        self._reported_at, self._is_reported, self._lost = now, True, 0


class BoundedProcessor(BatchSpanProcessor):
    """Sends spans from a thread of its own. When it stops, it waits 2 s at most for what is still to be sent."""

    def shutdown(self) -> None:
        """Send what is left, or give it up."""
        # The public method takes no time limit, and waits for 30 s.
        self._batch_processor.shutdown(timeout_millis=_STOP_MILLIS)
