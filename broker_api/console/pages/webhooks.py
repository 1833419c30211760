"""The page webhooks."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("webhooks", __name__)


@blueprint.get("/webhooks")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/webhooks.html")


@blueprint.get("/webhooks/<endpoint_id>")
def show(endpoint_id: str) -> str:
    """Show one endpoint."""
    known_person()
    return render_template("pages/webhooks.html", endpoint_id=endpoint_id)
