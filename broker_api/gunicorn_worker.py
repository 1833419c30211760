"""gunicorn's threaded worker, made to drain when it stops, to tell repeated headers apart, and to refuse like the API.

Asked to stop, it first turns readiness red and serves on for `SHUTDOWN_DRAIN_SEC`, so that load balancers look away;
each answer then closes its connection, so that clients who keep theirs do not meet the end of it. Then it takes in what
is queued, closes its listeners (gunicorn keeps them open without accepting: new connections would hang and then be
reset) and finishes the requests in flight. What gunicorn itself refuses, because it does not parse, is answered in the
shape of every other error.
"""

from __future__ import annotations

import json
import re
import select
import signal
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn import util  # type: ignore[import-untyped] # it ships no types
from gunicorn.http import errors, wsgi  # type: ignore[import-untyped] # the same
from gunicorn.workers import gthread  # type: ignore[import-untyped] # the same
from structlog.contextvars import bound_contextvars

from broker_api import browsers
from broker_api.caller import CALLER_HEADERS
from broker_api.errors import describe, make_body
from broker_api.runtime import runtime_of
from broker_api.tracing import HEADER, choose_request_id

if TYPE_CHECKING:
    from concurrent.futures import Future

# What would be "gunicorn": who runs the server is nobody's business.
wsgi.SERVER = "broker"

_STATUS_OF_REFUSAL = {
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}
"""The other requests that do not parse are answered 400."""
_OUR_FAULT = (errors.ConfigurationProblem, errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)

_LINGER_MS = 2
"""How long a thread with nothing else to do waits for the next request of the connection that it has just served."""

_ONCE_ONLY = frozenset(name.upper() for name in ("Authorization", *CALLER_HEADERS))


def fold_repeated(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Make one of each header that says who calls and was sent several times; `headers` has upper-case names.

    gunicorn joins repeated headers with commas, which a single header may hold too. Here equal values become one, and
    different ones are joined by a line feed: no header can hold that by itself, so the application refuses it.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _ONCE_ONLY:
            values.setdefault(name, []).append(value.strip(" \t"))
    if all(len(given) == 1 for given in values.values()):
        return headers
    others = [(name, value) for name, value in headers if name not in _ONCE_ONLY]
    return others + [(name, "\n".join(dict.fromkeys(given))) for name, given in values.items()]


def keep_slashes_apart(target: str, path: str) -> str:
    """Return a request's path so that only `/` is one; `path` is what gunicorn read from the `target`.

    Of several slashes in front, gunicorn and werkzeug keep one, and WSGI decodes `%2F` (RFC 3986, section 2.2: it is
    not `/`). Either would let a path through that a proxy in front had taken for another one.
    """
    path = re.sub("%2f", "%252F", path, flags=re.IGNORECASE)
    return f"/%252F{path.lstrip('/')}" if target.startswith("//") or path.startswith("//") else path


def _refusal(status: HTTPStatus, request_id: str) -> bytes:
    body = json.dumps({"error": make_body(*describe(status), request_id)}).encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Server: {wsgi.SERVER}",
        f"Date: {util.http_date()}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"{HEADER}: {request_id}",
        *(f"{name}: {value}" for name, value in browsers.HEADERS.items()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


class Worker(gthread.ThreadWorker):  # type: ignore[misc] # gunicorn ships no types
    """A threaded worker that drains."""

    def init_process(self) -> None:
        """Make what lives after the fork."""
        self._closers = ThreadPoolExecutor(max_workers=self.cfg.threads, thread_name_prefix="close")
        super().init_process()

    def init_signals(self) -> None:
        """Have the alarm that ends the drain handled."""
        super().init_signals()
        signal.signal(signal.SIGALRM, self._stop)
        signal.siginterrupt(signal.SIGALRM, False)  # noqa: FBT003 - its only argument

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ANN401 - gunicorn's signature
        """Begin to drain; a worker that has not begun to serve just stops."""
        seconds = 0.0
        if self.booted:
            runtime = runtime_of(self.wsgi)
            runtime.draining.set()
            seconds = runtime.settings.shutdown_drain_sec
        if seconds <= 0:
            super().handle_exit(sig, frame)
        elif signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0):
            # An alarm, not a thread: a signal handler must not take locks that the interrupted code may hold.
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Close the listeners when stopping, once what is queued on them has been taken in."""
        if enabled or self.alive:
            super().set_accept_enabled(enabled)
            return
        for listener in self.sockets:
            self._accept_queued(listener)
        super().set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()

    def handle(self, conn: Any) -> Any:  # noqa: ANN401 - gunicorn's connection; and its word on what becomes of it
        """Serve a request, and those that follow it on its connection at once.

        Handing a connection to the event loop and back costs about a tenth of a whole allocation's time.
        """
        kept = super().handle(conn)
        while kept is True and self._is_followed(conn):
            kept = super().handle(conn)
        return kept

    def handle_request(self, req: Any, conn: Any) -> bool:  # noqa: ANN401 - gunicorn's signature
        """Serve a request whose caller headers each stand once, under the path that it names and no other."""
        req.path = keep_slashes_apart(req.uri, req.path)
        req.headers = fold_repeated(req.headers)
        if runtime_of(self.wsgi).draining.is_set():
            # While the connection is kept, the client may send its next request just as we close it.
            req.force_close()
        return bool(super().handle_request(req, conn))

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:  # noqa: ANN401 - gunicorn's signature
        """Answer a request that never reaches the application, or that nothing else could answer."""
        headers = dict(getattr(req, "headers", ()))
        request_id = choose_request_id(headers.get(HEADER.upper(), ""))
        with bound_contextvars(request_id=request_id):
            if isinstance(exc, errors.ParseException) and not isinstance(exc, _OUR_FAULT):
                status = _STATUS_OF_REFUSAL.get(type(exc), HTTPStatus.BAD_REQUEST)
                # The error's text may quote a header that holds a token.
                self.log.warning("refused a malformed request from %s: %s", addr, type(exc).__name__)
            else:
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                self.log.error("unexpected error", exc_info=exc)
            try:
                util.write_nonblock(client, _refusal(status, request_id))
            except OSError:
                self.log.debug("the client does not take its answer")

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:  # noqa: ANN401 - gunicorn's signature
        """Keep a connection or close it, and never let a client that does not hang up hold the event loop."""
        if fs.cancelled() or fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
        else:
            self._closers.submit(self._close, conn)

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:  # noqa: ANN401 - gunicorn's signature
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except errors.ParseException:  # what is left of the body does not parse, and its request has its answer already
            return False

    def _is_followed(self, conn: Any) -> bool:  # noqa: ANN401 - gunicorn's connection
        """Wait for the next request, unless this thread is wanted elsewhere."""
        if not self.alive or not self.tpool._work_queue.empty():  # noqa: SLF001 - the only place that knows
            return False
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(_LINGER_MS))

    def _cap_keepalive(self, deadline: float) -> None:
        """Close connections that are between two requests by then, and those that never had one.

        gunicorn waits for the latter until it is killed.
        """
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, deadline)

    def _stop(self, sig: int, frame: Any) -> None:  # noqa: ANN401 - a signal handler's signature
        super().handle_exit(sig, frame)

    def _accept_queued(self, listener: Any) -> None:  # noqa: ANN401 - gunicorn's socket
        before = -1
        while before < self.nr_conns:
            before = self.nr_conns
            self.accept(listener)

    def _close(self, conn: Any) -> None:  # noqa: ANN401 - gunicorn's connection
        try:
            conn.sock.setblocking(True)  # noqa: FBT003 - the socket's signature
            util.close_graceful(conn.sock)
        except OSError:
            util.close(conn.sock)
        finally:
            self.method_queue.defer(self._closed)

    def _closed(self) -> None:
        self.nr_conns -= 1
