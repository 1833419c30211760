"""What Flower, which shows jobs and starts them, needs beyond Celery's application: a password and the common log."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer
from tornado.options import options

from broker_common.logs import configure_logging
from broker_common.startup import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.settings import Settings

_REQUEST_SEC = 10
"""For a client to send a head, and a body."""


def set_up_flower(settings: Settings, environ: Mapping[str, str]) -> None:
    """Make this process fit for Flower; without a password in Flower's own variables it ends with 2 in production."""
    _check_authentication(settings, environ)
    options.logging = "none"  # or tornado would write in a format, to a place and from a level of its own
    # By itself tornado gives a client an hour for a request.
    HTTPServer.configure(None, idle_connection_timeout=_REQUEST_SEC, body_timeout=_REQUEST_SEC)
    configure_logging(level=settings.log_level, fmt=settings.log_format)


def _check_authentication(settings: Settings, environ: Mapping[str, str]) -> None:
    """Refuse to open Flower to everybody in production: it starts and stops jobs."""
    given = environ.get("FLOWER_BASIC_AUTH", "").strip()
    pairs = given.split(",") if given else []
    if not all(re.fullmatch(r"[^:]+:.+", pair) for pair in pairs):
        refuse("FLOWER_BASIC_AUTH: Must be user:password, or several, comma-separated.")
    is_open = not pairs and not environ.get("FLOWER_AUTH", "").strip()
    if is_open and settings.in_production:
        refuse("FLOWER_BASIC_AUTH: Missing: user:password, unless FLOWER_AUTH and its provider are given.")
