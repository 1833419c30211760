"""Collects the bytes of a connection, and says when a request is complete. It looks only for the end of a request.

gunicorn's parser decides what a request means and whether it is valid. The decisions made here change only how long the
worker waits. The parser gets exactly the bytes of one request. If it needs more bytes or leaves some, the connection is
closed.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from http import HTTPStatus

from broker_api.bounds import MAX_BODY_BYTES

_NOTHING = (b"", b"\r", b"\r\n")
"""An empty line before a request is ignored (RFC 9112, section 2.2)."""
_BEGIN = re.compile(rb"(?:\r\n)?[!#$%&'*+\-.^_`|~0-9A-Za-z]|(?:\r\n?)?\Z")
"""The begin of a method, or nothing yet. TLS is no match: its first byte is 0x16."""
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_END_OF_HEAD = b"\r\n\r\n"
_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):[ \t]*([^\r\n]*)", re.IGNORECASE)
_EXPECTS = re.compile(
    rb"[^\r\n]* HTTP/1\.1\r\n(?:.*\r\n)?expect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE | re.DOTALL
)
_LENGTH = re.compile(rb"([0-9]{1,18})[ \t]*")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_MAX_CHUNK_LINE = 8190
_ENOUGH_TO_REFUSE = MAX_BODY_BYTES + 16 * 1024
"""How much of a too large body in chunks the application gets: it reads a little more than the limit."""
_MAX_CHUNKED = 8 * MAX_BODY_BYTES
"""How large a body in chunks may be with the lines around its chunks."""


class State(Enum):
    """How much of the next request has arrived."""

    NOTHING = auto()
    PART_OF_HEAD = auto()
    PART_OF_BODY = auto()
    WHOLE = auto()
    """Everything has arrived, or enough to refuse it."""
    REFUSED = auto()
    """It cannot become a request. `refusal` is the status of the answer."""


class RequestReader:
    """The bytes of one connection's requests."""

    def __init__(self, *, max_head_bytes: int) -> None:
        """Refuse a head that is larger than `max_head_bytes`."""
        self.state = State.NOTHING
        self.refusal = HTTPStatus.BAD_REQUEST
        self.took_part = False
        """Whether the last taken request lacks some of its bytes, so that no other can follow it."""
        self._max_head_bytes = max_head_bytes
        self._received = bytearray()
        self._begin_again()

    def __len__(self) -> int:
        """Return how many bytes are held."""
        return len(self._received)

    @property
    def asks_to_go_on(self) -> bool:
        """Tell whether the client waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1)."""
        return self.state is State.PART_OF_BODY and _EXPECTS.match(self._received, 0, self._body) is not None

    def is_for(self, target: bytes) -> bool:
        """Tell whether the request begins with the method and path of `target`, with or without a query."""
        return self._received.startswith((target + b" ", target + b"?"))

    def feed(self, data: bytes) -> State:
        """Add the received `data`; set and return the state."""
        self._received += data
        self.state = self._look()
        return self.state

    def take(self) -> bytes:
        """Return the bytes of the request, complete or not, and continue with the bytes that follow."""
        end = self._end if self.state is State.WHOLE else len(self._received)
        self.took_part = self._is_cut or self.state is not State.WHOLE
        request = bytes(self._received[:end])
        del self._received[:end]
        self._begin_again()
        self.state = self._look()
        return request

    def _begin_again(self) -> None:
        self._searched = 0
        self._body = 0
        """Where the body begins; 0 until the head is complete."""
        self._end = 0
        """Where the request ends; 0 until that is known."""
        self._is_cut = False
        """Whether the request continues after `_end`."""
        self._chunk = 0
        """Where the next chunk begins, which may not have arrived yet."""
        self._content = 0
        """How many bytes the chunks before it hold."""

    def _look(self) -> State:
        if not self._body:
            state = self._look_for_head()
            if state is not State.PART_OF_BODY:
                return state
            self._look_at_framing()
        if self._end:
            return State.WHOLE if len(self._received) >= self._end else State.PART_OF_BODY
        return State.WHOLE if self._has_all_chunks() else State.PART_OF_BODY

    def _look_for_head(self) -> State:
        received = self._received
        if received in _NOTHING:
            return State.NOTHING
        if not self._searched and not _BEGIN.match(received):
            return self._refuse(HTTPStatus.BAD_REQUEST)
        found = received.find(_END_OF_HEAD, max(2, self._searched - 3))
        if found >= 0:
            self._body = found + len(_END_OF_HEAD)
            return State.PART_OF_BODY
        if _BARE_LINE_FEED.search(received, max(0, self._searched - 1)):
            return self._refuse(HTTPStatus.BAD_REQUEST)
        if len(received) > self._max_head_bytes:
            is_line = received.find(b"\r\n", 2) < 0
            too_large = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            return self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG if is_line else too_large)
        self._searched = len(received)
        return State.PART_OF_HEAD

    def _refuse(self, status: HTTPStatus) -> State:
        self.refusal = status
        return State.REFUSED

    def _look_at_framing(self) -> None:
        """Find the end of the body in the headers."""
        fields = _FRAMING.findall(self._received, 0, self._body)
        if not fields:
            self._end = self._body
            return
        (name, value), *others = fields
        length = _LENGTH.fullmatch(value)
        if others:
            self._cut()
        elif name.lower() == b"content-length" and length:
            size = int(length[1])
            self._is_cut = size > MAX_BODY_BYTES + 1
            # A body that is too large is not needed: the head shows its size.
            self._end = self._body if self._is_cut else self._body + size
        elif name.lower() == b"transfer-encoding" and value.strip().lower() == b"chunked":
            self._chunk = self._body
        else:
            self._cut()

    def _has_all_chunks(self) -> bool:
        """Go through the chunks that have arrived, and tell whether the body is complete."""
        received = self._received
        while self._chunk < len(received):
            line_end = received.find(b"\r\n", self._chunk)
            if line_end < 0:
                return len(received) - self._chunk > _MAX_CHUNK_LINE and self._cut()
            digits = _CHUNK_SIZE.match(received, self._chunk, line_end)
            if not digits:
                return self._cut()
            size = int(digits[0], 16)
            if not size:
                return self._has_trailers(line_end)
            self._chunk = line_end + 2 + size + 2
            self._content += size
        content = self._content - (self._chunk - len(received))
        return (content > _ENOUGH_TO_REFUSE or len(received) - self._body > _MAX_CHUNKED) and self._cut()

    def _has_trailers(self, last_line_end: int) -> bool:
        """Look for the empty line that ends the body, after any trailers."""
        found = self._received.find(_END_OF_HEAD, last_line_end)
        if found < 0:
            return len(self._received) - last_line_end > self._max_head_bytes and self._cut()
        self._end = found + len(_END_OF_HEAD)
        return True

    def _cut(self) -> bool:
        """End the request with the bytes that have arrived: it is malformed or too large, as the parser will find."""
        self._end = len(self._received)
        self._is_cut = True
        return True
