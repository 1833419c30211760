"""Signing in, by a token or at the issuer, and out."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import Blueprint, abort, flash, make_response, redirect, render_template, request, session, url_for
from wtforms import PasswordField
from wtforms.validators import InputRequired, Length, Regexp

from broker_api.console.calls import back, sentence
from broker_api.console.errors import page
from broker_api.console.forms import Form, trimmed
from broker_api.console.people import NO_ROLE, ask_who, begin_session, begin_session_by_issuer, end_session
from broker_api.console.runtime import has_ended, person, runtime, token_has_ended
from broker_api.console.security import is_ours, onward
from broker_api.console.session import LONGEST_TOKEN
from broker_common.adapters.broker_http import Refused, Unreachable
from broker_common.adapters.oidc_sign_in import OidcSignIn, SignInFailed

if TYPE_CHECKING:
    from flask import Response as Page
    from werkzeug.wrappers import Response

    from broker_common.core.principals import Principal

blueprint = Blueprint("signin", __name__)


class TokenForm(Form):
    """The form that takes a token."""

    token = PasswordField(
        "Token",
        validators=[
            InputRequired("Paste your token."),
            Length(max=LONGEST_TOKEN, message="This is too long for a token."),
            Regexp(r"[!-~]+\Z", message="A token has only printable ASCII characters, and no spaces."),
        ],
        filters=[trimmed],
        render_kw={"autocomplete": "current-password"},
    )


class NotSignedIn(Exception):
    """The API does not take the person's token. The message is a sentence for them."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@blueprint.route("/signin", methods=["GET", "POST"])
def show() -> str | Response | tuple[str, int]:
    """Show the page to sign in; take a token."""
    if _is_signed_in() and request.method == "GET":
        return redirect(_came_from())
    form = TokenForm()
    if request.method == "GET":
        return _show(form)
    if not form.validate():
        return _show(form), 400
    try:
        token = form.token.data or ""
        begin_session(token, _owner_of(token))
    except NotSignedIn as error:
        form.token.errors = [str(error)]
        return _show(form), error.status
    return back("overview.show")


@blueprint.get("/signin/issuer")
def begin() -> Response:
    """Send the person to the issuer."""
    if _is_signed_in():
        return redirect(_came_from())
    try:
        address, asked = _issuer().begin(_address_of(".arrive"), is_known=runtime().known_browsers.has(request))
    except SignInFailed as error:
        return _not_signed_in(str(error), 503, _came_from())
    answer = redirect(address, code=303)
    runtime().pending.keep(answer, asked, _came_from())
    return answer


@blueprint.get("/signin/return")
def arrive() -> Response:
    """Sign in who comes back from the issuer.

    If that fails, nothing is written into the session. Otherwise, a link on another site could sign people out: the
    browser does not send the session with it, but it would take a new one.
    """
    kept = runtime().pending.find(request)
    if kept is None:
        return _not_signed_in("This sign-in was used already, or took longer than 10 minutes. Sign in again.", 400, "/")
    asked, came_from = kept
    try:
        is_known = runtime().known_browsers.has(request)
        granted = _issuer().finish(asked, request.args.to_dict(), _address_of(".arrive"), is_known=is_known)
        begin_session_by_issuer(granted, _owner_of(granted.access_token))
    except SignInFailed as error:
        return _not_signed_in(str(error), 400, came_from)
    except NotSignedIn as error:
        return _not_signed_in(str(error), error.status, came_from)
    # A redirect would count as one from the issuer's site, and would not have the session.
    answer = make_response(onward(came_from, "You are signed in. This page leads on by itself."))
    runtime().pending.forget(answer)
    runtime().known_browsers.keep(answer)
    return answer


def _owner_of(token: str) -> Principal:
    """Return whose `token` is, of those who may use the console. Raises `NotSignedIn`."""
    if len(token) > LONGEST_TOKEN:
        text = f"Your token has more than {LONGEST_TOKEN} bytes, for which a cookie has no room. Tell an administrator."
        raise NotSignedIn(text, 400)
    try:
        return ask_who(token)
    except Refused as error:
        if error.code == NO_ROLE:
            text = f"Your token is valid, but it has no role of an operator: {error.message}."
            raise NotSignedIn(text, 403) from error
        raise NotSignedIn(sentence(error.message), error.status) from error
    except Unreachable as error:
        raise NotSignedIn("The broker's API does not answer. Try again in a moment.", 503) from error


@blueprint.post("/signout")
def out() -> str | Response:
    """End the session, and the one at the issuer."""
    was_by_issuer, refresh_token = session.get("by_issuer", False), session.get("refresh_token")
    end_session()
    issuer = runtime().sign_in
    if was_by_issuer and issuer is not None:
        if refresh_token is not None:
            issuer.revoke(refresh_token)
        address = issuer.end_address(_address_of(".show"))
        if address is not None:
            # Not a redirect: the policy for forms allows none to another site.
            return onward(address, f"You are signed out of the console. Next, {_name(issuer)} signs you out.")
    flash("You are signed out.", "success")
    return redirect(url_for(".show"), code=303)


def _is_signed_in() -> bool:
    return person() is not None and not token_has_ended()


def _show(form: TokenForm) -> str:
    issuer = runtime().sign_in
    return render_template(
        "signin.html",
        form=form,
        issuer=None if issuer is None else _name(issuer),
        came_from=_came_from(),
        has_ended=has_ended() or token_has_ended(),
    )


def _not_signed_in(text: str, status: int, came_from: str) -> Page:
    return make_response(page(status, "You are not signed in", text, again=url_for(".show", next=came_from)))


def _issuer() -> OidcSignIn:
    issuer = runtime().sign_in
    if issuer is None:
        abort(404)
    return issuer


def _name(issuer: OidcSignIn) -> str:
    return urlsplit(issuer.issuer).netloc


def _came_from() -> str:
    """Return the page to go to after signing in."""
    came_from = request.values.get("next", "")
    return came_from if is_ours(came_from) else url_for("overview.show")


def _address_of(endpoint: str) -> str:
    """Return the whole address of an endpoint, which the issuer knows. Browsers reach it over TLS in production."""
    if not request.host:
        abort(400)
    scheme = "https" if runtime().settings.in_production else "http"
    return f"{scheme}://{request.host}{url_for(endpoint)}"
