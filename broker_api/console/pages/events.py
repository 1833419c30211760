"""The page of events: what happened in the pool, newest first, or from a time on."""

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
_DAY_SEC = 86400
_FIRST_SPAN_SEC = 300
_MOST_LOOKS = 7
_LOOKED_AT = 2 * SHOWN
_FILTERED_SPANS_SEC = (_DAY_SEC // 256, _DAY_SEC // 16, _DAY_SEC)
_LOOKED_AT_BY_FILTER = 1000
LOOK_SEC = 3
"""With a filter, no call begins later than this: a person waits for the page. It says how far it looked."""
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


def _newest(wanted: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the newest facts, the newest first, and from which time on they are all that happened.

    The API reads its feed in the order of time alone. So the console looks for a time since which there are enough
    facts, but not more than one look reads.
    """
    found, since = _look_by_filter(wanted) if any(wanted.values()) else _look()
    facts = found["events"][::-1]
    complete_since = since if len(facts) <= SHOWN else facts[SHOWN - 1]["at"]
    return found | {"events": facts[:SHOWN], "since": complete_since}


def _look() -> tuple[dict[str, Any], int]:
    now, span = runtime().clock.now(), _FIRST_SPAN_SEC
    complete, too_long = 0, 0
    # By whether it reached the newest fact: the last such look.
    looks: dict[bool, tuple[dict[str, Any], int]] = {}
    for _ in range(_MOST_LOOKS):
        found = _read({"limit": _LOOKED_AT, "since": now - span})
        count, reached = len(found["events"]), bool(found["is_last"])
        looks[reached] = found, now - span
        if reached and (count >= SHOWN or span >= _DAY_SEC):
            break
        if reached:
            complete = span
        else:
            too_long = span
        if too_long:
            # Between two bounds whose lengths may differ much, the middle is that of their logarithms.
            span = round(math.sqrt(max(1, complete) * too_long))
        else:
            span = min(_DAY_SEC, 2 * span * SHOWN // count) if count else _DAY_SEC
        if span in {complete, too_long}:
            break
    # If more facts came at once than a look reads, and none since, a part of them is shown.
    return looks[True] if True in looks and (looks[True][0]["events"] or False not in looks) else looks[False]


def _look_by_filter(wanted: Mapping[str, str | None]) -> tuple[dict[str, Any], int]:
    """Return what fits of the longest span that there is time for.

    `go_on_from`: when the next longer span begins, if the time was over.
    """
    ends, now = runtime().clock.monotonic() + LOOK_SEC, runtime().clock.now()
    best: tuple[dict[str, Any], int] | None = None
    for span in _FILTERED_SPANS_SEC:
        found = _read({"limit": _LOOKED_AT_BY_FILTER, "since": now - span, **wanted}, ends=ends)
        if best is not None and not found["is_last"]:
            # What it lacks are the newest ones, so the shorter span says more.
            return best[0] | {"go_on_from": now - span}, best[1]
        best = found, now - span
        if not found["is_last"] or len(found["events"]) >= SHOWN:
            break
    assert best is not None  # noqa: S101 - there are spans
    return best


def _from(after: str | None, since: int | None, wanted: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a page of facts, the oldest first. A filter leaves facts out, so more are looked at for it.

    `looked_to`: of when the first fact is that was not looked at, if the time was over.
    """
    if not any(wanted.values()):
        return _read({"limit": SHOWN, "since": since}, after=after)
    ends = runtime().clock.monotonic() + LOOK_SEC
    found = _read({"limit": 4 * SHOWN, "since": since, **wanted}, ends=ends, enough=SHOWN, after=after)
    if not found["is_last"] and len(found["events"]) < SHOWN:
        # The API says where it stopped only by a cursor.
        following = _read({"limit": 1}, after=found["cursor"])["events"]
        found["looked_to"] = following[0]["at"] if following else runtime().clock.now()
    return found


def _read(
    query: Mapping[str, str | int | None],
    *,
    ends: float = -math.inf,
    enough: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    """Return the facts of one answer, or of as many as begin before `ends`, and the cursor to read on.

    Each fact is there once. `ends` is on the monotonic clock. Stops as soon as there are `enough`.
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
        if body["is_last"] or (enough is not None and len(known) >= enough) or runtime().clock.monotonic() >= ends:
            return {"events": list(known.values()), "cursor": after, "is_last": body["is_last"]}
