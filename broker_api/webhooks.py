"""The calls of an admin that keep webhook endpoints, and of a viewer that look at them and at their deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.auth import actor
from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import bulk_store_call, store_call
from broker_api.openapi import DELIVERY_ID, ENDPOINT_ID
from broker_api.runtime import services
from broker_api.schemas.parts import MAX_DELIVERY_ID
from broker_api.schemas.webhooks import (
    CHANGEABLE,
    DeliveryPageSchema,
    DeliveryQuerySchema,
    DeliverySchema,
    EndpointChangeSchema,
    EndpointInputSchema,
    EndpointListSchema,
    EndpointSchema,
    EndpointWithSecretSchema,
    FullDeliverySchema,
    ReplayInputSchema,
    ReplaySchema,
)
from broker_common.core.endpoints import EndpointChange, WantedEndpoint
from broker_common.core.errors import InvalidInput
from broker_common.core.principals import Role
from broker_common.core.webhook_store import SETTLED_SEC

if TYPE_CHECKING:
    from broker_common.core.endpoints import Replay
    from broker_common.core.webhook import Delivery, Endpoint

_SHOWN = (
    *("endpoint_id", "url", "kinds", "description", "version", "created_at", "created_by"),
    *("failing_since", "disabled_at", "disabled_reason"),
)
_WRITE_ERRORS = ("SERVICE_UNAVAILABLE", "TABLE_CHANGED")

blueprint = Blueprint("webhooks", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/webhooks", methods=["POST"], role=Role.ADMIN)
@blueprint.doc(operationId="adminAddWebhook", errors=(*_WRITE_ERRORS, "WEBHOOK_LIMIT", "UPGRADE_UNFINISHED"))
@blueprint.arguments(EndpointInputSchema())
@blueprint.response(201, EndpointWithSecretSchema, description="The endpoint, with its secret")
@store_call
def add(body: dict[str, Any]) -> dict[str, Any]:
    """Register an endpoint that is told what happens."""
    return _with_secret(services().endpoints.create(WantedEndpoint(**_in_core(body)), by=actor()))


@blueprint.route("/webhooks", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminListWebhooks", errors=("SERVICE_UNAVAILABLE",))
@blueprint.response(200, EndpointListSchema, description="The endpoints")
@store_call
def list_endpoints() -> dict[str, Any]:
    """List all endpoints, the oldest first."""
    found = [_shown(each) for each in services().endpoints.list()]
    return {"webhooks": found, "count": len(found)}


@blueprint.route("/webhooks/<endpoint_id>", methods=["GET"], role=Role.VIEWER, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminReadWebhook", errors=("WEBHOOK_NOT_FOUND", "SERVICE_UNAVAILABLE"))
@blueprint.response(200, EndpointSchema, description="The endpoint as it is now")
@store_call
def read(endpoint_id: str) -> dict[str, Any]:
    """Read an endpoint."""
    require_plain("endpoint_id", endpoint_id)
    return _shown(services().endpoints.get(endpoint_id))


@blueprint.route("/webhooks/<endpoint_id>", methods=["PATCH"], role=Role.ADMIN, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminChangeWebhook", errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND", "VERSION_MISMATCH"))
@blueprint.arguments(EndpointChangeSchema(partial=CHANGEABLE), example={"enabled": True, "version": 1})
@blueprint.response(200, EndpointSchema, description="The endpoint after the change")
@store_call
def change(body: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """Change an endpoint, disable it, or enable it again."""
    require_plain("endpoint_id", endpoint_id)
    version = body.pop("version")
    if "description" in body:
        body["description"] = body["description"] or ""
    wanted = EndpointChange(**_in_core(body))
    return _shown(services().endpoints.change(endpoint_id, wanted, version=version, by=actor()))


@blueprint.route("/webhooks/<endpoint_id>", methods=["DELETE"], role=Role.ADMIN, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminRemoveWebhook", errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND"))
@blueprint.empty_response(description="The endpoint is removed")
@store_call
def remove(endpoint_id: str) -> None:
    """Remove an endpoint."""
    require_plain("endpoint_id", endpoint_id)
    services().endpoints.remove(endpoint_id)


@blueprint.route("/webhooks/<endpoint_id>/rotate-secret", methods=["POST"], role=Role.ADMIN, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminRotateWebhookSecret", errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND"))
@blueprint.response(200, EndpointWithSecretSchema, description="The endpoint, with its new secret")
@store_call
def rotate_secret(endpoint_id: str) -> dict[str, Any]:
    """Give an endpoint a new secret."""
    require_plain("endpoint_id", endpoint_id)
    return _with_secret(services().endpoints.rotate_secret(endpoint_id))


@blueprint.route("/webhooks/<endpoint_id>/test", methods=["POST"], role=Role.ADMIN, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminTestWebhook", errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND"))
@blueprint.response(202, FullDeliverySchema, description="The delivery, which is sent soon")
@store_call
def test(endpoint_id: str) -> Delivery:
    """Send a test to an endpoint."""
    require_plain("endpoint_id", endpoint_id)
    return services().endpoints.test(endpoint_id, by=actor())


@blueprint.route("/webhooks/<endpoint_id>/replay", methods=["POST"], role=Role.ADMIN, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminReplayWebhook", errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND", "UPGRADE_UNFINISHED"))
@blueprint.arguments(ReplayInputSchema())
@blueprint.response(200, ReplaySchema, description="How far it has come")
@bulk_store_call
def replay(body: dict[str, Any], endpoint_id: str) -> Replay:
    """Send the facts since a time again."""
    require_plain("endpoint_id", endpoint_id)
    try:
        return services().endpoints.replay(endpoint_id, **body)
    except InvalidInput as error:
        if error.details is None:  # the store's own words for a cursor that somebody has changed
            raise RequestInvalid({"cursor": ["Is not from a replay."]}) from error
        raise


@blueprint.route("/webhooks/<endpoint_id>/deliveries", methods=["GET"], role=Role.VIEWER, parameters=[ENDPOINT_ID])
@blueprint.doc(operationId="adminListDeliveries", errors=("WEBHOOK_NOT_FOUND", "SERVICE_UNAVAILABLE"))
@blueprint.arguments(DeliveryQuerySchema(), location="query")
@blueprint.response(200, DeliveryPageSchema, description="A page of deliveries")
@store_call
def list_deliveries(query: dict[str, Any], endpoint_id: str) -> dict[str, Any]:
    """List the deliveries to an endpoint."""
    require_plain("endpoint_id", endpoint_id)
    try:
        page = services().endpoints.deliveries(
            endpoint_id, state=query.get("state"), limit=query["limit"], cursor=query.get("cursor")
        )
    except InvalidInput as error:
        raise RequestInvalid({"cursor": ["Is not from a listing of the same endpoint and state."]}) from error
    return {"deliveries": page.deliveries, "count": len(page.deliveries), "cursor": page.cursor}


@blueprint.route(
    "/webhooks/<endpoint_id>/deliveries/<delivery_id>",
    methods=["GET"],
    role=Role.VIEWER,
    parameters=[ENDPOINT_ID, DELIVERY_ID],
)
@blueprint.doc(
    operationId="adminReadDelivery", errors=("WEBHOOK_NOT_FOUND", "DELIVERY_NOT_FOUND", "SERVICE_UNAVAILABLE")
)
@blueprint.response(200, FullDeliverySchema, description="The delivery as it is now")
@store_call
def read_delivery(endpoint_id: str, delivery_id: str) -> Delivery:
    """Read a delivery with its body."""
    require_plain("endpoint_id", endpoint_id)
    require_plain("delivery_id", delivery_id, max_length=MAX_DELIVERY_ID)
    return services().endpoints.delivery(endpoint_id, delivery_id)


@blueprint.route(
    "/webhooks/<endpoint_id>/deliveries/<delivery_id>/retry",
    methods=["POST"],
    role=Role.ADMIN,
    parameters=[ENDPOINT_ID, DELIVERY_ID],
)
@blueprint.doc(
    operationId="adminRetryDelivery",
    errors=(*_WRITE_ERRORS, "WEBHOOK_NOT_FOUND", "DELIVERY_NOT_FOUND", "INVALID_TRANSITION"),
)
@blueprint.response(200, DeliverySchema, description="The delivery, which is pending again")
@store_call
def retry(endpoint_id: str, delivery_id: str) -> Delivery:
    """Send a delivery again that has ended, or now if it waits for its next try."""
    require_plain("endpoint_id", endpoint_id)
    require_plain("delivery_id", delivery_id, max_length=MAX_DELIVERY_ID)
    return services().endpoints.retry(endpoint_id, delivery_id)


def _in_core(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields as the core takes them."""
    return body | ({"kinds": tuple(body["kinds"])} if "kinds" in body else {})


def _shown(endpoint: Endpoint) -> dict[str, Any]:
    now = services().clock.now()
    replaced = [each.valid_until for each in endpoint.secrets if each.valid_until is not None]
    return {name: getattr(endpoint, name) for name in _SHOWN} | {
        "enabled": endpoint.disabled_at is None,
        "active_from": endpoint.created_at + SETTLED_SEC,
        "previous_secret_valid_until": max((until for until in replaced if until > now), default=None),
    }


def _with_secret(endpoint: Endpoint) -> dict[str, Any]:
    return _shown(endpoint) | {"secret": endpoint.secrets[0].value}
