"""The line of tracks that wait for a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, render_template, request

from broker_api.console.calls import act, back, need, read
from broker_api.console.forms import is_typed
from broker_common.adapters.broker_http import Refused, Unreachable, quoted

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

blueprint = Blueprint("line", __name__)
_SHOWN, _MOST = 200, 1000
"""Places that are listed, and that are listed if all are asked for. The API lists no more."""


@blueprint.get("/line")
def index() -> str:
    """Show the places, and what their tracks wait for."""
    limit = _MOST if request.args.get("all") else _SHOWN
    return render_template(
        "pages/line.html",
        line=read("/waiting", limit=limit),
        overview=read("/overview"),
        next_end=_next_end(),
        most=_MOST,
    )


@blueprint.post("/line/<place_id>/remove")
def remove(place_id: str) -> Response:
    """Remove a place, if the id of its track was typed."""
    need("operator")
    track_id = request.form.get("track_id", "")
    if track_id and is_typed(track_id):
        act(f"The place of track {track_id} was removed from the line", "DELETE", f"/waiting/{quoted(place_id)}")
    return back("line.index")


def _next_end() -> dict[str, Any] | None:
    """Return the sandbox whose lease ends first, None if no sandbox is leased or the API cannot say it."""
    try:
        found = read("/sandboxes", status="allocated", sort="expires_at", limit=1)["sandboxes"]
    except (Refused, Unreachable):
        return None
    return found[0] if found else None
