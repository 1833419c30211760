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

_ends_at: ContextVar[float] = ContextVar("_ends_at", default=math.inf)


@contextmanager
def answer_within(seconds: float) -> Iterator[None]:
    """Limit the reading of answers in the block to `seconds` from now."""
    token = _ends_at.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends_at.reset(token)


class BoundedResponse(http.client.HTTPResponse):
    """A connection's `response_class`, whose reads keep the limit of `answer_within`.

    A read raises `TimeoutError` when the time is over, and `OSError` beyond `MAX_ANSWER_BYTES`.
    """

    fp: Any

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_BoundedReader(sock, self.fp.detach(), _ends_at.get()))


class _BoundedReader(io.RawIOBase):
    """Reads from a socket; each read's timeout is the rest of the answer's time."""

    def __init__(self, sock: socket.socket, source: io.RawIOBase, ends_at: float) -> None:
        self._sock = sock
        self._source = source
        self._ends_at = ends_at
        self._left = MAX_ANSWER_BYTES

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
            raise OSError("the answer is too long")
        return count

    def close(self) -> None:
        self._source.close()
        super().close()
