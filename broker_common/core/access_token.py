"""What an access token (JWT) says, and whose it is. Whether its signature is right, an adapter has checked.

Sources: RFC 7519 (JWT), RFC 9068 (access tokens), RFC 8725 (best practices), OpenID Connect Core 1.0 (ID tokens).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker_common.core.errors import InvalidToken
from broker_common.core.principals import Principal, Role

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LEEWAY_SEC = 30
"""By so much the clocks of the issuer and of the broker may differ."""
NAME_PREFIX = "oidc:"
"""Begins the name of each principal of the issuer. No name in a file of tokens has a colon, and no job's begins so."""
CUSTOMER_CLAIM = "broker_customer"

_PLAIN = r"[!-~]([ -~]{0,%d}[!-~])?"
_SUBJECT = re.compile(_PLAIN % (128 - len(NAME_PREFIX) - 2))
_CUSTOMER = re.compile(_PLAIN % 126)
_TYPES = {"at+jwt", "application/at+jwt"}
_VAGUE_TYPES = {"jwt", "application/jwt", None}
_OF_ID_TOKENS = ("nonce", "at_hash", "c_hash", "s_hash")
_OF_ACCESS_TOKENS = ("scope", "scp", "client_id")
_SAYS_WHAT_IT_IS = {"typ": {"bearer", "at+jwt"}, "token_use": {"access"}}
"""Claims by which Keycloak and Amazon Cognito tell access tokens from others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """Which access tokens the broker takes, and where their roles stand."""

    issuer: str
    audience: str
    roles_claim: str


def check_issuer(claims: Mapping[str, Any], rules: AccessRules) -> None:
    """Refuse a token of another issuer; raises `InvalidToken`."""
    if claims.get("iss") != rules.issuer:
        raise InvalidToken("the token is from another issuer")


def check_type(token_type: str | None, claims: Mapping[str, Any]) -> None:
    """Refuse every token that is no access token, by its header `typ` and its claims; raises `InvalidToken`.

    Many issuers do not write `at+jwt`, as RFC 9068 asks. Without that, a token must show that it is an access token: by
    a scope or a `client_id`, or because the client that got it (`azp`) is not its audience. And it must have nothing
    that only an ID token has. A person's ID token is made for the application, which may be anybody's: it must not open
    the broker.
    """
    kind = token_type.lower() if token_type is not None else None
    if kind in _TYPES:
        return
    if kind not in _VAGUE_TYPES:
        raise InvalidToken("the token is no access token: its type must be at+jwt or JWT")
    says = {name: str(claims[name]).lower() for name in _SAYS_WHAT_IT_IS if name in claims}
    if any(name in claims for name in _OF_ID_TOKENS) or says.get("typ") == "id" or says.get("token_use") == "id":
        raise InvalidToken("the token is an ID token: send the access token")
    if any(value not in _SAYS_WHAT_IT_IS[name] for name, value in says.items()):
        raise InvalidToken("the token is no access token")
    client = claims.get("azp")
    is_for_another = isinstance(client, str) and client not in _audiences(claims)
    if not is_for_another and not any(name in claims for name in _OF_ACCESS_TOKENS):
        raise InvalidToken("the token does not show that it is an access token: it has no scope and names no client")


def read_claims(claims: Mapping[str, Any], rules: AccessRules, now: int) -> tuple[Principal, float]:
    """Return whose token it is, and until when it is valid (Unix seconds, the leeway included).

    The principal has no role if the token names none that the broker knows. Raises `InvalidToken`.
    """
    check_issuer(claims, rules)
    if rules.audience not in _audiences(claims):
        raise InvalidToken("the token is for another audience")
    valid_until = _check_times(claims, now)
    # It is good for one who proves to hold a key, which nobody proves here (RFC 9449, section 7.2; RFC 8705).
    if "cnf" in claims:
        raise InvalidToken("the token is bound to a key (cnf), so it is no bearer token")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise InvalidToken("the token's claim sub must be 1 to 123 printable ASCII characters")
    customer = claims.get(CUSTOMER_CLAIM)
    if customer is not None and not (isinstance(customer, str) and _CUSTOMER.fullmatch(customer)):
        raise InvalidToken(f"the token's claim {CUSTOMER_CLAIM} must be 1 to 128 printable ASCII characters")
    roles = frozenset(_roles(claims, rules.roles_claim))
    return Principal(name=NAME_PREFIX + subject, roles=roles, customer=customer), valid_until


def _check_times(claims: Mapping[str, Any], now: int) -> float:
    expires_at, begins_at, issued_at = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at is None:
        raise InvalidToken("the token has no end: its claim exp is missing")
    if now >= expires_at + LEEWAY_SEC:
        raise InvalidToken("the token has expired")
    if begins_at is not None and begins_at > now + LEEWAY_SEC:
        raise InvalidToken("the token is not valid yet")
    if issued_at is not None and issued_at > now + LEEWAY_SEC:
        raise InvalidToken("the token was issued in the future")
    return expires_at + LEEWAY_SEC


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidToken(f"the token's claim {name} must be a time in Unix seconds")
    return value


def _audiences(claims: Mapping[str, Any]) -> list[Any]:
    found = claims.get("aud")
    return found if isinstance(found, list) else [found]


def _roles(claims: Mapping[str, Any], path: str) -> Iterator[Role]:
    """Yield the broker's roles in a list, or in a text with spaces. Issuers write roles of other systems there, too."""
    found = _find(claims, path)
    names = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return (role for role in Role if role.value in names)


def _find(claims: Mapping[str, Any], path: str) -> object:
    """Return the claim of that name, or the one inside of others that dots lead to; None if there is none."""
    if path in claims:
        return claims[path]
    found: object = claims
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found
