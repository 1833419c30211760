"""Limits to what schemathesis may do by the API's description."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import schemathesis

if TYPE_CHECKING:
    from schemathesis import Case, HookContext

_LONGEST_SEC = 8 * 3600
"""The default of `MAX_LAB_DURATION_HOURS`."""
_VALID = re.compile(r"[ -~]{1,128}")
_UUID = re.compile(r"[0-9a-f-]{36}")
_DAY_SEC = 24 * 3600
_YEAR_2100 = 4_102_444_800
_LONGEST_URL = 2000


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Resume what the call would pause, and send what the schema allows only together with what it cannot say.

    A paused allocate answers the same 503 to everything. The longest lease is a setting, which the schema leaves out.
    The alias of `X-Track-ID` is refused beside another track's id, and is accepted in place of a missing one. A `wait`
    would hold the call. A reservation that does not exist keeps allocate from doing anything. Times that have no order
    are only refused, and so are a webhook's URL that is not public, and "*" beside kinds. No schema can say that.
    """
    if case.operation.path.endswith("/admin/pause") and isinstance(case.body, dict):
        case.body = {name: False if value is True else value for name, value in case.body.items()}
    if case.operation.path.endswith("/allocate") and isinstance(case.body, dict):
        duration = case.body.get("duration_sec")
        if isinstance(duration, (int, float)) and duration > _LONGEST_SEC:
            case.body = case.body | {"duration_sec": _LONGEST_SEC}
    if case.operation.path.endswith("/allocate") and "Prefer" in case.headers:
        # Half a minute for each of hundreds of calls would be too long. No schema says that a `wait` is a number.
        case.headers["Prefer"] = "wait=0"
    if _VALID.fullmatch(str(case.headers.get("X-Instruqt-Sandbox-ID", "")).strip(" \t")):
        del case.headers["X-Instruqt-Sandbox-ID"]
    reservation_id = str(case.headers.get("X-Reservation-ID", "")).strip(" \t")
    if _VALID.fullmatch(reservation_id) and not _UUID.fullmatch(reservation_id):
        del case.headers["X-Reservation-ID"]
    if "/admin/reservations" in case.operation.path and isinstance(case.body, dict):
        case.body = _in_some_days(case.body)
    if "/admin/webhooks" in case.operation.path and isinstance(case.body, dict):
        case.body = _to_a_public_host(case.body)


def _to_a_public_host(body: dict[str, Any]) -> dict[str, Any]:
    """Return a webhook, or a replay, with a URL, kinds and a time that are not refused, where they are well-formed."""
    url, kinds, since = body.get("url"), body.get("kinds"), body.get("since")
    fit: dict[str, Any] = {}
    if isinstance(url, str) and 0 < len(url) <= _LONGEST_URL:
        fit["url"] = "https://hooks.example.com/"
    if isinstance(kinds, list) and "*" in kinds and len(set(map(str, kinds))) == len(kinds):
        fit["kinds"] = ["*"]
    if type(since) is int and 0 <= since <= _YEAR_2100:
        fit["since"] = int(time.time()) - 60
    return body | fit


def _in_some_days(body: dict[str, Any]) -> dict[str, Any]:
    """Return a booking whose times, if they are well-formed, are in some days, the end after the start."""
    days = {"starts_at": 3, "ends_at": 5}
    moved = {
        name: int(time.time()) + days[name] * _DAY_SEC + value % _DAY_SEC
        for name, value in body.items()
        if name in days and type(value) is int and 0 <= value <= _YEAR_2100
    }
    return body | moved
