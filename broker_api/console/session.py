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
    from collections.abc import Iterator, Sequence

    from flask import Flask, Request, Response

    from broker_common.core.ports import Clock

LONGEST_SEC = 12 * 3600
"""From signing in to the end of the session: a working day."""
LONGEST_TOKEN = 4096
"""Of a token, with what renews it. So a session fits into its cookies, and a few messages do, too."""
_LEEWAY_SEC = 300
"""By so much the clocks of the console's processes may differ."""
_LONGEST_COOKIE = 3800
"""Browsers refuse a cookie of more than 4,096 bytes with its name and attributes."""
_MOST_COOKIES = 2
"""gunicorn and many proxies read about 8,190 bytes of a header."""
_MESSAGES = "_flashes"
"""Where Flask keeps messages for the next page."""


class Session(dict[str, Any], SessionMixin):
    """What the cookie holds: of a person who is signed in, when that `began` and when it `ends`, in Unix seconds."""

    loaded = ""
    """The content as it came, so that an answer writes only what has changed."""
    parts: frozenset[str] = frozenset()
    """The names of the cookies that came."""
    has_ended = False
    """Whether a person was signed in, and the time of that is over."""


class EncryptedSessions(SessionInterface):
    """Reads and writes sessions. The first of `keys` encrypts, all of them decrypt."""

    def __init__(self, keys: Sequence[str], clock: Clock, *, secure: bool) -> None:
        self._cipher = make_cipher(keys, purpose=b"broker console session")
        self._clock = clock
        self._secure = secure
        self.name = cookie_name("broker-console", secure=secure)
        self._format = TaggedJSONSerializer()

    def open_session(self, app: Flask, request: Request) -> Session:  # noqa: ARG002 - Flask's signature
        """Return the session of a request. A cookie that is old, damaged or of another key counts as none."""
        names = [self._part(number) for number in range(_MOST_COOKIES)]
        text = "".join(request.cookies.get(name, "") for name in names)
        try:
            loaded = self._cipher.decrypt(text.encode()).decode()
            session = Session(self._format.loads(loaded))
            session.loaded = loaded
        except (InvalidToken, ValueError):
            session = Session()
        now = self._clock.now()
        if not session.get("began", now) - _LEEWAY_SEC <= now < session.get("ends", now + 1):
            session = Session()
            session.has_ended = True
        session.parts = frozenset(name for name in names if name in request.cookies)
        return session

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:  # noqa: ARG002 - the same
        """Write the session into the answer if it has changed.

        An answer to a request that changed nothing must not write: it may come after that of a later request, such as
        signing out. If the session is too long for its cookies, the oldest messages are dropped, and the last one
        is cut. Raises `SessionTooLarge` if no browser would keep it even so.
        """
        assert isinstance(session, Session)  # noqa: S101 - `open_session` made it
        if session.loaded == (self._format.dumps(dict(session)) if session else ""):
            return
        parts = list(self._encrypt(session))
        for number in range(_MOST_COOKIES):
            name = self._part(number)
            if number < len(parts):
                self._set(response, name, parts[number])
            elif name in session.parts:
                self._set(response, name, "")

    def _encrypt(self, session: Session) -> Iterator[str]:
        content = dict(session)
        text = ""
        while content:
            text = self._cipher.encrypt(self._format.dumps(content).encode()).decode()
            if len(text) <= _MOST_COOKIES * _LONGEST_COOKIE:
                break
            if not content.get(_MESSAGES):
                raise SessionTooLarge
            content[_MESSAGES] = content[_MESSAGES][1:] or _shortened(content[_MESSAGES][0])
        return (text[start : start + _LONGEST_COOKIE] for start in range(0, len(text), _LONGEST_COOKIE))

    def _set(self, response: Response, name: str, value: str) -> None:
        response.set_cookie(
            name, value, max_age=None if value else 0, secure=self._secure, httponly=True, samesite="Strict"
        )

    def _part(self, number: int) -> str:
        return self.name if number == 0 else f"{self.name}-{number}"


def _shortened(message: tuple[str, str]) -> list[tuple[str, str]]:
    category, text = message
    return [(category, f"{text[: len(text) // 2]}…")] if len(text) > 1 else []


def drop_without_a_word(session: SessionMixin) -> None:
    """Make the session one that has ended by time: the answer does not write it.

    Such an answer may come after that of a later request, such as a new sign-in.
    """
    assert isinstance(session, Session)  # noqa: S101 - `open_session` made it
    session.clear()
    session.loaded, session.has_ended = "", True


class SessionTooLarge(Exception):
    """The session is too long for its cookies."""


def cookie_name(name: str, *, secure: bool) -> str:
    """Return the name of a cookie that nobody else can set.

    With the prefix, browsers take the cookie from this host alone, and only over TLS (RFC 6265bis, 4.1.3.2).
    """
    return f"__Host-{name}" if secure else name


def make_cipher(keys: Sequence[str], *, purpose: bytes) -> MultiFernet:
    """Return the cipher of `keys`. What one purpose's cipher wrote, that of another one cannot read."""
    return MultiFernet([Fernet(_derive(key, purpose)) for key in keys])


def _derive(key: str, purpose: bytes) -> bytes:
    """Return the key of the cipher, which has a fixed length (RFC 5869)."""
    made = HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(key.encode())
    return base64.urlsafe_b64encode(made)
