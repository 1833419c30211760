"""The bodies and queries of the calls that keep webhook endpoints."""

from __future__ import annotations

from marshmallow import Schema, fields, validate

from broker_api.schemas.parts import (
    DELIVERY_ID,
    ENDPOINT_ID,
    MAX_CURSOR,
    StrictBoolean,
    StrictInteger,
    enum_field,
    given_number_field,
    number_field,
    optional_text_field,
    optional_time_field,
    reason_field,
    text_field,
    time_field,
)
from broker_common.core.endpoints import OLD_SECRET_SEC, SUBSCRIBABLE
from broker_common.core.webhook import ALL_KINDS, DeliveryState
from broker_common.core.webhook_store import SETTLED_SEC
from broker_common.core.webhook_url import MAX_URL

_URL = "https://hooks.example.com/broker"
_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="  # noqa: S105 - an example for the description
_KINDS = f"The kinds of facts that it is told, or `{ALL_KINDS}` alone for every kind"
_FACT_AT = 1759574955


class EndpointInputSchema(Schema):
    """An endpoint to register."""

    url = fields.String(
        required=True,
        metadata={
            "minLength": 1,
            "maxLength": MAX_URL,
            "format": "uri",
            "example": _URL,
            "description": "Where deliveries are sent: https, on a public address. It is shown to every viewer",
        },
    )
    kinds = fields.List(
        fields.String(validate=validate.OneOf(SUBSCRIBABLE), metadata={"example": "sandbox.allocated"}),
        required=True,
        metadata={"minItems": 1, "uniqueItems": True, "description": _KINDS},
    )
    description = reason_field({"description": "For people, one line; else null"}, required=False, allow_none=True)


class EndpointChangeSchema(EndpointInputSchema):
    """What to change. Fields that are left out stay as they are."""

    enabled = StrictBoolean(
        metadata={"example": True, "description": "Whether deliveries are sent. Those of a disabled endpoint wait"}
    )
    version = given_number_field(
        {"example": 1, "description": "The `version` that was read; it must still be the present one"},
        low=0,
        high=2**53,
        required=True,
    )


CHANGEABLE = tuple(EndpointInputSchema().fields)


class EndpointSchema(Schema):
    """An address that gets the facts of some kinds."""

    endpoint_id = text_field(ENDPOINT_ID, "Names it")
    url = text_field(_URL, "Where deliveries are sent")
    kinds = fields.List(
        fields.String(metadata={"example": "sandbox.allocated"}), required=True, metadata={"description": _KINDS}
    )
    description = optional_text_field(None, "For people; else null")
    enabled = fields.Boolean(
        required=True, metadata={"example": True, "description": "Whether deliveries are sent. Else they wait"}
    )
    version = number_field("Send it with a change. It grows when somebody changes the endpoint", 1)
    created_at = time_field("When it was registered", _FACT_AT)
    created_by = text_field("anna", "The principal that registered it")
    active_from = time_field("From when on it is told every fact", _FACT_AT + SETTLED_SEC)
    failing_since = optional_time_field("When the first try failed since the last success")
    disabled_at = optional_time_field("When it was disabled")
    disabled_reason = optional_text_field(None, "Why it was disabled; else null")
    previous_secret_valid_until = optional_time_field("Until when the secret before the present one signs, too")


class EndpointWithSecretSchema(EndpointSchema):
    """An endpoint with its new secret, which is never shown again."""

    secret = text_field(_SECRET, "Signs the deliveries. Keep it: the broker does not show it again")
    previous_secret_valid_until = optional_time_field(
        f"Until when the secret before this one signs, too: {OLD_SECRET_SEC // 3600} hours after a rotation"
    )


class EndpointListSchema(Schema):
    """All endpoints."""

    webhooks = fields.List(fields.Nested(EndpointSchema), required=True)
    count = number_field("How many are in `webhooks`", 1)


class DeliverySchema(Schema):
    """A fact that is told to an endpoint."""

    delivery_id = text_field(DELIVERY_ID, "Names it, and is sent as `webhook-id`")
    kind = text_field("sandbox.allocated", "The kind of the fact; `test` for a test")
    sandbox_id = optional_text_field("2009521", "The sandbox; null for a fact of the pool and for a test")
    state = enum_field(
        DeliveryState,
        {"example": DeliveryState.PENDING.value, "description": "`exhausted`: every try failed"},
        required=True,
    )
    fact_at = time_field("When the fact happened", _FACT_AT)
    created_at = time_field("When the delivery was made", _FACT_AT + 1)
    tries = number_field("How many tries have ended since it became pending")
    next_try_at = optional_time_field(
        "When it is tried next, if older ones of its sandbox are done by then", _FACT_AT + 1
    )
    last_try_at = optional_time_field("When it was last tried")
    last_status = fields.Integer(
        required=True,
        allow_none=True,
        metadata={"example": None, "description": "The HTTP status of the last answer; null without one"},
    )
    last_answer = optional_text_field(None, "What the last try met, in words; else null")
    delivered_at = optional_time_field("When it succeeded")


class FullDeliverySchema(DeliverySchema):
    """A delivery with its body."""

    payload = text_field('{"type":"sandbox.allocated"}', "The body that is sent, byte for byte")


class DeliveryQuerySchema(Schema):
    """Which deliveries to list."""

    state = enum_field(DeliveryState, {"description": "Only deliveries in this state"})
    limit = StrictInteger(
        load_default=50,
        validate=validate.Range(min=1, max=100),
        metadata={"description": "How many deliveries a page has at most: 1 to 100"},
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR),
        metadata={"description": "The `cursor` of the page before; send the same `state` with it"},
    )


class DeliveryPageSchema(Schema):
    """A page of deliveries."""

    deliveries = fields.List(fields.Nested(DeliverySchema), required=True)
    count = number_field("How many are in `deliveries`", 1)
    cursor = optional_text_field(None, "Send it to read the next page; null on the last page")


class ReplayInputSchema(Schema):
    """Which facts to send again."""

    since = given_number_field(
        {"example": _FACT_AT, "description": "The facts from this time on, in Unix seconds"},
        low=0,
        high=2**40,
        required=True,
    )
    cursor = fields.String(
        validate=validate.Length(min=1, max=MAX_CURSOR),
        metadata={"description": "The `cursor` of the answer before; send the same `since` with it"},
    )


class ReplaySchema(Schema):
    """What a call of a replay has done."""

    replayed = number_field("How many deliveries this call has made pending", 240)
    cursor = optional_text_field(None, "Call again with it, to go on; null: all are pending")
