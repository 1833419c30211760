"""Who is calling: bearer tokens, compared by their SHA-256 digests in constant time."""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from typing import TYPE_CHECKING, cast

from flask import g, request

from broker_api.runtime import runtime
from broker_common.core.errors import Forbidden, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Iterable


class Scope(Enum):
    """What a token is for."""

    TRACK = "track"
    ADMIN = "admin"


def scope() -> Scope | None:
    """Return what the present request's token is for; None if there is none, or nobody knows it."""
    if "scope" not in g:
        g.scope = _scope_of(_presented_token())
    return cast("Scope | None", g.scope)


def require_track_token() -> None:
    """Let only a track's token pass; raises `Unauthorized`, or `Forbidden` for an admin's."""
    _require(Scope.TRACK, "an admin token cannot make a track's call")


def require_admin_token() -> None:
    """Let only an admin's token pass; raises `Unauthorized`, or `Forbidden` for a track's."""
    _require(Scope.ADMIN, "a track's token cannot make an admin call")


def _require(wanted: Scope, otherwise: str) -> None:
    found = scope()
    if found is wanted:
        return
    if found is not None:
        raise Forbidden(otherwise)
    if _presented_token() is None:
        raise Unauthorized("the header 'Authorization: Bearer <token>' is missing")
    raise Unauthorized("the token is unknown")


def _presented_token() -> bytes | None:
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        return None
    # WSGI hands a header's bytes over as Latin-1 text (PEP 3333); the settings hashed the token's own bytes.
    return str(token).encode("latin-1", "replace")


def _scope_of(token: bytes | None) -> Scope | None:
    if token is None:
        return None
    settings = runtime().settings
    digest = hashlib.sha256(token).digest()
    is_track = _is_among(digest, settings.broker_api_token)
    is_admin = _is_among(digest, settings.broker_admin_token)
    return Scope.TRACK if is_track else Scope.ADMIN if is_admin else None


def _is_among(digest: bytes, known: Iterable[bytes]) -> bool:
    found = False
    for each in known:
        found |= hmac.compare_digest(digest, each)
    return found
