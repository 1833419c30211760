"""The page of events: what happened in the pool, the newest first, or from a time on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from flask import Blueprint, render_template, request

from broker_api.console.calls import call, known_person, remember, sentence
from broker_api.console.facts import fact_name
from broker_api.console.moments import parse_moment
from broker_api.console.runtime import runtime
from broker_api.webhook_description import KINDS
from broker_common.adapters.broker_http import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

blueprint = Blueprint("events", __name__)

SHOWN = 100
"""How many facts a page has at most, except that one answer of the API is never divided."""
LOOKED_AT_BY_FILTER = 4 * SHOWN
LOOK_SEC = 3
"""With a filter, no call begins later than this: a person waits for the page. It says how far it looked."""
_UNFIT = "VALIDATION_ERROR"


@blueprint.get("/events")
def index() -> str | tuple[str, int]:
    """Show the newest facts, or older ones from the cursor `before` on.

    From the time `since` or the cursor `after` on, the oldest come first.
    """
    known_person()
    wanted = {name: request.args.get(name, "").strip() or None for name in ("kind", "track_id", "track_name")}
    since, after = request.args.get("since", "").strip(), request.args.get("after") or None
    before = request.args.get("before") or None
    problem, feed = None, None
    try:
        if after is not None or since:
            at = parse_moment(since, now=runtime().clock.now()) if since else None
            feed = remember(
                "/events page",
                lambda: _read("oldest_first", after, wanted, since=at),
                after=after,
                since=since,
                **wanted,
            )
        else:
            feed = remember("/events newest", lambda: _read("newest_first", before, wanted), before=before, **wanted)
    except ValueError as error:
        problem = str(error)
    except Refused as error:
        if error.code != _UNFIT:
            raise
        problem = f"{sentence(error.message)} (request {error.request_id})"
    page = render_template(
        "pages/events.html",
        feed=feed,
        problem=problem,
        wanted=wanted,
        since=since,
        after=after,
        before=before,
        kinds=KINDS,
    )
    return page if problem is None else (page, 400)


def _read(
    order: str, after: str | None, wanted: Mapping[str, str | None], *, since: int | None = None
) -> dict[str, Any]:
    """Return a page of facts. A filter leaves facts out, so more are looked at for it.

    `looked_to`: of when the next fact is that was not looked at, if the time was over.
    """
    if not any(wanted.values()):
        return _look({"order": order, "limit": SHOWN, "since": since}, after=after)
    ends = runtime().clock.monotonic() + LOOK_SEC
    query = {"order": order, "limit": LOOKED_AT_BY_FILTER, "since": since, **wanted}
    found = _look(query, after=after, ends=ends)
    if not found["is_last"] and len(found["events"]) < SHOWN:
        # The API says where it stopped only by a cursor.
        following = _look({"order": order, "limit": 1}, after=found["cursor"])["events"]
        found["looked_to"] = following[0]["at"] if following else runtime().clock.now()
    return found


def _look(query: Mapping[str, str | int | None], *, after: str | None, ends: float = -math.inf) -> dict[str, Any]:
    """Return the facts of one answer, or of as many as begin before `ends`, and the cursor to read on.

    Each fact is there once. `ends` is on the monotonic clock. Stops as soon as there are `SHOWN`.
    """
    known: dict[str, dict[str, Any]] = {}
    # The API does not know this filter: it is a detail of the facts that begin a lease, or say that its end is near.
    lab = query.get("track_name")
    while True:
        given = {**query, "after": after, "track_name": None}
        given = {name: value for name, value in given.items() if value is not None}
        body = call("GET", "/events", params=given).body
        # The feed is at least once.
        for fact in body["events"]:
            if lab is None or fact["details"].get("track_name") == lab:
                known.setdefault(fact_name(fact), fact)
        after = body["cursor"]
        if body["is_last"] or len(known) >= SHOWN or runtime().clock.monotonic() >= ends:
            return {"events": list(known.values()), "cursor": after, "is_last": body["is_last"]}
