"""The headers by which a track says who it is and what it wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from flask import g, request
from structlog.contextvars import bind_contextvars

from broker_api.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Mapping

CALLER_HEADERS = (
    "X-Track-ID",
    "X-Instruqt-Sandbox-ID",
    "X-Instruqt-Track-ID",
    "X-Sandbox-Name-Prefix",
    "Idempotency-Key",
)
_TRACK_ID, _TRACK_ID_ALIAS, _TRACK_NAME, _PREFIX, _KEY = CALLER_HEADERS
MAX_LENGTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The calling track, and what it asked for."""

    track_id: str
    idempotency_key: str
    prefix: str
    track_name: str | None


def is_plain(text: str) -> bool:
    """Tell whether a text is 1 to 128 printable ASCII characters, as everything that names something must be."""
    return 0 < len(text) <= MAX_LENGTH and text.isascii() and text.isprintable()


def require_caller() -> None:
    """Read the headers of a track's request; raises `RequestInvalid`, which names the header."""
    environ = request.environ
    track_id = _read(environ, _TRACK_ID)
    alias = _read(environ, _TRACK_ID_ALIAS)
    if track_id is not None and alias is not None and track_id != alias:
        message = [f"Differs between {_TRACK_ID} and its alias {_TRACK_ID_ALIAS}."]
        raise RequestInvalid({_TRACK_ID: message, _TRACK_ID_ALIAS: message})
    track_id = track_id if track_id is not None else alias
    if track_id is None:
        raise RequestInvalid({_TRACK_ID: ["Missing: the calling track's id."]})
    bind_contextvars(track_id=track_id)
    g.caller = Caller(
        track_id=track_id,
        idempotency_key=_read(environ, _KEY) or track_id,
        prefix=_read(environ, _PREFIX) or "",
        track_name=_read(environ, _TRACK_NAME),
    )


def caller() -> Caller:
    """Return the track that makes the present request."""
    return cast("Caller", g.caller)


def _read(environ: Mapping[str, str], header: str) -> str | None:
    value = environ.get("HTTP_" + header.upper().replace("-", "_"))
    if value is None:
        return None
    value = value.strip(" \t")
    if not is_plain(value):
        raise RequestInvalid({header: [f"Must be sent once, with 1 to {MAX_LENGTH} printable ASCII characters."]})
    return value
