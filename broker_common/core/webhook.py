"""A webhook endpoint, and the delivery of a fact to it. Types and pure functions; times are Unix seconds.

When a delivery is made is in `deliveries`, how endpoints are registered and changed is in `endpoints`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

ALL_KINDS = "*"
"""The entry of `Endpoint.kinds` that stands for every kind."""
MAX_ENDPOINTS = 20
"""How many endpoints there may be: each fact is written once more for each of them."""
TEST_KIND = "test"
"""The kind of a delivery that an operator asks for to try an endpoint; it reports no fact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret that signs deliveries. After `valid_until` it signs none; None: it is the current one."""

    value: str = field(repr=False)
    valid_until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address that gets the facts of some kinds.

    `kinds` has names of kinds, or is `("*",)`. `secrets`: the current one first. `version` grows when somebody changes
    the endpoint. `failing_since`: when the first try failed since the last success; None if the last one succeeded.
    `probe_at`: until when nothing is tried, because it is down; None if it is not.
    `disabled_at`: since when nothing is sent; `disabled_reason` says why. Its deliveries then wait.
    """

    endpoint_id: str
    url: str
    kinds: tuple[str, ...]
    description: str | None = None
    secrets: tuple[Secret, ...] = field(repr=False)
    version: int = 1
    created_at: int
    created_by: str
    failing_since: int | None = None
    probe_at: int | None = None
    disabled_at: int | None = None
    disabled_reason: str | None = None

    def wants(self, kind: str) -> bool:
        """Tell whether facts of this kind are told to the endpoint."""
        return ALL_KINDS in self.kinds or kind in self.kinds


class DeliveryState(StrEnum):
    """The state of a delivery."""

    PENDING = "pending"
    """It is tried at `next_try_at`, or as soon as the older ones of its sandbox have ended."""
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"
    """Every try failed. An operator can send it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A fact that is told to one endpoint.

    `delivery_id` is the name of the fact, and is sent as `webhook-id`. Deliveries of the same `sandbox_id` are sent in
    the order of `version`; `sandbox_id` is None for a fact of the pool and for a test. `payload` is the exact body.
    `fact_at`: when it happened. `next_try_at`: None unless it is pending. `attempt_id` is set while a try may be under
    way. `last_answer` describes the last try in words; `last_status` is its HTTP status, if there was an answer.
    """

    endpoint_id: str
    delivery_id: str
    kind: str
    sandbox_id: str | None = None
    version: int
    payload: str
    fact_at: int
    created_at: int
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0
    next_try_at: int | None = None
    attempt_id: str | None = None
    last_try_at: int | None = None
    last_status: int | None = None
    last_answer: str | None = None
    delivered_at: int | None = None
