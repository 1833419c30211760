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
import signal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn import util  # type: ignore[import-untyped] # it ships no types
from gunicorn.http import errors, wsgi  # type: ignore[import-untyped] # the same
from structlog.contextvars import bound_contextvars
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from broker_api import browsers
from broker_api.caller import CALLER_HEADERS
from broker_api.connections import Refused
from broker_api.error_answers import JSON, PROBLEM, Fault, describe, prefers_problem
from broker_api.event_loop import EventLoop
from broker_api.runtime import runtime_of
from broker_api.tracing import HEADER, choose_request_id

if TYPE_CHECKING:
    from broker_api.connections import Connection, Exchange

# What would be "gunicorn": who runs the server is nobody's business.
wsgi.SERVER = "broker"

_STATUS_OF_REFUSAL = {
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
}
"""The other requests that do not parse are answered 400."""
_OUR_FAULT = (errors.ConfigurationProblem, errors.InvalidResponseHeader, errors.InvalidResponseHeaderName)

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


class Worker(EventLoop):
    """A threaded worker that drains."""

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
            all(self.accept(listener) for _ in range(self.cfg.backlog))  # it ends with the first that there is not
        super().set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()

    def handle_request(self, req: Any, conn: Connection) -> bool:  # noqa: ANN401 - gunicorn's request
        """Serve a request whose caller headers each stand once, under the path that it names and no other."""
        req.path = keep_slashes_apart(req.uri, req.path)
        req.headers = fold_repeated(req.headers)
        if runtime_of(self.wsgi).draining.is_set() or conn.reader.took_part:
            # While the connection is kept, the client may send its next request just as we close it.
            req.force_close()
        return bool(super().handle_request(req, conn))

    def handle_error(self, _req: Any, client: Exchange, addr: Any, exc: BaseException) -> None:  # noqa: ANN401 - gunicorn's signature
        """Answer a request that never reaches the application, or that nothing else could answer."""
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
            client.answer_instead(self._refusal(status, request_id, client.read_header("Accept")))

    def _refusal(self, status: HTTPStatus, request_id: str, accept: str) -> bytes:
        code, message = describe(status)
        fault = Fault(status=status, code=code, message=message, request_id=request_id)
        is_problem = prefers_problem(parse_accept_header(accept, MIMEAccept))
        content = fault.as_problem(runtime_of(self.wsgi).settings.api_base_path) if is_problem else fault.as_json()
        body = json.dumps(content).encode()
        head = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Server: {wsgi.SERVER}",
            f"Date: {util.http_date()}",
            "Connection: close",
            f"Content-Type: {PROBLEM if is_problem else JSON}",
            f"Content-Length: {len(body)}",
            f"{HEADER}: {request_id}",
            "Vary: Accept",
            *(f"{name}: {value}" for name, value in browsers.HEADERS.items()),
        ]
        return "\r\n".join([*head, "", ""]).encode() + body

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:  # noqa: ANN401 - gunicorn's signature
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except errors.ParseException:  # what is left of the body does not parse, and its request has its answer already
            return False

    def _stop(self, sig: int, frame: Any) -> None:  # noqa: ANN401 - a signal handler's signature
        super().handle_exit(sig, frame)
