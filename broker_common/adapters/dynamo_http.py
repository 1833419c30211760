"""Connections to DynamoDB that are kept from one call to the next, and the exchange of HTTP messages on them."""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
import time
import weakref
from functools import cached_property
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.httpsession import create_urllib3_context

from broker_common.adapters.bounded_http import MAX_ANSWER_BYTES
from broker_common.adapters.dynamo_answers import NoAnswer

_READ_BYTES = 64 * 2**10
"""What one read takes at most, and the limit of an answer's head."""
_STATUS_LINE = re.compile(r"HTTP/1\.1 (\d{3})( .*)?", re.ASCII)
_LENGTH = re.compile(r"\d{1,9}", re.ASCII)

Answer: TypeAlias = tuple[int, dict[str, str], bytes]
"""The status, headers and body of a whole answer. The headers' names are in lower case."""


class TlsFailed(SSLError):
    """The connection could not be secured, so nothing was sent; botocore's own may also come from a later read."""


class Connections:
    """The connections of one process to one endpoint; safe to use from many threads."""

    def __init__(self, endpoint_url: str, *, ca_file: str, timeout_sec: float, kept: int) -> None:
        """Trust the authorities in `ca_file`, give each address `timeout_sec` to connect, and keep `kept` at most."""
        parts = urlsplit(endpoint_url)
        self._url = endpoint_url
        self._has_tls = parts.scheme == "https"
        port = 443 if self._has_tls else 80
        self.host = parts.netloc.rsplit("@")[-1].lower().removesuffix(f":{port}")
        """What the header `Host` says."""
        self._address = (parts.hostname, parts.port or port)
        self._ca_file = ca_file
        self._timeout = timeout_sec
        self._kept = kept
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)

    def take(self, ends_at: float) -> Connection:
        """Return the idle connection that was used last, or else connect; the caller puts it back, or closes it.

        `ends_at`, by the monotonic clock, limits all of this except the look-up of the host's name. Raises botocore's
        `EndpointConnectionError` and `ConnectTimeoutError`, and `TlsFailed`.
        """
        while connection := self._pop():
            if connection.is_quiet():
                return connection
            connection.close()
        try:
            return Connection(self._connect(ends_at), self._url)
        except TimeoutError as error:
            raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
        except ssl.SSLError as error:
            raise TlsFailed(endpoint_url=self._url, error=error) from error
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=self._url, error=error) from error

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next call, or close it if it cannot be used again or enough are kept."""
        with self._lock:
            if connection.can_be_kept and len(self._idle) < self._kept:
                return self._idle.append(connection)
        return connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            _close_all(self._idle)

    def _pop(self) -> Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context: ssl.SSLContext = create_urllib3_context()  # it requires a certificate
        context.check_hostname = True
        try:
            context.load_verify_locations(self._ca_file)
        except OSError as error:
            raise ssl.SSLError(f"the authorities cannot be read: {error}") from error
        return context

    def _connect(self, ends_at: float) -> socket.socket:
        """Connect to the first of the host's addresses that answers."""
        trouble: OSError = socket.gaierror("the host has no address")
        for family, _, _, _, address in socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM):
            try:
                return self._open(family, address, ends_at)
            except OSError as error:
                trouble = error
        raise trouble

    def _open(self, family: int, address: Any, ends_at: float) -> socket.socket:  # noqa: ANN401 - of any family
        link = socket.socket(family, socket.SOCK_STREAM)
        try:
            link.settimeout(min(self._timeout, _left(ends_at)))
            link.connect(address)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link.settimeout(_left(ends_at))
            return self._tls.wrap_socket(link, server_hostname=self._address[0]) if self._has_tls else link
        except BaseException:
            link.close()
            raise


class Connection:
    """An open connection. After any exception it must be closed: the rest of an answer may still arrive."""

    def __init__(self, link: socket.socket, url: str) -> None:
        self.can_be_kept = True
        self._link = link
        self._url = url
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)

    def is_quiet(self) -> bool:
        """Tell whether an idle connection is still open, and nothing came that no request asked for."""
        return not self._poll.poll(0)

    def exchange(self, request: bytes, ends_at: float) -> Answer:
        """Send a request, and return its answer; `ends_at`, by the monotonic clock, limits both together.

        Raises botocore's `ConnectTimeoutError` if no time is left and nothing was sent. With its `ReadTimeoutError` and
        `ConnectionClosedError`, and with `NoAnswer` for an answer that is cut short or does not say its length, the
        outcome of the request is not known.
        """
        if (seconds := ends_at - time.monotonic()) <= 0:
            raise ConnectTimeoutError(endpoint_url=self._url)
        try:
            self._link.settimeout(seconds)
            self._link.sendall(request)
            return self._read(ends_at)
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
        except OSError as error:
            raise ConnectionClosedError(endpoint_url=self._url, error=error) from error

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    def _read(self, ends_at: float) -> Answer:
        # "100 Continue" is no answer either: no request asks for it.
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _READ_BYTES:
                raise NoAnswer(reason="an answer with an endless head")
            data += self._receive(ends_at)
        status, headers = _read_head(data[:end].decode("latin-1"))
        length = headers.get("content-length", "")
        if not _LENGTH.fullmatch(length) or "transfer-encoding" in headers:
            raise NoAnswer(reason="an answer without a length")  # DynamoDB never sends chunks
        begin, end = end + 4, end + 4 + int(length)
        if end > MAX_ANSWER_BYTES:
            raise NoAnswer(reason="an answer that is too long")
        while len(data) < end:
            data += self._receive(ends_at)
        options = headers.get("connection", "").lower().replace(" ", "").split(",")
        self.can_be_kept = len(data) == end and "close" not in options
        return status, headers, bytes(data[begin:end])

    def _receive(self, ends_at: float) -> bytes:
        self._link.settimeout(_left(ends_at))
        if received := self._link.recv(_READ_BYTES):
            return received
        raise ConnectionResetError("the connection was closed before the end of an answer")


def _read_head(head: str) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of an answer; those of one name are joined by commas."""
    first, *lines = head.split("\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise NoAnswer(reason="an answer that is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(status[1]), headers


def _left(ends_at: float) -> float:
    """Return the seconds that are left; raises `TimeoutError` if there are none."""
    seconds = ends_at - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _close_all(connections: list[Connection]) -> None:
    while connections:
        connections.pop().close()
