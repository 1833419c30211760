"""What browsers must not do with the console's pages."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import render_template, request, url_for

from broker_api.console.files import FILES, caching_of_file
from broker_api.console.runtime import has_sent_session

if TYPE_CHECKING:
    from flask import Flask, Response

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self';"
        " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Other sites must not learn the addresses here, which name sandboxes and labs.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Source: OWASP, HTTP Headers Cheat Sheet. `data:` is for the icons in Bootstrap's style sheet."""
_HTTPS_ONLY = "max-age=63072000; includeSubDomains"
SIGN_IN = "signin"
RETURN = f"{SIGN_IN}.arrive"
"""The endpoint to which the issuer sends people back, who come from another site each time."""
NO_PAGES = frozenset({None, "bootstrap", "files", "health"})
"""The blueprints of what is no page. Files and metrics have none."""
_LONGEST_ADDRESS = 1000


def register_headers(app: Flask, *, secure: bool) -> None:
    """Add the headers to every answer. With `secure`, the console is served over TLS, by a proxy in front of it."""

    @app.after_request
    def protect(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if secure:
            response.headers["Strict-Transport-Security"] = _HTTPS_ONLY
        # A file that is missing may be there after an update.
        is_file = request.endpoint in FILES and response.status_code in {HTTPStatus.OK, HTTPStatus.NOT_MODIFIED}
        response.headers["Cache-Control"] = caching_of_file() if is_file else "no-store"
        return response


def register_arrivals(app: Flask) -> None:
    """Let who follows a link from another site, such as a chat, come in signed in.

    The session's cookie is `SameSite=Strict`, so the browser does not send it with such a request. The answer is a page
    of the console's own that leads to the same address, and that request has the cookie. Nothing is read or written.

    A browser without `Sec-Fetch-Site` does not say where the link was. If it sends no session, the page leads to the
    one to sign in. That page leads on to the address, if the session came this time. So nobody is led around for ever.
    """

    @app.before_request
    def lead_on() -> str | None:
        sent = request.headers
        if request.method != "GET" or request.blueprint in NO_PAGES or request.endpoint == RETURN:
            return None
        if sent.get("Sec-Fetch-Site") == "cross-site" and sent.get("Sec-Fetch-Mode") == "navigate":
            return onward(this_address())
        # Another site's page cannot send X-Renew.
        says_where = "Sec-Fetch-Site" in sent or "X-Renew" in sent
        if says_where or request.blueprint == SIGN_IN or has_sent_session():
            return None
        address = this_address()
        return onward(url_for(f"{SIGN_IN}.show", next=address if is_ours(address) else None))


def onward(address: str, text: str = "This page leads on by itself.") -> str:
    """Return a page that leads on to `address`, without a script."""
    return render_template("onward.html", address=address, text=text)


def this_address() -> str:
    """Return the path and the query of the current request."""
    return request.full_path.removesuffix("?")


def is_from_here() -> bool:
    """Tell whether the current request came from a page of the console, as the browser says.

    Source: OWASP, Cross-Site Request Forgery Prevention Cheat Sheet, Fetch Metadata headers and `Origin`.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site == "same-origin"
    # An older browser.
    return urlsplit(request.headers.get("Origin", "")).netloc == request.host != ""


def is_ours(address: str) -> bool:
    r"""Tell whether `address` is a path of this console. `//host` and `/\host` lead to another host."""
    return (
        address.startswith("/")
        and not address.startswith(("//", "/\\"))
        and address.isprintable()
        and len(address) <= _LONGEST_ADDRESS
    )
