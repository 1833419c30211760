"""What a process does for traces while they are off: nothing. The broker imports nothing of OpenTelemetry then.

redis-py does where OpenTelemetry is installed, as in the image: 61 modules and 2.5 MB, for metrics that are off.
`otel_traces` makes traces while they are on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Flask
    from mypy_boto3_dynamodb import DynamoDBClient
    from structlog.typing import Processor

    from broker_common.core.ports import RateLimit


class Traces:
    """Adds no spans to the work of a process."""

    log_fields: Sequence[Processor] = ()
    """What adds the ids of the current span to a log line."""

    def of_requests(self, app: Flask) -> None:
        """Make a span of each request of `app`. Call it before any other hook of `app` is registered."""

    def of_store(self, client: DynamoDBClient) -> DynamoDBClient:
        """Return a client that makes a span of each call."""
        return client

    def of_rate_limit(self, limit: RateLimit) -> RateLimit:
        """Return a limit that makes a span of each call."""
        return limit

    def stop(self) -> None:
        """Send the last spans, or give them up after a short time. It may be called again."""


NO_TRACES = Traces()
