"""Strangers hold open all that a server can be made to hold, and tracks and health checks are answered all the same.

Nothing here needs a token, so nothing here may need one to be stopped.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Self

import pytest
import requests

from broker_api.bounds import ANSWER_SEC, BODY_SEC, HEAD_SEC
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import free_ports, wait_until
from tests.backends import installed, running
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.e2e.test_api_restarts import with_a_second_api
from tests.haproxy import Balanced

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "POOL": "200",
    "API_WORKERS": "1",
    "API_THREADS": "16",
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_BURST": "100000",
}
PATIENCE_SEC = 10
"""How long a good call may take here. Each of these strangers used to hold it up for as long as it liked."""
DRIP_SEC = 0.5
HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
MARK = (
    b"POST /v1/sandboxes/7/mark-for-deletion HTTP/1.1\r\nHost: x\r\nX-Track-ID: stranger\r\n"
    b"Content-Type: application/json\r\n"
)
KINDS = {
    "silent": (b"", False),
    "a head that stops": (HEAD + b"X-A:", False),
    "a head that drips": (HEAD + b"X-A: ", True),
    "a body that stops": (MARK + b"Content-Length: 20\r\n\r\n{", False),
    "a body that drips": (MARK + b"Content-Length: 60000\r\n\r\n", True),
    "chunks that drip": (MARK + b"Transfer-Encoding: chunked\r\n\r\nFFF\r\n", True),
    "a body with a token": (
        MARK + b"Authorization: Bearer " + TRACK_TOKEN.encode() + b"\r\nContent-Length: 20\r\n\r\n{",
        False,
    ),
    "waits to be told to go on": (MARK + b"Content-Length: 20\r\nExpect: 100-continue\r\n\r\n", False),
    "does not read its answers": (b"GET /v1/docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 4, False),
    "does not hang up": (HEAD + b"Connection: close\r\n\r\n", False),
}
"""What each kind sends at first, and whether it goes on byte by byte."""
DESCRIPTORS = 5000
RELEASED_SEC = max(HEAD_SEC + BODY_SEC, ANSWER_SEC)


class Strangers:
    """Connections that are held open; use it in a `with` statement."""

    def __init__(self) -> None:
        self._dripping: list[socket.socket] = []
        self._opened = ExitStack()
        self._over = threading.Event()
        self._dripper = threading.Thread(target=self._drip)

    def __enter__(self) -> Self:
        self._dripper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._dripper.join()
        self._opened.close()

    def hold(self, port: int, first: bytes, *, drips: bool = False) -> socket.socket:
        """Open a connection, send the `first` bytes, and read nothing."""
        stranger = socket.socket()
        self._opened.enter_context(stranger)
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stranger.settimeout(PATIENCE_SEC)
        stranger.connect((LOOPBACK, port))
        stranger.sendall(first)
        if drips:
            self._dripping.append(stranger)
        return stranger

    def _drip(self) -> None:
        while not self._over.wait(DRIP_SEC):
            for stranger in list(self._dripping):
                try:
                    stranger.send(b"x")
                except OSError:
                    self._dripping.remove(stranger)


def is_released(stranger: socket.socket) -> bool:
    """Tell whether the server has closed a connection, without reading anything off it."""
    poller = select.poll()
    poller.register(stranger, select.POLLRDHUP)
    return bool(poller.poll(0))


class GoodCalls:
    """A track and a health check, each on a new connection, as from a command line."""

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._numbers = count()
        self.made = 0

    def make(self) -> None:
        """Make one of each by each port."""
        for port in self._ports:
            health = requests.get(f"http://{LOOPBACK}:{port}/healthz", timeout=PATIENCE_SEC)
            assert health.status_code == 200
            headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": f"track-{next(self._numbers) % 50}"}
            url = f"http://{LOOPBACK}:{port}/v1/allocate"
            given = requests.post(url, headers=headers, timeout=PATIENCE_SEC)
            assert given.status_code in {200, 201}, given.text
            self.made += 1

    def make_until_released(self, strangers: dict[str, list[socket.socket]], seconds: float) -> None:
        """Go on until the server has closed all of these connections."""
        end = time.monotonic() + seconds + PATIENCE_SEC
        while held := {kind for kind, all_ in strangers.items() if not all(map(is_released, all_))}:
            assert time.monotonic() < end, f"still held open: {held}"
            self.make()


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    """Yield the ports of two instances, of one process each."""
    (second_port,) = free_ports(1)
    services = partial(with_a_second_api, port=second_port)
    with Stack(tmp_path_factory.mktemp("strangers"), SETTINGS, services=services) as stack:
        stack.run_job("sync")
        yield [stack.plan.number("API_PORT"), second_port]


@pytest.fixture(scope="module")
def balanced(ports: list[int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    """Yield HAProxy before both, as it is shipped."""
    binary = installed("haproxy", package="haproxy")
    balanced = Balanced(binary, tmp_path_factory.mktemp("haproxy"), ports)
    with running(balanced.program):
        assert wait_until(balanced.all_are_up, 30), balanced.servers()
        yield balanced


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS:
        if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
            pytest.skip(f"this process may have {hard} descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_that_strangers_hold_open_is_released_in_its_time_and_good_calls_are_answered(
    ports: list[int], balanced: Balanced
) -> None:
    good = GoodCalls([*ports, balanced.port])
    with Strangers() as strangers:
        held = {
            f"{kind}, {where}": [strangers.hold(port, first, drips=drips) for _ in range(40)]
            for kind, (first, drips) in KINDS.items()
            for where, port in {"directly": ports[0], "through HAProxy": balanced.port}.items()
        }
        # A client that reads nothing does not see HAProxy's end of the connection, which comes after what it was sent.
        del held["does not read its answers, through HAProxy"]
        good.make_until_released(held, RELEASED_SEC)
        assert wait_until(lambda: all(row["scur"] == "0" for row in balanced.servers().values()), RELEASED_SEC)
    assert good.made > 10


def test_a_request_that_does_not_come_in_time_is_answered_like_every_error(ports: list[int]) -> None:
    with Strangers() as strangers:
        slow = [
            strangers.hold(ports[0], HEAD, drips=True),
            strangers.hold(ports[0], MARK + b"Content-Length: 20\r\n\r\n{"),
        ]
        for each in slow:
            each.settimeout(HEAD_SEC + PATIENCE_SEC)
            received = each.makefile("rb").read()
            head, _, body = received.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408 "), received
            assert b"\r\nConnection: close" in head
            assert json.loads(body)["error"]["code"] == "REQUEST_TIMEOUT"


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(
    ("connections", "first"), [(4200, b""), (2600, HEAD + b"\r\n")], ids=["silent", "kept after a request"]
)
def test_more_connections_than_there_is_room_for_keep_nobody_out(
    ports: list[int], connections: int, first: bytes
) -> None:
    good = GoodCalls(ports)
    with Strangers() as strangers:
        held = []
        for number in range(connections):
            held.append(strangers.hold(ports[number % 2], first))
            if number % 100 == 0:
                good.make()
        assert any(is_released(each) for each in held), "there was room for all of them"
        for _ in range(10):
            good.make()


def test_no_header_leads_past_the_rules_of_a_proxy_on_the_same_machine(balanced: Balanced) -> None:
    """Its rules go by the path, and the API takes no other path from a header."""
    url = f"http://{LOOPBACK}:{balanced.port}"
    for path in ("/x", "/v1", "/healthz"):
        answer = requests.get(f"{url}{path}/metrics", headers={"SCRIPT_NAME": path}, timeout=PATIENCE_SEC)
        assert answer.status_code == 404
        assert requests.get(f"{url}/healthz", headers={"SCRIPT_NAME": path}, timeout=PATIENCE_SEC).status_code == 200
