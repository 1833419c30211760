"""One client's connection: never waited for by a thread, whatever the client does or leaves undone."""

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
    from http import HTTPStatus

_RECEIVE_BYTES = 16 * 1024
_RESET = struct.pack("ii", 1, 0)


class Refused(ParseException):  # type: ignore[misc] # gunicorn ships no types
    """A request that is not given to the parser at all."""

    def __init__(self, status: HTTPStatus) -> None:
        """Refuse it with `status`."""
        super().__init__(status.phrase)
        self.status = status


class Exchange:
    """One request and its answer in memory; gunicorn takes it for the client's socket."""

    def __init__(self) -> None:
        self._request = b""
        self._begun = b""
        self._answer: list[bytes] = []
        self._was_short = False

    def begin(self, request: bytes) -> None:
        """Have the next request read."""
        self._request, self._begun, self._was_short = request, request, False

    def is_used_up(self) -> bool:
        """Tell whether just the request was read: no byte less was wanted, and no byte more."""
        return not self._request and not self._was_short

    def read_header(self, name: str) -> str:
        """Return a header of the request, also of one that does not parse; several are joined by commas."""
        head = self._begun.partition(b"\r\n\r\n")[0]
        found = re.findall(rb"\r\n%b:[ \t]*([^\r\n]*)" % re.escape(name.encode()), head, re.IGNORECASE)
        return b",".join(found).decode("latin-1").strip(" \t")

    def take_answer(self) -> bytes:
        """Return what was answered, and forget the request."""
        answer = b"".join(self._answer)
        self._answer.clear()
        self._begun = b""
        return answer

    def answer_instead(self, answer: bytes) -> None:
        """Answer this and nothing that was answered before; none of that has been sent."""
        self._answer = [answer]

    def recv(self, size: int) -> bytes:
        """Return the next bytes of the request; after the last one it looks as if the client had hung up."""
        data, self._request = self._request[:size], self._request[size:]
        self._was_short |= not data
        return data

    def sendall(self, data: bytes) -> None:
        """Keep a part of the answer."""
        self._answer.append(data)

    def send(self, data: bytes) -> int:
        """Leave it out: gunicorn sends its `100 Continue` by this, and the body has come already."""
        return len(data)

    def setblocking(self, _: bool) -> None:
        """Do nothing, as nothing blocks."""

    def shutdown(self, _: int) -> None:
        """Refuse, so that gunicorn does not wait here for the client to hang up."""
        raise OSError

    def close(self) -> None:
        """Do nothing: the event loop closes the connection."""


class Phase(Enum):
    """What a connection waits for, or that it is being served."""

    SERVED = auto()
    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER_TAKEN = auto()
    HUNG_UP = auto()


class Connection:
    """A client's connection. One thread has it at a time: the event loop, or the one that serves its request."""

    initialized = True
    is_http2 = False

    def __init__(self, cfg: Any, stream: socket.socket, client: Any, server: Any, *, max_head_bytes: int) -> None:  # noqa: ANN401 - gunicorn's configuration and its addresses
        """Take over a `stream` that was accepted."""
        stream.setblocking(False)  # noqa: FBT003 - the socket's signature
        self.stream = stream
        self.client = client
        self.server = server
        self.sock = Exchange()
        self.parser = http.get_parser(cfg, self.sock, client)
        self.reader = RequestReader(max_head_bytes=max_head_bytes)
        self.unsent = memoryview(b"")
        self.phase = Phase.SERVED
        self.deadline = 0.0
        """When the phase must be over, on the monotonic clock."""
        self.counted_bytes = 0
        self.events = 0
        """What the event loop watches it for."""
        self.discarded_bytes = 0
        self.was_served = False
        self.is_kept = True
        """Whether another request may follow."""
        self.has_ended = False
        """The client sends nothing more."""
        self.is_broken = False

    @property
    def held_bytes(self) -> int:
        """What it holds in memory."""
        return len(self.reader) + len(self.unsent)

    def init(self) -> None:
        """Do nothing; gunicorn asks for it before each request."""

    def receive(self) -> None:
        """Take in what has arrived."""
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
        """Drop what has arrived."""
        try:
            data = self.stream.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.discarded_bytes += len(data)
        self.has_ended |= not data

    def send(self, data: bytes) -> None:
        """Send this after what has not been sent yet, as far as it goes at once."""
        self.unsent = memoryview(bytes(self.unsent) + data if self.unsent else data)
        self.go_on_sending()

    def close(self) -> None:
        """Close it; what has not been taken by the client is discarded, or the kernel would keep it for minutes."""
        if self.unsent:
            with suppress(OSError):
                self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.stream.close()

    def go_on_sending(self) -> None:
        """Send what has not been sent yet, as far as it goes at once."""
        try:
            sent = self.stream.send(self.unsent)
        except BlockingIOError:
            return
        except OSError:
            self.is_broken = True
            return
        self.unsent = self.unsent[sent:]
