"""The sandbox store on DynamoDB: one table, one index, conditional writes and transactions."""

from __future__ import annotations

from broker_common.adapters.dynamo_candidates import DynamoCandidates
from broker_common.adapters.dynamo_commits import DynamoCommits
from broker_common.adapters.dynamo_line import DynamoLine
from broker_common.adapters.dynamo_pool_state import DynamoPoolState
from broker_common.adapters.dynamo_reports import DynamoReports
from broker_common.adapters.dynamo_reservations import DynamoReservations
from broker_common.adapters.dynamo_samples import DynamoSamples
from broker_common.adapters.dynamo_usage import DynamoUsage
from broker_common.adapters.dynamo_webhooks import DynamoWebhooks


class DynamoStore(
    DynamoCommits,
    DynamoLine,
    DynamoReservations,
    DynamoWebhooks,
    DynamoCandidates,
    DynamoPoolState,
    DynamoReports,
    DynamoSamples,
    DynamoUsage,
):
    """`SandboxStore` on one DynamoDB table; safe to use from many threads."""
