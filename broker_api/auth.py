"""Who is calling, and whether it may: bearer tokens, compared by their SHA-256 digests in constant time, and roles."""

from __future__ import annotations

import hashlib
import hmac
from functools import partial
from typing import TYPE_CHECKING, cast

from flask import current_app, g, request
from structlog.contextvars import bind_contextvars

from broker_api.errors import RequestInvalid
from broker_api.runtime import runtime, services
from broker_api.tracing import request_id
from broker_common.core.errors import Forbidden, Unauthorized
from broker_common.core.principals import Actor, Principal, Role
from broker_common.principals_file import read_principals
from broker_common.tokens import Token, TokenFile, read_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from broker_common.settings import Settings
    from broker_common.tokens import TokenSource


def token_sources(settings: Settings) -> tuple[TokenSource, ...]:
    """Return where tokens come from: the environment, or files that are read again when they change."""
    production = settings.in_production

    def source(role: Role, tokens: Sequence[Token], file: str | None) -> TokenSource:
        if file is None:
            return lambda: tokens
        return TokenFile(file, partial(read_tokens, role=role, production=production))

    sources = [
        source(Role.TRACK, settings.broker_api_token, settings.broker_api_token_file),
        source(Role.ADMIN, settings.broker_admin_token, settings.broker_admin_token_file),
    ]
    if settings.broker_tokens_file is not None:
        read = partial(read_principals, production=production, required=settings.roles_for_tokens_file)
        sources.append(TokenFile(settings.broker_tokens_file, read))
    return tuple(sources)


def principal() -> Principal | None:
    """Return who makes the present request; None if its token is missing, unknown or expired."""
    if "principal" not in g:
        token = _token()
        g.principal = None if token is None or token.is_expired(services().clock.now()) else token.principal
        if g.principal is not None:
            bind_contextvars(principal=g.principal.name)
    return cast("Principal | None", g.principal)


def actor() -> Actor:
    """Return by whom the present request changes something; only for views that need a role."""
    return Actor(principal=known_principal().name, request_id=request_id())


def known_principal() -> Principal:
    """Return who makes the present request; only for views that need a role."""
    return cast("Principal", principal())


def may_act_for(track_id: str) -> bool:
    """Tell whether the present request may make this track's calls."""
    found = principal()
    return found is not None and found.may_act_for(track_id)


def require_role() -> None:
    """Let only a principal pass that has the role which the present view needs, as its route declares it.

    Raises `Unauthorized`, `Forbidden` without the role, `RequestInvalid` for two tokens.
    """
    # `Blueprint.route` notes it. What another way brought in needs the strictest.
    needed: Role | None = getattr(current_app.view_functions[request.endpoint or ""], "role", Role.ADMIN)
    if needed is None:
        return
    found = principal()
    if found is None:
        _refuse()
    if not found.may(needed):
        raise Forbidden(f"this call needs the role {needed}, and the token has only {', '.join(sorted(found.roles))}")


def _refuse() -> NoReturn:
    # What `gunicorn_worker` makes of a header that was sent several times.
    if "\n" in request.environ.get("HTTP_AUTHORIZATION", ""):
        raise RequestInvalid({"Authorization": ["Was sent several times, with different values."]})
    if _presented_token() is None:
        raise Unauthorized("the header 'Authorization: Bearer <token>' is missing")
    raise Unauthorized("the token is unknown" if _token() is None else "the token has expired")


def _token() -> Token | None:
    if "token" not in g:
        g.token = _recognize(_presented_token())
    return cast("Token | None", g.token)


def _presented_token() -> bytes | None:
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        return None
    # WSGI hands a header's bytes over as Latin-1 text (PEP 3333); the settings hashed the token's own bytes.
    return str(token).encode("latin-1", "replace")


def _recognize(presented: bytes | None) -> Token | None:
    """Compare with every token of every source, so that the time taken tells nothing about which fits."""
    if presented is None:
        return None
    digest = hashlib.sha256(presented).digest()
    found = [token for source in runtime().tokens for token in source() if hmac.compare_digest(digest, token.digest)]
    return found[0] if found else None
