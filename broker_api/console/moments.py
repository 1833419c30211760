"""Times that people type into filters."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

_UNIT_SEC = {"d": 86400, "h": 3600, "m": 60}
_BACK = re.compile(r"(\d{1,5}) ?(d|h|m)(?:in)?", re.ASCII)
_UNIX = re.compile(r"\d{9,12}", re.ASCII)
HINT = "Write a length of time back from now, such as 90m, 24h or 7d, or a time in UTC, such as 2026-11-30 08:15."
"""What a person reads who typed another thing."""


def parse_moment(text: str, *, now: int) -> int:
    """Return the time (Unix seconds) that a person typed. Raises `ValueError`, whose message is for that person.

    It is a length of time back from `now`, a date, a date and time in UTC or with its distance from UTC, or Unix
    seconds, which links have.
    """
    typed = text.strip()
    if found := _BACK.fullmatch(typed):
        return max(0, now - int(found[1]) * _UNIT_SEC[found[2]])
    if _UNIX.fullmatch(typed):
        return int(typed)
    try:
        shown = datetime.fromisoformat(typed)
        at = shown if shown.tzinfo else shown.replace(tzinfo=UTC)
        return max(0, int(at.timestamp()))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"This is not a time. {HINT}") from error


def parse_day(text: str, *, days: int = 0) -> int:
    """Return when a day begins that a person typed (0:00 UTC, in Unix seconds), or the day that is `days` later.

    Unix seconds, which links have, stay as they are. Raises `ValueError`, whose message is for that person.
    """
    if _UNIX.fullmatch(text):
        return int(text)
    try:
        day = date.fromisoformat(text) + timedelta(days=days)
        return max(0, int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()))
    except (ValueError, OverflowError) as error:
        raise ValueError("This is not a date. Write one such as 2026-11-30.") from error
