"""An OpenID Connect issuer on loopback, whose keys, answers and faults a test controls."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import trustme

AUDIENCE = "https://broker.example.com"
DISCOVERY, JWKS = "/.well-known/openid-configuration", "/keys"
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi")


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return the RSA key of this name, always the same one: to make one takes long."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


class Key:
    """A private key, which signs tokens with its algorithm."""

    def __init__(self, kid: str | None, algorithm: str = "RS256", private: Any = None) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private = private
        if private is None:
            match algorithm:
                case "RS256":
                    self.private = rsa_key(f"{kid}")
                case "ES256":
                    self.private = ec.generate_private_key(ec.SECP256R1())
                case _:
                    self.private = ed25519.Ed25519PrivateKey.generate()

    def public(self, **more: Any) -> dict[str, Any]:
        """Return the public key as the issuer publishes it."""
        found: dict[str, Any] = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private, as_dict=True)
        found = {name: value for name, value in found.items() if name not in _PRIVATE and name != "key_ops"}
        return found | {"use": "sig"} | ({} if self.kid is None else {"kid": self.kid}) | more

    def sign(self, claims: Mapping[str, Any], **header: Any) -> str:
        """Return a token with these claims. A header that is None is left out."""
        named = {"typ": "at+jwt"} | ({} if self.kid is None else {"kid": self.kid}) | header
        return jwt.encode(dict(claims), self.private, self.algorithm, headers=named)


def forge(header: Mapping[str, Any], claims: Any, signature: bytes = b"") -> str:
    """Return a token of these parts, which no library would make."""
    parts = (
        json.dumps(header).encode(),
        claims if isinstance(claims, bytes) else json.dumps(claims).encode(),
        signature,
    )
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class Issuer:
    """The issuer. Tests change `keys`, and `faults`: by path, a function that answers instead."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.faults: dict[str, Any] = {}
        self.asked: list[str] = []
        self.port = 0
        self.scheme = "http"
        self.host = "127.0.0.1"
        self.goes_on = threading.Event()
        """Set when the test ends: what hangs may end."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    def reply(self, handler: Handler) -> None:
        """Answer one request."""
        self.asked.append(handler.path)
        if fault := self.faults.get(handler.path):
            fault(handler)
        elif handler.path == DISCOVERY:
            send_json(handler, {"issuer": self.url, "jwks_uri": f"{self.url}{JWKS}"})
        elif handler.path == JWKS:
            send_json(handler, {"keys": self.keys})
        else:
            handler.answer(404)

    def hang(self, _: Handler) -> None:
        """Answer nothing before the test ends."""
        self.goes_on.wait()

    def drip(self, handler: Handler) -> None:
        """Send a byte of the body now and then."""
        handler.send_response_only(200)
        handler.end_headers()
        while not self.goes_on.wait(0.05):
            handler.wfile.write(b" ")


def send_json(handler: Handler, body: Any) -> None:
    """Answer a JSON document."""
    handler.answer(200, json.dumps(body).encode(), Content_Type="application/json")


SomeIssuer = TypeVar("SomeIssuer", bound=Issuer)


@contextmanager
def running_issuer(certificate: trustme.LeafCert | None = None) -> Iterator[Issuer]:
    """Run an issuer during the context, with TLS if it has a certificate."""
    with running(Issuer(), certificate) as issuer:
        yield issuer


@contextmanager
def running(issuer: SomeIssuer, certificate: trustme.LeafCert | None = None) -> Iterator[SomeIssuer]:
    """Run `issuer` during the context."""

    class Answering(Handler):
        def reply(self) -> None:
            issuer.reply(self)

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:
                self.close_connection = True  # the client has gone

    with serving(Answering) as server:
        issuer.port = server.server_port
        if certificate is not None:
            issuer.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        try:
            yield issuer
        finally:
            issuer.goes_on.set()


def claims_of(issuer: str, now: float | None = None, **changes: Any) -> dict[str, Any]:
    """Return the claims of an access token that is valid for an hour. A change to None leaves the claim out."""
    at = int(time.time() if now is None else now)
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "anna-1",
        "iat": at,
        "nbf": at,
        "exp": at + 3600,
        "client_id": "console",
        "broker_roles": ["operator"],
    } | changes
    return {name: value for name, value in claims.items() if value is not None}
