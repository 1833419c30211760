"""The page line."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("line", __name__)


@blueprint.get("/line")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/line.html")
