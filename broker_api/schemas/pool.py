"""The bodies of an operator's calls on the pool as a whole, and on the operator's own token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marshmallow import Schema, fields, pre_dump

from broker_api.schemas.parts import (
    StrictBoolean,
    enum_field,
    number_field,
    optional_text_field,
    optional_time_field,
    text_field,
)
from broker_common.core.principals import Role
from broker_common.core.store import PAUSABLE

if TYPE_CHECKING:
    from broker_common.core.store import Pauses

_PAUSED = {
    "allocate": "Allocate gives a track only what it holds already",
    "sync": "No sync runs",
    "cleanup": "No sandbox is wiped",
    "expire": "The job that ends overdue allocations does not run",
}


class StatsSchema(Schema):
    """How many sandboxes have which status. Tombstones are out of the pool and are not counted."""

    available = number_field("May be allocated", 42)
    reserved = number_field("Set aside for a reservation")
    allocated = number_field("Held by a track", 7)
    pending_deletion = number_field("Wait for the provider to wipe them, or rest after their wipe", 1)
    stale = number_field("Out of service until a sync sees them")
    deletion_failed = number_field("Need a person")
    total = number_field("All of these", 50)


class WhoAmISchema(Schema):
    """The principal that makes the call."""

    principal = text_field(
        "anna",
        "The name of the token, or `oidc:` and the claim `sub` of an access token; the broker logs it with each call",
    )
    roles = fields.List(
        enum_field(Role, {"example": Role.OPERATOR.value, "description": "Each call says which role it needs"}),
        required=True,
        metadata={"description": "What the principal may do"},
    )
    customer = optional_text_field(None, "The customer that it belongs to; else null")


class PauseSchema(Schema):
    """Who paused an operation, and when."""

    operation = text_field("allocate", "The paused operation")
    by = optional_text_field("ops-anna", "Who paused it; null if a release before this one did")
    since = optional_time_field("Since when", 1759574955)


class PausesSchema(Schema):
    """Which operations are paused, and by whom."""

    @pre_dump
    def _flatten(self, pauses: Pauses, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - marshmallow's options
        found = {name: getattr(pauses, name) for name in PAUSABLE}
        paused = [{"operation": name, "by": each.by, "since": each.since} for name, each in found.items() if each]
        return {**{name: each is not None for name, each in found.items()}, "paused": paused}

    allocate = fields.Boolean(required=True, metadata={"example": True, "description": _PAUSED["allocate"]})
    sync = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["sync"]})
    cleanup = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["cleanup"]})
    expire = fields.Boolean(required=True, metadata={"example": False, "description": _PAUSED["expire"]})
    paused = fields.List(
        fields.Nested(PauseSchema),
        required=True,
        metadata={"description": "The paused operations, by whom, and since when"},
    )


class PausesInputSchema(Schema):
    """Which operations to pause (true) or resume (false). The others stay as they are."""

    allocate = StrictBoolean(metadata={"example": True, "description": _PAUSED["allocate"]})
    sync = StrictBoolean(metadata={"description": _PAUSED["sync"]})
    cleanup = StrictBoolean(metadata={"description": _PAUSED["cleanup"]})
    expire = StrictBoolean(metadata={"description": _PAUSED["expire"]})
