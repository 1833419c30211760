"""Filters of templates: times, durations and names as people read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from broker_api.console.calls import sentence
from broker_api.console.provider_errors import plain_error
from broker_api.console.runtime import runtime
from broker_api.console.zones import reader_zone

if TYPE_CHECKING:
    from flask import Flask

STATUS_NAMES = {
    "available": "available",
    "reserved": "reserved",
    "allocated": "allocated",
    "pending_deletion": "waiting to be wiped",
    "stale": "out of service",
    "deletion_failed": "needs a person",
    "deleted": "removed",
    "unreadable": "unreadable",
}
"""The statuses of a sandbox, in the order in which pages list them, and what people call them."""
_NOT_OF_IDS = re.compile(r"[^A-Za-z0-9_-]")
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def register_filters(app: Flask) -> None:
    """Give templates the functions below, `sentence` and `plain_error` as filters."""
    app.add_template_filter(utc)
    app.add_template_filter(iso)
    app.add_template_filter(local)
    app.add_template_filter(lab_anchor)
    app.add_template_filter(ago)
    app.add_template_filter(span)
    app.add_template_filter(sentence)
    app.add_template_filter(plain_error)
    app.add_template_filter(status_name)


def utc(at: float) -> str:
    """Return a time (Unix seconds) in UTC: `2026-11-30 08:15:00 UTC`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def iso(at: float) -> str:
    """Return a time (Unix seconds) as the attribute `datetime` of an element has it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def local(at: float) -> str:
    """Return a time (Unix seconds) in the reader's zone, for texts of pictures: `2026-11-30 09:15:00 Asia/Tokyo`."""
    zone = reader_zone()
    return f"{datetime.fromtimestamp(at, zone):%Y-%m-%d %H:%M:%S} {zone.key}"


def lab_anchor(track_name: str) -> str:
    """Return the id of a lab's row on the page of usage: the name, whose other characters than letters are coded."""
    return "lab-" + _NOT_OF_IDS.sub(lambda each: f".{ord(each[0]):x}.", track_name)


def ago(at: float) -> str:
    """Return how far a time (Unix seconds) is from now: `3 min ago`, `in 2 h`, `now`."""
    distance = round(runtime().clock.now() - at)
    if distance == 0:
        return "now"
    return f"{span(distance)} ago" if distance > 0 else f"in {span(-distance)}"


def span(seconds: float) -> str:
    """Return a duration in its two largest units: `1 h 20 min`."""
    left, parts = round(seconds), []
    for size, name in _UNITS:
        if left >= size:
            parts.append(f"{left // size} {name}")
            left %= size
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"


def status_name(status: str) -> str:
    """Return what people call a status of a sandbox."""
    return STATUS_NAMES.get(status, status.replace("_", " "))
