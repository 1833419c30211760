"""`make run` as its user meets it: the terminal's lines, its signals, and what is left afterwards."""

from __future__ import annotations

import http
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from redis import Redis

from broker_common.tokens import DEVELOPMENT_ADMIN_TOKEN, DEVELOPMENT_TRACK_TOKEN
from deploy.dev.processes import ROOT, call, free_ports, wait_until, why_not_bindable

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc: run it on Linux")

PORTS = (
    "API_PORT",
    "CONSOLE_PORT",
    "METRICS_PORT",
    "DELETIONS_METRICS_PORT",
    "WEBHOOKS_METRICS_PORT",
    "BEAT_METRICS_PORT",
    "FLOWER_PORT",
    "DYNAMODB_PORT",
    "REDIS_PORT",
    "MOCK_CSP_PORT",
)
STOP_ORDER = [
    *("beat", "console", "api", "worker-webhooks", "worker-deletions", "worker-jobs", "flower", "csp", "redis"),
    "dynamodb",
]


class MakeRun:
    """One `make run` in a session of its own, as in a terminal; its temporary files go to `scratch`."""

    def __init__(self, scratch: Path, environment: dict[str, str]) -> None:
        self.scratch = scratch
        self.ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)) | {
            name: value for name, value in environment.items() if name in PORTS
        }
        self.lines: list[str] = []
        self._seen: set[int] = set()
        own = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        # `-o`: what is installed already is not made again, and the tests' own interpreter is the one to run
        self._make = subprocess.Popen(
            ["make", "-o", ".venv/installed", "run", f"python={sys.executable}", "POOL=30"],
            cwd=ROOT,
            env=own | {"TMPDIR": str(scratch)} | self.ports | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, times: int = 1) -> None:
        found = wait_until(lambda: self.output.count(text) >= times, 60, give_up=lambda: self._make.poll() is not None)
        assert found or self.output.count(text) >= times, f"{text!r} did not come:\n{self.output}"

    def wait_until_ready(self) -> None:
        self.wait_for("  Tokens ")
        self.wait_for("curl", times=4)
        self.look_around()

    def look_around(self) -> None:
        """Take note of every process that there is."""
        self._seen |= descendants(self._make.pid)

    def press_ctrl_c(self) -> None:
        os.killpg(self._make.pid, signal.SIGINT)

    def hang_up(self) -> None:
        os.killpg(self._make.pid, signal.SIGHUP)

    def terminate_make(self) -> None:
        self._make.send_signal(signal.SIGTERM)

    def wait_for_end(self) -> int:
        """Wait for make and for everything that writes to its terminal."""
        code = self._make.wait(60)
        self._reader.join(20)
        assert not self._reader.is_alive(), f"something still holds the terminal:\n{self.output}"
        return code

    def leaders(self, *words: str) -> set[int]:
        """Return the first process of a part, found by words of its command line; none while it is down."""
        now = descendants(self._make.pid)
        self._seen |= now
        return {pid for pid in now if is_alive(pid) and os.getsid(pid) == pid and has(pid, words)}

    def stopped(self) -> list[str]:
        return re.findall(r"^run +\| ([\w-]+) stopped after", self.output, re.MULTILINE)

    def assert_nothing_is_left(self) -> None:
        assert self._seen, "no process was ever seen"
        assert {pid for pid in self._seen if is_alive(pid)} == set()
        assert {name: why_not_bindable("127.0.0.1", int(port)) for name, port in self.ports.items()} == dict.fromkeys(
            self.ports
        )
        assert list(self.scratch.iterdir()) == []

    def end(self) -> None:
        if self._make.poll() is None:
            os.killpg(self._make.pid, signal.SIGTERM)
            self.wait_for_end()

    def _read(self) -> None:
        assert self._make.stdout is not None
        with self._make.stdout:
            self.lines.extend(line.rstrip("\n") for line in self._make.stdout)


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def has(pid: int, words: tuple[str, ...]) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return all(word in command for word in words)


@contextmanager
def make_run(scratch: Path, **environment: str) -> Iterator[MakeRun]:
    scratch.mkdir(exist_ok=True)
    run = MakeRun(scratch, environment)
    try:
        yield run
    finally:
        run.end()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRun]:
    """Yield a run that several tests look at and that keeps running."""
    with make_run(tmp_path_factory.mktemp("make-run")) as run:
        run.wait_until_ready()
        yield run


def begin_a_delete(run: MakeRun) -> None:
    """Return once the provider is at work on a delete."""
    run.wait_until_ready()
    api, track = f"http://127.0.0.1:{run.ports['API_PORT']}/v1", {"X-Track-ID": "a-track"}
    track["Authorization"] = f"Bearer {DEVELOPMENT_TRACK_TOKEN}"
    _, allocation = call("POST", f"{api}/allocate", headers=track)
    status, _ = call("POST", f"{api}/sandboxes/{allocation['sandbox_id']}/mark-for-deletion", headers=track)
    assert status == http.HTTPStatus.OK
    call("POST", f"{api}/admin/cleanup", headers={"Authorization": f"Bearer {DEVELOPMENT_ADMIN_TOKEN}"})
    deletes = f"http://127.0.0.1:{run.ports['MOCK_CSP_PORT']}/_mock/deletes"
    assert wait_until(lambda: call("GET", deletes)[1]["in_flight"] == 1, 20), run.output


def pasted(run: MakeRun, path: str) -> Any:
    [line] = [line.strip() for line in run.lines if line.strip().startswith("curl") and f"{path} " in line]
    return json.loads(subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=60).stdout)


@pytest.mark.skipif(not shutil.which("curl") and os.environ.get("CI") != "true", reason="needs: apt-get install curl")
def test_the_printed_curl_lines_work_as_pasted(ready: MakeRun) -> None:
    allocation = pasted(ready, "/v1/allocate")
    [held] = pasted(ready, "/v1/sandboxes")["sandboxes"]
    assert held["sandbox_id"] == allocation["sandbox_id"]
    assert held["status"] == "allocated"
    stats = pasted(ready, "/v1/admin/stats")
    assert stats["allocated"] == 1
    assert stats["total"] == 30
    assert pasted(ready, "/v1/admin/cleanup")["job_id"]


def test_the_printed_export_line_is_all_that_broker_check_needs_in_another_shell(ready: MakeRun) -> None:
    [line] = [line.strip() for line in ready.lines if line.strip().startswith("export ")]
    shell = {"PATH": os.environ["PATH"], "HOME": str(ready.scratch), "AWS_EC2_METADATA_DISABLED": "true"}
    checked = subprocess.run(
        ["sh", "-c", f"{line}; broker check"], env=shell, check=False, capture_output=True, text=True, timeout=60
    )
    assert [words.split()[:2] for words in checked.stdout.splitlines()] == [
        ["settings", "--"],  # of the console, whose key no command needs
        *[[part, "OK"] for part in ("api", "settings", "table", "index", "history", "redis", "provider")],
    ]
    assert "older than 1 d" in checked.stdout, "as this run has HISTORY_DAYS"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("worker-jobs", ("celery", "worker", "jobs")),
        ("worker-deletions", ("celery", "worker", "deletions")),
        ("worker-webhooks", ("celery", "worker", "webhooks")),
        ("console", ("gunicorn", "broker_api.console.wsgi:app")),
        ("beat", ("celery", "beat")),
        ("csp", ()),
    ],
)
def test_a_process_that_dies_is_named_with_its_reason_and_started_again(
    ready: MakeRun, part: str, words: tuple[str, ...]
) -> None:
    words = words or (str(ROOT / "deploy" / "dev" / "mock_csp.py"),)
    [before] = ready.leaders(*words)
    os.kill(before, signal.SIGKILL)
    ready.wait_for(f"| {part} was killed by SIGKILL")
    assert wait_until(lambda: len(ready.leaders(*words) - {before}) == 1, 20)


def test_a_worker_that_runs_and_takes_no_work_is_started_again_and_sigterm_stops_everything_in_order(
    tmp_path: Path,
) -> None:
    with make_run(tmp_path / "scratch", LIVENESS_LIMIT_SEC="3") as run:
        run.wait_until_ready()
        (first,) = run.leaders("broker_worker.celery_app", "worker", "jobs")
        app = Celery(broker=f"redis://127.0.0.1:{run.ports['REDIS_PORT']}/0", set_as_current=False)
        # One task an hour: the next ones fill the worker's slots, and the rest waits.
        assert app.control.rate_limit("broker.purge_stale", "1/h", reply=True, timeout=20, limit=1)
        for _ in range(6):
            app.send_task("broker.purge_stale", queue="jobs", ignore_result=True)
        run.wait_for("worker-jobs runs but no longer works: it is stopped")
        run.wait_for("worker-jobs ended")
        assert wait_until(lambda: run.leaders("broker_worker.celery_app", "worker", "jobs") - {first} != set(), 30)
        with Redis(port=int(run.ports["REDIS_PORT"])) as redis:
            assert wait_until(lambda: not redis.llen("jobs") and not redis.hlen("unacked"), 30)
        run.terminate_make()
        run.wait_for_end()
        assert run.stopped() == STOP_ORDER, run.output
        run.assert_nothing_is_left()


def test_ctrl_c_lets_a_running_delete_finish_and_a_second_run_works_at_once_whose_second_ctrl_c_does_not_wait(
    tmp_path: Path,
) -> None:
    with make_run(tmp_path / "scratch", MOCK_CSP_DELETE_SECONDS="3") as first:
        begin_a_delete(first)
        first.press_ctrl_c()
        first.wait_for_end()
        assert first.stopped() == STOP_ORDER, first.output
        assert "Deleted 1 sandboxes, 0 failed" in first.output.partition("stopping")[2]
        assert [line for line in first.lines if line.startswith("run ")][-1].split() == ["run", "|", "stopped"]
        first.assert_nothing_is_left()
    endless = {"MOCK_CSP_DELETE_SECONDS": "60", "CSP_TIMEOUT_READ_SEC": "60"}
    with make_run(tmp_path / "scratch", **first.ports, **endless) as second:
        begin_a_delete(second)
        second.press_ctrl_c()
        second.wait_for("| api stopped")
        second.press_ctrl_c()
        second.wait_for_end()
        assert "| worker-deletions killed after" in second.output
        second.assert_nothing_is_left()


def test_a_redis_that_is_given_is_used_and_none_is_started_and_a_closed_terminal_stops_the_rest(
    tmp_path: Path, redis_url: str
) -> None:
    with make_run(tmp_path / "scratch", REDIS_URL=redis_url) as run:
        run.wait_until_ready()
        [exported] = [line for line in run.lines if line.strip().startswith("export ")]
        assert "REDIS_URL" not in exported, "what the caller gives may hold a password"
        run.hang_up()
        run.wait_for_end()
        assert run.stopped() == [name for name in STOP_ORDER if name != "redis"], run.output
        run.assert_nothing_is_left()


def test_ctrl_c_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with make_run(tmp_path / "scratch") as run:
        run.wait_for("redis ")
        run.look_around()
        run.press_ctrl_c()
        run.wait_for_end()
        run.assert_nothing_is_left()
        assert "Traceback" not in run.output


def test_a_busy_port_is_named_with_the_variable_that_changes_it_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with make_run(tmp_path / "scratch", FLOWER_PORT=str(port)) as run:
            assert run.wait_for_end() != 0
    assert [line for line in run.lines if line.startswith("run ")] == [
        f"{'run':16} | port {port} cannot be used: Address already in use. Choose another: make run FLOWER_PORT=…"
    ]


def test_every_bad_setting_is_a_line_and_no_secret_is_told(tmp_path: Path) -> None:
    with make_run(
        tmp_path / "scratch",
        K_CANDIDATES="many",
        API_WORKERS="0",
        DDB_ENDPOINT_URL="http://[::1",
        BROKER_API_TOKEN="sha256:secret",
    ) as run:
        assert run.wait_for_end() != 0
    problems = [line for line in run.lines if line.startswith("run ")]
    assert [line.split()[2] for line in problems] == [
        "API_WORKERS:",
        "BROKER_API_TOKEN:",
        "DDB_ENDPOINT_URL:",
        "K_CANDIDATES:",
        "nothing",
    ]
    assert "secret" not in run.output


def test_the_environment_wins_over_the_development_defaults(tmp_path: Path) -> None:
    with make_run(tmp_path / "scratch", BROKER_ENV="production") as run:
        assert run.wait_for_end() != 0
    assert "BROKER_API_TOKEN: Holds a well-known development token." in run.output


def test_an_argument_is_refused_and_starts_nothing() -> None:
    ran = [sys.executable, "-m", "deploy.dev.run", "--help"]
    done = subprocess.run(ran, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (2, 1)
    assert "takes no arguments, only variables: make run POOL=2000" in done.stdout
