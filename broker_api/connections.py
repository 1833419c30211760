"""One client's connection. No thread ever waits for the client, even if it is slow or silent."""

from __future__ import annotations

import re
import socket
import struct
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from gunicorn import http  # type: ignore[import-untyped] # it ships no types
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped] # the same

from broker_api.request_reader import RequestReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from http import HTTPStatus

_RECEIVE_BYTES = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


class Refused(ParseException):  # type: ignore[misc] # gunicorn ships no types
    """A request that is refused before it is parsed."""

    def __init__(self, status: HTTPStatus) -> None:
        """Refuse it with `status`."""
        super().__init__(status.phrase)
        self.status = status


class Exchange:
    """One request and its answer in memory. gunicorn uses it as if it were the client's socket."""

    def __init__(self, is_client_there: Callable[[], bool] = lambda: True) -> None:
        self.is_client_there = is_client_there
        self._request = b""
        self._begun = b""
        self._answer: list[bytes] = []
        self._was_short = False
        self.arrived_at = 0.0
        """When the request was complete, on the monotonic clock."""

    def begin(self, request: bytes) -> None:
        """Let gunicorn read `request` next."""
        self._request, self._begun, self._was_short = request, request, False

    def is_used_up(self) -> bool:
        """Tell whether exactly the request was read, not fewer bytes and not more."""
        return not self._request and not self._was_short

    def read_header(self, name: str) -> str:
        """Return a header of the request, even if the request does not parse. Repeated headers are joined by commas."""
        head = self._begun.partition(b"\r\n\r\n")[0]
        found = re.findall(rb"\r\n%b:[ \t]*([^\r\n]*)" % re.escape(name.encode()), head, re.IGNORECASE)
        return b",".join(found).decode("latin-1").strip(" \t")

    def take_answer(self) -> bytes:
        """Return the answer, and forget the request."""
        answer = b"".join(self._answer)
        self._answer.clear()
        self._begun = b""
        return answer

    def answer_instead(self, answer: bytes) -> None:
        """Replace the answer, of which nothing has been sent yet."""
        self._answer = [answer]

    def recv(self, size: int) -> bytes:
        """Return the next bytes of the request. After the last one, return nothing, as if the client had hung up."""
        data, self._request = self._request[:size], self._request[size:]
        self._was_short |= not data
        return data

    def sendall(self, data: bytes) -> None:
        """Keep a part of the answer."""
        self._answer.append(data)

    def send(self, data: bytes) -> int:
        """Drop `data`: gunicorn sends only `100 Continue` by this, and the body has arrived already."""
        return len(data)

    def setblocking(self, _: bool) -> None:
        """Do nothing: nothing here blocks."""

    def shutdown(self, _: int) -> None:
        """Refuse, so that gunicorn does not wait here for the client to hang up."""
        raise OSError

    def close(self) -> None:
        """Do nothing: the event loop closes the connection."""


class Phase(Enum):
    """What a connection waits for; `SERVED` if a thread serves it."""

    SERVED = auto()
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER_TAKEN = auto()
    HUNG_UP = auto()


class Connection:
    """A client's connection. One thread uses it at a time: the event loop, or the thread that serves its request."""

    initialized = True
    is_http2 = False

    def __init__(self, cfg: Any, stream: socket.socket, client: Any, server: Any, *, max_head_bytes: int) -> None:  # noqa: ANN401 - gunicorn's configuration and its addresses
        """Take over the accepted `stream`."""
        stream.setblocking(False)  # noqa: FBT003 - the socket's signature
        self.stream = stream
        self.client = client
        self.server = server
        self.sock = Exchange(self.is_client_there)
        self.parser = http.get_parser(cfg, self.sock, client)
        self.reader = RequestReader(max_head_bytes=max_head_bytes)
        self.unsent = memoryview(b"")
        self.phase = Phase.SERVED
        self.deadline = 0.0
        """When the phase must be over, on the monotonic clock."""
        self.counted_bytes = 0
        self.events = 0
        """The events that the event loop watches it for."""
        self.discarded_bytes = 0
        self.was_served = False
        self.is_kept = True
        """Whether another request may follow."""
        self.has_ended = False
        """Whether the client has ended its side of the connection."""
        self.is_broken = False

    @property
    def held_bytes(self) -> int:
        """How many bytes it holds in memory."""
        return len(self.reader) + len(self.unsent)

    def init(self) -> None:
        """Do nothing: gunicorn calls this before each request."""

    def is_client_there(self) -> bool:
        """Tell whether the client is still connected: it has not ended its side of the connection. Reads nothing."""
        try:
            return bool(self.stream.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def receive(self) -> None:
        """Give the bytes that have arrived to the reader."""
        try:
            data = self.stream.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.is_broken = True
            return
        if data:
            self.reader.feed(data)
        else:
            self.has_ended = True

    def discard(self) -> None:
        """Drop the bytes that have arrived."""
        try:
            data = self.stream.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.discarded_bytes += len(data)
        self.has_ended |= not data

    def send(self, data: bytes) -> None:
        """Queue `data` behind the unsent bytes, and send as many as the socket takes at once."""
        self.unsent = memoryview(bytes(self.unsent) + data if self.unsent else data)
        self.go_on_sending()

    def close(self) -> None:
        """Close the connection. Unsent bytes are discarded, because the kernel would keep them for minutes."""
        if self.unsent:
            with suppress(OSError):
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.stream.close()

    def go_on_sending(self) -> None:
        """Send as many of the unsent bytes as the socket takes at once."""
        try:
            sent = self.stream.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            self.is_broken = True
            return
        self.unsent = self.unsent[sent:]
