"""gunicorn's threaded worker, whose threads only ever work: its event loop receives requests and sends answers.

By itself, gunicorn gives a connection to a thread before its request is there, and the thread waits for the client. So
a handful of clients that send half a request, or do not read their answers, would hold all threads. Here a request
goes to a thread once it is whole, and an answer that its client does not take goes back to the event loop. What a
client may leave undone has its time as a whole, which bytes that drip do not renew. Connections and the memory that
they hold are bounded, and those that have waited longest make room for new ones.
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

from gunicorn.workers import gthread  # type: ignore[import-untyped] # it ships no types

from broker_api.bounds import ANSWER_SEC, BODY_SEC, HEAD_SEC
from broker_api.connections import Connection, Phase, Refused
from broker_api.request_reader import State

if TYPE_CHECKING:
    from concurrent.futures import Future

_HANG_UP_SEC = 2
"""For the client to hang up first, so that it gets the whole of the last answer (RFC 9112, section 9.6)."""
_DISCARD_BYTES = 64 * 1024
"""What is read of a client that goes on sending meanwhile."""
_STOP_IDLE_SEC = gthread.STOP_KEEPALIVE_LINGER
_TURN_SEC = 0.5
"""How often it is seen whose time is over."""
MAX_HELD_BYTES = 32 * 1024 * 1024
"""Unfinished requests and answers that are not taken, of all connections of a process."""
_OTHER_DESCRIPTORS = 256
"""What a process has open beside its connections: those to DynamoDB and Redis, files, pipes."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOTHING_TO_ACCEPT = (errno.EAGAIN, errno.ECONNABORTED)
_PAUSE_SEC = 1
_LINGER_MS = 2
"""How long a thread with nothing else to do waits for the next request of the connection that it has just served."""
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEALTH = b"GET /healthz "


def make_room_for(connections: int) -> int:
    """Raise the process's limit of descriptors if need be; returns how many of these connections it has room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_DESCRIPTORS
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else min(connections, soft - _OTHER_DESCRIPTORS)


class EventLoop(gthread.ThreadWorker):  # type: ignore[misc] # gunicorn ships no types
    """A threaded worker whose threads never wait for a client."""

    def init_process(self) -> None:
        """Make what lives after the fork."""
        self._waiting: dict[Connection, None] = {}
        """Connections that no thread has, in the order in which they began to wait."""
        self._held_bytes = 0
        self._next_turn = 0.0
        self._accepts_from = 0.0
        self._max_head_bytes = (
            self.cfg.limit_request_line + self.cfg.limit_request_fields * (self.cfg.limit_request_field_size + 2) + 4
        )
        # At least so many that each thread can have one and another one can come in.
        self.worker_connections = max(make_room_for(self.cfg.worker_connections), self.cfg.threads + 2)
        # A health check finds a thread, whatever all the others do.
        self._health = ThreadPoolExecutor(max_workers=1, thread_name_prefix="health")
        super().init_process()

    # -- what gunicorn's own loop calls

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or not; not for a moment after descriptors were short."""
        super().set_accept_enabled(enabled and time.monotonic() >= self._accepts_from)

    def accept(self, listener: Any) -> bool:  # noqa: ANN401 - gunicorn's socket
        """Take in a connection and tell whether there was one; the one that has waited longest makes room for it."""
        if self.nr_conns >= self.worker_connections - 1:
            self._drop_longest_waiting()
        try:
            stream, client = listener.accept()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                if not self._drop_longest_waiting():
                    self._pause_accepting()
            elif error.errno not in _NOTHING_TO_ACCEPT:
                raise
            return False
        self.nr_conns += 1
        conn = Connection(self.cfg, stream, client, listener.getsockname(), max_head_bytes=self._max_head_bytes)
        conn.receive()
        self._go_on(conn)
        return True

    def enqueue_req(self, conn: Connection) -> None:
        """Give a connection whose request is there to a thread."""
        self._leave(conn)
        is_health_check = conn.reader.is_for(_HEALTH)
        served = self._health.submit(self._serve, conn) if is_health_check else self.tpool.submit(self.handle, conn)
        served.add_done_callback(lambda future: self.method_queue.defer(self.finish_request, conn, future))

    def finish_request(self, conn: Connection, fs: Future[None]) -> None:
        """Take back a connection from a thread."""
        if fs.cancelled() or fs.exception() is not None:
            self.log.error("a connection could not be served", exc_info=None if fs.cancelled() else fs.exception())
            conn.is_broken = True
        self._go_on(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """End what has taken its time; gunicorn calls this on each turn of its loop, and by `force` at the end."""
        now = time.monotonic()
        if now < self._next_turn and not force:
            return
        self._next_turn = now + _TURN_SEC
        for conn in list(self._waiting):
            # One may have made room for another meanwhile.
            if conn not in self._waiting or (conn.deadline > now and not force):
                continue
            if conn.phase in {Phase.HEAD, Phase.BODY} and len(conn.reader) and not force:
                self._refuse(conn, HTTPStatus.REQUEST_TIMEOUT)
            else:
                self._drop(conn)

    def _cap_keepalive(self, deadline: float) -> None:
        """Have connections that wait for a request closed by then, as the worker is about to stop."""
        for conn in self._waiting:
            if conn.phase in {Phase.IDLE, Phase.HEAD} and not len(conn.reader):
                conn.deadline = min(conn.deadline, deadline)

    # -- in a thread

    def handle(self, conn: Connection) -> None:
        """Serve the request of a connection, and those that follow it at once.

        Handing a connection to the event loop and back costs about a tenth of a whole allocation's time.
        """
        self._serve(conn)
        while self._is_followed(conn):
            self._serve(conn)

    def _serve(self, conn: Connection) -> None:
        conn.sock.begin(conn.reader.take())
        kept = super().handle(conn)
        # Where the parser and the reader differ about where the request ends, nobody knows where the next one begins.
        conn.is_kept = kept and conn.sock.is_used_up() and not conn.parser.unreader.take_buffered()
        conn.was_served = True
        conn.send(conn.sock.take_answer())

    def _is_followed(self, conn: Connection) -> bool:
        """Wait for the next request, unless this thread is wanted elsewhere."""
        is_free = self.alive and self.tpool._work_queue.empty()  # noqa: SLF001 - the only place that knows
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
        """Do what comes next for a connection that no thread has."""
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
            # What the parser or the application make of half a request is the answer.
            self.enqueue_req(conn) if len(conn.reader) else self._drop(conn)
        elif conn.reader.state is State.PART_OF_BODY:
            if conn.phase is not Phase.BODY and conn.reader.asks_to_go_on:
                conn.send(_GO_ON)
            self._wait(conn, Phase.BODY, BODY_SEC)
        elif conn.reader.state is State.PART_OF_HEAD or not conn.was_served:
            self._wait(conn, Phase.HEAD, HEAD_SEC)
        else:
            self._wait(conn, Phase.IDLE, self.cfg.keepalive if self.alive else _STOP_IDLE_SEC)

    def _on_ready(self, conn: Connection, _: Any) -> None:  # noqa: ANN401 - what the poller knows it by
        if not conn.events:
            return  # it made room for another one after the poller had seen it
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
        """End the waiting of a connection."""
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
        """Say that nothing more comes, and wait for the client to do the same."""
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
        conn.close()
        self.nr_conns -= 1

    def _drop_longest_waiting(self) -> bool:
        conn = next(iter(self._waiting), None)
        if conn is not None:
            self._drop(conn)
        return conn is not None

    def _pause_accepting(self) -> None:
        self.log.warning("no descriptors are left for connections")
        self._accepts_from = time.monotonic() + _PAUSE_SEC
        super().set_accept_enabled(False)
