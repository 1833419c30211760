"""The page events."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("events", __name__)


@blueprint.get("/events")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/events.html")
