"""Sends the deliveries of webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker_common.core.webhook import Delivery, Endpoint


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What became of a try. `status` is None if no answer came; `text` says it in words, in at most 300 characters."""

    status: int | None
    text: str


class WebhookTransport(Protocol):
    """Sends deliveries to endpoints."""

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        """Send a delivery once, signed at `now`. Never raises for what an endpoint does."""
