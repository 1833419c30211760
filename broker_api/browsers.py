"""What browsers are told with every answer: what they must not do with it, and which other sites may ask for it."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

from flask import request
from flask_cors import CORS

from broker_api import rate_limit
from broker_api.caller import CALLER_HEADERS
from broker_api.tracing import HEADER as REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask, Response

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Source: OWASP, REST Security Cheat Sheet, "Security Headers"."""
DOCS_PAGE = "api-docs.openapi_swagger_ui"
"""The endpoint of the page that has a policy of its own, as flask-smorest names it."""
_HTTPS_ONLY = "max-age=63072000; includeSubDomains"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI styles its elements inline; of scripts, only its own files run, and the page's own by its hash."""
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_PREFLIGHT_SEC = 600
"""How long a browser may remember what it was allowed; Chromium keeps it for two hours at most."""


def register_browser_policy(app: Flask, *, origins: Iterable[str]) -> None:
    """Send the headers of every answer, and let scripts of these origins read answers; without any, there is no CORS.

    A preflight is answered before anything else of the application looks at it: it carries no token.
    """
    app.after_request(_protect)
    # flask-cors would guess from an origin's characters whether it is a pattern.
    exact = [re.compile(rf"{re.escape(origin)}\Z") for origin in origins]
    if not exact:
        return
    CORS(
        app,
        origins=exact,
        methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type", "Prefer", REQUEST_ID, *CALLER_HEADERS],
        expose_headers=["Idempotent-Replayed", "Preference-Applied", "Retry-After", REQUEST_ID, *rate_limit.HEADERS],
        max_age=_PREFLIGHT_SEC,
        send_wildcard=False,
        always_send=False,
    )
    app.before_request(_answer_preflight)


def _answer_preflight() -> tuple[str, int] | None:
    is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    return ("", 204) if is_preflight else None


def _protect(response: Response) -> Response:
    for header, value in HEADERS.items():
        response.headers.setdefault(header, value)
    if request.endpoint == DOCS_PAGE:
        response.headers["Content-Security-Policy"] = _policy_of_page(response.get_data())
    # RFC 6797, section 7.2: never over plain HTTP.
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = _HTTPS_ONLY
    return response


def _policy_of_page(page: bytes) -> str:
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page))
    return _PAGE_POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))
