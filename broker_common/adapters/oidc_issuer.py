"""Asks an OpenID Connect issuer for the keys that its tokens are signed with.

Sources: OpenID Connect Discovery 1.0, section 4; RFC 7517 (JWK), RFC 7518, section 6, and RFC 8037 (keys).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import jwt
import orjson
import requests
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from broker_common.adapters.bounded_http import BoundedResponse, answer_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FETCH_SEC = 10.0
"""For both answers together. Connecting has its own limit."""
CONNECT_SEC = 3.0
MAX_ANSWER_BYTES = 256 * 2**10
_PATH = "/.well-known/openid-configuration"
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""By a key's type and curve: the only algorithm that the broker takes from such a key."""
ALGORITHMS = frozenset(_ALGORITHMS.values())
_PUBLIC = ("kty", "crv", "n", "e", "x", "y")
_RSA_BITS = range(2048, 8193)


class IssuerError(Exception):
    """The issuer could not be asked, or did not answer as it must. The message is for operators."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key of the issuer, for one algorithm."""

    kid: str | None
    algorithm: str
    key: jwt.PyJWK = field(repr=False)


Keys = tuple[SigningKey, ...]


def fetch_keys(issuer: str, *, addresses: Iterable[str] = ()) -> Keys:
    """Return the issuer's public keys that the broker can use, at least one.

    `addresses` are names that its discovery document must have, too, each with an address that may be asked.

    Follows no redirect, uses no proxy of the environment, and reads at most 256 KiB of each answer. Raises
    `IssuerError` after 10 seconds of reading at the latest, plus what connecting takes (3 seconds an address).
    """
    with requests.Session() as session, answer_within(FETCH_SEC):
        bound(session)
        metadata = read_metadata(session, issuer)
        for name in addresses:
            address_of(metadata, name, issuer)
        return read_keys(session, metadata, issuer)


def bound(session: requests.Session) -> None:
    """Let `session` keep the limits of `answer_within`, and use no proxy and no password of the environment."""
    session.trust_env = False
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    session.headers.update(
        {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "sandbox-broker"}
    )
    for scheme in ("https://", "http://"):
        session.mount(scheme, _BoundedAdapter())


def read_metadata(session: requests.Session, issuer: str) -> dict[str, Any]:
    """Return the issuer's discovery document. Raises `IssuerError`."""
    told = _get(session, issuer.rstrip("/") + _PATH, "the discovery document")
    if told.get("issuer") != issuer:
        raise IssuerError(f"its discovery document is that of {told.get('issuer')!r:.300}, not of OIDC_ISSUER")
    return told


def read_keys(session: requests.Session, metadata: Mapping[str, Any], issuer: str) -> Keys:
    """Return the public keys that the broker can use, at least one. Raises `IssuerError`."""
    found = _get(session, address_of(metadata, "jwks_uri", issuer), "the list of keys").get("keys")
    keys = tuple(key for entry in (found if isinstance(found, list) else []) if (key := _read_key(entry)) is not None)
    if not keys:
        raise IssuerError("it publishes no key that the broker can use (RS256, ES256, EdDSA)")
    return keys


def address_of(metadata: Mapping[str, Any], name: str, issuer: str) -> str:
    """Return the address that the discovery document has under `name`. Raises `IssuerError` if it is not safe."""
    address = metadata.get(name)
    if not isinstance(address, str) or not _may_be_asked(address, issuer):
        raise IssuerError(f"its discovery document has no {name} with https")
    return address


def _may_be_asked(address: str, issuer: str) -> bool:
    """Tell whether keys may come from there. An issuer without TLS is one on loopback, in development."""
    try:
        parts, own = urlsplit(address), urlsplit(issuer)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == own.scheme and parts.netloc == own.netloc)


def _get(session: requests.Session, url: str, what: str) -> dict[str, Any]:
    try:
        with session.get(url, timeout=(CONNECT_SEC, FETCH_SEC), allow_redirects=False, stream=True) as answer:
            if answer.status_code != HTTPStatus.OK:
                raise IssuerError(f"{what}: the answer was {answer.status_code}")
            body = bytearray()
            for chunk in answer.raw.stream(2**14, decode_content=False):
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise IssuerError(f"{what}: the answer has more than {MAX_ANSWER_BYTES // 2**10} KiB")
    except requests.exceptions.SSLError as error:
        raise IssuerError(f"{what}: no secure connection") from error
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        is_late = isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error).lower()
        raise IssuerError(f"{what}: {'timed out' if is_late else 'no answer'}") from error
    try:
        found = orjson.loads(body)
    except ValueError as error:
        raise IssuerError(f"{what}: the answer is not JSON") from error
    if not isinstance(found, dict):
        raise IssuerError(f"{what}: the answer is not a JSON object")
    return found


def _read_key(entry: object) -> SigningKey | None:
    """Return a key of the list; None for one that is not for the signatures that the broker takes."""
    if not isinstance(entry, dict):
        return None
    algorithm = _algorithm_of(entry)
    kid = entry.get("kid")
    if algorithm is None or not isinstance(kid, str | None):
        return None
    try:
        key = jwt.PyJWK({name: entry[name] for name in _PUBLIC if name in entry}, algorithm=algorithm)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size not in _RSA_BITS:
        return None
    return SigningKey(kid, algorithm, key)


def _algorithm_of(entry: Mapping[str, Any]) -> str | None:
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kind, curve = entry.get("kty"), entry.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithm = _ALGORITHMS.get((kind, curve))
    # Since RFC 9864, EdDSA with this curve has the name Ed25519, too.
    return algorithm if entry.get("alg", algorithm) in (algorithm, curve) else None


class _HttpConnection(HTTPConnection):
    response_class = BoundedResponse


class _HttpsConnection(HTTPSConnection):
    response_class = BoundedResponse


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _BoundedAdapter(HTTPAdapter):
    """Makes connections that keep the limit of `answer_within`. It retries nothing, which is requests' default."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
