"""The page sandboxes."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("sandboxes", __name__)


@blueprint.get("/sandboxes")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/sandboxes.html")


@blueprint.get("/sandboxes/<sandbox_id>")
def show(sandbox_id: str) -> str:
    """Show one sandbox."""
    known_person()
    return render_template("pages/sandbox.html", sandbox_id=sandbox_id)
