"""A socket in place of DynamoDB that sends the exact bytes of a test: for answers that no engine gives."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

Behaviour = Callable[["Exchange"], object]

PATIENCE_SEC = 20
"""After this time a socket closes a connection on which nothing happens."""


class Exchange:
    """One request, and the connection on which to answer it."""

    def __init__(self, connection: socket.socket, path: str, headers: dict[bytes, bytes], body: bytes) -> None:
        self.path = path
        self.headers = headers
        """The names are in lower case."""
        self.operation = headers[b"x-amz-target"].decode().split(".")[1]
        self.request: dict[str, Any] = json.loads(body)
        self.connection = connection
        self.was_waited_for = False
        """Whether the client waited until the behaviour ended. The behaviour sets it."""
        self.ended = threading.Event()
        """Is set when the behaviour has ended, or the client has gone."""

    def send(self, *parts: bytes) -> None:
        """Send these bytes and nothing else."""
        self.connection.sendall(b"".join(parts))


class RawDynamoDB:
    """Keeps each connection open until `behave` or its client closes it; `connections` counts them.

    It says itself that there are no endpoints of webhooks, which the store asks before it writes a fact.
    """

    def __init__(self, behave: Behaviour, tls: ssl.SSLContext | None) -> None:
        self.behave = behave
        self.connections = 0
        self.requests: list[Exchange] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Stop after every client has closed its connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE_SEC + 5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_SEC)
        try:
            with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as talk:
                source = talk.makefile("rb")
                while first := source.readline():
                    lines = [line.split(b": ", 1) for line in iter(source.readline, b"\r\n")]
                    headers = {name.lower(): value.strip() for name, value in lines}
                    length = int(headers[b"content-length"])
                    body = source.read(length)
                    if len(body) < length:
                        return  # the connection was closed between the head and the body
                    exchange = Exchange(talk, first.decode().split()[1], headers, body)
                    if exchange.request.get("Select") == "COUNT" and exchange.request.get("ConsistentRead"):
                        exchange.send(whole(b'{"Count": 0}'))
                        continue
                    self.requests.append(exchange)
                    try:
                        self.behave(exchange)
                    finally:
                        exchange.ended.set()
        except OSError:
            return  # the client has gone, or behave has closed


@contextmanager
def raw_dynamodb(behave: Behaviour, *, tls: ssl.SSLContext | None = None) -> Iterator[RawDynamoDB]:
    """Run the socket during the context. `behave` answers each request; a test may replace it."""
    server = RawDynamoDB(behave, tls)
    try:
        yield server
    finally:
        server.close()


def whole(body: bytes, *, status: str = "200 OK", content_type: str = "application/x-amz-json-1.0") -> bytes:
    """Return an HTTP answer with the headers of DynamoDB."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
