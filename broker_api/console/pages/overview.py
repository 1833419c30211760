"""The first page: whether tracks are being served, and what needs a person."""

from __future__ import annotations

from flask import Blueprint, render_template

from broker_api.console.calls import read

blueprint = Blueprint("overview", __name__)


@blueprint.get("/")
def show() -> str:
    """Show the page."""
    return render_template("pages/overview.html", overview=read("/overview"))
