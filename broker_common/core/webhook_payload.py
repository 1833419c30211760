"""The delivery of a fact to an endpoint, and of a test: its id, and the exact body that is sent.

Source: Standard Webhooks 1.0, "Payload structure", "Webhook metadata" and "Signature scheme".
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from broker_common.core.facts import Fact
from broker_common.core.webhook import TEST_KIND, Delivery

if TYPE_CHECKING:
    from broker_common.core.facts import PoolFact
    from broker_common.core.principals import Actor
    from broker_common.core.webhook import Endpoint

FACT_FIELDS = (
    *("kind", "at", "principal", "request_id", "sandbox_id", "version", "fact_id"),
    *("track_id", "lease_id", "status", "status_before", "details"),
)
"""The fields of a fact as the API's feed shows it. Those that a fact does not have are null."""


def delivery_of(fact: Fact | PoolFact, endpoint: Endpoint, *, now: int) -> Delivery:
    """Return the delivery of a fact, which is due at once. Its id is the name of the fact, so it is always the same."""
    data = {name: getattr(fact, name, None) for name in FACT_FIELDS} | {"details": dict(fact.details)}
    if isinstance(fact, Fact):
        delivery_id, sandbox_id, version = (
            # Without full stops, which separate the id from what is signed with it.
            f"{fact.sandbox_id}:{fact.version}:{fact.kind.replace('.', '_')}",
            fact.sandbox_id,
            fact.version,
        )
    else:
        delivery_id, sandbox_id, version = fact.fact_id, None, fact.at * 1000
    return Delivery(
        endpoint_id=endpoint.endpoint_id,
        delivery_id=delivery_id,
        kind=fact.kind,
        sandbox_id=sandbox_id,
        version=version,
        payload=_payload(fact.kind, fact.at, data),
        fact_at=fact.at,
        created_at=now,
        next_try_at=now,
    )


def test_of(endpoint: Endpoint, delivery_id: str, *, by: Actor, now: int) -> Delivery:
    """Return a delivery that tries an endpoint, and is due at once."""
    data = {"endpoint_id": endpoint.endpoint_id, "at": now, "principal": by.principal, "request_id": by.request_id}
    return Delivery(
        endpoint_id=endpoint.endpoint_id,
        delivery_id=delivery_id,
        kind=TEST_KIND,
        version=now * 1000,
        payload=_payload(TEST_KIND, now, data),
        fact_at=now,
        created_at=now,
        next_try_at=now,
    )


def _payload(kind: str, at: int, data: dict[str, Any]) -> str:
    timestamp = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return json.dumps({"type": kind, "timestamp": timestamp, "data": data}, separators=(",", ":"))
