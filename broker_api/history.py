"""What happened: the facts of one sandbox, and the feed of all facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.blueprint import Blueprint, refuse_surplus, require_plain
from broker_api.errors import RequestInvalid
from broker_api.limits import store_call
from broker_api.openapi import SANDBOX_ID, link_to
from broker_api.runtime import services
from broker_api.schemas import FactPageSchema, FactQuerySchema, FeedQuerySchema, FeedSchema
from broker_common.core.errors import InvalidInput
from broker_common.core.facts import FactKind, PoolFactKind
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from broker_common.core.history import Feed

blueprint = Blueprint("history", __name__, description="What happened")
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
    """Read what happened to a sandbox, newest first.

    Every change of its status, holder or expiry is one fact, which was written together with the change. Facts are kept
    for `HISTORY_DAYS`; also those of a sandbox that is gone.
    """
    require_plain("sandbox_id", sandbox_id)
    try:
        page = services().history.of_sandbox(sandbox_id, limit=query["limit"], cursor=query.get("cursor"))
    except InvalidInput as error:
        raise RequestInvalid({"cursor": ["Was not given by a history of this sandbox."]}) from error
    return {"facts": page.facts, "count": len(page.facts), "cursor": page.cursor}


@blueprint.route("/events", methods=["GET"], role=Role.VIEWER)
@blueprint.doc(
    operationId="adminReadEvents",
    errors=("SERVICE_UNAVAILABLE", "UPGRADE_UNFINISHED"),
    responses={200: {"links": link_to("adminReadEvents", {"after": "$response.body#/cursor"})}},
)
@blueprint.arguments(FeedQuerySchema(), location="query")
@blueprint.response(200, FeedSchema, description="The next facts")
@store_call
def read_events(query: dict[str, Any]) -> dict[str, Any]:
    """Read what happened in the pool, oldest first.

    Read on with `cursor` as `after`. The facts of one sandbox stand in the order of its versions. A reader gets each
    fact at least once: at the end of the feed the cursor reads the last minutes again, because a fact may show up late.
    Drop what you know by its name: `sandbox_id`, `version` and `kind`, or `fact_id`; where one shows up late, `version`
    says where it belongs. With `kind` or `track_id` a page may be empty and yet not the last one.
    """
    try:
        feed = services().history.feed(
            after=query.get("after"),
            since=query.get("since"),
            kind=_kind(query.get("kind")),
            track_id=query.get("track_id"),
            limit=query["limit"],
        )
    except InvalidInput as error:
        raise RequestInvalid({"after": ["Was not given by this feed."]}) from error
    return _shown(feed)


def _kind(name: str | None) -> FactKind | PoolFactKind | None:
    if name is None:
        return None
    return FactKind(name) if name in set(FactKind) else PoolFactKind(name)


def _shown(feed: Feed) -> dict[str, Any]:
    return {"events": feed.facts, "count": len(feed.facts), "cursor": feed.cursor, "is_last": feed.is_last}
