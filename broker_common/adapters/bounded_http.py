"""HTTP answers with one time limit for head and body together, and with a limit of length.

The timeouts of sockets, and of the libraries on top, limit each single read: an answer that comes byte by byte would
never end.
"""

from __future__ import annotations

import http.client
import io
import math
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

MAX_ANSWER_BYTES = 32 * 2**20
"""Twice the longest answer that DynamoDB gives."""

_limits: ContextVar[tuple[float, int]] = ContextVar("_limits", default=(math.inf, MAX_ANSWER_BYTES))


@contextmanager
def answer_within(seconds: float, *, max_bytes: int = MAX_ANSWER_BYTES) -> Iterator[None]:
    """Limit the reading of answers in the block to `seconds` from now, and each answer to `max_bytes`."""
    token = _limits.set((time.monotonic() + seconds, max_bytes))
    try:
        yield
    finally:
        _limits.reset(token)


def time_left() -> float:
    """Return the seconds that are left in the block of `answer_within`; raises `TimeoutError` if none are."""
    seconds = _limits.get()[0] - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


class AnswerTooLong(OSError):
    """An answer has more bytes than it may have."""


class _Lines:
    """Passes on the lines of a response's headers, and keeps the last one."""

    def __init__(self, source: Any) -> None:  # noqa: ANN401 - a buffered reader, as http.client makes it
        self.source = source
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self.source.readline(limit)
        return self.last

    def close(self) -> None:
        self.source.close()


class WholeHeadResponse(http.client.HTTPResponse):
    """A response that fails if its headers are cut off: http.client takes the connection's end for their end."""

    fp: Any

    def begin(self) -> None:
        """Read the headers. Raises `IncompleteRead` if they are cut off."""
        lines = self.fp = _Lines(self.fp)
        try:
            super().begin()
        finally:
            if self.fp is lines:  # and not closed
                self.fp = lines.source
        if lines.last.rstrip(b"\r\n") or not lines.last:
            raise http.client.IncompleteRead(b"")


class BoundedResponse(http.client.HTTPResponse):
    """A connection's `response_class`, whose reads keep the limit of `answer_within`.

    A read raises `TimeoutError` when the time is over, and `AnswerTooLong` beyond the greatest length.
    """

    fp: Any

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_BoundedReader(sock, self.fp.detach(), *_limits.get()))


class _BoundedReader(io.RawIOBase):
    """Reads from a socket; each read's timeout is the rest of the answer's time."""

    def __init__(self, sock: socket.socket, source: io.RawIOBase, ends_at: float, max_bytes: int) -> None:
        self._sock = sock
        self._source = source
        self._ends_at = ends_at
        self._left = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 - any buffer that can be written
        if self._ends_at != math.inf:
            seconds = self._ends_at - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(seconds)
        count: int | None = self._source.readinto(buffer)
        self._left -= count or 0
        if self._left < 0:
            raise AnswerTooLong("the answer is too long")
        return count

    def close(self) -> None:
        self._source.close()
        super().close()
