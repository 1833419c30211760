"""Bearer tokens: their form in settings, those that production refuses, and their files, which may change."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker_common.core.principals import Principal, Role

DEVELOPMENT_TRACK_TOKEN = "track_token_123"  # noqa: S105 - public on purpose: production refuses it
DEVELOPMENT_ADMIN_TOKEN = "admin_token_123"  # noqa: S105 - the same
_WELL_KNOWN = frozenset(
    hashlib.sha256(token.encode()).digest()
    for token in (DEVELOPMENT_TRACK_TOKEN, DEVELOPMENT_ADMIN_TOKEN, "changeme", "secret", "token", "test")
)
_SHORTEST = 16
_FEWEST_DIFFERENT = 8
_HASHED = "sha256:"
_BINDING = re.compile(r"([!-~]{1,128}?)\*=(.*)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A token, known by its SHA-256 digest alone, and the principal that presents it."""

    digest: bytes = field(repr=False)
    principal: Principal
    expires_at: int | None = None
    """From this Unix time on it is no longer valid."""
    fault: str | None = None
    """Why production refuses it."""

    def is_expired(self, now: int) -> bool:
        """Tell whether the token has expired."""
        return self.expires_at is not None and self.expires_at <= now


TokenSource = Callable[[], Sequence[Token]]
"""Returns the current tokens, expired ones included."""


class BadTokenError(ValueError):
    """A token cannot be used; the message names its position, and no part of it."""


def parse_tokens(text: str, role: Role) -> tuple[Token, ...]:
    """Parse tokens between commas or line feeds; all belong to the principal that has the name of `role`.

    A token is plain, or the `sha256:<hex>` of one that only its owner knows. `prefix*=` before a token binds it to the
    tracks whose id starts with the prefix. Raises `BadTokenError`.
    """
    return tuple(
        _parse(prefix, secret, position, role) for position, (prefix, secret) in enumerate(split_tokens(text), 1)
    )


def split_tokens(text: str) -> list[tuple[str | None, str]]:
    """Return each token that stands between commas or line feeds, with the prefix that binds it to tracks, or None."""
    words = (word.strip() for word in re.split(r"[,\n]", text))
    return [(bound[1], bound[2]) if (bound := _BINDING.fullmatch(word)) else (None, word) for word in words if word]


def find_faults(tokens: Sequence[Token], *, production: bool) -> list[str]:
    """Return the reasons why these tokens cannot be used; an empty list if they can."""
    if not tokens:
        return ["Missing: give at least one token."]
    return [token.fault for token in tokens if production and token.fault is not None]


def is_well_known(digest: bytes) -> bool:
    """Tell whether the token with this digest is publicly known."""
    return digest in _WELL_KNOWN


def read_text(path: str) -> str:
    """Return the text of a file of tokens; raises `BadTokenError` if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadTokenError(f"Cannot be read ({type(error).__name__}).") from error


def read_tokens(path: str, role: Role, *, production: bool) -> tuple[Token, ...]:
    """Read the tokens of a file, as `parse_tokens` does.

    Raises `BadTokenError` if the file cannot be read, or its tokens cannot be used.
    """
    tokens = parse_tokens(read_text(path), role)
    faults = find_faults(tokens, production=production)
    if faults:
        raise BadTokenError(" ".join(faults))
    return tokens


class TokenFile:
    """The tokens of a file, which is read again when it has changed; safe to use from many threads.

    `read` returns the tokens of the file at a path. If it raises `BadTokenError`, that is logged once for each change,
    and the previous tokens stay valid.
    """

    def __init__(self, path: str, read: Callable[[str], tuple[Token, ...]]) -> None:
        self._path = path
        self._read_file = read
        self._lock = threading.Lock()
        self._state: tuple[object, ...] | None = None
        self._tokens: tuple[Token, ...] = ()

    def __call__(self) -> tuple[Token, ...]:
        """Return the current tokens."""
        state = self._look()
        if state != self._state:
            with self._lock:
                if state != self._state:  # pragma: no branch - only if two requests notice a change at the same moment
                    self._read()
                    self._state = state
        return self._tokens

    def _look(self) -> tuple[object, ...]:
        """Return a value that changes with the file, and with the target of a link, as mounted secrets change."""
        try:
            found = Path(self._path).stat()
        except OSError as error:
            return (type(error).__name__,)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _read(self) -> None:
        try:
            self._tokens = self._read_file(self._path)
        except BadTokenError as error:
            _log.error("the token file %s: %s The previous tokens stay valid.", self._path, error)
        else:
            _log.info("read %d tokens from %s", len(self._tokens), self._path)


def _parse(prefix: str | None, secret: str, position: int, role: Role) -> Token:
    if not secret:
        raise BadTokenError(f"token {position}: nothing follows its prefix")
    if not secret.startswith(_HASHED):
        digest, is_weak = hashlib.sha256(secret.encode()).digest(), _is_weak(secret)
    elif re.fullmatch(r"[0-9a-fA-F]{64}", secret.removeprefix(_HASHED)):
        digest, is_weak = bytes.fromhex(secret.removeprefix(_HASHED)), False
    else:
        raise BadTokenError(f"token {position}: {_HASHED} must be followed by 64 hexadecimal digits")
    fault = None
    if is_well_known(digest):
        fault = "Holds a well-known development token."
    elif is_weak:
        fault = f"token {position} is weak (`openssl rand -hex 32` makes a good one)."
    # The prefix is plain text, so the characters of a pattern are escaped.
    tracks = None if prefix is None else (f"{glob.escape(prefix)}*",)
    return Token(digest, Principal(name=role.value, roles=frozenset({role}), tracks=tracks), fault=fault)


def _is_weak(secret: str) -> bool:
    return len(secret) < _SHORTEST or len(set(secret)) < _FEWEST_DIFFERENT
