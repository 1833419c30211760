"""The reader's time zone, for what is drawn on the server. Times in text are turned into it by the browser."""

from __future__ import annotations

from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from flask import request

COOKIE = "zone"


def reader_zone() -> ZoneInfo:
    """Return the zone that the browser named in a cookie; UTC if it named none, or one that is not known here."""
    name = request.cookies.get(COOKIE, "UTC")
    return ZoneInfo(name if name in _known() else "UTC")


@cache
def _known() -> frozenset[str]:
    return frozenset(available_timezones())
