"""Prepare Flower, which shows and starts jobs: require a password, and use the common log."""

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
"""The time for a client to send the head of a request, and again for its body."""


def set_up_flower(settings: Settings, environ: Mapping[str, str]) -> None:
    """Prepare this process for Flower. In production, end it with status 2 if Flower's variables have no password."""
    _check_authentication(settings, environ)
    options.logging = "none"  # else tornado would log in its own format, to its own place, from its own level
    # The default of tornado is one hour for a request.
    HTTPServer.configure(None, idle_connection_timeout=_REQUEST_SEC, body_timeout=_REQUEST_SEC)
    configure_logging(level=settings.log_level, fmt=settings.log_format)


def _check_authentication(settings: Settings, environ: Mapping[str, str]) -> None:
    """In production, refuse a Flower without a password, because it can start and stop jobs."""
    value = environ.get("FLOWER_BASIC_AUTH", "").strip()
    pairs = value.split(",") if value else []
    if not all(re.fullmatch(r"[^:]+:.+", pair) for pair in pairs):
        refuse("FLOWER_BASIC_AUTH: Must be user:password, or several of these, separated by commas.")
    is_open = not pairs and not environ.get("FLOWER_AUTH", "").strip()
    if is_open and settings.in_production:
        refuse("FLOWER_BASIC_AUTH: Missing. Set it to user:password, or set FLOWER_AUTH and its provider.")
