"""A load of requests over HTTP that takes little of the machine: the load, the API and the database share its cores.

One process of its own, one thread, sockets that are kept alive, requests made beforehand: about a tenth of what as
many threads of `http.client` take.
"""

from __future__ import annotations

import json
import multiprocessing
import selectors
import socket
import statistics
import time
import uuid
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from deploy.dev.plan import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.pool import AsyncResult

Result = TypeVar("Result")

_SILENCE_SEC = 30
"""After so long without any answer the server counts as stuck."""


class Answer(NamedTuple):
    """The whole answer to one request. Times are of the machine's monotonic clock, in seconds."""

    number: int
    """The index of its request."""
    status: int
    began: float
    ended: float
    body: bytes = b""

    @property
    def seconds(self) -> float:
        """The latency in seconds."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load: all answers, and the processor time of the sender and of each server."""

    answers: Sequence[Answer]
    cpu_seconds: float
    servers_cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    sent_again: int = 0
    """The requests that the sender's own client sent a second time, because the first was not answered."""

    @property
    def seconds(self) -> float:
        """The time from the first request to the last answer."""
        return max(each.ended for each in self.answers) - min(each.began for each in self.answers)

    @property
    def succeeded(self) -> int:
        """The number of successful requests."""
        return sum(200 <= each.status < 300 for each in self.answers)

    @property
    def rate(self) -> float:
        """Successful requests per second."""
        return self.succeeded / self.seconds

    def milliseconds_of(self, *servers: str) -> float:
        """Return the processor time of these servers for each successful request."""
        return 1000 * sum(self.servers_cpu_seconds[each] for each in servers) / self.succeeded

    @property
    def own_milliseconds(self) -> float:
        """The processor time of the sender for each successful request."""
        return 1000 * self.cpu_seconds / self.succeeded

    @property
    def statuses(self) -> Counter[int]:
        """The number of answers of each status."""
        return Counter(each.status for each in self.answers)

    @property
    def latencies(self) -> list[float]:
        """The latency of each answer in seconds."""
        return [each.seconds for each in self.answers]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of 100 values do not exceed, interpolated between neighbours."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def allocations(token: str, tracks: Sequence[str]) -> list[bytes]:
    """Return an allocate request for each track."""
    return [request("POST", "/v1/allocate", track, token=token) for track in tracks]


def marks(token: str, held: Mapping[str, str]) -> list[bytes]:
    """Return the requests by which each track marks its sandbox."""
    return [
        request("POST", f"/v1/sandboxes/{sandbox_id}/mark-for-deletion", track, token=token)
        for track, sandbox_id in held.items()
    ]


def request(method: str, path: str, track: str, *, token: str) -> bytes:
    """Return one request of a track, without a body."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nAuthorization: Bearer {token}\r\n"
        f"X-Track-ID: {track}\r\nContent-Length: 0\r\n\r\n".encode()
    )


def new_tracks(count: int) -> list[str]:
    """Return ids of new tracks."""
    return [str(uuid.uuid4()) for _ in range(count)]


class Generator:
    """Sends requests from a process of its own. Use it in a `with` statement."""

    def __init__(self) -> None:
        # Not a ProcessPoolExecutor, whose process stays behind when this one is killed.
        self._pool = multiprocessing.get_context("spawn").Pool(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def send(self, port: int, requests: Sequence[bytes], *, clients: int) -> Load:
        """Send the requests from `clients`. Each client sends its next one right after an answer."""
        return self._pool.apply(drive, (port, requests, clients))

    def send_steadily(self, port: int, requests: Sequence[bytes], *, clients: int, rate: float) -> Load:
        """Send `rate` requests a second, also while others are not answered; `clients` is the most at once."""
        return self._pool.apply(drive_steadily, (port, requests, clients, rate))

    def start(self, work: Callable[..., Result], *arguments: object) -> AsyncResult[Result]:
        """Begin other work in the same process; return what tells whether it has ended, and waits for its result."""
        return self._pool.apply_async(work, arguments)

    def allocate(self, port: int, token: str, count: int, *, clients: int) -> dict[str, str]:
        """Allocate for new tracks; return the sandbox id of each. Fails unless all succeed."""
        tracks = new_tracks(count)
        given = self.send(port, allocations(token, tracks), clients=clients)
        assert given.statuses == {201: count}, given.statuses
        return {tracks[answer.number]: json.loads(answer.body)["sandbox_id"] for answer in given.answers}

    def give_back(self, port: int, token: str, held: Mapping[str, str], *, clients: int) -> None:
        """Mark the sandbox of each track. Fails unless all succeed."""
        statuses = self.send(port, marks(token, held), clients=clients).statuses
        assert statuses == {200: len(held)}, statuses


class _Client:
    """One connection, and its current request."""

    def __init__(self, port: int, opened: ExitStack) -> None:
        self.socket = opened.enter_context(socket.create_connection((LOOPBACK, port), _SILENCE_SEC))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self._number = 0
        self._began = 0.0
        self._received = b""

    def send(self, number: int, request: bytes, *, due: float | None = None) -> None:
        """Send a request, which fits into one packet. Its latency counts from when it was due, or else from now."""
        self._number, self._received = number, b""
        self._began = time.monotonic() if due is None else due
        sent = self.socket.send(request)
        assert sent == len(request)

    def receive(self) -> Answer | None:
        """Read the received bytes; return the answer when it is whole."""
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed a connection before it had answered")
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return None
        return Answer(self._number, int(head[9:12]), self._began, time.monotonic(), body)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError("an answer without its length")
    return int(rest.partition(b"\r\n")[0])


def drive(port: int, requests: Sequence[bytes], clients: int) -> Load:
    """Send the requests from this process (`Generator` uses its own). All connections are made before."""
    answers: list[Answer] = []
    left = iter(enumerate(requests))
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        connected = [_Client(port, opened) for _ in range(min(clients, len(requests)))]
        cpu = time.process_time()
        for client in connected:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(*next(left))
        for client in _readable(selector):
            answer = client.receive()
            if answer is None:
                continue
            answers.append(answer)
            upcoming = next(left, None)
            if upcoming is not None:
                client.send(*upcoming)
            else:
                selector.unregister(client.socket)
        return Load(answers, time.process_time() - cpu)


def drive_steadily(port: int, requests: Sequence[bytes], clients: int, rate: float) -> Load:
    """Send the requests at a steady rate from this process.

    A request that is due while all clients wait for answers is sent later. That is part of its latency.
    """
    answers: list[Answer] = []
    left = deque(enumerate(requests))
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        free = [_Client(port, opened) for _ in range(clients)]
        for client in free:
            selector.register(client.socket, selectors.EVENT_READ, client)
        cpu, began = time.process_time(), time.monotonic()
        while len(answers) < len(requests):
            while free and left and (due := began + left[0][0] / rate) <= time.monotonic():
                free.pop().send(*left.popleft(), due=due)
            can_send = bool(free and left)
            events = selector.select(max(0.0, due - time.monotonic()) if can_send else _SILENCE_SEC)
            if not events and not can_send:
                raise TimeoutError(f"nothing was answered for {_SILENCE_SEC} s")
            for key, _ in events:
                answer = key.data.receive()
                if answer is not None:
                    answers.append(answer)
                    free.append(key.data)
        return Load(answers, time.process_time() - cpu)


def _readable(selector: selectors.BaseSelector) -> Iterator[_Client]:
    """Yield each client that has received bytes, until none is left."""
    while selector.get_map():
        events = selector.select(_SILENCE_SEC)
        if not events:
            raise TimeoutError(f"nothing was answered for {_SILENCE_SEC} s")
        for key, _ in events:
            yield key.data
