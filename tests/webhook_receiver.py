"""A receiver of webhooks, written with the library's own `verify`."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.http_server import Handler

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Received:
    """A delivery as it came."""

    id: str
    body: bytes
    headers: dict[str, str]
    at: float
    status: int

    @property
    def event(self) -> dict[str, Any]:
        """The JSON of the body."""
        event: dict[str, Any] = json.loads(self.body)
        return event


@dataclass
class Receiver:
    """Answers deliveries by `judge`, and keeps all of them in the order in which it answered."""

    secret: str = ""
    judge: Callable[[Received], int] = lambda _: 200
    received: list[Received] = field(default_factory=list)
    forged: list[Received] = field(default_factory=list)
    """Those that `verify` refused. They were answered by 401."""
    connections: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of each answer."""
    port: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def accepted(self) -> list[Received]:
        """The deliveries that were answered by 2xx."""
        with self.lock:
            return [each for each in self.received if each.status // 100 == 2]

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Verify a delivery, keep it, and return the status of its answer."""
        came = Received(headers.get("webhook-id", ""), body, headers, time.time(), 0)
        try:
            Webhook(self.secret).verify(body, headers)
        except WebhookVerificationError:
            with self.lock:
                self.forged.append(came)
            return 401
        status = self.judge(came)
        with self.lock:
            self.received.append(Received(came.id, body, headers, came.at, status))
        return status


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # senders may keep their connections
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Say nothing: a sender that was killed is no fault."""


@contextmanager
def receiving(receiver: Receiver, *, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[Receiver]:
    """Serve on loopback during the context, on `receiver.port`."""

    class Deliveries(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            with receiver.lock:
                receiver.connections += 1
            super().setup()

        def reply(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.answer(receiver.take(headers, self.read_body()), b"", **receiver.headers)

    with _Server(("127.0.0.1", port), Deliveries) as server:
        if tls is not None:
            # The handshake is made by the thread that reads first, so that a slow one delays no other.
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        receiver.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
