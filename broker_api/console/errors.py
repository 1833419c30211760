"""What a person reads when a page cannot be shown."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flask import current_app, flash, g, redirect, render_template, request, session, url_for
from flask_wtf.csrf import CSRFError  # type: ignore[import-untyped] # it ships no types
from werkzeug.exceptions import BadHost, HTTPException, MethodNotAllowed

from broker_api.console.calls import UNSURE, SignedOut, sentence
from broker_api.console.people import end_session
from broker_api.console.renewal import TokenNotRenewed
from broker_api.console.runtime import has_ended, person
from broker_api.console.security import is_ours, this_address
from broker_api.console.unsent import can_be_kept, kept_form
from broker_api.tracing import request_id
from broker_common.adapters.broker_http import Refused, Unreachable

if TYPE_CHECKING:
    from flask import Flask
    from werkzeug.wrappers import Response

_log = logging.getLogger(__name__)

_OF_STATUS = {
    403: ("Not allowed", "Your roles do not allow this. Ask an administrator of the broker."),
    404: ("Not found", "There is no such page. It may be that what it showed is gone."),
    405: ("Not possible", "This address takes forms only. Use the links at the top."),
}


def register_errors(app: Flask) -> None:
    """Answer every error by a page that says what to do."""
    app.register_error_handler(SignedOut, _sign_out)
    app.register_error_handler(Refused, _refused)
    app.register_error_handler(Unreachable, _unreachable)
    app.register_error_handler(TokenNotRenewed, _not_renewed)
    app.register_error_handler(CSRFError, _old_form)
    app.register_error_handler(BadHost, _bad_host)
    app.register_error_handler(HTTPException, _of_http)
    app.register_error_handler(Exception, _unexpected)


def page(status: int, title: str, text: str, *, try_again: bool = False, again: str | None = None) -> tuple[str, int]:
    """Return a page that says what went wrong. `again` is the address to sign in, if that is what helps."""
    return render_template("error.html", title=title, text=text, try_again=try_again, again=again), status


def _sign_out(error: SignedOut) -> Response | tuple[str, int]:
    if "X-Renew" in request.headers:
        # The browser opens the page itself next, whose answer ends the session and says why.
        return page(401, "Signed out", str(error))
    was_signed_in = person() is not None
    end_session()
    is_form = request.method == "POST"
    is_unchanged = is_form and not g.get("may_have_changed")
    if is_unchanged and can_be_kept():
        return kept_form(401, why=str(error) if was_signed_in else None)
    if not has_ended():
        flash(f"{error} Nothing was changed." if is_unchanged else str(error), "warning")
    # Else the page to sign in says so. A message would write the cookie, which another tab may just have renewed.
    came_from = _page_of_form() if is_form else this_address()
    return redirect(url_for("signin.show", next=came_from if came_from != "/" else None), code=303)


def _page_of_form() -> str | None:
    """Return the page that a form was on, as it says, or because its address is that of the page, too."""
    said = request.form.get("next", "")
    if is_ours(said):
        return said
    urls = current_app.create_url_adapter(request)
    has_page = urls is not None and "GET" in urls.allowed_methods(request.path)
    return this_address() if has_page else None


def _refused(error: Refused) -> tuple[str, int]:
    title = {403: "Not allowed", 404: "Not found"}.get(error.status, "The broker refused this")
    return page(
        error.status, title, f"{sentence(error.message)} (request {error.request_id})", try_again=error.may_pass
    )


def _unreachable(_error: Unreachable) -> tuple[str, int]:
    text = "The broker's API does not answer, and nothing is known from before."
    if request.method == "GET":
        text = f"{text} This page tries again by itself."
    elif g.get("may_have_changed"):
        text = f"The broker's API does not answer. {UNSURE} (request {request_id()})"
    return page(503, "The broker does not answer", text, try_again=True)


def _not_renewed(error: TokenNotRenewed) -> tuple[str, int]:
    if can_be_kept():
        return kept_form(503, why=str(error))
    if "X-Renew" in request.headers:
        # The page that is open stays, and gets the banner.
        g.known_at, g.trouble = session["token_ends"], str(error).removesuffix(".")
    return page(503, "Your sign-in cannot be renewed now", str(error), try_again=True)


def _old_form(_error: CSRFError) -> tuple[str, int]:
    if can_be_kept():
        return kept_form(400)
    text = "Nothing was changed. Open the page again, and send the form again."
    return page(400, "This form is too old", text if person() else f"You are not signed in. {text}")


def _of_http(error: HTTPException) -> tuple[str, int] | tuple[str, int, dict[str, str]]:
    status = error.code or 500
    title, text = _OF_STATUS.get(status, (error.name, "The console cannot do this. Nothing was changed."))
    answer = page(status, title, text)
    if isinstance(error, MethodNotAllowed):
        return *answer, {"Allow": ", ".join(sorted(error.valid_methods or ()))}
    return answer


def _bad_host(_error: BadHost) -> tuple[str, int, dict[str, str]]:
    # A page has links, which Flask cannot make for such a host.
    return "The header Host names no host.\n", 400, {"Content-Type": "text/plain"}


def _unexpected(_error: Exception) -> tuple[str, int]:
    _log.exception("page failed")
    return page(
        500,
        "Something is wrong with the console",
        "The log of the console says more. Try again, or use the command broker.",
    )
