"""Who is calling: bearer tokens, compared by their SHA-256 digests in constant time."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, cast

from flask import g, request

from broker_api.errors import RequestInvalid
from broker_api.runtime import runtime
from broker_api.scopes import Scope, TokenSource
from broker_common.core.errors import Forbidden, Unauthorized
from broker_common.tokens import Token, TokenFile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from broker_common.settings import Settings


def token_sources(settings: Settings) -> Mapping[Scope, TokenSource]:
    """Return where each scope's tokens come from: the environment, or a file that is read again when it changes."""

    def source(tokens: Sequence[Token], file: str | None) -> TokenSource:
        return TokenFile(file, production=settings.in_production) if file is not None else lambda: tokens

    return {
        Scope.TRACK: source(settings.broker_api_token, settings.broker_api_token_file),
        Scope.ADMIN: source(settings.broker_admin_token, settings.broker_admin_token_file),
    }


def scope() -> Scope | None:
    """Return what the present request's token is for; None if there is none, or nobody knows it."""
    if "scope" not in g:
        g.scope, g.token = _recognize(_presented_token())
    return cast("Scope | None", g.scope)


def may_act_for(track_id: str) -> bool:
    """Tell whether the present request's token is a track's, and not bound to other tracks than this."""
    return scope() is Scope.TRACK and track_id.startswith(cast("Token", g.token).track_prefix)


def require_track_token() -> None:
    """Let only a track's token pass; raises `Unauthorized`, `Forbidden` for an admin's, `RequestInvalid` for two."""
    _require(Scope.TRACK, "an admin token cannot make a track's call")


def require_admin_token() -> None:
    """Let only an admin's token pass; raises `Unauthorized`, `Forbidden` for a track's, `RequestInvalid` for two."""
    _require(Scope.ADMIN, "a track's token cannot make an admin call")


def _require(wanted: Scope, otherwise: str) -> None:
    found = scope()
    if found is wanted:
        return
    if found is not None:
        raise Forbidden(otherwise)
    # What `gunicorn_worker` makes of a header that was sent several times.
    if "\n" in request.environ.get("HTTP_AUTHORIZATION", ""):
        raise RequestInvalid({"Authorization": ["Was sent several times, with different values."]})
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


def _recognize(presented: bytes | None) -> tuple[Scope, Token] | tuple[None, None]:
    """Compare with every token of every scope, so that the time taken tells nothing about which fits."""
    if presented is None:
        return None, None
    digest = hashlib.sha256(presented).digest()
    found = [
        (scope, token)
        for scope, source in runtime().tokens.items()
        for token in source()
        if hmac.compare_digest(digest, token.digest)
    ]
    return found[0] if found else (None, None)
