"""The calls of an operator on the line of waiting tracks."""

from __future__ import annotations

from typing import Any

from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.limits import bulk_store_call
from broker_api.openapi import PLACE_ID
from broker_api.runtime import services
from broker_api.schemas.line import LineQuerySchema, LineSchema
from broker_common.core.principals import Role

blueprint = Blueprint("line", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/waiting", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(operationId="adminListWaiting", errors=("SERVICE_UNAVAILABLE",))
@blueprint.arguments(LineQuerySchema(), location="query")
@blueprint.response(200, LineSchema, description="The places, the first one first")
@bulk_store_call
def list_waiting(query: dict[str, Any]) -> dict[str, Any]:
    """List the line of waiting tracks."""
    line = services().line.list_all()
    places = line[: query["limit"]]
    return {"places": places, "count": len(places), "waiting": len(line)}


@blueprint.route("/waiting/<place_id>", methods=["DELETE"], role=Role.OPERATOR, parameters=[PLACE_ID])
@blueprint.doc(operationId="adminRemovePlace", errors=("SERVICE_UNAVAILABLE",))
@blueprint.empty_response(description="The place is not in the line, or is no longer")
@bulk_store_call
def remove(place_id: str) -> None:
    """Remove a place from the line."""
    require_plain("place_id", place_id)
    services().line.remove(place_id)
