"""Signing in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from wtforms import PasswordField
from wtforms.validators import InputRequired, Length, Regexp

from broker_api.console.calls import back, sentence
from broker_api.console.forms import Form, trimmed
from broker_api.console.runtime import person, runtime
from broker_api.tracing import HEADER, request_id
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.core.principals import Role

if TYPE_CHECKING:
    from werkzeug.wrappers import Response

blueprint = Blueprint("signin", __name__)
_LONGEST_TOKEN = 4096


class TokenForm(Form):
    """The form that takes a token."""

    token = PasswordField(
        "Token",
        validators=[
            InputRequired("Paste your token."),
            Length(max=_LONGEST_TOKEN, message="This is too long for a token."),
            Regexp(r"[!-~]+\Z", message="A token has only printable ASCII characters, and no spaces."),
        ],
        filters=[trimmed],
        render_kw={"autocomplete": "current-password", "autofocus": True},
    )


@blueprint.route("/signin", methods=["GET", "POST"])
def show() -> str | Response | tuple[str, int]:
    """Show the page to sign in; take a token."""
    if person() is not None and request.method == "GET":
        return redirect(url_for("overview.show"))
    form = TokenForm()
    if request.method == "GET":
        return render_template("signin.html", form=form)
    if not form.validate():
        return render_template("signin.html", form=form), 400
    why_not = sign_in(form.token.data or "")
    if why_not is None:
        return back("overview.show")
    form.token.errors = [why_not]
    return render_template("signin.html", form=form), 401


def sign_in(token: str) -> str | None:
    """Begin a new session for the owner of `token`. Returns None, or a sentence that says why not."""
    try:
        found = runtime().broker.call("GET", "/admin/whoami", token=token, headers={HEADER: request_id()}).body
    except Refused as error:
        return sentence(error.message)
    except Unreachable:
        return "The broker's API does not answer. Try again in a moment."
    roles = [role for role in found["roles"] if role != Role.TRACK]
    if not roles:
        return "This token is for tracks. The console is for operators."
    # Nothing of the session before stays, so nobody can know its tokens for forms.
    session.clear()
    session.update(
        token=token,
        principal=found["principal"],
        roles=roles,
        customer=found["customer"],
        began=runtime().clock.now(),
    )
    return None


@blueprint.post("/signout")
def out() -> Response:
    """End the session."""
    who = person()
    if who is not None:
        runtime().last_known.forget(who.token)
    session.clear()
    flash("You are signed out.", "success")
    return redirect(url_for("signin.show"), code=303)
