"""The headers that name the calling track and say what it asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from structlog.contextvars import bind_contextvars

from broker_api.auth import may_act_for
from broker_api.current import Caller, current
from broker_api.errors import RequestInvalid
from broker_common.core.errors import Forbidden

if TYPE_CHECKING:
    from collections.abc import Mapping

CALLER_HEADERS = (
    "X-Track-ID",
    "X-Instruqt-Sandbox-ID",
    "X-Instruqt-Track-ID",
    "X-Sandbox-Name-Prefix",
    "Idempotency-Key",
    "X-Reservation-ID",
)
_TRACK_ID, _TRACK_ID_ALIAS, _TRACK_NAME, _PREFIX, _KEY, _RESERVATION_ID = CALLER_HEADERS
MAX_LENGTH = 128


def find_fault(text: str, *, max_length: int = MAX_LENGTH) -> str | None:
    """Return why `text` cannot be a name, which is 1 to `max_length` printable ASCII characters; None if it can."""
    if not text:
        return "Must not be empty."
    if len(text) > max_length:
        return f"Must not be longer than {max_length} characters."
    if not (text.isascii() and text.isprintable()):
        return "Must be printable ASCII characters."
    return None


def require_caller() -> None:
    """Read the headers of a track's request, for `caller`.

    Raises `RequestInvalid`, which names the header, and `Forbidden` if the token is only for other tracks.
    """
    request = current()
    environ = request.environ
    track_id = _read(environ, _TRACK_ID)
    alias = _read(environ, _TRACK_ID_ALIAS)
    if track_id is not None and alias is not None and track_id != alias:
        message = f"{_TRACK_ID} and its alias {_TRACK_ID_ALIAS} differ. Send one of them, or both with the same value."
        raise RequestInvalid(
            {_TRACK_ID: [f"Differs from {_TRACK_ID_ALIAS}."], _TRACK_ID_ALIAS: [f"Differs from {_TRACK_ID}."]},
            message=message,
        )
    track_id = track_id if track_id is not None else alias
    if track_id is None:
        raise RequestInvalid({_TRACK_ID: ["Missing: send the calling track's id."]})
    if not may_act_for(track_id):
        raise Forbidden("this token is not for this track. Use a token that is")
    bind_contextvars(track_id=track_id)
    request.caller = Caller(
        track_id=track_id,
        idempotency_key=_read(environ, _KEY) or track_id,
        prefix=_read(environ, _PREFIX) or "",
        track_name=_read(environ, _TRACK_NAME),
        reservation_id=_read(environ, _RESERVATION_ID),
    )


def presented_track_id() -> str | None:
    """Return the track id that the current request names, before it is checked; None without a well-formed one."""
    environ = current().environ
    for header in (_TRACK_ID, _TRACK_ID_ALIAS):
        value = environ.get("HTTP_" + header.upper().replace("-", "_"), "").strip(" \t")
        if find_fault(value) is None:
            return cast("str", value)
    return None


def caller() -> Caller:
    """Return the track that makes the current request."""
    return current().caller


def idempotency_key() -> str | None:
    """Return the key that the current request names; None if it has none. Raises `RequestInvalid`."""
    return _read(current().environ, _KEY)


def _read(environ: Mapping[str, str], header: str) -> str | None:
    value = environ.get("HTTP_" + header.upper().replace("-", "_"))
    if value is None:
        return None
    value = value.strip(" \t")
    # `gunicorn_worker` joins the values of a repeated header by a line feed.
    fault = "Was sent several times with different values. Send it once." if "\n" in value else find_fault(value)
    if fault is not None:
        raise RequestInvalid({header: [fault]})
    return value
