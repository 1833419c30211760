"""gunicorn's threaded worker, made to stop without dropping a request, and to tell repeated headers apart.

Asked to stop, it first turns readiness red and serves on for `SHUTDOWN_DRAIN_SEC`, so that load balancers look away.
Then it takes in what is queued, closes its listeners (gunicorn keeps them open without accepting: new connections would
hang and then be reset) and finishes the requests in flight.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from gunicorn import util  # type: ignore[import-untyped] # it ships no types
from gunicorn.http import wsgi  # type: ignore[import-untyped] # the same
from gunicorn.workers import gthread  # type: ignore[import-untyped] # the same

from broker_api.caller import CALLER_HEADERS
from broker_api.runtime import runtime_of

if TYPE_CHECKING:
    from concurrent.futures import Future

# What would be "gunicorn": who runs the server is nobody's business.
wsgi.SERVER = "broker"

_ONCE_ONLY = frozenset(name.upper() for name in CALLER_HEADERS)


def fold_repeated(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Make one of each caller header that was sent several times; `headers` has upper-case names.

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

    def handle_request(self, req: Any, conn: Any) -> bool:  # noqa: ANN401 - gunicorn's signature
        """Serve a request whose caller headers each stand once."""
        req.headers = fold_repeated(req.headers)
        return bool(super().handle_request(req, conn))

    def finish_request(self, conn: Any, fs: Future[Any]) -> None:  # noqa: ANN401 - gunicorn's signature
        """Keep a connection or close it, and never let a client that does not hang up hold the event loop."""
        if fs.cancelled() or fs.exception() is not None or fs.result():
            super().finish_request(conn, fs)
        else:
            self._closers.submit(self._close, conn)

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
