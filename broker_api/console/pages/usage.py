"""The page of usage: how labs, customers and days used the pool."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Response, render_template, request

from broker_api.console.calls import call, known_person, read, sentence
from broker_api.console.moments import parse_day
from broker_api.console.pictures.usage import draw_usage
from broker_api.console.runtime import runtime
from broker_common.adapters.broker_http import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.adapters.broker_http import Answer

blueprint = Blueprint("usage", __name__)
Found = TypeVar("Found")

GROUPINGS = {"track_name": "lab", "customer": "customer", "day": "day"}
"""What there may be a row for, and what people call it."""
COLUMNS = (
    ("leases", "Leases"),
    ("sandbox_hours", "Sandbox hours"),
    ("marked", "Given back"),
    ("released", "Released"),
    ("expired", "Expired"),
    ("lease_median_sec", "Lease, median"),
    ("lease_p95_sec", "Lease,\N{NO-BREAK SPACE}95\N{NO-BREAK SPACE}%"),
    ("wipes", "Wipes"),
    ("wipe_median_sec", "Wipe, median"),
    ("wipe_p95_sec", "Wipe,\N{NO-BREAK SPACE}95\N{NO-BREAK SPACE}%"),
)
"""The fields of a row that have a column, and its title."""
RANGES_DAYS = (7, 30)
MOST_ROWS = 500
"""Rows on the page. The CSV has all."""
_SHORTEST_KEPT_DAYS = 1
_UNFIT = "VALIDATION_ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the report is asked for. `from_text` and `to_text` are what the person chose; None: nothing."""

    by: str
    from_text: str | None
    to_text: str | None
    customer: str | None

    def query(self) -> dict[str, str | int | None]:
        """Return the query for the API. Raises `ValueError`, whose message is for the person."""
        now = runtime().clock.now()
        since = _midnight(now, days_ago=RANGES_DAYS[0]) if self.from_text is None else parse_day(self.from_text)
        until = None if self.to_text is None else parse_day(self.to_text, days=1)
        ended = until if until is not None and until <= now else None
        return {"by": self.by, "from": since, "to": ended, "customer": self.customer}


@blueprint.get("/usage")
def index() -> str | tuple[str, int]:
    """Show the leases that ended in a time, as a picture and as a table."""
    known_person()
    wanted, sort = _wanted(), request.args.get("sort", "")
    report, problem = None, None
    try:
        report, _ = _asked(wanted, _report)
    except ValueError as error:
        problem = str(error)
    except Refused as error:
        if error.code != _UNFIT:
            raise
        problem = f"{sentence(error.message)} (request {error.request_id})"
    page = render_template(
        "pages/usage.html",
        wanted=wanted,
        sort=sort,
        problem=problem,
        report=report,
        rows=_sorted(report["rows"], sort) if report else [],
        picture=draw_usage(report["rows"], by=report["by"], since=report["from"], until=report["to"])
        if report
        else None,
        groupings=GROUPINGS,
        columns=COLUMNS,
        most_rows=MOST_ROWS,
        from_shown=wanted.from_text or (_day_of(report["from"]) if report else ""),
        ranges={days: _day_of(_midnight(runtime().clock.now(), days_ago=days)) for days in RANGES_DAYS},
    )
    return page if problem is None else (page, 400)


@blueprint.get("/usage/csv")
def download() -> Response:
    """Pass on the API's CSV of the same report."""
    wanted = _wanted()
    try:
        answer, since = _asked(wanted, _csv)
    except ValueError as error:
        return Response(f"{error}\n", status=400, mimetype="text/plain")
    name = f"usage-by-{GROUPINGS.get(wanted.by, 'group')}-{_day_of(since)}.csv"
    return Response(answer.text, mimetype="text/csv", headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _wanted() -> Wanted:
    given = {name: request.args.get(name, "").strip() or None for name in ("by", "from", "to", "customer")}
    return Wanted(
        by=given["by"] or "track_name", from_text=given["from"], to_text=given["to"], customer=given["customer"]
    )


def _csv(**query: str | int | None) -> Answer:
    given = {name: value for name, value in query.items() if value is not None}
    return call("GET", "/usage", params=given, accept="text/csv")


def _report(**query: str | int | None) -> dict[str, Any]:
    return read("/usage", **query)


def _asked(wanted: Wanted, ask: Callable[..., Found]) -> tuple[Found, int]:
    """Return what `ask` finds for the query, and from when on. Raises `ValueError` and what `ask` raises."""
    query = wanted.query()
    try:
        return ask(**query), int(query["from"] or 0)
    except Refused as error:
        if wanted.from_text is not None or error.code != _UNFIT or "from" not in error.details:
            raise
        # Nobody chose the time, and leases are kept for a shorter one here.
        shorter = _midnight(runtime().clock.now(), days_ago=_SHORTEST_KEPT_DAYS)
        return ask(**(query | {"from": shorter})), shorter


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Return the rows in the order of a column, from the highest with a minus sign; rows without a value come last."""
    column = sort.removeprefix("-")
    if column not in {"group", *dict(COLUMNS)}:
        return rows
    known = [row for row in rows if row[column] is not None]
    known.sort(key=lambda row: row[column], reverse=sort.startswith("-"))
    return known + [row for row in rows if row[column] is None]


def _midnight(now: int, *, days_ago: int) -> int:
    return now - now % 86400 - days_ago * 86400


def _day_of(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
