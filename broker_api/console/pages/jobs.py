"""The page jobs."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import known_person

blueprint = Blueprint("jobs", __name__)


@blueprint.get("/jobs")
def index() -> str:
    """Show the page."""
    known_person()
    return render_template("pages/jobs.html")
