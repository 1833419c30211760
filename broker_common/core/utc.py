"""Times as people read them, by UTC: the days of records that are kept by the day, and the times in messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_SEC = 24 * 3600


def shown(moment: int) -> str:
    """Return a time in Unix seconds as messages show it, as in 2026-12-01 07:50:00 UTC."""
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S} UTC"


def day_of(moment: int) -> str:
    """Return the day of a time, as in 2026-11-29."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def days_between(since: int, until: int) -> Iterator[str]:
    """Yield each day that has a part of the time from `since` to before `until`, in order."""
    for start in range(since - since % DAY_SEC, until, DAY_SEC):
        yield day_of(start)


def first_kept(now: int, *, days: int) -> int:
    """Return from which time on may be asked for what is kept for so many days: a midnight.

    So a time that a command computed, `days` ago, is still allowed when it arrives.
    """
    return now - now % DAY_SEC - days * DAY_SEC
