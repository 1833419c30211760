"""Sends one request to the provider, once and within a time limit, and knows whether it went out.

`csp_client` and `csp_services` judge what an answer means.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Self

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from broker_common.adapters.bounded_http import WholeHeadResponse
from broker_common.core.errors import ProviderFailing

if TYPE_CHECKING:
    from urllib3 import HTTPResponse

_HTTP_1_1 = 11


class CspTransport:
    """Sends requests, with the provider's token if there is one; safe to use from many threads.

    Each request is sent once, without retries, redirects or cookies, and without a proxy or netrc from the environment.
    It ends within `connect_timeout` + `read_timeout` seconds, even if the answer comes byte by byte. If the look-up of
    the host and the connection take longer, nothing is sent. The first request connects.
    """

    def __init__(
        self, *, token: str | None = None, connect_timeout: float, read_timeout: float, connections: int
    ) -> None:
        """Keep at most `connections` open for later requests: as many as there are requests at once."""
        self._timeouts = (connect_timeout, read_timeout)
        self._session = requests.Session()
        self._session.trust_env = False
        # A cookie of one thread's call must not go out with the call of another one, which is about another account.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if token is not None:
            self._session.auth = _TokenAuth(token)
        self._session.headers.update(
            {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "sandbox-broker"}
        )
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, _CuttableAdapter(pool_maxsize=connections))

    def send(
        self,
        operation: str,
        request: requests.Request,
        *,
        max_bytes: int,
        send_within: float = math.inf,
        end_within: float = math.inf,
    ) -> Answer:
        """Send a request within `send_within` seconds, or not at all, and read at most `max_bytes` of its answer.

        It ends within `end_within` seconds, if that is shorter than the timeouts. Raises `ProviderFailing`, whose
        message begins with `operation`, if no answer came.
        """
        with _Exchange(seconds=min(sum(self._timeouts), end_within), send_within=send_within) as exchange:
            try:
                response = self._session.send(
                    self._session.prepare_request(request),
                    timeout=(min(self._timeouts[0], end_within), self._timeouts[1]),
                    allow_redirects=False,
                    stream=True,
                )
            except (requests.RequestException, HTTPError, OSError, ValueError) as error:
                if exchange.is_late or isinstance(error, (requests.Timeout, TimeoutError)):
                    reason = "timed out" if exchange.is_sent else "timed out while connecting"
                elif isinstance(error, requests.exceptions.SSLError) and not exchange.is_sent:
                    reason = "no secure connection"
                else:
                    reason = "the connection was lost" if exchange.is_sent else "could not connect"
                raise ProviderFailing(f"{operation}: {reason}", outcome_unknown=exchange.is_sent) from error
            with response:
                return _read(response, exchange, max_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The part of an answer that was read: incomplete if the answer was late, broken or too long."""

    url: str
    status: int
    content_type: str
    next_link: str | None
    body: bytes
    is_late: bool
    is_broken: bool
    is_too_long: bool

    @property
    def is_complete(self) -> bool:
        """Whether all of it was read."""
        return not (self.is_late or self.is_broken or self.is_too_long)

    @property
    def is_html(self) -> bool:
        """Whether the body is an HTML document. Many servers send text/html with any text, or with an empty body."""
        start = self.body[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        return start.startswith(b"<") and (
            "html" in self.content_type or b"<!doctype html" in start or b"<html" in start
        )


def _read(response: requests.Response, exchange: _Exchange, max_bytes: int) -> Answer:
    body = bytearray()
    is_late = is_broken = False
    try:
        for chunk in response.iter_content(2**16):
            body += chunk
            if len(body) > max_bytes:
                break
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        # requests reports a read that timed out while streaming as a ConnectionError.
        is_late = "timed out" in str(error).lower()
        is_broken = not is_late
    raw: HTTPResponse = response.raw
    # A cut connection looks like the end of an answer that does not state its length, and like the end of its headers.
    # RFC 9112, section 9.6: a server that ends an answer by closing must say so.
    says_how_it_ends = (
        any(name in response.headers for name in ("Content-Length", "Transfer-Encoding"))
        or "close" in response.headers.get("Connection", "").lower()
        or raw.version < _HTTP_1_1
        or response.status_code == HTTPStatus.NO_CONTENT
    )
    length = response.headers.get("Content-Length", "0")
    # A 204 has no body (RFC 9110, section 15.3.5): http.client does not read one, even if the headers announce it.
    is_unread = response.status_code == HTTPStatus.NO_CONTENT and length != "0"
    # urllib3 does not notice that an encoded body was cut off, even if nothing of it came.
    is_lost = not body and "Content-Encoding" in response.headers
    return Answer(
        url=str(response.url),
        status=response.status_code,
        content_type=response.headers.get("Content-Type", "").lower(),
        next_link=response.links.get("next", {}).get("url"),
        body=bytes(body[:max_bytes]),
        is_late=is_late or exchange.is_late,
        is_broken=is_broken or not says_how_it_ends or not _is_length(length) or is_unread or is_lost,
        is_too_long=len(body) > max_bytes,
    )


def _is_length(content_length: str) -> bool:
    """Tell whether a Content-Length is valid (RFC 9112, section 6.3, item 5): http.client ignores invalid ones."""
    given = {each.strip() for each in content_length.split(",")}
    return len(given) == 1 and all(each.isascii() and each.isdigit() for each in given)


class _TokenAuth(AuthBase):
    """Puts the token into the header, even if the base URL has a user name."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._token}"
        return request


class _Exchange:
    """One request and its answer: cuts the connection when its time is over, and knows whether the request went out.

    The timeouts of requests limit each single read from the socket: an answer that comes byte by byte would never end.
    Here a timer shuts the connection down during the read. The timer holds a duplicate of the file descriptor, so that
    it cannot shut down another connection that has got the same number since.
    """

    def __init__(self, *, seconds: float, send_within: float) -> None:
        self._send_by = time.monotonic() + send_within
        self.is_late = False
        self.is_sent = False
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._reset = _current.set(self)
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _current.reset(self._reset)
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def sending(self, sock: socket.socket) -> None:
        """Note that the request goes out now by this connection; raises `TimeoutError` if its time is over."""
        with self._lock:
            if self.is_late or time.monotonic() > self._send_by:
                raise TimeoutError
            self._handle = socket.socket(fileno=os.dup(sock.fileno()))
            self.is_sent = True

    def _cut(self) -> None:
        with self._lock:
            self.is_late = True
            if self._handle is not None:  # pragma: no branch - only if time is over just before the request goes out
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)


_current: ContextVar[_Exchange] = ContextVar("_current")


class _CuttableHTTPConnection(HTTPConnection):
    response_class = WholeHeadResponse

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        if self.sock is None:
            self.connect()
        _current.get().sending(self.sock)
        super().request(*args, **options)


class _CuttableHTTPSConnection(_CuttableHTTPConnection, HTTPSConnection):
    """The same over TLS: in the order of the bases, `HTTPSConnection` comes next."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _CuttableHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _CuttableHTTPSConnection


class _CuttableAdapter(HTTPAdapter):
    """Makes connections that an `_Exchange` can cut. It retries nothing, which is requests' default."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
