"""The provider's HTTP API (the ENG CSP): list the accounts, delete one. The only client there is.

What lives here is the transport, and the judgement of what an answer means; `csp_listing` reads the list itself.
"""

from __future__ import annotations

import http.client
import math
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError

from broker_common.adapters.csp_listing import Listing, account_uuid
from broker_common.core.errors import (
    ListingUnusable,
    ProviderError,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
)
from broker_common.core.events import ProviderCalled, ProviderOutcome
from broker_common.core.ports import WipeAnswer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from urllib3 import HTTPResponse

    from broker_common.adapters.redis_breaker import NoBreaker, Permit, RedisBreaker
    from broker_common.adapters.redis_slots import RedisSlots, Slot
    from broker_common.core.ports import AccountListing, Clock, Recorder

_LIST = "list accounts"
_DELETE = "delete account"
_LIST_BYTES = 64 * 2**20
_DELETE_BYTES = 64 * 2**10
_MAX_PAGES = 10_000
_HTTP_1_1 = 11
_SNIPPET_CHARACTERS = 160
_LIST_WAIT_SECONDS = 30.0
# A worker that is told to stop first finishes what it has begun: a delete that waits must not hold it up.
_DELETE_WAIT_SECONDS = 3.0

_OUTCOMES: dict[type[ProviderError], ProviderOutcome] = {
    ProviderFailing: ProviderOutcome.FAILING,
    ProviderMisconfigured: ProviderOutcome.MISCONFIGURED,
    ProviderRejected: ProviderOutcome.REJECTED,
    ListingUnusable: ProviderOutcome.UNUSABLE,
}
_NOT_OUR_CLIENT = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_MAY_PASS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})
# RFC 9110, 15.6.3 and 15.6.5: a gateway got no valid or no timely answer, so nobody knows what the server did. Codes
# above 519 are not registered; proxies use them to say much the same.
_NO_WORD_FROM_THE_SERVER = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT, *range(520, 600)})


class CspClient:
    """Speaks to the provider, and implements the `Provider` port.

    Each request is sent once: no retry, no redirect followed, no proxy or netrc taken from the environment. It ends
    within `connect_timeout` + `read_timeout` seconds, however slowly an answer drips in; if looking up the host or
    connecting took longer than that, nothing is sent. Every request passes the circuit breaker and holds a call slot.
    Connects to nothing until called.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str,
        connect_timeout: float,
        read_timeout: float,
        slots: RedisSlots,
        breaker: RedisBreaker | NoBreaker,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._token = token
        self._timeouts = (connect_timeout, read_timeout)
        self._slots = slots
        self._breaker = breaker
        self._recorder = recorder
        self._clock = clock
        self._admitted = threading.local()
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = _TokenAuth(token)
        self._session.headers.update(
            {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "sandbox-broker"}
        )
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, _CuttableAdapter())

    def list_accounts(self) -> AccountListing:
        """List the active sandbox accounts, all pages, under one call slot, waiting up to 30 s for it.

        An entry that does not parse is skipped, and so is one whose id was listed before. Raises as the port says.
        """
        first = f"{self._base_url}/current_user/accounts"
        listing = Listing(self._base_url)
        asked: set[str] = set()
        url, parameters = first, None
        self._breaker.check()
        with self._slots.hold(wait_sec=_LIST_WAIT_SECONDS) as slot:
            while True:
                request = requests.Request("GET", url, params=parameters)
                answer = self._get_page(request, slot)
                if answer.url in asked or len(asked) >= _MAX_PAGES:
                    raise ListingUnusable(f"{_LIST}: the provider's paging does not end")
                asked.add(answer.url)
                following = listing.take(answer.body, url=answer.url, link=answer.next_link)
                if following is None:
                    return listing.finish()
                url, parameters = (following, None) if isinstance(following, str) else (first, following)

    def admit(self) -> AbstractContextManager[None]:
        """Hold a call slot for one `delete_account` by this thread, waiting a few seconds for it.

        Raises as the port says.
        """
        return self._admit()

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        """Ask for an account to be wiped, inside `admit`; raises as the port says.

        An `external_id` that is not `identity/accounts/<uuid>` is rejected, and nothing is sent. A 200 that holds an
        HTML page is somebody's login page, not a wipe.
        """
        permit: Permit | None = getattr(self._admitted, "permit", None)
        if permit is None:
            raise RuntimeError("delete_account was called outside admit")
        uuid = account_uuid(external_id)
        if uuid is None:
            raise ProviderRejected(f"{_DELETE}: its external id is not identity/accounts/<uuid>; nothing was sent")
        with permit.call(), self._recorded("delete"):
            request = requests.Request("DELETE", f"{self._base_url}/sandbox/accounts/{uuid}")
            return self._judge_delete(self._send(_DELETE, request, max_bytes=_DELETE_BYTES, send_within=send_within))

    @contextmanager
    def _admit(self) -> Iterator[None]:
        self._breaker.check()
        with self._slots.hold(wait_sec=_DELETE_WAIT_SECONDS), self._breaker.admit() as permit:
            self._admitted.permit = permit
            try:
                yield
            finally:
                self._admitted.permit = None

    @contextmanager
    def _recorded(self, operation: str) -> Iterator[None]:
        started, outcome = self._clock.monotonic(), ProviderOutcome.FAILING
        try:
            yield
            outcome = ProviderOutcome.SUCCESS
        except ProviderError as error:
            outcome = _OUTCOMES.get(type(error), outcome)
            raise
        finally:
            seconds = self._clock.monotonic() - started
            self._recorder.record(ProviderCalled(operation=operation, outcome=outcome, seconds=seconds))

    def _get_page(self, request: requests.Request, slot: Slot) -> _Answer:
        slot.renew()
        with self._breaker.admit() as permit, permit.call(), self._recorded("list"):
            answer = self._send(_LIST, request, max_bytes=_LIST_BYTES)
            if not HTTPStatus(200) <= answer.status < HTTPStatus(300):
                raise self._refusal(_LIST, answer)
            if answer.is_late:
                raise ProviderFailing(f"{_LIST}: timed out in the middle of the answer", outcome_unknown=True)
            if answer.status != HTTPStatus.OK:
                raise ListingUnusable(f"{_LIST}: HTTP {answer.status} instead of a list")
            if not answer.is_complete:
                raise ListingUnusable(f"{_LIST}: the answer was cut short, or is longer than {_LIST_BYTES} bytes")
            return answer

    def _judge_delete(self, answer: _Answer) -> WipeAnswer:
        if answer.status == HTTPStatus.NOT_FOUND:
            return WipeAnswer.GONE
        if answer.status == HTTPStatus.NO_CONTENT:
            return WipeAnswer.WIPED
        if answer.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
            raise self._refusal(_DELETE, answer)
        if answer.is_html:
            page = f"{_DELETE}: HTTP {answer.status} with an HTML page, such as a login page"
            raise ProviderMisconfigured(page, outcome_unknown=True)
        if answer.is_late or answer.is_broken:
            # RFC 9112, section 8: an incomplete answer is not an answer.
            raise ProviderFailing(f"{_DELETE}: the answer was cut short", outcome_unknown=True)
        return WipeAnswer.WIPED if answer.status == HTTPStatus.OK else WipeAnswer.ACCEPTED

    def _refusal(self, operation: str, answer: _Answer) -> ProviderError:
        status = answer.status
        text = answer.body.decode("utf-8", "replace").replace(self._token, "***")
        text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
        if len(text) > _SNIPPET_CHARACTERS:
            text = f"{text[:_SNIPPET_CHARACTERS]}…"
        message = f"{operation}: HTTP {status}" + (f": {text}" if text else "")
        if status in _NOT_OUR_CLIENT or HTTPStatus(300) <= status < HTTPStatus(400):
            return ProviderMisconfigured(message)
        if status in _MAY_PASS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return ProviderFailing(message, outcome_unknown=status in _NO_WORD_FROM_THE_SERVER)
        return ProviderRejected(message)

    def _send(
        self, operation: str, request: requests.Request, *, max_bytes: int, send_within: float = math.inf
    ) -> _Answer:
        """Send a request, once, and read its answer; raises `ProviderFailing` if no answer came."""
        with _Exchange(seconds=sum(self._timeouts), send_within=send_within) as exchange:
            try:
                response = self._session.send(
                    self._session.prepare_request(request),
                    timeout=self._timeouts,
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
class _Answer:
    """An answer as far as it was read: late, broken or too long, it is not complete."""

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
        return not (self.is_late or self.is_broken or self.is_too_long)

    @property
    def is_html(self) -> bool:
        """Whether the body is an HTML document; many servers call any text, and none at all, text/html."""
        start = self.body[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        return start.startswith(b"<") and (
            "html" in self.content_type or b"<!doctype html" in start or b"<html" in start
        )


def _read(response: requests.Response, exchange: _Exchange, max_bytes: int) -> _Answer:
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
    # To be cut off, by us or by the provider, looks like the end of an answer that does not say how long it is, and
    # like the end of its headers. RFC 9112, section 9.6: a server that ends an answer by closing must say so.
    says_how_it_ends = (
        any(name in response.headers for name in ("Content-Length", "Transfer-Encoding"))
        or "close" in response.headers.get("Connection", "").lower()
        or raw.version < _HTTP_1_1
        or response.status_code == HTTPStatus.NO_CONTENT
    )
    return _Answer(
        url=str(response.url),
        status=response.status_code,
        content_type=response.headers.get("Content-Type", "").lower(),
        next_link=response.links.get("next", {}).get("url"),
        body=bytes(body[:max_bytes]),
        is_late=is_late or exchange.is_late,
        is_broken=is_broken or not says_how_it_ends or not _is_length(response.headers.get("Content-Length", "0")),
        is_too_long=len(body) > max_bytes,
    )


def _is_length(content_length: str) -> bool:
    """Tell whether a Content-Length can be relied on: RFC 9112, section 6.3, item 5; http.client overlooks others."""
    given = {each.strip() for each in content_length.split(",")}
    return len(given) == 1 and all(each.isascii() and each.isdigit() for each in given)


class _TokenAuth(AuthBase):
    """Puts the token into the header, also where the base URL holds a user's name."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Token {self._token}"
        return request


class _Exchange:
    """One request and its answer: cut off when its time is over, and aware of whether the request went out.

    The time-outs of requests hold for each read from the socket, so that an answer that drips in, header by header,
    would never end. Here a timer shuts the connection down under the reader; it holds a duplicate of the file
    descriptor, so that it can never shut down what else got its number since.
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
        """Take note that the request goes out now, by this connection; raises `TimeoutError` if time is over."""
        with self._lock:
            if self.is_late or time.monotonic() > self._send_by:
                raise TimeoutError
            self._handle = socket.socket(fileno=os.dup(sock.fileno()))
            self.is_sent = True

    def _cut(self) -> None:
        with self._lock:
            self.is_late = True
            if self._handle is not None:  # pragma: no branch - only where time is over just before the request goes out
                with suppress(OSError):
                    self._handle.shutdown(socket.SHUT_RDWR)


_current: ContextVar[_Exchange] = ContextVar("_current")


class _Lines:
    """What a response reads its headers from; keeps the last line."""

    def __init__(self, source: Any) -> None:  # noqa: ANN401 - a buffered reader, as http.client makes it
        self.source = source
        self.last = b""

    def readline(self, limit: int) -> bytes:
        self.last = self.source.readline(limit)
        return self.last

    def close(self) -> None:
        self.source.close()


class _Response(http.client.HTTPResponse):
    """A response that is no answer if its headers do not end: http.client takes the connection's end for theirs."""

    fp: Any

    def begin(self) -> None:
        lines = self.fp = _Lines(self.fp)
        try:
            super().begin()
        finally:
            if self.fp is lines:  # and not closed
                self.fp = lines.source
        if lines.last.rstrip(b"\r\n") or not lines.last:
            raise http.client.IncompleteRead(b"")


class _CuttableHTTPConnection(HTTPConnection):
    response_class = _Response

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        if self.sock is None:
            self.connect()
        _current.get().sending(self.sock)
        super().request(*args, **options)


class _CuttableHTTPSConnection(_CuttableHTTPConnection, HTTPSConnection):
    """The same over TLS; `HTTPSConnection` is what follows in the order of its bases."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _CuttableHTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _CuttableHTTPSConnection


class _CuttableAdapter(HTTPAdapter):
    """Makes connections that an `_Exchange` can cut. Retries nothing, as is requests' default."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
