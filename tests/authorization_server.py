"""An issuer with a page to sign in: authorization code flow with PKCE, access tokens (RFC 9068), ID tokens, sign-out.

`oidc-provider-mock` cannot take this part: its access tokens are no JWTs, and it does not look at the PKCE verifier.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

import requests

from tests.issuer import AUDIENCE, DISCOVERY, JWKS, Issuer, Key, claims_of, send_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.http_server import Handler

CLIENT_ID = "broker-console"
AUTHORIZE, TOKEN, LOGOUT, REVOKE = "/authorize", "/token", "/logout", "/revoke"
KEY = Key("signing")


@dataclass
class Code:
    """What a code was given for."""

    person: str
    asked: dict[str, str]
    is_used: bool = False


@dataclass
class Settings:
    """What a test may change."""

    people: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "anna": {"sub": "anna-1", "broker_roles": ["operator"]},
            "nobody": {"sub": "nobody-1", "broker_roles": []},
        }
    )
    """By name, the claims that differ from the usual ones."""
    secret: str | None = None
    lasts_sec: Any = 3600
    access_claims: dict[str, Any] = field(default_factory=dict)
    id_claims: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    """Changes of the answer that has the tokens. A change to None leaves the member out."""
    metadata: dict[str, Any] = field(default_factory=dict)
    refresh_tokens: str = ""
    """Whether it gives refresh tokens: `once` if each is taken once, `kept` if the same one is taken again."""
    now: Callable[[], float] = time.time


class AuthorizationServer(Issuer):
    """The server. `change` says how it behaves, `exchanges` has the forms that came for tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = [KEY.public()]
        self.key = KEY
        self.change = Settings()
        self.exchanges: list[dict[str, str]] = []
        self.given: list[str] = []
        """Access tokens and ID tokens."""
        self.renewals: list[dict[str, str]] = []
        """The forms that came to renew a token."""
        self.revocations: list[dict[str, str]] = []
        """The forms that came to revoke a token."""
        self._codes: dict[str, Code] = {}
        self._renewing: dict[str, Code] = {}

    def reply(self, handler: Handler) -> None:
        """Answer one request."""
        parts = urlsplit(handler.path)
        if parts.path not in {AUTHORIZE, TOKEN, LOGOUT, REVOKE} or parts.path in self.faults:
            if handler.path == DISCOVERY and DISCOVERY not in self.faults:
                self.asked.append(handler.path)
                send_json(handler, self._metadata())
            else:
                super().reply(handler)
            return
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append(parts.path)
        if parts.path == TOKEN:
            self._exchange(handler)
        elif parts.path == REVOKE:
            sent = {name: values[0] for name, values in parse_qs(handler.read_body().decode()).items()}
            self.revocations.append(sent)
            self._renewing.pop(sent["token"], None)
            handler.answer(200)
        elif parts.path == LOGOUT:
            back = query["post_logout_redirect_uri"]
            handler.answer(303, Location=back, Set_Cookie="person=; Max-Age=0")
        else:
            self._authorize(handler, query)

    def come_back(self, address: str, person: str = "anna") -> str:
        """Sign `person` in at `address`, to which the console sent them, and return the address to which they go back."""
        answer = requests.post(address, data={"person": person}, allow_redirects=False, timeout=10)
        assert answer.status_code == 303, answer.text
        return answer.headers["Location"]

    def _metadata(self) -> dict[str, Any]:
        told = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}{JWKS}",
            "authorization_endpoint": f"{self.url}{AUTHORIZE}",
            "token_endpoint": f"{self.url}{TOKEN}",
            "end_session_endpoint": f"{self.url}{LOGOUT}",
        } | self.change.metadata
        return {name: value for name, value in told.items() if value is not None}

    def _authorize(self, handler: Handler, asked: dict[str, str]) -> None:
        assert asked["client_id"] == CLIENT_ID
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        assert "openid" in asked["scope"].split()
        known = SimpleCookie(handler.headers.get("Cookie", "")).get("person")
        person = unquote(known.value) if known is not None else None
        if handler.command == "POST":
            person = parse_qs(handler.read_body().decode())["person"][0]
        if person is None:
            handler.answer(200, PAGE.encode(), Content_Type="text/html")
            return
        if person in self.change.people:
            code = secrets.token_urlsafe(8)
            self._codes[code] = Code(person, asked)
            told = {"code": code, "iss": self.url}
        else:
            told = {"error": "access_denied", "error_description": f"{person} may not use this application"}
        back = f"{asked['redirect_uri']}?{urlencode(told | {'state': asked['state']})}"
        handler.answer(303, Location=back, Set_Cookie=f"person={quote(person)}")

    def _exchange(self, handler: Handler) -> None:
        sent = {name: values[0] for name, values in parse_qs(handler.read_body().decode()).items()}
        basic = handler.headers.get("Authorization", "").removeprefix("Basic ")
        if basic:
            sent["client_id"], sent["client_secret"] = base64.b64decode(basic).decode().split(":")
            sent["by"] = "header"
        if sent["grant_type"] == "refresh_token":
            self._renew(handler, sent)
            return
        self.exchanges.append(sent)
        code = self._codes.get(sent["code"])
        if sent["client_id"] != CLIENT_ID or sent.get("client_secret") != self.change.secret:
            _refuse(handler, "invalid_client")
        elif (
            code is None
            or code.is_used
            or sent["redirect_uri"] != code.asked["redirect_uri"]
            or challenge_of(sent["code_verifier"]) != code.asked["code_challenge"]
        ):
            _refuse(handler, "invalid_grant")
        else:
            code.is_used = True
            send_json(handler, self._tokens(code))

    def _renew(self, handler: Handler, sent: dict[str, str]) -> None:
        self.renewals.append(sent)
        code = self._renewing.get(sent["refresh_token"])
        if sent["client_id"] != CLIENT_ID or sent.get("client_secret") != self.change.secret:
            _refuse(handler, "invalid_client")
        elif code is None:
            _refuse(handler, "invalid_grant")
        else:
            if self.change.refresh_tokens == "once":
                del self._renewing[sent["refresh_token"]]
            told = self._tokens(code)
            if self.change.refresh_tokens == "kept":
                told.pop("refresh_token")
            send_json(handler, told)

    def revoke_refresh_tokens(self) -> None:
        """Take no refresh token that was given until now."""
        self._renewing.clear()

    def _tokens(self, code: Code) -> dict[str, Any]:
        now, of_person = self.change.now(), self.change.people[code.person]
        # Like Auth0: who asks for no API gets a token that none takes.
        audience = code.asked.get("audience", self.url)
        access = claims_of(
            self.url, now, **{"aud": audience, "client_id": CLIENT_ID} | of_person | self.change.access_claims
        )
        identity = claims_of(
            self.url,
            now,
            **{"aud": CLIENT_ID, "nonce": code.asked["nonce"], "client_id": None, "sub": of_person["sub"]}
            | self.change.id_claims,
        )
        told = {
            "access_token": self.key.sign(access),
            "token_type": "Bearer",
            "expires_in": self.change.lasts_sec,
            "id_token": self.key.sign(identity, typ="JWT"),
        }
        if self.change.refresh_tokens:
            told["refresh_token"] = secrets.token_urlsafe(24)
            self._renewing[told["refresh_token"]] = code
        told |= self.change.answer
        self.given += [str(told["access_token"]), str(told["id_token"])]
        return {name: value for name, value in told.items() if value is not None}


PAGE = """<!doctype html><link rel="icon" href="data:,"><title>Sign in</title><h1>The issuer</h1>
<form method="post"><label>Name <input name="person"></label> <button>Sign in</button></form>"""


def challenge_of(verifier: str) -> str:
    """Return the challenge of PKCE (RFC 7636, section 4.2)."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def settings_of(server: Issuer) -> dict[str, str]:
    """Return the settings of an API that takes the server's tokens."""
    return {"OIDC_ISSUER": server.url, "OIDC_AUDIENCE": AUDIENCE}


def _refuse(handler: Handler, error: str) -> None:
    handler.answer(400, f'{{"error": "{error}"}}'.encode(), Content_Type="application/json")
