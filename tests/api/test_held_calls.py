"""Calls that a real server holds while their tracks wait in line."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest
from gunicorn.config import Config  # type: ignore[import-untyped] # it ships no types

from broker_api.connections import Connection
from deploy.dev.processes import wait_until
from tests.api.harness import ADMIN_TOKEN, TRACK_TOKEN
from tests.api.test_gunicorn_worker import parse_answer, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.test_gunicorn_worker import Answer, Server

APP = "tests.api.line_app:app"
THREADS = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), app=APP, API_THREADS=str(THREADS)) as server:
        yield server


def request(verb: str, path: str, *, track: str = "", token: str = TRACK_TOKEN, wait: int | None = None) -> bytes:
    lines = [f"{verb} {path} HTTP/1.1", "Host: broker", f"Authorization: Bearer {token}", "Content-Length: 0"]
    lines += [f"X-Track-ID: {track}"] if track else []
    lines += [] if wait is None else [f"Prefer: wait={wait}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def allocate(server: Server, track: str, wait: int) -> socket.socket:
    """Send an allocate, and return its connection. The caller reads the answer."""
    connection = server.connect()
    connection.settimeout(40)
    connection.sendall(request("POST", "/v1/allocate", track=track, wait=wait))
    return connection


def answer_of(connection: socket.socket) -> Answer:
    with connection, connection.makefile("rb") as answers:
        return parse_answer(answers.read())


def body_of(answer: Answer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.body)
    return body


def ask(server: Server, verb: str, path: str, **options: Any) -> Answer:
    with server.connect() as connection:
        connection.sendall(request(verb, path, **options))
        return answer_of(connection)


def waits(server: Server, track: str) -> bool:
    line = body_of(ask(server, "GET", "/v1/admin/waiting", token=ADMIN_TOKEN))
    return track in [each["track_id"] for each in line["places"]]


def held_by(server: Server, track: str) -> int:
    count: int = body_of(ask(server, "GET", "/v1/sandboxes", track=track))["count"]
    return count


def give_up(server: Server, track: str) -> None:
    assert ask(server, "DELETE", "/v1/waiting", track=track).status == 204


def test_a_held_call_is_answered_soon_after_a_sandbox_is_free(server: Server) -> None:
    held = allocate(server, "patient", 30)
    assert wait_until(lambda: waits(server, "patient"), 10)
    assert ask(server, "POST", "/free").status == 204
    began = time.monotonic()
    answer = answer_of(held)
    assert (answer.status, answer.headers["Preference-Applied"]) == (201, "wait=30")
    assert time.monotonic() - began < 10
    assert held_by(server, "patient") == 1


@pytest.mark.parametrize("how", ["closes", "ends its side", "resets"])
def test_a_client_that_hangs_up_while_it_is_held_gets_no_sandbox(server: Server, how: str) -> None:
    track = f"gone-{how.split(maxsplit=1)[0]}"
    held = allocate(server, track, 30)
    assert wait_until(lambda: waits(server, track), 10)
    if how == "ends its side":
        held.shutdown(socket.SHUT_WR)
        assert answer_of(held).status == 202, "it is answered at once, and not held any longer"
    elif how == "resets":
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    held.close()
    assert ask(server, "POST", "/free").status == 204
    # The sandbox is due to the track that left until it is 5 s late. Who waits behind it gets it then.
    behind = allocate(server, f"behind-{track}", 30)
    assert answer_of(behind).status == 201
    assert held_by(server, track) == 0
    give_up(server, track)


def test_calls_that_are_held_leave_threads_for_others(server: Server) -> None:
    tracks = [f"many-{number}" for number in range(THREADS)]
    held = [allocate(server, track, 3) for track in tracks]
    assert wait_until(lambda: all(waits(server, track) for track in tracks), 10)
    assert ask(server, "GET", "/v1/sandboxes", track="other").status == 200
    answers = [answer_of(each) for each in held]
    assert [each.status for each in answers] == [202] * THREADS
    for track in tracks:
        give_up(server, track)


def test_a_drain_answers_what_is_held_within_a_second(tmp_path: Path) -> None:
    with running(tmp_path, app=APP, API_THREADS=str(THREADS), SHUTDOWN_DRAIN_SEC="5") as server:
        held = allocate(server, "patient", 30)
        assert wait_until(lambda: waits(server, "patient"), 10)
        began = time.monotonic()
        server.process.kill(signal.SIGTERM)
        answer = answer_of(held)
        assert (answer.status, body_of(answer)["state"]) == (202, "waiting")
        assert time.monotonic() - began < 2, "a second, and some time for a machine under load"


def test_a_look_for_the_client_reads_nothing_of_its_next_request() -> None:
    ours, clients = socket.socketpair()
    conn = Connection(Config(), ours, ("127.0.0.1", 1), ("127.0.0.1", 2), max_head_bytes=1000)
    with ours, clients:
        assert conn.is_client_there()
        clients.sendall(b"GET /next")
        assert conn.is_client_there()
        assert ours.recv(100) == b"GET /next"
        clients.close()
        assert not conn.is_client_there()
