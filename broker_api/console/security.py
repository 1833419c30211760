"""What browsers must not do with the console's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import request

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
    # The check of forms reads it.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Source: OWASP, HTTP Headers Cheat Sheet. `data:` is for the icons in Bootstrap's style sheet."""
_HTTPS_ONLY = "max-age=63072000; includeSubDomains"
_FILES = ("static", "bootstrap.static")


def register_headers(app: Flask, *, secure: bool) -> None:
    """Add the headers to every answer. With `secure`, the console is served over TLS, by a proxy in front of it."""

    @app.after_request
    def protect(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if secure:
            response.headers["Strict-Transport-Security"] = _HTTPS_ONLY
        if request.endpoint in _FILES:
            response.headers["Cache-Control"] = "public, max-age=3600"
        else:
            response.headers["Cache-Control"] = "no-store"
        return response
