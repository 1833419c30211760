"""What strangers can do to the ports that show metrics and health: hold connections open, and no more than that."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from deploy.dev.processes import free_ports, wait_until
from tests.worker.scrape import scrape
from tests.worker.test_beat import start_beat


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nX-A:"], ids=["silent", "half a head"])
def test_connections_that_are_held_open_are_few_and_keep_nobody_out(database_url: str, sent: bytes) -> None:
    (port,) = free_ports(1)
    with start_beat(database_url, port) as beat, ExitStack() as opened:
        assert wait_until(lambda: bool(scrape(port)), 30)
        held = [opened.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(200)]
        for each in held:
            each.sendall(sent)
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200
        assert held[0].recv(1) == b""
        assert wait_until(lambda: len(list(Path(f"/proc/{beat.pid}/task").iterdir())) < 60, 10)


def test_a_client_that_goes_before_its_answer_leaves_no_trace_in_the_log(database_url: str) -> None:
    (port,) = free_ports(1)
    with start_beat(database_url, port) as beat:
        assert wait_until(lambda: bool(scrape(port)), 30)
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(b"GET /met")
        assert scrape(port)
    assert not any("Traceback" in line for line in beat.output)
