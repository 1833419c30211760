"""Carries a trace from the process that sends a task to the one that runs it."""

from __future__ import annotations

from typing import Any

from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.trace import SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class TaskInstrumentor(CeleryInstrumentor):
    """The library's spans of tasks that run, and a span of our own for each task that is sent.

    The library leaves its span open if the task is not sent, or if this process does not know the task. Then it would
    be the parent of all that the thread does later. The API sends tasks that it does not know.
    """

    _tracer: Any

    def _trace_before_publish(self, *_: Any, sender: str, headers: dict[str, Any], **__: Any) -> None:  # noqa: ANN401 - Celery's signature
        span = self._tracer.start_span(
            f"apply_async/{sender}",
            kind=SpanKind.PRODUCER,
            attributes={"celery.task_name": sender, "messaging.message.id": str(headers["id"])},
        )
        TraceContextTextMapPropagator().inject(headers, context=set_span_in_context(span))
        span.end()

    @staticmethod
    def _trace_after_publish(*_: Any, **__: Any) -> None:  # noqa: ANN401 - Celery's signature
        """Do nothing: the span has ended."""
