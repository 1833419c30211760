"""The port of the store for webhooks: endpoints, the facts that were not told yet, and deliveries.

It is a part of `store.SandboxStore`, whose docstring says what holds for every method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from broker_common.core.facts import Fact, PoolFact
    from broker_common.core.webhook import Delivery, DeliveryState, Endpoint


SETTLED_SEC = 10
"""So many seconds after an endpoint was added, each new fact is told to it, also if another process writes it."""


@dataclass(frozen=True, slots=True)
class DeliveryPage:
    """A page of deliveries. `cursor` reads the next page; it is None on the last one."""

    deliveries: tuple[Delivery, ...]
    cursor: str | None


class WebhookRecords(Protocol):
    """The endpoints and their deliveries.

    While an endpoint exists, each fact is untold until `told` is called with it. All processes write facts so from
    `SETTLED_SEC` after an endpoint was added; before, a fact may count as told.
    """

    def read_endpoints(self) -> list[Endpoint]:
        """Return all endpoints, also disabled ones. Those that cannot be read are left out."""

    def read_endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Return an endpoint; None if there is none."""

    def write_endpoint(self, before: Endpoint | None, after: Endpoint | None, *, fact: PoolFact | None = None) -> None:
        """Add an endpoint (`before` is None), change it, or remove it (`after` is None), with its fact, if any.

        Raises `Conflict` unless the stored endpoint is as `before`.
        """

    def find_untold(self, *, limit: int) -> list[Fact | PoolFact]:
        """Return untold facts: those of one sandbox in the order of their versions, and without gaps.

        The index tells which sandboxes have some, so a very new one may be missing. The facts are consistent reads.
        One that cannot be read is left out, and stays untold.
        """

    def add_delivery(self, delivery: Delivery) -> bool:
        """Write a delivery, unless there is one of its id for the endpoint. Return whether it was written."""

    def told(self, fact: Fact | PoolFact) -> None:
        """Mark a fact as told: its deliveries are written. May be repeated."""

    def read_due_deliveries(self, endpoint_id: str, *, until: int, limit: int) -> list[Delivery]:
        """Return pending deliveries of an endpoint with a `next_try_at` of at most `until`, the earliest first.

        The index tells which are due, the deliveries are consistent reads.
        """

    def read_pending(self, endpoint_id: str, sandbox_id: str) -> list[Delivery]:
        """Return the pending deliveries of a sandbox to an endpoint that are newer than all that have ended.

        In the order of their versions (consistent). One that was sent by hand again, after a newer one had ended, is
        not among them.
        """

    def read_delivery(self, endpoint_id: str, delivery_id: str) -> Delivery | None:
        """Return a delivery; None if there is none."""

    def write_delivery(self, before: Delivery, after: Delivery) -> None:
        """Change a delivery. Raises `Conflict` unless the stored state, tries, times and attempt are as in `before`."""

    def list_deliveries(
        self, endpoint_id: str, *, state: DeliveryState | None, limit: int, cursor: str | None
    ) -> DeliveryPage:
        """List the deliveries of an endpoint (an index read): the pending ones, then the delivered, then the exhausted.

        Of the pending ones, that whose try is due last comes first; of the others, the one that ended last. Raises
        `InvalidInput` for a cursor that was not given by this listing.
        """

    def oldest_untold(self) -> int | None:
        """Return when the oldest untold fact happened, or None (an index read)."""
