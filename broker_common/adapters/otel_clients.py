"""Spans of the calls that go past the clients that OpenTelemetry's libraries watch."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partialmethod
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from opentelemetry.trace import SpanKind, StatusCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.trace import Span, Tracer

    from broker_common.adapters.dynamo_client import DynamoClient
    from broker_common.core.ports import Allowance, RateLimit

# These answers are part of the broker's normal work: another process was faster.
_CONDITIONS = frozenset({"ConditionalCheckFailedException", "TransactionCanceledException"})


def describe_call(operation: str, request: Mapping[str, Any]) -> dict[str, str]:
    """Return the attributes of a call to DynamoDB, which has only one table here.

    Source: OpenTelemetry's semantic conventions for AWS DynamoDB.
    """
    attributes = {"db.system.name": "aws.dynamodb", "db.operation.name": operation}
    if "TableName" in request:
        attributes["db.collection.name"] = request["TableName"]
    elif "RequestItems" in request:
        attributes["db.collection.name"] = next(iter(request["RequestItems"]))
    elif "TransactItems" in request:
        attributes["db.collection.name"] = next(iter(request["TransactItems"][0].values()))["TableName"]
    return attributes


class TracedDynamoClient:
    """A `DynamoClient` whose own four calls have spans. Its other calls are boto3's, which the library watches."""

    def __init__(self, client: DynamoClient, tracer: Tracer) -> None:
        self._client: Any = client
        self._tracer = tracer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the client's own
        return getattr(self._client, name)

    def _call(self, name: str, operation: str, /, **request: Any) -> Any:  # noqa: ANN401 - DynamoDB's own JSON
        attributes = describe_call(operation, request)
        with _call_span(self._tracer, f"DynamoDB.{operation}", attributes) as span:
            try:
                return getattr(self._client, name)(**request)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                span.set_attribute("db.response.status_code", code)
                if code in _CONDITIONS:
                    span.set_status(StatusCode.OK)  # it stays so, although an error leaves the span
                raise

    get_item = partialmethod(_call, "get_item", "GetItem")
    query = partialmethod(_call, "query", "Query")
    transact_write_items = partialmethod(_call, "transact_write_items", "TransactWriteItems")
    update_item = partialmethod(_call, "update_item", "UpdateItem")


class TracedRateLimit:
    """A rate limit whose calls to Redis have spans."""

    def __init__(self, limit: RateLimit, tracer: Tracer) -> None:
        self._limit = limit
        self._tracer = tracer

    def take(self, key: str) -> Allowance | None:
        """Count one request of a key, as the limit does."""
        with _call_span(self._tracer, "EVALSHA", {"db.system.name": "redis", "db.operation.name": "EVALSHA"}):
            return self._limit.take(key)


@contextmanager
def _call_span(tracer: Tracer, name: str, attributes: dict[str, str]) -> Iterator[Span]:
    """Make a span that nothing else is part of. So it need not become the current one, which takes time."""
    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    try:
        yield span
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(StatusCode.ERROR)
        raise
    finally:
        span.end()
