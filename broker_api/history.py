"""The calls that read facts: the history of one sandbox, and the feed of all facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import store_call
from broker_api.openapi import SANDBOX_ID
from broker_api.runtime import services
from broker_api.schemas.events import FactPageSchema, FactQuerySchema, FeedOrder, FeedQuerySchema, FeedSchema
from broker_common.core.errors import InvalidInput
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from broker_common.core.history import Feed

blueprint = Blueprint("history", __name__)
blueprint.before_request(refuse_surplus)


@blueprint.route("/sandboxes/<sandbox_id>/history", methods=["GET"], role=Role.VIEWER, parameters=[SANDBOX_ID])
@blueprint.doc(
    operationId="adminReadHistory",
    errors=("SANDBOX_NOT_FOUND", "SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.arguments(FactQuerySchema(), location="query")
@blueprint.response(200, FactPageSchema, description="A page of its facts")
@store_call
def read_history(query: dict[str, Any], sandbox_id: str) -> dict[str, Any]:
    """Read what happened to a sandbox, newest first."""
    require_plain("sandbox_id", sandbox_id)
    try:
        page = services().history.of_sandbox(sandbox_id, limit=query["limit"], cursor=query.get("cursor"))
    except InvalidInput as error:
        raise RequestInvalid({"cursor": ["Is not from this sandbox's history."]}) from error
    return {"facts": page.facts, "count": len(page.facts), "cursor": page.cursor}


@blueprint.route("/events", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminReadEvents",
    errors=("SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
)
@blueprint.arguments(FeedQuerySchema(), location="query")
@blueprint.response(200, FeedSchema, description="The next facts")
@store_call
def read_events(query: dict[str, Any]) -> dict[str, Any]:
    """Read what happened in the pool, oldest first or newest first."""
    history = services().history
    read = history.newest if query["order"] is FeedOrder.NEWEST_FIRST else history.feed
    try:
        feed = read(
            after=query.get("after"),
            since=query.get("since"),
            kind=_kind(query.get("kind")),
            track_id=query.get("track_id"),
            limit=query["limit"],
        )
    except InvalidInput as error:
        raise RequestInvalid({"after": ["Is not a cursor of this feed in this order."]}) from error
    return _shown(feed)


def _kind(name: str | None) -> FactKind | PoolFactKind | None:
    if name is None:
        return None
    return FactKind(name) if name in set(FactKind) else PoolFactKind(name)


def _shown(feed: Feed) -> dict[str, Any]:
    return {"events": feed.facts, "count": len(feed.facts), "cursor": feed.cursor, "is_last": feed.is_last}
