"""Signs a person in at an OpenID Connect issuer, returns the access token for the broker's API, and renews it.

Sources: OpenID Connect Core 1.0, sections 3.1 (code flow) and 12 (renewal); RFC 7636 (PKCE); RFC 8707 (`resource`);
RFC 9207 (`iss`); OpenID Connect RP-Initiated Logout 1.0.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import jwt
import requests
from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped] # it ships no types
from authlib.integrations.requests_client import OAuth2Session  # type: ignore[import-untyped] # the same

from broker_common.adapters.bounded_http import answer_within
from broker_common.adapters.oidc_issuer import (
    CONNECT_SEC,
    MAX_ANSWER_BYTES,
    IssuerError,
    address_of,
    bound,
    read_keys,
    read_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker_common.adapters.oidc_issuer import Keys, SigningKey
    from broker_common.core.ports import Clock

ANSWER_SEC = 5.0
"""For all answers of the issuer that one step needs. Connecting has its own limit."""
KEPT_SEC = 300
"""For so long the issuer's addresses and keys are used without asking again."""
_SPACING_SEC = 5
"""After a failure the issuer is not asked again for so long, so that nobody waits for it again and again."""
_AT_ONCE = 3
"""So many people at once may wait for the issuer, of each kind: see `OidcSignIn`. The other threads serve pages."""
_LEEWAY_SEC = 30
_BASIC = "client_secret_basic"
_REFUSED = "invalid_grant"
"""The error that means the token that came. All others may pass, such as a limit of calls (RFC 6749, section 5.2)."""
_NO_ANSWER = "The issuer does not answer. Try again in a moment, or sign in by a token."

_log = logging.getLogger(__name__)


class SignInFailed(Exception):
    """The person is not signed in. The message is a sentence for them."""


class NotRenewed(Exception):
    """The issuer does not renew the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the console must remember of a sign-in until the person comes back from the issuer."""

    state: str
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """What the issuer gave: the token for the API, and for how long it is valid, if the issuer says so.

    `refresh_token` renews it; None if the issuer gave none.
    """

    access_token: str = field(repr=False)
    lasts_sec: float | None
    refresh_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Known:
    metadata: Mapping[str, Any]
    keys: Keys
    at: float


class OidcSignIn:
    """A client of one issuer. Thread-safe. It asks the issuer nothing before a person wants to sign in.

    The request names the API in two ways. `audience` is what Auth0 and others read. `resource` is that of RFC 8707, and
    is sent if the audience is an address, as that document demands; Entra ID refuses it, and there an audience is none.

    Who waits for the issuer holds one of a few places. Anybody can come back with a code that is none, so strangers
    could hold all of them. Browsers that are `known`, because somebody has signed in there before, have places of their
    own. Source: OWASP, Slow Down Online Guessing Attacks with Device Cookies. So have those whose token is renewed.
    """

    def __init__(
        self,
        *,
        issuer: str,
        client_id: str,
        client_secret: str | None,
        audience: str,
        scopes: str,
        clock: Clock,
    ) -> None:
        self.issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._audience = audience
        self._scopes = scopes
        self._clock = clock
        self._places = {is_known: threading.BoundedSemaphore(_AT_ONCE) for is_known in (False, True)}
        self._renewing = threading.BoundedSemaphore(_AT_ONCE)
        self._asking = threading.Lock()
        self._known: _Known | None = None
        self._failed_at = -math.inf

    def begin(self, return_to: str, *, is_known: bool) -> tuple[str, Asked]:
        """Return where to send the person, and what to remember. They come back to `return_to`.

        `is_known`: somebody has signed in in this browser before.

        Raises `SignInFailed`.
        """
        asked = Asked(
            state=secrets.token_urlsafe(24), nonce=secrets.token_urlsafe(24), verifier=secrets.token_urlsafe(48)
        )
        with (
            _place(self._places[is_known], waits=not self._is_young(KEPT_SEC)),
            self._client(return_to) as (client, known),
        ):
            address, _ = client.create_authorization_url(
                address_of(known.metadata, "authorization_endpoint", self.issuer),
                state=asked.state,
                code_verifier=asked.verifier,
                nonce=asked.nonce,
                audience=self._audience,
                **self._resource(),
            )
        return str(address), asked

    def finish(self, asked: Asked, came_with: Mapping[str, str], return_to: str, *, is_known: bool) -> Granted:
        """Return the token of a person who came back to `return_to` with these parameters.

        `is_known`: somebody has signed in in this browser before.

        Raises `SignInFailed`.
        """
        if not hmac.compare_digest(came_with.get("state", "").encode(), asked.state.encode()):
            raise SignInFailed("This sign-in is not the one that was begun last in this browser. Sign in again.")
        if "error" in came_with:
            raise SignInFailed(
                f"The issuer did not sign you in: {came_with.get('error_description') or came_with['error']}."
            )
        if came_with.get("iss", self.issuer) != self.issuer or not came_with.get("code"):
            raise SignInFailed("The answer is not that of the issuer. Sign in again.")
        with _place(self._places[is_known]), self._client(return_to) as (client, known):
            given = self._exchange(client, known, came_with["code"], asked.verifier)
            self._check_id_token(given.get("id_token"), asked.nonce, known)
        return _granted(given)

    def renew(self, refresh_token: str) -> Granted:
        """Return a new token for the person to whom the issuer gave `refresh_token` (RFC 6749, section 6).

        Its own `refresh_token` is the one for the next time. Raises `NotRenewed` if the issuer refuses, and
        `SignInFailed` if it does not answer.
        """
        with _place(self._renewing), self._client(None) as (client, known):
            try:
                given: Mapping[str, Any] = client.refresh_token(
                    address_of(known.metadata, "token_endpoint", self.issuer),
                    refresh_token=refresh_token,
                    # As it was granted, which may be less than was asked for.
                    scope="",
                    timeout=(CONNECT_SEC, ANSWER_SEC),
                    allow_redirects=False,
                    **self._resource(),
                )
            except AuthlibBaseError as error:
                _log.warning("the issuer does not renew a token: %s", error.error)
                if error.error == _REFUSED:
                    raise NotRenewed from error
                raise SignInFailed(_NO_ANSWER) from error
            except (requests.RequestException, OSError, ValueError) as error:
                _log.warning("the issuer does not renew a token: %s", type(error).__name__)
                raise SignInFailed(_NO_ANSWER) from error
        return _granted(given)

    def revoke(self, refresh_token: str) -> None:
        """Ask the issuer not to take `refresh_token` any more, if it has a way for that (RFC 7009).

        Nothing tells whether it does so: who signs out is not kept waiting for an issuer that is away.
        """
        try:
            with _place(self._renewing), self._client(None) as (client, known):
                if "revocation_endpoint" in known.metadata:
                    client.revoke_token(
                        address_of(known.metadata, "revocation_endpoint", self.issuer),
                        token=refresh_token,
                        token_type_hint="refresh_token",  # noqa: S106 - the name of a kind
                        timeout=(CONNECT_SEC, ANSWER_SEC),
                        allow_redirects=False,
                    )
        except (SignInFailed, AuthlibBaseError, requests.RequestException, OSError, ValueError) as error:
            _log.warning("a token was not revoked at the issuer: %s", type(error).__name__)

    def end_address(self, return_to: str) -> str | None:
        """Return where the person also signs out of the issuer, and comes back to `return_to`.

        None if the issuer has no such page, or does not answer.
        """
        try:
            waits = not self._is_young(KEPT_SEC)
            with _place(self._places[True], waits=waits), self._client(return_to) as (_, known):
                if "end_session_endpoint" not in known.metadata:
                    return None
                address = address_of(known.metadata, "end_session_endpoint", self.issuer)
        except SignInFailed:
            return None
        # The session does not keep the ID token, for which a cookie has no room, so the issuer may ask the person.
        query = urlencode({"client_id": self._client_id, "post_logout_redirect_uri": return_to})
        return f"{address}{'&' if urlsplit(address).query else '?'}{query}"

    @contextmanager
    def _client(self, return_to: str | None) -> Iterator[tuple[OAuth2Session, _Known]]:
        try:
            with (
                answer_within(ANSWER_SEC, max_bytes=MAX_ANSWER_BYTES),
                OAuth2Session(
                    client_id=self._client_id,
                    client_secret=self._client_secret,
                    scope=self._scopes,
                    redirect_uri=return_to,
                    code_challenge_method="S256",
                ) as client,
            ):
                known = self._ask(KEPT_SEC)
                bound(client)
                methods = known.metadata.get("token_endpoint_auth_methods_supported") or [_BASIC]
                if self._client_secret is not None and _BASIC not in methods:
                    client.token_endpoint_auth_method = "client_secret_post"  # noqa: S105 - the name of a method
                client.revocation_endpoint_auth_method = client.token_endpoint_auth_method
                yield client, known
        except IssuerError as error:
            _log.warning("the issuer cannot sign anybody in: %s", error)
            raise SignInFailed("The issuer is not set up for this console. Tell an administrator.") from error

    def _is_young(self, kept_sec: float) -> bool:
        """Tell whether the issuer's addresses and keys are known, and younger than `kept_sec`."""
        known = self._known
        return known is not None and self._clock.monotonic() - known.at < kept_sec

    def _ask(self, kept_sec: float) -> _Known:
        """Return the issuer's addresses and keys, which are younger than `kept_sec` if the issuer answers."""
        if self._known is not None and self._is_young(kept_sec):
            return self._known
        with self._asking:
            now, known = self._clock.monotonic(), self._known
            if known is not None and self._is_young(kept_sec):
                return known
            if now - self._failed_at >= _SPACING_SEC:
                try:
                    known = self._known = self._fetch(now)
                except IssuerError as error:
                    self._failed_at = self._clock.monotonic()
                    _log.warning("the issuer cannot be asked: %s", error)
            if known is None:
                raise SignInFailed(_NO_ANSWER)
            return known

    def _fetch(self, now: float) -> _Known:
        with requests.Session() as session:
            bound(session)
            metadata = read_metadata(session, self.issuer)
            return _Known(metadata, read_keys(session, metadata, self.issuer), now)

    def _exchange(self, client: OAuth2Session, known: _Known, code: str, verifier: str) -> Mapping[str, Any]:
        try:
            given: Mapping[str, Any] = client.fetch_token(
                address_of(known.metadata, "token_endpoint", self.issuer),
                grant_type="authorization_code",
                code=code,
                code_verifier=verifier,
                timeout=(CONNECT_SEC, ANSWER_SEC),
                allow_redirects=False,
                **self._resource(),
            )
        except AuthlibBaseError as error:
            _log.warning("the issuer gave no token: %s", error)
            raise SignInFailed(f"The issuer gave no token ({error.error}). Sign in again.") from error
        except (requests.RequestException, OSError, ValueError) as error:
            _log.warning("the issuer gave no token: %s", type(error).__name__)
            raise SignInFailed(_NO_ANSWER) from error
        return given

    def _check_id_token(self, token: object, nonce: str, known: _Known) -> None:
        """Check that the issuer made the answer for this sign-in (OpenID Connect Core 1.0, section 3.1.3.7)."""
        try:
            if not isinstance(token, str):
                raise jwt.InvalidTokenError("there is none")
            claims = self._claims_of(token, known)
            if not hmac.compare_digest(str(claims.get("nonce")).encode(), nonce.encode()):
                raise jwt.InvalidTokenError("its nonce is that of another sign-in")
            if claims.get("azp", self._client_id) != self._client_id:
                raise jwt.InvalidTokenError("it is for another client")
            if claims["exp"] + _LEEWAY_SEC <= self._clock.now():
                raise jwt.InvalidTokenError("it has expired")
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            _log.warning("the issuer's ID token is refused: %s", error)
            raise SignInFailed("The issuer's answer is not for this sign-in. Sign in again.") from error

    def _claims_of(self, token: str, known: _Known) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header.get("alg")
        fitting = [key for key in known.keys if key.algorithm == algorithm and kid in {None, key.kid}]
        if not fitting:
            # The issuer has a new key. Nobody else can make it be asked: the token came from the issuer itself.
            fitting = [key for key in self._ask(0).keys if key.algorithm == algorithm and kid in {None, key.kid}]
        if not fitting:
            raise jwt.InvalidTokenError("the issuer does not publish its key")
        # A token need not name its key. Then it may be any of them.
        for key in fitting[:-1]:
            with suppress(jwt.InvalidSignatureError):
                return self._decode(token, key)
        return self._decode(token, fitting[-1])

    def _decode(self, token: str, key: SigningKey) -> dict[str, Any]:
        return jwt.decode(
            token,
            key.key,
            algorithms=[key.algorithm],
            audience=self._client_id,
            issuer=self.issuer,
            # The time is compared by the console's own clock.
            options={"require": ["exp", "iat", "sub"], "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )

    def _resource(self) -> dict[str, str]:
        parts = urlsplit(self._audience)
        return {"resource": self._audience} if parts.scheme and not parts.fragment else {}


@contextmanager
def _place(places: threading.BoundedSemaphore, *, waits: bool = True) -> Iterator[None]:
    """Hold one of `places`, if the caller `waits` for the issuer. Raises `SignInFailed` if none is free."""
    if waits and not places.acquire(blocking=False):
        raise SignInFailed("The issuer is slow, and others wait for it. Try again in a moment.")
    try:
        yield
    finally:
        if waits:
            places.release()


def _granted(given: Mapping[str, Any]) -> Granted:
    token, refresh_token = given.get("access_token"), given.get("refresh_token")
    if not isinstance(token, str) or str(given.get("token_type", "")).lower() != "bearer":
        raise SignInFailed("The issuer gave no token for the broker. Tell an administrator.")
    return Granted(
        access_token=token,
        lasts_sec=_seconds(given.get("expires_in")),
        refresh_token=refresh_token if isinstance(refresh_token, str) and refresh_token else None,
    )


def _seconds(told: object) -> float | None:
    """Return what `expires_in` says, which some issuers write as a text."""
    try:
        seconds = float(told)  # type: ignore[arg-type] # what is no number raises
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
