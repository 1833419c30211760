"""The page reservations."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("reservations", __name__)


@blueprint.get("/reservations")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/reservations.html")


@blueprint.get("/reservations/<reservation_id>")
def show(reservation_id: str) -> str:
    """Show one reservation."""
    known_person()
    return render_template("pages/reservations.html", reservation_id=reservation_id)
