"""Real processes: start one by exec, read its output, ask whether it answers, and stop it by its process id.

`make run` and the tests use it. It knows nothing of the broker, whose programs are in `programs`.
"""

from __future__ import annotations

import functools
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A command, its environment, and the address by which it is known to be ready."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    """The whole environment of the process: nothing is inherited."""
    ready_url: str = ""
    """Ready when this answers: `http://…` with 200, `tcp://host:port` by accepting. Empty if it runs to its end."""
    ready_headers: Mapping[str, str] | None = None
    """The headers of the POST of `{}` that an `http://…` address must answer. None for a GET without headers."""
    health_url: str = ""
    """Answers 503 when the program must be started again. Empty if it has no such address."""
    stop_limit_sec: float = 5
    """The time that it has to stop before it is killed."""
    fresh_directory: Path | None = None
    """A directory that is emptied at every start."""


class Process:
    """A program that runs in a session of its own, so that a terminal's Ctrl-C does not reach it.

    Start it from the main thread: on Linux the kernel stops it when the thread that started it ends. So nothing is left
    if this process is killed.
    """

    def __init__(self, program: Program, on_line: Callable[[str, str], None]) -> None:
        """Call `on_line(name, line)` for each line of output, in a thread."""
        self.program = program
        self.name = program.name
        self.last_line = ""
        self.started_at = 0.0
        self._asked_at: float | None = None
        self._was_well = False
        self._on_line = on_line
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def start(self) -> None:
        """Start the program, for the first time or again."""
        directory = self.program.fresh_directory
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
        self.last_line = ""
        self.started_at = time.monotonic()
        self._asked_at = None
        self._was_well = False
        self._popen = subprocess.Popen(
            [*_stopped_with_parent(), *self.program.command],
            env=dict(self.program.env),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._popen.stdout is not None  # noqa: S101 - it was asked for
        self._reader = threading.Thread(target=self._read, args=(self._popen.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The id of the process that was started last."""
        return self._started.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the process runs."""
        return self._started.poll()

    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self.poll() is not None

    def is_ready(self) -> bool:
        """Tell whether the program answers."""
        return answers(self.program.ready_url, self.program.ready_headers)

    def is_unwell(self) -> bool:
        """Tell whether the program was healthy since its start and now reports 503: it must be started again."""
        if not self.program.health_url:
            return False
        try:
            status = call("GET", self.program.health_url)[0]
        except (OSError, http.client.HTTPException):
            return False
        self._was_well = self._was_well or status == http.HTTPStatus.OK
        return self._was_well and status == http.HTTPStatus.SERVICE_UNAVAILABLE

    def ending(self) -> str:
        """Say how the process ended, with the last line of its output."""
        code = self.poll()
        if code is None:
            return "runs"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._join()
        return f"{how}; its last line: {self.last_line}" if self.last_line else how

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send the process a signal, and nothing to its children."""
        self._started.send_signal(signum)

    def ask_to_stop(self) -> None:
        """Ask the process to end, without waiting."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            if self._started.poll() is None:
                self._started.terminate()

    def stop(self, *, in_a_hurry: Callable[[], bool] = lambda: False) -> str:
        """Ask the process to end, wait, and kill its group after its limit (0.5 s in a hurry); say how it ended.

        The limit counts from the first request to end. The rest of its group is killed afterwards, also if the process
        itself had ended before.
        """
        self.ask_to_stop()
        began, asked_at = time.monotonic(), self._asked_at or 0
        popen, killed = self._started, False
        while popen.poll() is None:
            killed = time.monotonic() - asked_at > (0.5 if in_a_hurry() else self.program.stop_limit_sec)
            if killed:
                self.kill_group()
            with suppress(subprocess.TimeoutExpired):
                popen.wait(0.1)
        self.kill_group()
        self._join()
        return f"{'killed' if killed else 'stopped'} after {time.monotonic() - began:.1f} s"

    def kill_group(self) -> None:
        """Kill the process and all children of its group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._started.pid, signal.SIGKILL)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._popen

    def _join(self) -> None:
        if self._reader is not None:
            self._reader.join(2)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self.last_line = line
                    self._on_line(self.name, line)


def wait_until(condition: Callable[[], bool], seconds: float, *, give_up: Callable[[], bool] = lambda: False) -> bool:
    """Poll a condition until it holds; return False after `seconds`, or when `give_up` says so."""
    deadline = time.monotonic() + seconds
    while not condition():
        if give_up() or time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    """Tell whether `http://…` answers 200, or `tcp://host:port` (any scheme but http) accepts a connection.

    With `headers` the HTTP request is a POST of `{}`, else a GET.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "http":
            sent = call("GET", url) if headers is None else call("POST", url, headers=headers, body="{}")
            return sent[0] == http.HTTPStatus.OK
        socket.create_connection((parts.hostname or "", parts.port or 0), 1).close()
    except (OSError, http.client.HTTPException):
        return False
    return True


def call(
    method: str, url: str, *, headers: Mapping[str, str] | None = None, body: str | None = None
) -> tuple[int, Any]:
    """Make one HTTP request to this machine, past any proxy; return the status, and the body if it is JSON, else None.

    Raises `OSError` or `http.client.HTTPException` if there is no answer within 5 s.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), body, headers or {})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    try:
        return response.status, json.loads(answer)
    except ValueError:
        return response.status, None


def why_not_bindable(host: str, port: int) -> str | None:
    """Return the reason why no program can listen there, or None if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None


def free_ports(count: int) -> list[int]:
    """Return `count` different ports of the loopback address that are free now.

    They lie below the ports that systems choose themselves (Linux from 32768, others from 49152 on). So no connection
    and no server on port 0 takes one before it is used.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


@functools.cache
def _stopped_with_parent() -> tuple[str, ...]:
    """Return the prefix of a command that makes the kernel stop it when this process is killed (util-linux only)."""
    prefix = ("setpriv", "--pdeathsig", "TERM", "--")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return prefix
