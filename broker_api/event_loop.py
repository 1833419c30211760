"""gunicorn's threaded worker, changed so that no thread waits for a client: the event loop receives and sends.

gunicorn itself gives a connection to a thread before the request has arrived, and the thread waits for the client. So a
few clients that send half a request, or do not read their answers, would hold all threads. Here a thread gets a request
once it is complete. An answer that its client does not take goes back to the event loop. Each step of a client has one
deadline, which single bytes do not extend. The number of connections and the memory that they hold are limited. The
connections that have waited longest make room for new ones. A request that gunicorn cannot parse is answered here.
"""

from __future__ import annotations

import errno
import resource
import select
import selectors
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn import util  # type: ignore[import-untyped] # it ships no types
from gunicorn.http import errors, wsgi  # type: ignore[import-untyped] # the same
from gunicorn.workers import gthread  # type: ignore[import-untyped] # the same
from structlog.contextvars import bound_contextvars

from broker_api.answer import HEADERS
from broker_api.bounds import ANSWER_SEC, BODY_SEC, HEAD_SEC
from broker_api.connections import Connection, Phase, Refused
from broker_api.listening import admit_connections
from broker_api.request_reader import State
from broker_api.sharing import OF_THIS_SERVER, Share
from broker_api.tracing import HEADER, choose_request_id

if TYPE_CHECKING:
    from concurrent.futures import Future

    from broker_api.connections import Exchange

# gunicorn would name itself here. The software of the server is not public.
wsgi.SERVER = "broker"

_STATUS_OF_REFUSAL = {
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}
"""All other requests that do not parse are answered 400."""
_OUR_FAULT = (errors.ConfigurationProblem, errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)

_HANG_UP_SEC = 2
"""Time for the client to hang up first, so that it gets the complete last answer (RFC 9112, section 9.6)."""
_DISCARD_BYTES = 64 * 1024
"""How much is read from a client that continues to send in this time."""
_STOP_IDLE_SEC = gthread.STOP_KEEPALIVE_LINGER
_TURN_SEC = 0.5
"""How often the deadlines of connections are checked."""
MAX_HELD_BYTES = 32 * 1024 * 1024
"""For incomplete requests and untaken answers, over all connections of a process."""
_OTHER_DESCRIPTORS = 256
"""Descriptors for other things than client connections: DynamoDB, Redis, files, pipes."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOTHING_TO_ACCEPT = (errno.EAGAIN, errno.ECONNABORTED)
_PAUSE_SEC = 1
_LEAVE_SEC = 0.002
"""How long a process does not accept when it leaves a connection to another one."""
_LINGER_MS = 2
"""How long an idle thread waits for the next request of the connection that it has just served."""
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_PROBES = (b"GET /healthz", b"GET /readyz", b"GET /metrics")
"""Each has a thread of its own, so that a process under load is not taken for a dead one, and shows its load."""


def make_room_for(connections: int) -> int:
    """Raise the process's limit of descriptors if necessary, and return for how many of `connections` there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - _OTHER_DESCRIPTORS)


class EventLoop(gthread.ThreadWorker):  # type: ignore[misc] # gunicorn ships no types
    """A threaded worker whose threads never wait for a client."""

    def init_process(self) -> None:
        """Prepare the worker after the fork."""
        # gunicorn reads some twenty settings for each request, and looks each one up by two functions of Python. From
        # here on they are plain attributes.
        self.cfg.__dict__.update({name: setting.get() for name, setting in self.cfg.settings.items()})
        self._waiting: dict[Connection, None] = {}
        """Connections that no thread serves, in the order in which they began to wait."""
        self._held_bytes = 0
        self._next_turn = 0.0
        self._accepts_from = 0.0
        self._share = Share(OF_THIS_SERVER, self.age)
        self._max_head_bytes = (
            self.cfg.limit_request_line + self.cfg.limit_request_fields * (self.cfg.limit_request_field_size + 2) + 4
        )
        # At least so many that each thread can serve one and another one can be accepted.
        self.worker_connections = max(make_room_for(self.cfg.worker_connections), self.cfg.threads + 2)
        self._probes = {
            probe: ThreadPoolExecutor(max_workers=1, thread_name_prefix=probe.rpartition(b"/")[2].decode())
            for probe in _PROBES
        }
        super().init_process()

    # -- called by gunicorn's own loop

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or stop to. After a pause was begun, begin again only at its end."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)
        if not self.alive:
            self._share.leave()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, no longer than until a pause in accepting ends, and handle them."""
        if self.alive:
            self._share.note(self.nr_conns)
            pause = self._accepts_from - time.monotonic()
            timeout = min(timeout, pause) if pause > 0 else timeout
        super().wait_for_and_dispatch_events(timeout)

    def accept(self, listener: Any) -> bool:  # noqa: ANN401 - gunicorn's socket
        """Accept a connection, and tell whether there was one. At the limit, drop the one that has waited longest."""
        if self.alive and self._share.should_leave_next(self.nr_conns, time.monotonic()):
            self._pause_accepting(_LEAVE_SEC)
            return False
        if self.nr_conns >= self.worker_connections - 1:
            self._drop_longest_waiting()
        try:
            stream, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                if not self._drop_longest_waiting():
                    self.log.warning(
                        "no file descriptors are left, so no connection is accepted for a moment. Raise the limit of"
                        " open files"
                    )
                    self._pause_accepting(_PAUSE_SEC)
            elif error.errno not in _NOTHING_TO_ACCEPT:
                raise
            return False
        self.nr_conns += 1
        if self.alive:
            self._share.note(self.nr_conns)
        conn = Connection(self.cfg, stream, client, listener.getsockname(), max_head_bytes=self._max_head_bytes)
        conn.receive()
        self._go_on(conn)
        return True

    def enqueue_req(self, conn: Connection) -> None:
        """Give a connection whose request is complete to a thread."""
        self._leave(conn)
        conn.sock.arrived_at = time.monotonic()
        probe = next((probe for probe in _PROBES if conn.reader.is_for(probe)), None)
        served = self._probes[probe].submit(self._serve, conn) if probe else self.tpool.submit(self.handle, conn)
        served.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))

    def finish_request(self, conn: Connection, fs: Future[None]) -> None:
        """Take back a connection from a thread."""
        if fs.cancelled() or fs.exception() is not None:
            self.log.error("a connection could not be served", exc_info=None if fs.cancelled() else fs.exception())
            conn.is_broken = True
        self._go_on(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """End connections whose deadline is over, or all with `force`. gunicorn calls this on each turn of its loop."""
        now = time.monotonic()
        if now < self._next_turn and not force:
            return
        self._next_turn = now + _TURN_SEC
        if self.alive:
            # A process that ended may have taken itself for the last one of the server.
            for listener in self.sockets:
                admit_connections(listener)
        for conn in list(self._waiting):
            # An earlier turn of this loop may have dropped it, to make room.
            if conn not in self._waiting or (conn.deadline > now and not force):
                continue
            if conn.phase in {Phase.HEAD, Phase.BODY} and len(conn.reader) and not force:
                self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT)
            else:
                self._drop(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Limit the wait of idle connections to `deadline`, as the worker is about to stop."""
        for conn in self._waiting:
            if conn.phase in {Phase.IDLE, Phase.HEAD} and not len(conn.reader):
                conn.deadline = min(conn.deadline, deadline)

    def handle_error(self, _req: Any, client: Exchange, addr: Any, exc: BaseException) -> None:  # noqa: ANN401 - gunicorn's signature
        """Answer a request that does not reach the application, or that the application failed to answer."""
        request_id = choose_request_id(client.read_header(HEADER))
        with bound_contextvars(request_id=request_id):
            if isinstance(exc, errors.ParseException) and not isinstance(exc, _OUR_FAULT):
                is_ours = isinstance(exc, Refused)
                status = exc.status if is_ours else _STATUS_OF_REFUSAL.get(type(exc), HTTPStatus.BAD_REQUEST)
                # The error's text may quote a header that holds a token.
                why = status.phrase if is_ours else type(exc).__name__
                self.log.warning("refused a malformed request from %s: %s", addr, why)
            else:
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                self.log.error("unexpected error", exc_info=exc)
            content_type, body = self.describe_refusal(status, request_id, client.read_header("Accept"))
        head = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Server: {wsgi.SERVER}",
            f"Date: {util.http_date()}",
            "Connection: close",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            f"{HEADER}: {request_id}",
            "Vary: Accept",
            *(f"{name}: {value}" for name, value in HEADERS.items()),
        ]
        client.answer_instead("\r\n".join([*head, "", ""]).encode() + body)

    def describe_refusal(self, status: HTTPStatus, request_id: str, accept: str) -> tuple[str, bytes]:  # noqa: ARG002 - for classes that need `accept`
        """Return the content type and the body of the answer to a request that does not reach the application."""
        return "text/plain; charset=utf-8", f"{status.phrase}. Request id: {request_id}\n".encode()

    # -- in a thread

    def handle(self, conn: Connection) -> None:
        """Serve the request of a connection, and the requests that follow it at once.

        Giving a connection to the event loop and back costs about a tenth of the time of an allocation.
        """
        self._serve(conn)
        while self._is_followed(conn):
            conn.sock.arrived_at = time.monotonic()
            self._serve(conn)

    def _serve(self, conn: Connection) -> None:
        conn.sock.begin(conn.reader.take())
        kept = super().handle(conn)
        # If the parser and the reader disagree about the end of the request, the begin of the next one is unknown.
        conn.is_kept = kept and conn.sock.is_used_up() and not conn.parser.unreader.take_buffered()
        conn.was_served = True
        conn.send(conn.sock.take_answer())

    def _is_followed(self, conn: Connection) -> bool:
        """Tell whether the next request is complete. Waits a moment for it, unless other requests need this thread."""
        is_free = self.alive and self.tpool._work_queue.empty()  # noqa: SLF001 - nothing public says it
        if not is_free or not conn.is_kept or conn.is_broken or conn.unsent:
            return False
        if conn.reader.state is State.NOTHING:
            poll = select.poll()
            poll.register(conn.stream, select.POLLIN)
            if not poll.poll(_LINGER_MS):
                return False
            conn.receive()
        return conn.reader.state is State.WHOLE

    # -- in the event loop

    def _go_on(self, conn: Connection) -> None:
        """Do the next step for a connection that no thread serves."""
        if conn.is_broken:
            self._drop(conn)
        elif conn.unsent:
            self._wait(conn, Phase.ANSWER_TAKEN, ANSWER_SEC)
        elif not conn.is_kept:
            self._hang_up(conn)
        elif conn.reader.state is State.WHOLE:
            self.enqueue_req(conn)
        elif conn.reader.state is State.REFUSED:
            self._refuse(conn, conn.reader.refusal)
        elif conn.has_ended:
            # The parser or the application decides how half a request is answered.
            self.enqueue_req(conn) if len(conn.reader) else self._drop(conn)
        elif conn.reader.state is State.PART_OF_BODY:
            if conn.phase is not Phase.BODY and conn.reader.asks_to_go_on:
                conn.send(_GO_ON)
            self._wait(conn, Phase.BODY, BODY_SEC)
        elif conn.reader.state is State.PART_OF_HEAD or not conn.was_served:
            self._wait(conn, Phase.HEAD, HEAD_SEC)
        else:
            self._wait(conn, Phase.IDLE, self.cfg.keepalive if self.alive else _STOP_IDLE_SEC)

    def _on_ready(self, conn: Connection, _: Any) -> None:  # noqa: ANN401 - the key by which the poller knows it
        if not conn.events:
            return  # it was dropped, to make room, after the poller had reported it
        if conn.phase is Phase.ANSWER_TAKEN:
            conn.go_on_sending()
        elif conn.phase is Phase.HUNG_UP:
            conn.discard()
        else:
            conn.receive()
        self._go_on(conn)

    def _wait(self, conn: Connection, phase: Phase, seconds: float) -> None:
        if conn.phase is not phase:
            conn.phase = phase
            conn.deadline = time.monotonic() + seconds
            self._waiting.pop(conn, None)
            self._waiting[conn] = None
        events = selectors.EVENT_WRITE if phase is Phase.ANSWER_TAKEN else selectors.EVENT_READ
        if not conn.events:
            self.poller.register(conn.stream, events, partial(self._on_ready, conn))
        elif conn.events != events:
            self.poller.modify(conn.stream, events, partial(self._on_ready, conn))
        conn.events = events
        self._count_bytes(conn, conn.held_bytes)
        while self._held_bytes > MAX_HELD_BYTES:
            self._drop(next(each for each in self._waiting if each.counted_bytes))

    def _leave(self, conn: Connection) -> None:
        """Take a connection out of the waiting ones."""
        if conn.events:
            self.poller.unregister(conn.stream)
            conn.events = 0
        self._waiting.pop(conn, None)
        self._count_bytes(conn, 0)
        conn.phase = Phase.SERVED

    def _count_bytes(self, conn: Connection, held: int) -> None:
        self._held_bytes += held - conn.counted_bytes
        conn.counted_bytes = held

    def _refuse(self, conn: Connection, status: HTTPStatus) -> None:
        conn.sock.begin(conn.reader.take())
        self.handle_error(None, conn.sock, conn.client, Refused(status))
        conn.is_kept = False
        conn.send(conn.sock.take_answer())
        self._go_on(conn)

    def _hang_up(self, conn: Connection) -> None:
        """End our side of the connection, and wait for the client to end its side."""
        if conn.phase is not Phase.HUNG_UP:
            try:
                conn.stream.shutdown(socket.SHUT_WR)
            except OSError:
                conn.has_ended = True
        if conn.has_ended or conn.discarded_bytes > _DISCARD_BYTES:
            self._drop(conn)
        else:
            self._wait(conn, Phase.HUNG_UP, _HANG_UP_SEC)

    def _drop(self, conn: Connection) -> None:
        self._leave(conn)
        self.nr_conns -= 1
        if self.alive:
            self._share.note(self.nr_conns)
        conn.close()

    def _drop_longest_waiting(self) -> bool:
        conn = next(iter(self._waiting), None)
        if conn is not None:
            self._drop(conn)
        return conn is not None

    def _pause_accepting(self, seconds: float) -> None:
        self._accepts_from = time.monotonic() + seconds
        super().set_accept_enabled(False)
