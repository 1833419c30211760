"""The console as a process: gunicorn with the configuration of `deploy/`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from deploy.dev.processes import ROOT, Process, Program, free_ports, wait_until
from tests.api.test_startup import COMMANDS, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

THREADS = 16


class Console:
    """A console of its own process, whose API is away."""

    def __init__(self, scratch: Path, **environment: str) -> None:
        self.lines: list[str] = []
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        machine = {each: os.environ[each] for each in ("PATH", "HOME", "LANG") if each in os.environ}
        settings = {
            "BROKER_ENV": "development",
            "BROKER_API_URL": "http://127.0.0.1:1/v1",
            "CONSOLE_BIND": "127.0.0.1",
            "CONSOLE_PORT": str(self.port),
            "TMPDIR": str(scratch),
        }
        program = Program(
            name="console",
            command=(sys.executable, "-m", *COMMANDS["console"]),
            env=machine | settings | environment,
            ready_url=f"{self.url}/readyz",
            stop_limit_sec=45,
        )
        self.process = Process(program, lambda _, line: self.lines.append(line))

    def send(self, request: bytes) -> bytes:
        """Send raw bytes, and return all that the console answers until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(request)
            return connection.makefile("rb").read()


@contextmanager
def running(scratch: Path, **environment: str) -> Iterator[Console]:
    console = Console(scratch, **environment)
    console.process.start()
    try:
        assert wait_until(console.process.is_ready, 30, give_up=console.process.has_ended), "\n".join(console.lines)
        yield console
    finally:
        console.process.stop()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    scratch = tmp_path_factory.mktemp("console")
    # What another process of this machine may have in its environment must not change the console's metrics.
    with running(scratch, PROMETHEUS_MULTIPROC_DIR=str(scratch / "missing")) as up:
        yield up


def test_it_serves_pages_while_the_api_is_away(console: Console) -> None:
    answer = requests.get(f"{console.url}/signin", timeout=10)
    assert (answer.status_code, answer.headers["Server"]) == (200, "broker")
    assert "Sign in" in answer.text


def test_its_metrics_are_of_pages_and_of_the_process(console: Console) -> None:
    requests.get(f"{console.url}/signin", timeout=10)
    text = requests.get(f"{console.url}/metrics", timeout=10).text
    assert 'broker_console_requests_total{endpoint="/signin",method="GET",status="200"}' in text
    assert "process_resident_memory_bytes" in text


def test_browsers_that_connect_and_say_nothing_hold_up_nobody(console: Console) -> None:
    with ExitStack() as silent:
        for _ in range(2 * THREADS):
            silent.enter_context(socket.create_connection(("127.0.0.1", console.port), 10))
        answer = requests.get(f"{console.url}/signin", timeout=4)
    assert answer.status_code == 200


def test_what_is_no_request_gets_a_plain_answer_with_a_request_id(console: Console) -> None:
    head, _, body = console.send(b"GET /signin nonsense\r\nX-Request-ID: of-a-test\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"\r\nX-Request-ID: of-a-test\r\n" in head
    assert b"\r\nContent-Type: text/plain; charset=utf-8\r\n" in head
    assert body == b"Bad Request. Request id: of-a-test\n"


def test_every_line_of_its_log_is_an_object_also_those_of_gunicorn(console: Console) -> None:
    loggers = {json.loads(line)["logger"] for line in console.lines}
    assert "gunicorn.error" in loggers


def test_sigterm_ends_it_with_0_within_seconds_although_a_browser_is_connected(tmp_path: Path) -> None:
    with running(tmp_path) as console, requests.Session() as browser:
        assert browser.get(f"{console.url}/signin", timeout=10).status_code == 200
        began = time.monotonic()
        console.process.kill(signal.SIGTERM)
        assert wait_until(console.process.has_ended, 20)
        assert (console.process.poll(), time.monotonic() - began < 10) == (0, True)


def test_each_bad_setting_is_a_line_and_ends_it_with_2(tmp_path: Path) -> None:
    ended = start(
        "console",
        tmp_path,
        BROKER_ENV="production",
        BROKER_API_URL="ftp://broker",
        CONSOLE_PORT="many",
        CONSOLE_SECRET_KEY="s3cr3t",
    )
    assert ended.returncode == 2
    assert [line.split(":", 1)[0] for line in ended.stderr.splitlines()] == [
        "BROKER_API_URL",
        "CONSOLE_PORT",
        "CONSOLE_SECRET_KEY",
    ]
    assert "s3cr3t" not in ended.stdout + ended.stderr


def test_its_process_loads_no_library_for_the_table_and_none_for_the_queue(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
runpy.run_path({COMMANDS["console"][2]!r})
import broker_api.console.wsgi
print(*sorted({{"boto3", "botocore", "celery", "kombu"}} & set(sys.modules)))
"""
    env = {"PATH": os.environ["PATH"], "BROKER_ENV": "development", "TMPDIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
