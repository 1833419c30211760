"""Spans of the processes behind the console: of their tasks, and of their calls to DynamoDB and Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.propagators.composite import CompositePropagator

from broker_common.adapters import otel_traces
from broker_common.adapters.dynamo_client import DynamoClient
from broker_common.adapters.otel_celery import TaskInstrumentor
from broker_common.adapters.otel_clients import TracedDynamoClient, TracedRateLimit, describe_call

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from broker_common.core.ports import RateLimit


def start(service: str) -> BackendTraces:
    """Begin as `otel_traces.start` does, and watch also tasks, DynamoDB and Redis."""
    traces = BackendTraces(otel_traces.start(service).provider)
    watch(traces.provider)
    return traces


def watch(provider: TracerProvider) -> None:
    """Have the libraries make spans of the calls that they see."""
    RedisInstrumentor().instrument(tracer_provider=provider)
    # AWS gets no trace: DynamoDB does nothing with it.
    BotocoreInstrumentor().instrument(  # type: ignore[no-untyped-call]
        tracer_provider=provider, request_hook=_describe, propagator=CompositePropagator([])
    )
    TaskInstrumentor().instrument(tracer_provider=provider)  # type: ignore[no-untyped-call]


class BackendTraces(otel_traces.OtelTraces):
    """Adds spans to requests, and to the calls that the libraries do not see."""

    def of_store(self, client: DynamoDBClient) -> DynamoDBClient:
        """Return a client that makes a span of each call."""
        if not isinstance(client, DynamoClient):
            return client  # boto3's own, which the library watches
        return cast("DynamoDBClient", TracedDynamoClient(client, self.provider.get_tracer(__name__)))

    def of_rate_limit(self, limit: RateLimit) -> RateLimit:
        """Return a limit that makes a span of each call."""
        return TracedRateLimit(limit, self.provider.get_tracer(__name__))


def _describe(span: Span, _service: str, operation: str, request: dict[str, Any]) -> None:
    span.set_attributes(describe_call(operation, request))
