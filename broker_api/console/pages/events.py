"""The page of events: what happened in the pool, newest first, or from a time on."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, render_template, request

from broker_api.console.calls import call, known_person, remember, sentence
from broker_api.console.facts import fact_name
from broker_api.console.moments import parse_moment
from broker_api.console.runtime import runtime
from broker_api.webhook_description import KINDS
from broker_common.adapters.broker_http import Refused

blueprint = Blueprint("events", __name__)

SHOWN = 100
"""How many facts a page has at most, except that one answer of the API is never divided."""
_SPANS_SEC = tuple(86400 // 4**step for step in range(6))
"""From a day down to about a minute and a half: how far back the newest facts are looked for.

The API reads its feed in the order of time alone. So the console reads the longest of these spans whose end it reaches.
"""
_LOOKED_AT = 500
_LOOKED_AT_BY_FILTER, _PAGES_BY_FILTER = 1000, 4
_UNFIT = "VALIDATION_ERROR"


@blueprint.get("/events")
def index() -> str | tuple[str, int]:
    """Show the newest facts; from the time `since` or the cursor `after` on, the oldest first."""
    known_person()
    wanted = {name: request.args.get(name, "").strip() or None for name in ("kind", "track_id", "track_name")}
    since, after = request.args.get("since", "").strip(), request.args.get("after") or None
    problem, feed = None, None
    try:
        if after is not None or since:
            at = parse_moment(since, now=runtime().clock.now()) if since else None
            feed = remember("/events page", lambda: _from(after, at, wanted), after=after, since=since, **wanted)
        else:
            feed = remember("/events newest", lambda: _newest(wanted), **wanted)
    except ValueError as error:
        problem = str(error)
    except Refused as error:
        if error.code != _UNFIT:
            raise
        problem = f"{sentence(error.message)} (request {error.request_id})"
    page = render_template(
        "pages/events.html", feed=feed, problem=problem, wanted=wanted, since=since, after=after, kinds=KINDS
    )
    return page if problem is None else (page, 400)


def _newest(wanted: dict[str, str | None]) -> dict[str, Any]:
    """Return the newest facts, the newest first, and from which time on they are all that happened."""
    limit, pages = _effort(wanted)
    for span in _SPANS_SEC:
        since = runtime().clock.now() - span
        found = _read(pages=pages, limit=limit, since=since, **wanted)
        if found["is_last"]:
            break
    facts = found["events"][::-1]
    complete_since = since if len(facts) <= SHOWN else facts[SHOWN - 1]["at"]
    return found | {"events": facts[:SHOWN], "since": complete_since}


def _from(after: str | None, since: int | None, wanted: dict[str, str | None]) -> dict[str, Any]:
    """Return a page of facts, the oldest first."""
    limit, pages = _effort(wanted)
    return _read(pages=pages, limit=min(limit, SHOWN) if pages == 1 else limit, after=after, since=since, **wanted)


def _effort(wanted: dict[str, str | None]) -> tuple[int, int]:
    """Return how many facts one call looks at, and how many calls are made: more if a filter leaves facts out."""
    is_filtered = any(wanted.values())
    return (_LOOKED_AT_BY_FILTER, _PAGES_BY_FILTER) if is_filtered else (_LOOKED_AT, 1)


def _read(*, pages: int, after: str | None = None, **query: str | int | None) -> dict[str, Any]:
    """Return the facts of up to `pages` answers, each once, and the cursor to read on."""
    known: dict[str, dict[str, Any]] = {}
    # The API does not know this filter: it is a detail of the facts that begin a lease, or say that its end is near.
    lab = query.pop("track_name")
    for _ in range(pages):
        given = {name: value for name, value in (query | {"after": after}).items() if value is not None}
        body = call("GET", "/events", params=given).body
        # The feed is at least once.
        for fact in body["events"]:
            if lab is None or fact["details"].get("track_name") == lab:
                known.setdefault(fact_name(fact), fact)
        after = body["cursor"]
        if body["is_last"]:
            break
    return {"events": list(known.values()), "cursor": after, "is_last": body["is_last"]}
