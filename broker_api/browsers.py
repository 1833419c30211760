"""Headers for browsers: what a browser must not do with an answer, and which other sites may read it (CORS)."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

from flask_cors import CORS

from broker_api import rate_limit
from broker_api.answer import Answer
from broker_api.caller import CALLER_HEADERS
from broker_api.current import current
from broker_api.tracing import HEADER as REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flask import Flask, Response

DOCS_PAGE = "api-docs.openapi_swagger_ui"
"""The endpoint of the page of the description, as flask-smorest names it. This page has its own policy."""
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI styles its elements inline. Only its script files run, and the inline script of the page by its hash."""
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_PREFLIGHT_SEC = 600
"""How long a browser may cache the answer to a preflight. Chromium caches it for at most two hours."""


def register_browser_policy(app: Flask, *, origins: Iterable[str]) -> None:
    """Add the headers to every answer, and let scripts of `origins` read answers. Without origins there is no CORS.

    A preflight has no token, so it is answered before the rest of the application handles it.
    """
    app.response_class = Answer
    app.after_request(_protect_page)
    # flask-cors guesses from the characters of a string whether it is a pattern.
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
    request = current()
    is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    return ("", 204) if is_preflight else None


def _protect_page(response: Response) -> Response:
    if current().endpoint == DOCS_PAGE:
        response.headers["Content-Security-Policy"] = _policy_of_page(response.get_data())
    return response


def _policy_of_page(page: bytes) -> str:
    digests = (base64.b64encode(hashlib.sha256(script).digest()).decode() for script in _SCRIPT.findall(page))
    return _PAGE_POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))
