"""The API is told to stop, and started again, while tracks call it without a pause."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev import programs
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import free_ports, wait_until
from tests.backends import installed, running
from tests.e2e.stack import TRACK_TOKEN, Stack, api_program
from tests.haproxy import Balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

SETTINGS = {
    "POOL": "200",
    "SHUTDOWN_DRAIN_SEC": "2",
    "CLEANUP_INTERVAL_SEC": "1",
    "MOCK_CSP_DELETE_SECONDS": "0",
    "RATE_LIMIT_RPS": "100000",
    "RATE_LIMIT_BURST": "100000",
    # Long enough for a busy machine: a 503 must come from a restart, not from a slow store.
    "REQUEST_DEADLINE_SEC": "10",
}
PAUSE_SEC = 0.05
LIVES_PAUSE_SEC = 0.2
"""So that the pool, and the wipes, keep up with the lives."""
REFUSED, LOST = "refused", "lost"


@dataclass(frozen=True, kw_only=True)
class Called:
    """One call of a track, and what came of it: a status, that nobody listened, or that the answer never came."""

    what: str
    began: float
    outcome: int | str
    closes: bool = False
    """The answer says that the connection is not kept."""
    body: dict[str, Any] = field(default_factory=dict)


class Track:
    """Calls without a pause: on one connection for as long as the server keeps it, or on a new one each time."""

    def __init__(self, port: int, track_id: str, *, keeps: bool) -> None:
        self.calls: list[Called] = []
        self._port = port
        self._track_id = track_id
        self._keeps = keeps
        self._connection: http.client.HTTPConnection | None = None

    def hold(self, over: threading.Event) -> None:
        """Allocate and read the same sandbox again and again."""
        while not over.wait(PAUSE_SEC):
            given = self.call("POST", "/allocate", self._track_id)
            if "sandbox_id" in given.body:
                self.call("GET", f"/sandboxes/{given.body['sandbox_id']}", self._track_id)
        self._hang_up()

    def live(self, over: threading.Event) -> None:
        """Allocate a sandbox and give it back, each time as another track."""
        for number in count():
            if over.wait(LIVES_PAUSE_SEC):
                break
            track_id = f"{self._track_id}-{number}"
            given = self.call("POST", "/allocate", track_id)
            if "sandbox_id" in given.body:
                self.call("POST", f"/sandboxes/{given.body['sandbox_id']}/mark-for-deletion", track_id)
        self._hang_up()

    def call(self, method: str, path: str, track_id: str) -> Called:
        began = time.monotonic()
        made = partial(Called, what=f"{track_id} {method} {path}", began=began)
        headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track_id}
        try:
            connection = self._connect()
        except (ConnectionRefusedError, ConnectionResetError):  # the latter if the socket closes at this very moment
            called = made(outcome=REFUSED)
        else:
            try:
                connection.request(method, f"/v1{path}", headers=headers)
                answer = connection.getresponse()
                text = answer.read()
                body = json.loads(text) if answer.headers.get_content_type() == "application/json" else {}
                closes = answer.headers.get("Connection") == "close"
                called = made(outcome=answer.status, closes=closes, body=body)
            except (OSError, http.client.HTTPException) as error:
                called = made(outcome=f"{LOST}: {error!r}")
                self._hang_up()
        if not self._keeps or called.closes:
            self._hang_up()
        self.calls.append(called)
        return called

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=30)
            connection.connect()
            self._connection = connection
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def load(port: int) -> Iterator[list[Track]]:
    """Have tracks call a port during the context."""
    tracks = [Track(port, f"track-{number}", keeps=number % 2 == 0) for number in range(8)]
    over = threading.Event()
    acts: list[Callable[[threading.Event], None]] = [
        track.live if number < 4 else track.hold for number, track in enumerate(tracks)
    ]
    with ThreadPoolExecutor(len(tracks)) as pool:
        calling = [pool.submit(act, over) for act in acts]
        try:
            yield tracks
        finally:
            over.set()
        for each in calling:
            each.result()


def calls_of(tracks: list[Track]) -> list[Called]:
    return sorted((call for track in tracks for call in track.calls), key=lambda call: call.began)


# -- one instance alone


def test_an_instance_that_is_told_to_stop_turns_red_serves_on_and_drops_nothing(tmp_path: Path) -> None:
    with Stack(tmp_path, SETTINGS) as stack:
        stack.run_job("sync")
        port = stack.plan.number("API_PORT")
        given = stack.as_track("slow", "POST", "/allocate").json()
        first, rest = mark_in_two_parts(given)
        with socket.create_connection((LOOPBACK, port), 30) as slow, load(port) as tracks:
            assert wait_until(lambda: all(len(track.calls) > 10 for track in tracks), 60)
            slow.sendall(first)
            stack.kill("api", signal.SIGTERM)
            red_at = await_red(stack)
            assert wait_until(lambda: tracks[-1].calls[-1].outcome == REFUSED, 30)
            slow.sendall(rest)
            answer = slow.makefile("rb").read()
        assert wait_until(lambda: not stack.is_running("api"), 30)
        assert stack.exit_code("api") == 0

    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["status"] == "pending_deletion"

    calls = calls_of(tracks)
    refused_at = next(call.began for call in calls if call.outcome == REFUSED)
    assert [call for call in calls if call.outcome not in {200, 201, REFUSED}] == []
    assert [call for call in calls if call.began < red_at and call.outcome == REFUSED] == []
    while_draining = [call for call in calls if red_at < call.began < refused_at]
    assert len(while_draining) > 50, "it serves on while it is red"
    assert [call for call in while_draining if not call.closes] == [], "a client that keeps its connection must know"


def mark_in_two_parts(sandbox: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return a request that gives a sandbox back, and the half of its body that comes late."""
    body = json.dumps({"lease_id": sandbox["lease_id"]}).encode()
    head = [
        *(f"POST /v1/sandboxes/{sandbox['sandbox_id']}/mark-for-deletion HTTP/1.1", f"Host: {LOOPBACK}"),
        *(f"Authorization: Bearer {TRACK_TOKEN}", "X-Track-ID: slow", "Content-Type: application/json"),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body[:10], body[10:]


def await_red(stack: Stack) -> float:
    """Wait until readiness is red, and return when it was seen so first."""

    def is_red() -> bool:
        return requests.get(f"{stack.api_url}/readyz", timeout=30).status_code == 503

    assert wait_until(is_red, 30)
    return time.monotonic()


# -- two instances behind HAProxy


@pytest.fixture(scope="module")
def haproxy() -> str:
    return installed("haproxy", package="haproxy")


def with_a_second_api(plan: Plan, scratch: Path, *, port: int) -> list[Program]:
    return [*programs.services(plan, scratch), api_program(plan, scratch, name="api-2", port=port)]


@pytest.mark.timeout(400)
def test_no_call_fails_while_two_instances_are_restarted_behind_haproxy(haproxy: str, tmp_path: Path) -> None:
    (second_port,) = free_ports(1)
    with Stack(tmp_path, SETTINGS, services=partial(with_a_second_api, port=second_port)) as stack:
        stack.run_job("sync")
        balanced = Balanced(haproxy, tmp_path, [stack.plan.number("API_PORT"), second_port])
        with running(balanced.program):
            assert wait_until(balanced.all_are_up, 30), balanced.servers()
            with load(balanced.port) as tracks:
                assert wait_until(lambda: all(len(track.calls) > 10 for track in tracks), 60)
                for name in ("api", "api-2"):
                    stack.kill(name, signal.SIGTERM)
                    assert wait_until(lambda name=name: not stack.is_running(name), 60)  # type: ignore[misc] # mypy cannot infer it
                    assert stack.exit_code(name) == 0
                    stack.start(name)
                    assert wait_until(balanced.all_are_up, 30), balanced.servers()
            seen = balanced.servers()
        for name in ("api", "api-2"):
            stack.kill(name)  # the test's end need not wait for a drain

    calls = calls_of(tracks)
    assert [call for call in calls if call.outcome not in {200, 201}] == []
    assert [int(server["chkdown"]) for server in seen.values()] == [1, 1]
    for track in tracks[4:]:
        assert len({call.body["lease_id"] for call in track.calls if "/allocate" in call.what}) == 1
