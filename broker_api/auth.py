"""Who is calling: bearer tokens, compared by their SHA-256 digests in constant time."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from flask import request

from broker_api.runtime import runtime
from broker_common.core.errors import Forbidden, Unauthorized

if TYPE_CHECKING:
    from collections.abc import Iterable


def require_track_token() -> None:
    """Let only a track's token pass; raises `Unauthorized`, or `Forbidden` for an admin's."""
    settings = runtime().settings
    digest = _presented_digest()
    if not _is_among(digest, settings.broker_api_token):
        if _is_among(digest, settings.broker_admin_token):
            raise Forbidden("an admin token cannot make a track's call")
        raise Unauthorized("the token is unknown")


def require_admin_token() -> None:
    """Let only an admin's token pass; raises `Unauthorized`, or `Forbidden` for a track's."""
    settings = runtime().settings
    digest = _presented_digest()
    if not _is_among(digest, settings.broker_admin_token):
        if _is_among(digest, settings.broker_api_token):
            raise Forbidden("a track's token cannot make an admin call")
        raise Unauthorized("the token is unknown")


def _presented_digest() -> bytes:
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("the header 'Authorization: Bearer <token>' is missing")
    # WSGI hands a header's bytes over as Latin-1 text (PEP 3333); the settings hashed the token's own bytes.
    return hashlib.sha256(token.encode("latin-1", "replace")).digest()


def _is_among(digest: bytes, known: Iterable[bytes]) -> bool:
    found = False
    for each in known:
        found |= hmac.compare_digest(digest, each)
    return found
