"""What the console remembers of sign-ins at the issuer, in cookies of their own.

While the person is at the issuer, a cookie holds what was asked. The browser comes back from another site, so it does
not send the session's cookie, which is `SameSite=Strict`. This one is `Lax`. It holds no token, lives for ten minutes,
and only the page that people come back to reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from cryptography.fernet import InvalidToken

from broker_api.console.session import cookie_name, make_cipher
from broker_common.adapters.oidc_sign_in import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Request
    from werkzeug.wrappers import Response

    from broker_common.core.ports import Clock

LONGEST_SEC = 600
KNOWN_SEC = 90 * 86400
"""For so long after a sign-in at the issuer a browser counts as one that people of the broker use."""


class PendingSignIns:
    """Writes and reads the cookie. A browser has one, so of two sign-ins at once the later one counts."""

    def __init__(self, keys: Sequence[str], clock: Clock, *, secure: bool) -> None:
        self._cipher = make_cipher(keys, purpose=b"broker console sign-in")
        self._clock = clock
        self._secure = secure
        self.name = cookie_name("broker-console-sign-in", secure=secure)

    def keep(self, response: Response, asked: Asked, came_from: str) -> None:
        """Remember what was asked, and the page that the person comes back to in the end."""
        held = asdict(asked) | {"came_from": came_from, "until": self._clock.now() + LONGEST_SEC}
        self._set(response, self._cipher.encrypt(json.dumps(held).encode()).decode(), LONGEST_SEC)

    def find(self, request: Request) -> tuple[Asked, str] | None:
        """Return what was kept; None if that was never, too long ago, by another key or by another release."""
        try:
            held = json.loads(self._cipher.decrypt(request.cookies.get(self.name, "").encode()))
        except InvalidToken:
            return None
        try:
            came_from, until = held.pop("came_from"), held.pop("until")
            asked = Asked(**held)
        except (KeyError, TypeError):
            # Another release wrote it.
            return None
        return (asked, came_from) if self._clock.now() < until else None

    def forget(self, response: Response) -> None:
        """Let the browser drop the cookie, so that each sign-in is used once."""
        self._set(response, "", 0)

    def _set(self, response: Response, value: str, max_age: int) -> None:
        response.set_cookie(self.name, value, max_age=max_age, secure=self._secure, httponly=True, samesite="Lax")


class KnownBrowsers:
    """Writes and reads the cookie of browsers in which somebody has signed in at the issuer.

    It holds a time, and nothing about the person. It gives no access: it only says who need not wait behind strangers.
    """

    def __init__(self, keys: Sequence[str], clock: Clock, *, secure: bool) -> None:
        self._cipher = make_cipher(keys, purpose=b"broker console browser")
        self._clock = clock
        self._secure = secure
        self.name = cookie_name("broker-console-known", secure=secure)

    def keep(self, response: Response) -> None:
        """Remember that somebody has signed in with this browser."""
        until = self._cipher.encrypt(str(self._clock.now() + KNOWN_SEC).encode()).decode()
        response.set_cookie(self.name, until, max_age=KNOWN_SEC, secure=self._secure, httponly=True, samesite="Lax")

    def has(self, request: Request) -> bool:
        """Tell whether the browser of a request is one of them."""
        try:
            return self._clock.now() < int(self._cipher.decrypt(request.cookies.get(self.name, "").encode()))
        except InvalidToken:
            return False
