"""What is sent to webhook endpoints, in the OpenAPI document: one entry for each kind of fact, made from the kinds.

Source: OpenAPI 3.1, "OpenAPI Object", `webhooks`; Standard Webhooks 1.0 for the headers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker_api.schemas.events import FactSchema
from broker_api.schemas.parts import DELIVERY_ID, ENDPOINT_ID, RESERVATION_ID, example_of
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.webhook import TEST_KIND

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apispec import APISpec

_AT, _TIMESTAMP = 1759574955, "2025-10-04T10:49:15Z"
_LEASE_END = 1759589355
_OF_SANDBOX = ("sandbox_id", "version", "track_id", "lease_id", "status", "status_before")
_RESERVATION = {"reservation_id": RESERVATION_ID}
_CLASS: Mapping[str, Any] = {**_RESERVATION, "name": "Networking 101", "count": 30, "drawn": 0}

_LEVEL: Mapping[str, Any] = {"reserved": 0, "pending_deletion": 3, "in_service": 50, "waiting": 0, "low_percent": 10}


@dataclass(frozen=True, slots=True)
class KindText:
    """What a kind of fact means, and an example: the status before and after it, and its details."""

    meaning: str
    before: str | None = None
    after: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


KINDS: Mapping[str, KindText] = {
    "sandbox.added": KindText("A sync found a new sandbox.", None, "available"),
    "sandbox.updated": KindText(
        "The provider's name or ids of the sandbox changed (details: those before), or its quarantine was lifted.",
        "available",
        "available",
        {"name": "lab-adventure-101"},
    ),
    "sandbox.allocated": KindText(
        "A track got the sandbox.",
        "available",
        "allocated",
        {"expires_at": _LEASE_END, "track_name": "networking-101", "customer": "acme"},
    ),
    "sandbox.extended": KindText(
        "The lease lasts longer.",
        "allocated",
        "allocated",
        {"expires_at": _LEASE_END + 3600, "expires_at_before": _LEASE_END},
    ),
    "sandbox.expiring": KindText(
        "The lease ends soon. Once for each end: an extension makes it due again.",
        "allocated",
        "allocated",
        {"expires_at": _LEASE_END, "latest_expires_at": _LEASE_END + 14400, "track_name": "networking-101"},
    ),
    "sandbox.marked": KindText("The track gave the sandbox back.", "allocated", "pending_deletion"),
    "sandbox.released": KindText("An operator ended the lease.", "allocated", "pending_deletion"),
    "sandbox.expired": KindText("The lease was over, and the broker ended it.", "allocated", "pending_deletion"),
    "sandbox.wiped": KindText(
        "The provider confirmed the wipe. The status that follows depends on `RECYCLE_POLICY`. `services` is there with"
        " `CSP_SERVICES_CLEANUP`, as in each fact that ends an attempt: what became of what the student left.",
        "pending_deletion",
        "available",
        {
            "services": "partial",
            "services_removed": 2,
            "services_left": 1,
            "services_error": "delete service: HTTP 500",
        },
    ),
    "sandbox.wipe_failed": KindText(
        "An attempt to wipe the sandbox failed. The broker tries again.",
        "pending_deletion",
        "pending_deletion",
        {"tries": 1, "error": "the provider answered 500"},
    ),
    "sandbox.needs_attention": KindText(
        "The sandbox cannot be wiped, or is in quarantine: a person must look.",
        "pending_deletion",
        "deletion_failed",
        {"tries": 8, "error": "the provider answered 500"},
    ),
    "sandbox.available": KindText("A wiped sandbox has rested, and is available.", "pending_deletion", "available"),
    "sandbox.reserved": KindText("The sandbox was set aside for a reservation.", "available", "reserved", _RESERVATION),
    "sandbox.unreserved": KindText(
        "The sandbox was returned from a reservation.", "reserved", "available", _RESERVATION
    ),
    "sandbox.retried": KindText(
        "An operator sent the sandbox back to be wiped.", "deletion_failed", "pending_deletion"
    ),
    "sandbox.stale": KindText("A sync did not see the sandbox, so it is out of service.", "available", "stale"),
    "sandbox.restored": KindText("A sync saw the sandbox again.", "stale", "available"),
    "sandbox.removed": KindText(
        "The sandbox left the pool. Its record is gone, or is a tombstone (`deleted`).", "stale", None
    ),
    "sandbox.quarantined": KindText(
        "An operator set the sandbox aside, or marked it to be set aside after its wipe.",
        "available",
        "deletion_failed",
        {"reason": "the console does not open"},
    ),
    "pool.paused": KindText("An operator paused an operation.", details={"operation": "allocate"}),
    "pool.resumed": KindText("An operator resumed an operation.", details={"operation": "allocate"}),
    "pool.low": KindText("Few sandboxes are available.", details={**_LEVEL, "available": 4, "allocated": 43}),
    "pool.recovered": KindText(
        "Enough sandboxes are available again.", details={**_LEVEL, "available": 12, "allocated": 35}
    ),
    "sync.braked": KindText(
        "A sync missed so many sandboxes that it took none out of service.", details={"missing": 30, "judged": 50}
    ),
    "reservation.open": KindText(
        "A class begins, and all its sandboxes are set aside.", details={**_CLASS, "set_aside": 30, "short_by": 0}
    ),
    "reservation.short": KindText(
        "A class begins, and lacks some of its sandboxes.", details={**_CLASS, "set_aside": 26, "short_by": 4}
    ),
    "reservation.ended": KindText(
        "A reservation ended, or was cancelled (then its details have that, too).",
        details={**_CLASS, "set_aside": 2, "drawn": 28, "short_by": 0},
    ),
    "webhook.disabled": KindText(
        "The broker sends nothing more to an endpoint: it answered 410, or failed for five days.",
        details={"endpoint_id": ENDPOINT_ID, "reason": "it answered 410"},
    ),
}
"""By the name of the kind. A test fails for a kind that has no text."""
_TEST = KindText("An operator tries the endpoint.")
_TEST_DATA = {
    "type": "object",
    "required": ["endpoint_id", "at", "principal", "request_id"],
    "properties": {
        "endpoint_id": {"type": "string", "description": "The endpoint that is tried"},
        "at": {"type": "integer", "description": "When it was asked for, in Unix seconds"},
        "principal": {"type": "string", "description": "Who asked for it"},
        "request_id": {"type": ["string", "null"], "description": "The request that asked for it"},
    },
}
_EXAMPLE_OF_TEST = {"endpoint_id": ENDPOINT_ID, "at": _AT, "principal": "anna", "request_id": None}
_HEADERS: dict[str, dict[str, Any]] = {
    "webhook_id": {
        "name": "webhook-id",
        "description": "Names the delivery. It is the same for each try, so it tells a repetition",
        "schema": {"type": "string"},
        "example": DELIVERY_ID,
    },
    "webhook_timestamp": {
        "name": "webhook-timestamp",
        "description": "When this try was sent, in Unix seconds",
        "schema": {"type": "integer"},
        "example": _AT + 1,
    },
    "webhook_signature": {
        "name": "webhook-signature",
        "description": "One signature for each secret that signs, separated by spaces: `v1,` and the Base64 of the"
        " HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}`. One of them must be right",
        "schema": {"type": "string"},
        "example": "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    },
}
_RULES = (
    "\n\nAnswer 2xx within 15 seconds. Any other answer is a failed try, and the broker tries again, for three days."
    " 410 disables the endpoint."
)


def describe_webhooks(spec: APISpec) -> None:
    """Add to the document what is sent for each kind, and for a test."""
    for name, header in _HEADERS.items():
        spec.components.parameter(name, "header", {"required": True} | header)
    data = {"$ref": "#/components/schemas/Fact"}
    spec.options["webhooks"] = {
        **{kind.value: _item(kind, KINDS[kind], data, _example(kind)) for kind in (*FactKind, *PoolFactKind)},
        TEST_KIND: _item(TEST_KIND, _TEST, _TEST_DATA, _EXAMPLE_OF_TEST),
    }


def _example(kind: FactKind | PoolFactKind) -> dict[str, Any]:
    """Return a fact of a kind as the API shows it."""
    text = KINDS[kind]
    own: dict[str, Any] = {"kind": kind.value, "at": _AT, "details": dict(text.details)}
    if isinstance(kind, FactKind):
        return example_of(FactSchema(), **own, status_before=text.before, status=text.after)
    none = dict.fromkeys(_OF_SANDBOX)
    return example_of(FactSchema(), **own, **none, fact_id="3b0c1f86-8b9e-4d8e-9f43-0d9f1a5c7d21")


def _item(kind: str, text: KindText, data: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    name = "".join(part.title() for part in kind.replace("_", ".").split("."))
    payload = {"type": kind, "timestamp": _TIMESTAMP, "data": example}
    return {
        "post": {
            "operationId": f"on{name}",
            "tags": ["webhooks"],
            "summary": f"{text.meaning.partition('.')[0]}.",
            "description": text.meaning + _RULES,
            "security": [],
            "parameters": [{"$ref": f"#/components/parameters/{header}"} for header in _HEADERS],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _schema(kind, data), "example": payload}},
            },
            "responses": {"2XX": {"description": "The endpoint has it"}},
        }
    }


def _schema(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "timestamp", "data"],
        "properties": {
            "type": {"type": "string", "const": kind, "description": "The kind of the fact"},
            "timestamp": {"type": "string", "format": "date-time", "description": "When the fact happened"},
            "data": data,
        },
    }
