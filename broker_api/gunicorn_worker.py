"""gunicorn's threaded worker, changed so that it drains when it stops and answers malformed requests as the API does.

When it must stop, it is not ready any more, and serves for `SHUTDOWN_DRAIN_SEC` longer, so that load balancers stop
sending. In this time each answer closes its connection, so that no client sends its next request to a closed one. Then
the worker accepts the queued connections, closes its listeners, and finishes the requests in flight; the last worker of
a server has the kernel begin no connection meanwhile. (gunicorn keeps the listeners open without accepting, so new
connections would hang and then be reset.) A request that gunicorn cannot parse is answered in the shape of every other
error. Repeated headers stay distinguishable.
"""

from __future__ import annotations

import json
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any

from gunicorn.http import errors  # type: ignore[import-untyped] # it ships no types
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from broker_api.caller import CALLER_HEADERS
from broker_api.error_answers import JSON, PROBLEM, Fault, describe, prefers_problem
from broker_api.event_loop import EventLoop
from broker_api.holding import IS_CLIENT_THERE
from broker_api.limits import ARRIVED_AT
from broker_api.listening import refuse_connections
from broker_api.runtime import runtime_of

if TYPE_CHECKING:
    from http import HTTPStatus

    from broker_api.connections import Connection, Exchange

_ARRIVING_SEC = 0.05
"""For connections that were being made when the last worker stopped."""
_ONCE_ONLY = frozenset(name.upper() for name in ("Authorization", *CALLER_HEADERS))


def fold_repeated(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return `headers` with each header that names the caller once. The names in `headers` are in upper case.

    gunicorn joins repeated headers by commas, which a single header may also hold. Here equal values become one value.
    Different values are joined by a line feed. No single header can hold a line feed, so the application refuses it.
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
    """Return `path`, which gunicorn read from `target`, so that only a real slash is one to the application.

    gunicorn and werkzeug keep one of several slashes in front, and WSGI decodes `%2F`, which is not a slash (RFC 3986,
    section 2.2). Either could pass a path that a proxy in front has taken for another path.
    """
    path = re.sub("%2f", "%252F", path, flags=re.IGNORECASE)
    return f"/%252F{path.lstrip('/')}" if target.startswith("//") or path.startswith("//") else path


class Worker(EventLoop):
    """A threaded worker that drains."""

    def load_wsgi(self) -> None:
        """Load the application, and tell it of each request when it arrived, and whether its client is still there."""
        super().load_wsgi()
        serve = self.wsgi.wsgi_app

        def wsgi_app(environ: dict[str, Any], start_response: Any) -> Any:  # noqa: ANN401 - the types of WSGI
            exchange: Exchange = environ["gunicorn.socket"]
            environ[ARRIVED_AT] = exchange.arrived_at
            environ[IS_CLIENT_THERE] = exchange.is_client_there
            return serve(environ, start_response)

        self.wsgi.wsgi_app = wsgi_app

    def run(self) -> None:
        """Serve until the worker must stop and no request is in flight. Then store what the worker has counted."""
        super().run()
        runtime_of(self.wsgi).services.minute_counts.close()

    def init_signals(self) -> None:
        """Handle also the alarm that ends the drain."""
        super().init_signals()
        signal.signal(signal.SIGALRM, self._stop)
        signal.siginterrupt(signal.SIGALRM, False)  # noqa: FBT003 - its only argument

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ANN401 - gunicorn's signature
        """Begin to drain. A worker that has not begun to serve stops at once."""
        seconds = 0.0
        if self.booted:
            runtime = runtime_of(self.wsgi)
            runtime.draining = True
            seconds = runtime.settings.shutdown_drain_sec
        if seconds <= 0:
            super().handle_exit(sig, frame)
        elif signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0):
            # An alarm, not a thread: a signal handler must not take a lock that the interrupted code may hold.
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept connections or not. When stopping, accept the queued ones, then close the listeners."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            if self._share.is_last():
                refuse_connections(listener)
            self._accept_queued(listener)
            listener.close()

    def handle_request(self, req: Any, conn: Connection) -> bool:  # noqa: ANN401 - gunicorn's request
        """Serve a request under exactly the path that it names, with each caller header once."""
        req.path = keep_slashes_apart(req.uri, req.path)
        req.headers = fold_repeated(req.headers)
        if runtime_of(self.wsgi).draining or conn.reader.took_part:
            # On a kept connection, the client may send its next request while the worker closes it.
            req.force_close()
        return bool(super().handle_request(req, conn))

    def describe_refusal(self, status: HTTPStatus, request_id: str, accept: str) -> tuple[str, bytes]:
        """Return the content type and the body in the shape of every other error."""
        code, message = describe(status)
        fault = Fault(status=status, code=code, message=message, request_id=request_id)
        if prefers_problem(parse_accept_header(accept, MIMEAccept)):
            return PROBLEM, json.dumps(fault.as_problem(runtime_of(self.wsgi).settings.api_base_path)).encode()
        return JSON, json.dumps(fault.as_json()).encode()

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:  # noqa: ANN401 - gunicorn's signature
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except errors.ParseException:  # the rest of the body is malformed, and the request is answered already
            return False

    def _accept_queued(self, listener: Any) -> None:  # noqa: ANN401 - gunicorn's socket
        """Accept what is queued, and what still arrives within a moment."""
        until = time.monotonic() + _ARRIVING_SEC
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        for _ in range(self.cfg.backlog):
            if not poll.poll(max(until - time.monotonic(), 0) * 1000):
                return
            self.accept(listener)

    def _stop(self, sig: int, frame: Any) -> None:  # noqa: ANN401 - a signal handler's signature
        super().handle_exit(sig, frame)
