"""The first page: whether tracks are being served, the pool, and what needs a person.

It is left open all day and renews itself, so a view costs few calls: the overview, the reservations, and once a minute
the samples, from which the picture is drawn. The picture is kept for that minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, g, render_template
from markupsafe import Markup

from broker_api.console.booking_form import OVER
from broker_api.console.calls import call, known_person, read
from broker_api.console.concerns import ASKED, find_concerns, judge
from broker_api.console.pictures import pool
from broker_api.console.runtime import runtime
from broker_api.console.texts import iso
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.csv_export import write_csv

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

blueprint = Blueprint("overview", __name__)
_STEP_SEC = 300
_DAY_SEC = 24 * 3600
_BEFORE_SEC = 900
"""The line grows if it is longer than so many seconds ago."""
_MOST_CLASSES = 50


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The picture as HTML, and the times and lengths of the line."""

    html: Markup
    waited: Sequence[tuple[int, int]]


@blueprint.get("/")
def show() -> str:
    """Show the page."""
    who, now = known_person(), runtime().clock.now()
    overview = read("/overview")
    classes = _classes(overview, now)
    drawn = runtime().kept.get(who.owner, "pool", _draw, may_keep=lambda: "known_at" not in g)
    waited_before = None if drawn is None else _waited_before(drawn, now)
    return render_template(
        "pages/overview.html",
        overview=overview,
        verdict=judge(overview, waited_before=waited_before),
        concerns=find_concerns(overview, now=now, up_since=runtime().up_since),
        classes=classes,
        picture=drawn.html if drawn else None,
        stack=pool.STACK,
        asked=ASKED,
    )


@blueprint.get("/pool.csv")
def download() -> Response:
    """Return the numbers of the picture as CSV, the oldest first. Times are in UTC."""
    # Not what was known before: the file could not say so.
    picture, _ = _picture(call("GET", "/samples", params={"step": _STEP_SEC}).body)
    rows = [
        {"at": iso(each["at"])}
        | {name: each["counts"][name] for name in (*pool.STACK, "total")}
        | {"waiting": each["waiting"]}
        for each in reversed(picture.rows)
    ]
    file = StringIO(newline="")
    write_csv(rows, file, fields=("at", *pool.STACK, "total", "waiting"))
    return Response(
        file.getvalue(), mimetype="text/csv", headers={"Content-Disposition": 'attachment; filename="pool.csv"'}
    )


def _picture(found: Mapping[str, Any]) -> tuple[pool.Picture, Sequence[Mapping[str, Any]]]:
    """Return the picture of the last day, and the samples that it was made of."""
    return pool.draw(found["samples"], step_sec=found["step"], now=runtime().clock.now()), found["samples"]


def _draw() -> _Drawn | None:
    """Return the picture of the last day; None if the API does not give the samples. The rest of the page is shown."""
    try:
        picture, samples = _picture(read("/samples", step=_STEP_SEC))
    except (Refused, Unreachable):
        return None
    html = render_template(
        "pool_picture.html",
        picture=picture,
        label=pool.describe(picture),
        width=pool.WIDTH,
        height=pool.HEIGHT,
        stack=pool.STACK,
    )
    waited = [(each["at"], each["waiting"]) for each in samples if each["waiting"] is not None]
    # Jinja has escaped what the API gave.
    return _Drawn(Markup(html), waited)  # noqa: S704


def _waited_before(drawn: _Drawn, now: int) -> int | None:
    """Return how many tracks waited a quarter of an hour ago; None if that is not known."""
    step = (now - _BEFORE_SEC) - (now - _BEFORE_SEC) % _STEP_SEC
    return dict(drawn.waited).get(step)


def _classes(overview: Mapping[str, Any], now: int) -> list[Mapping[str, Any]]:
    """Return the reservations that are open, lack sandboxes, or start within a day, in the order of their start."""
    found = {each["reservation_id"]: each for each in overview["reservations"]}
    try:
        booked = read("/reservations", limit=_MOST_CLASSES)["reservations"]
    except (Refused, Unreachable):
        booked = []
    for each in booked:
        if each["state"] not in OVER and each["starts_at"] < now + _DAY_SEC:
            found.setdefault(each["reservation_id"], each)
    return sorted(found.values(), key=lambda each: (each["starts_at"], each["reservation_id"]))
