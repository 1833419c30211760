"""Times and lengths of time, as people write them on the command line."""

from __future__ import annotations

import re
from datetime import datetime

import click


def parse_length(text: str) -> int:
    """Return the seconds of a length of time such as 90s, 10m, 24h or 7d."""
    found = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if found is None:
        raise click.BadParameter("must be a length of time, such as 90s, 10m, 24h or 7d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def parse_time(text: str) -> int:
    """Return the Unix seconds of a time in ISO 8601 that says its distance from UTC, or of Unix seconds."""
    if re.fullmatch(r"\d{9,12}", text):
        return int(text)
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return int(found.timestamp())
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter("must be a time such as 2026-12-01T18:00Z or 2026-12-01T18:00+01:00, or Unix seconds")
