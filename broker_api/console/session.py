"""The session of a person: an encrypted cookie.

A cookie, and nothing on the server, so that any process of the console serves any person, and so that the console works
while Redis is away, when it is needed most. It is encrypted, because it holds the person's token. To end all sessions,
change `CONSOLE_SECRET_KEY`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flask.json.tag import TaggedJSONSerializer
from flask.sessions import SessionInterface, SessionMixin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flask import Flask, Request, Response

    from broker_common.core.ports import Clock

LONGEST_SEC = 12 * 3600
"""From signing in to the end of the session: a working day."""
_LONGEST_COOKIE = 3800
"""Browsers refuse a cookie of more than 4,096 bytes with its name and attributes."""
_MOST_COOKIES = 2
"""gunicorn reads 8,190 bytes of a header."""


class Session(dict[str, Any], SessionMixin):
    """What the cookie holds. `began` is when its person signed in, in Unix seconds."""


class EncryptedSessions(SessionInterface):
    """Reads and writes sessions. The first of `keys` encrypts, all of them decrypt."""

    def __init__(self, keys: Sequence[str], clock: Clock, *, secure: bool) -> None:
        self._cipher = MultiFernet([Fernet(_derive(key)) for key in keys])
        self._clock = clock
        self._secure = secure
        # With this prefix browsers take the cookie from this host alone, and only over TLS (RFC 6265bis, 4.1.3.2).
        self.name = "__Host-broker-console" if secure else "broker-console"
        self._format = TaggedJSONSerializer()

    def open_session(self, app: Flask, request: Request) -> Session:  # noqa: ARG002 - Flask's signature
        """Return the session of a request. A cookie that is old, damaged or of another key counts as none."""
        text = "".join(request.cookies.get(self._part(number), "") for number in range(_MOST_COOKIES))
        try:
            held = self._format.loads(self._cipher.decrypt(text.encode()).decode())
        except (InvalidToken, ValueError):
            return Session()
        now = self._clock.now()
        return Session(held) if now - LONGEST_SEC <= held.get("began", now) <= now + LONGEST_SEC else Session()

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:  # noqa: ARG002 - the same
        """Write the session into the answer. Raises `SessionTooLarge` if no browser would keep it."""
        text = ""
        if session:
            text = self._cipher.encrypt(self._format.dumps(dict(session)).encode()).decode()
        parts = [text[start : start + _LONGEST_COOKIE] for start in range(0, len(text), _LONGEST_COOKIE)]
        if len(parts) > _MOST_COOKIES:
            raise SessionTooLarge
        response.vary.add("Cookie")
        for number in range(_MOST_COOKIES):
            value = parts[number] if number < len(parts) else ""
            response.set_cookie(
                self._part(number),
                value,
                max_age=None if value else 0,
                secure=self._secure,
                httponly=True,
                samesite="Strict",
            )

    def _part(self, number: int) -> str:
        return self.name if number == 0 else f"{self.name}-{number}"


class SessionTooLarge(Exception):
    """The person's token is too long for a cookie."""


def _derive(key: str) -> bytes:
    """Return the key of the cipher, which has a fixed length (RFC 5869)."""
    made = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"broker console session").derive(key.encode())
    return base64.urlsafe_b64encode(made)
