"""Finds the principal of a request by its bearer token, and checks the role.

Tokens are compared by their SHA-256 digests in constant time. A token that is none of these may be a JWT of the issuer.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import partial
from typing import TYPE_CHECKING, cast

from structlog.contextvars import bind_contextvars

from broker_api.current import current
from broker_api.errors import RequestInvalid
from broker_api.runtime import runtime, services
from broker_api.tracing import request_id
from broker_common.core.errors import BrokerError, Forbidden, InvalidToken, SignInUnavailable, Unauthorized
from broker_common.core.principals import Actor, Principal, Role
from broker_common.principals_file import read_principals
from broker_common.tokens import Token, TokenFile, read_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker_api.current import Request
    from broker_common.settings import Settings
    from broker_common.tokens import TokenSource


_DOTS_OF_A_JWT = 2


def token_sources(settings: Settings) -> tuple[TokenSource, ...]:
    """Return the sources of tokens: the environment, or files that are read again when they change."""
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
    """Return the principal of the current request; None if its token is missing, or is not valid."""
    found = _identity()
    return found if isinstance(found, Principal) else None


def _identity() -> Principal | BrokerError:
    """Return the principal of the current request, or why there is none. The token is looked at once."""
    request = current()
    found = request.identity
    if found is None:
        found = request.identity = _identify(_presented_token(request))
        if isinstance(found, Principal):
            bind_contextvars(principal=found.name)
    return found


def _identify(presented: bytes | None) -> Principal | BrokerError:
    if presented is None:
        return Unauthorized("the header 'Authorization: Bearer <token>' is missing")
    token = _recognize(presented)
    if token is not None:
        return InvalidToken("the token has expired") if token.is_expired(services().clock.now()) else token.principal
    access_tokens = runtime().access_tokens
    if access_tokens is None or presented.count(b".") != _DOTS_OF_A_JWT:
        return InvalidToken("the token is unknown")
    try:
        return access_tokens.identify(presented)
    except (InvalidToken, SignInUnavailable) as error:
        return error


def actor() -> Actor:
    """Return the principal and the id of the current request, for facts; only for views that need a role."""
    return Actor(principal=known_principal().name, request_id=request_id())


def known_principal() -> Principal:
    """Return the principal of the current request; only for views that need a role."""
    return cast("Principal", principal())


def may_act_for(track_id: str) -> bool:
    """Tell whether the current request may make the calls of this track."""
    found = principal()
    return found is not None and found.may_act_for(track_id)


def require_role() -> None:
    """Check that the principal of the current request has the role that the route declares.

    Raises `Unauthorized` without a valid token, `Forbidden` without the role, `RequestInvalid` for two tokens, and
    `SignInUnavailable` if the issuer's keys are not known yet.
    """
    # `Blueprint.route` notes the role. A view that was added in another way needs the strictest one.
    request = current()
    needed: Role | None = getattr(request.app.view_functions[request.endpoint or ""], "role", Role.ADMIN)
    if needed is None:
        return
    found = _identity()
    if isinstance(found, BrokerError):
        # `gunicorn_worker` joins the values of a repeated header by a line feed.
        if "\n" in request.environ.get("HTTP_AUTHORIZATION", ""):
            raise RequestInvalid({"Authorization": ["Was sent several times with different values. Send it once."]})
        raise found
    if not found.roles:
        claim = runtime().settings.oidc_roles_claim
        raise Forbidden(
            f"this call needs the role {needed}, and the token's claim {claim!r} names no role of the broker"
        )
    if not found.may(needed):
        raise Forbidden(f"this call needs the role {needed}, and the token has only {', '.join(sorted(found.roles))}")


def _presented_token(request: Request) -> bytes | None:
    scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        return None
    # WSGI gives the bytes of a header as Latin-1 text (PEP 3333). The settings hashed the bytes of the token.
    return str(token).encode("latin-1", "replace")


def _recognize(presented: bytes) -> Token | None:
    """Return the presented token. Compares it with all tokens, so that the time taken does not show which fits."""
    digest = hashlib.sha256(presented).digest()
    found = [token for source in runtime().tokens for token in source() if hmac.compare_digest(digest, token.digest)]
    return found[0] if found else None
