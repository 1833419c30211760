"""The answers of the API, with the headers that each of them has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Response

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import WSGIEnvironment

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Source: OWASP, REST Security Cheat Sheet, "Security Headers"."""
_HTTPS_ONLY = "max-age=63072000; includeSubDomains"


class Answer(Response):
    """An answer with the headers for browsers. A header that the view has set stays."""

    more_headers: tuple[tuple[str, str], ...] = ()
    """Headers that no view sets. werkzeug looks at each of its own several times."""

    def get_wsgi_response(self, environ: WSGIEnvironment) -> tuple[Iterable[bytes], str, list[tuple[str, str]]]:
        """Return body, status and headers for the server. The headers for browsers are added at once, which is fast."""
        body, status, headers = super().get_wsgi_response(environ)
        given = {name for name, _ in headers}
        headers += [header for header in HEADERS.items() if header[0] not in given]
        headers += self.more_headers
        # RFC 6797, section 7.2: never over plain HTTP.
        if environ["wsgi.url_scheme"] == "https":
            headers.append(("Strict-Transport-Security", _HTTPS_ONLY))
        return body, status, headers
