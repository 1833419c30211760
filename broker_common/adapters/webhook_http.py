"""Sends webhooks over HTTP: signed, to a checked address, and within one time limit.

The endpoint's owner decides what its name resolves to, and what it answers. Neither may reach into our network, and
neither may keep a thread for longer than the limit.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_ import create_urllib3_context

from broker_common.adapters.bounded_http import (
    AnswerTooLong,
    BoundedResponse,
    WholeHeadResponse,
    answer_within,
    time_left,
)
from broker_common.adapters.public_address import is_public
from broker_common.core.sending import WebhookAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from broker_common.core.webhook import Delivery, Endpoint

    IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
    Resolver = Callable[[str], Sequence[IpAddress]]

LIMIT_SEC = 15.0
"""For all of a try: to look the name up, connect, send, and read the answer."""
MAX_ANSWER_BYTES = 64 * 2**10
MAX_TEXT = 300
_CONNECT_SEC = 5.0
"""For one of several addresses, so that one which does not answer leaves time for the next."""
KEPT_SEC = 60.0
"""A connection is used for so long. Then the name is looked up again, because the endpoint may have moved."""
_CHUNK_BYTES = 2**12
_NO_ANSWER = (requests.RequestException, HTTPError, OSError, ValueError, http.client.HTTPException)


def resolve(host: str) -> list[IpAddress]:
    """Return the addresses of a host, the best one first. Raises `OSError` if it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(address[0]) for _, _, _, _, address in found]


class WebhookHttp:
    """Implements the `WebhookTransport` port by `requests`; safe to use from many threads.

    A try ends within `limit_sec`, also if the endpoint hangs or never stops to answer. It follows no redirect, uses no
    proxy, netrc or cookie, and reads at most 64 KiB of the answer.

    A name is looked up once for a connection, and the connection goes to just the addresses that were checked. All of
    them must be public: a name that also has an inner address is a mistake or an attack, and to choose among them
    would hide that. Hosts in `allowed_hosts` may have any address and may use http, and so may an address of loopback
    if `allows_loopback`.
    """

    def __init__(
        self,
        *,
        allowed_hosts: Collection[str] = (),
        allows_loopback: bool = False,
        connections: int = 8,
        resolve: Resolver = resolve,
        limit_sec: float = LIMIT_SEC,
        kept_sec: float = KEPT_SEC,
    ) -> None:
        """Keep at most `connections` to each host open for later deliveries, each for `kept_sec`."""
        self._rules = _Rules(frozenset(allowed_hosts), resolve, allows_loopback=allows_loopback, kept_sec=kept_sec)
        self._limit_sec = limit_sec
        self._session = _Session()
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _Adapter(pool_connections=64, pool_maxsize=connections)
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, adapter)

    def send(self, endpoint: Endpoint, delivery: Delivery, *, now: int) -> WebhookAnswer:
        """Send a delivery, signed at `now` with each secret that is valid then. Never raises for what an endpoint does.

        It is sent a second time if a kept connection breaks: the endpoint may have closed it just before.
        """
        try:
            headers = _sign(endpoint, delivery, now)
        except (ValueError, EmptyWebhookSecretError):
            return WebhookAnswer(None, "it was not sent: the endpoint has no secret that can sign")
        request = requests.Request("POST", endpoint.url, headers=headers, data=delivery.payload.encode())
        with answer_within(self._limit_sec, max_bytes=MAX_ANSWER_BYTES):
            attempt = _Attempt(self._rules)
            answer = self._try(request, attempt)
            if answer.status is None and attempt.used_kept_connection and not attempt.is_late:
                answer = self._try(request, _Attempt(self._rules, keeps=False))
        return WebhookAnswer(answer.status, _printable(answer.text))

    def _try(self, request: requests.Request, attempt: _Attempt) -> WebhookAnswer:
        token = _current.set(attempt)
        try:
            response = self._session.send(
                self._session.prepare_request(request), timeout=self._limit_sec, allow_redirects=False, stream=True
            )
        except _Refused as error:
            return WebhookAnswer(None, str(error))
        except _NO_ANSWER as error:
            return WebhookAnswer(None, self._why_no_answer(error, attempt))
        finally:
            _current.reset(token)
        with response:
            return WebhookAnswer(response.status_code, _describe(response))

    def _why_no_answer(self, error: Exception, attempt: _Attempt) -> str:
        cause = _cause(error)
        attempt.is_late = isinstance(cause, TimeoutError)
        match cause:
            case TimeoutError():
                return f"timed out after {self._limit_sec:g} s while {attempt.stage}"
            case socket.gaierror():
                reason = "its name cannot be resolved"
            case ssl.SSLCertVerificationError():
                reason = f"the certificate is not valid: {cause.verify_message}"
            case AnswerTooLong():
                reason = "the headers have more than 64 KiB"
            case http.client.IncompleteRead():
                reason = "the connection was closed within the headers"
            case OSError() if cause.strerror:
                reason = cause.strerror
            case _:
                reason = str(cause)
        return f"failed while {attempt.stage}: {reason}"


class _Refused(Exception):
    """The endpoint's address may not be called; the message says why."""


class _Rules:
    """Which addresses may be called, and for how long a connection to them is kept."""

    def __init__(
        self, allowed_hosts: frozenset[str], resolve: Resolver, *, allows_loopback: bool, kept_sec: float
    ) -> None:
        self._allowed_hosts = frozenset(_plain(host) for host in allowed_hosts)
        self._resolve = resolve
        self._allows_loopback = allows_loopback
        self.kept_sec = kept_sec

    def addresses(self, host: str, *, is_secure: bool) -> Sequence[IpAddress]:
        """Return the addresses of a host. Raises `_Refused` unless all of them may be called, `OSError`."""
        found = self._look_up(host)
        if _plain(host) in self._allowed_hosts:
            return found
        for address in found:
            if self._allows_loopback and address.is_loopback:
                continue
            if not is_secure:
                raise _Refused("it was not sent: only https is allowed")
            if not is_public(address):
                raise _Refused(f"it was not sent: its address {address} is not public")
        return found

    def _look_up(self, host: str) -> Sequence[IpAddress]:
        """Resolve a name in a thread of its own, because the system's resolver knows no time limit."""
        found: queue.SimpleQueue[Sequence[IpAddress] | Exception] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                found.put(self._resolve(host))
            except (OSError, ValueError) as error:
                found.put(error)

        threading.Thread(target=look_up, name="webhook-resolver", daemon=True).start()
        try:
            answer = found.get(timeout=time_left())
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Attempt:
    """What a connection must know of the try that uses it, and what the try must know of the connection."""

    def __init__(self, rules: _Rules, *, keeps: bool = True) -> None:
        self.rules = rules
        self.may_use_kept_connection = keeps
        self.used_kept_connection = True
        self.is_late = False
        self.stage = "preparing the request"


_current: ContextVar[_Attempt] = ContextVar("_current")


class _Response(WholeHeadResponse, BoundedResponse):
    """Bounded in time and length, and fails if its headers are cut off."""


class _Connection(HTTPConnection):
    response_class = _Response
    _made_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether this connection can be used again. If not, the pool connects again."""
        attempt = _current.get()
        is_young = time.monotonic() < self._made_at + attempt.rules.kept_sec
        return is_young and attempt.may_use_kept_connection and super().is_connected

    def connect(self) -> None:
        attempt = _current.get()
        attempt.used_kept_connection = False
        super().connect()
        self._made_at = time.monotonic()

    def send(self, data: Any) -> None:  # noqa: ANN401 - http.client's signature
        _current.get().stage = "waiting for its answer"
        if self.sock is not None:
            self.sock.settimeout(time_left())
        super().send(data)

    def _new_conn(self) -> socket.socket:
        attempt = _current.get()
        attempt.stage = "looking up its name"
        is_secure = isinstance(self, HTTPSConnection)
        addresses = attempt.rules.addresses(self.host.strip("[]"), is_secure=is_secure)
        attempt.stage = "connecting"
        link = _connect(addresses, self.port)
        attempt.stage = "making the connection secure"
        return link


class _SecureConnection(_Connection, HTTPSConnection):
    """The same over TLS: in the order of the bases, `HTTPSConnection` comes next."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    """Retries nothing, which is requests' default. All connections share one TLS context: it is slow to make."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - passed on as they are
        context = create_urllib3_context()  # it requires a certificate
        context.check_hostname = True
        context.load_verify_locations(os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH)
        super().init_poolmanager(*args, **options, ssl_context=context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def cert_verify(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - requests' signature
        """Leave the authorities to the context. Requests would read them again for each connection."""


class _Session(requests.Session):
    """Sees no redirects. Requests would prepare to follow one: read all of its body, unpacked, and parse its URL."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none."""


def _connect(addresses: Sequence[IpAddress], port: int | None) -> socket.socket:
    """Connect to the first of the addresses that answers."""
    trouble: OSError = socket.gaierror(socket.EAI_NONAME, "it has no address")
    for number, address in enumerate(addresses, start=1):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - the version of IP
        link = socket.socket(family, socket.SOCK_STREAM)
        try:
            link.settimeout(time_left() if number == len(addresses) else min(time_left(), _CONNECT_SEC))
            link.connect((str(address), port))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.settimeout(time_left())  # for the handshake of TLS
        except OSError as error:
            link.close()
            trouble = error
        else:
            return link
    raise trouble


def _plain(host: str) -> str:
    return host.lower().rstrip(".")


def _sign(endpoint: Endpoint, delivery: Delivery, now: int) -> dict[str, str]:
    """Return the headers of Standard Webhooks 1.0. Raises `ValueError` if there is no secret that can sign."""
    valid = [secret for secret in endpoint.secrets if secret.valid_until is None or now <= secret.valid_until]
    if not valid:
        raise ValueError("no secret is valid")
    at = datetime.fromtimestamp(now, tz=UTC)
    signatures = [Webhook(secret.value).sign(delivery.delivery_id, at, delivery.payload) for secret in valid]
    return {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "sandbox-broker",
        "webhook-id": delivery.delivery_id,
        "webhook-timestamp": str(now),
        "webhook-signature": " ".join(signatures),
    }


def _describe(response: requests.Response) -> str:
    """Describe an answer by its status. The body of a refusal is added, because it may say what the endpoint lacks.

    The head of an answer decides. A body that is late, cut off or too long changes nothing: what the endpoint says of
    the delivery is its status.
    """
    status = f"{response.status_code} {response.reason or ''}".strip()
    body, trouble = _read(response)
    if trouble:
        status = f"{status} ({trouble})"
    if HTTPStatus.MULTIPLE_CHOICES <= response.status_code < HTTPStatus.BAD_REQUEST:
        return f"redirects are not followed: {status}"
    if response.ok or not body:
        return status
    return f"{status}: {body[: 4 * MAX_TEXT].decode(errors='replace')}"


def _read(response: requests.Response) -> tuple[bytes, str | None]:
    """Return the body as far as it was read, and what kept the rest from being read.

    Only an answer that was read to its end leaves a connection that can be used again.
    """
    body = bytearray()
    try:
        while part := response.raw.read(_CHUNK_BYTES, decode_content=False):
            body += part
    except _NO_ANSWER as error:
        match _cause(error):
            case AnswerTooLong():
                return bytes(body), "the answer has more than 64 KiB"
            case TimeoutError():
                return bytes(body), "the answer did not end in time"
        return bytes(body), "the answer was cut off"
    return bytes(body), None


def _cause(error: BaseException) -> BaseException:
    """Return the error of the system or of http.client that made requests fail."""
    found: BaseException | None = error
    while found is not None:
        ours = isinstance(found, (OSError, http.client.HTTPException))
        if ours and not isinstance(found, (requests.RequestException, HTTPError)):
            return found
        found = found.__cause__ or found.__context__
    return error


def _printable(text: str) -> str:
    words = "".join(each if each.isprintable() else " " for each in text).split()
    return " ".join(words)[:MAX_TEXT]
