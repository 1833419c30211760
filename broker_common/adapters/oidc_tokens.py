"""Checks the access tokens (JWTs) of an issuer, and returns whose they are."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
import orjson

from broker_common.adapters.oidc_issuer import ALGORITHMS
from broker_common.core.access_token import check_issuer, check_type, read_claims
from broker_common.core.errors import InvalidToken

if TYPE_CHECKING:
    from broker_common.adapters.oidc_issuer import Keys, SigningKey
    from broker_common.adapters.oidc_keys import IssuerKeys
    from broker_common.core.access_token import AccessRules
    from broker_common.core.ports import Clock
    from broker_common.core.principals import Principal

MAX_TOKEN_BYTES = 8 * 2**10
_MOST_KEPT = 1000
_FORM = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]*")
_NO_JWT = "the token is not a valid JWT"


@dataclass(frozen=True, slots=True)
class _Checked:
    """What a token's check found. It holds only with the keys that it was checked with."""

    principal: Principal
    valid_until: float
    keys: Keys


class AccessTokens:
    """Checks access tokens; safe to use from many threads.

    Tokens that were found valid are remembered, so that each costs one signature check every few minutes: until they
    expire, or the keys are renewed. A token is remembered by its SHA-256 digest.
    """

    def __init__(self, keys: IssuerKeys, rules: AccessRules, clock: Clock) -> None:
        self._keys = keys
        self._rules = rules
        self._clock = clock
        self._signatures = jwt.PyJWS()
        self._checked: dict[bytes, _Checked] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Begin to fetch the issuer's keys, and do not wait."""
        self._keys.prepare()

    def identify(self, token: bytes) -> Principal:
        """Return whose token it is.

        Raises `InvalidToken`, whose message says why, and `SignInUnavailable` while the issuer's keys are not known.
        """
        digest = hashlib.sha256(token).digest()
        known = self._checked.get(digest)
        if known is not None and known.keys is self._keys.current() and self._clock.now() < known.valid_until:
            return known.principal
        checked = self._check(token)
        with self._lock:
            self._checked.pop(digest, None)
            if len(self._checked) >= _MOST_KEPT:
                del self._checked[next(iter(self._checked))]
            self._checked[digest] = checked
        return checked.principal

    def _check(self, token: bytes) -> _Checked:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        parts = _FORM.fullmatch(token)
        if parts is None:
            raise InvalidToken(_NO_JWT)
        header, claims = (_decode(part) for part in parts.groups())
        # RFC 7515, section 4.1.11. `jku`, `jwk`, `x5u` and `x5c` name keys, but only the issuer's own count.
        if "crit" in header:
            raise InvalidToken("the token has critical headers (crit), and the broker knows none")
        algorithm, kid, token_type = (_text(header, name) for name in ("alg", "kid", "typ"))
        if algorithm not in ALGORITHMS:
            raise InvalidToken(f"the token's algorithm must be one of {', '.join(sorted(ALGORITHMS))}")
        # Tokens of others must not make the broker look for their keys.
        check_issuer(claims, self._rules)
        key, keys = self._find_key(kid, algorithm)
        try:
            self._signatures.decode_complete(token, key.key, algorithms=[key.algorithm])
        except (jwt.PyJWTError, ValueError):
            # The cause may hold parts of the token.
            raise InvalidToken("the token's signature is wrong") from None
        check_type(token_type, claims)
        return _Checked(*read_claims(claims, self._rules, self._clock.now()), keys)

    def _find_key(self, kid: str | None, algorithm: str) -> tuple[SigningKey, Keys]:
        keys = self._keys.current()
        named = _named(keys, kid)
        if not named and (newer := self._keys.newer(keys)) is not None:
            keys = newer
            named = _named(keys, kid)
        if not named:
            raise InvalidToken("the token is signed with a key that the issuer does not publish")
        fitting = [key for key in named if key.algorithm == algorithm]
        if not fitting:
            raise InvalidToken("the token's algorithm does not fit its key")
        if kid is None and len(fitting) > 1:
            raise InvalidToken("the token does not name its key (kid), and several may be meant")
        return fitting[0], keys


def _named(keys: Keys, kid: str | None) -> Keys:
    return tuple(key for key in keys if kid is None or key.kid == kid)


def _decode(part: bytes) -> dict[str, Any]:
    """Return the JSON object of a part. orjson refuses what is nested deeply, and numbers that are none."""
    try:
        found = orjson.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except ValueError:
        raise InvalidToken(_NO_JWT) from None
    if not isinstance(found, dict):
        raise InvalidToken(_NO_JWT)
    return found


def _text(header: dict[str, Any], name: str) -> str | None:
    value = header.get(name)
    if not isinstance(value, str | None):
        raise InvalidToken(_NO_JWT)
    return value
