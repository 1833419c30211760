"""The image, as far as it can be tested without a container engine: what its entry point runs, and its health check."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from broker_common.settings import Process, Settings
from deploy.dev.processes import ROOT, free_ports, wait_until
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import ThreadingHTTPServer

ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
BUILD_LOCK = ROOT / "deploy" / "build-requirements.txt"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
COMMANDS = ["api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "worker", "beat", "flower"]


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """Return a directory of programs that only say how they were called."""
    for name in ("gunicorn", "celery", "broker"):
        stub = tmp_path / name
        stub.write_text(f'#!/bin/sh\necho "$$ {name} $*"\npwd\n')
        stub.chmod(0o755)
    return tmp_path


def start(*command: str, path: Path, **environ: str) -> subprocess.Popen[str]:
    """Start the entry point from another directory than the image's."""
    env = {"PATH": f"{path}:{Path(sys.executable).parent}:/usr/bin:/bin", "TMPDIR": str(path)} | environ
    pipe = subprocess.PIPE
    return subprocess.Popen([str(ENTRYPOINT), *command], env=env, cwd="/", stdout=pipe, stderr=pipe, text=True)


def run(*command: str, path: Path, **environ: str) -> tuple[int, str, str]:
    """Return the exit code and what was written."""
    process = start(*command, path=path, **environ)
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


def started_by(*command: str, path: Path) -> list[str]:
    """Return the command line that the entry point has become."""
    process = start(*command, path=path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    first, directory = output.splitlines()
    pid, line = first.split(" ", 1)
    assert int(pid) == process.pid, "it is a child, which signals do not reach"
    assert Path(directory) == ROOT
    return shlex.split(line)


def documented(command: str) -> list[str]:
    """Return how the documents start a process."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    (line,) = re.findall(
        rf"^(?:METRICS_PORT=910[34] )?((?:gunicorn|celery) .*\b{command}\b[^#\n]*)", text, re.MULTILINE
    )
    return shlex.split(line)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("api", "broker_api.wsgi"),
        ("console", "broker_api.console.wsgi"),
        ("worker-jobs", "worker -E -Q jobs"),
        ("worker-deletions", "worker -E -Q deletions"),
        ("worker-webhooks", "worker -E -Q webhooks"),
        ("beat", "beat"),
        ("flower", "flower"),
    ],
)
def test_a_command_becomes_the_process_that_the_documents_start(stubs: Path, command: str, word: str) -> None:
    assert started_by(command, path=stubs) == documented(word)


def test_a_worker_for_deletions_has_a_thread_for_each_call_that_the_provider_allows(stubs: Path) -> None:
    code, output, errors = run("worker-deletions", path=stubs, CSP_MAX_CONCURRENCY="114")
    assert code == 0, errors
    assert output.splitlines()[0].endswith("-Q deletions -P threads -c 114")


@pytest.mark.parametrize("command", ["worker-deletions", "worker-webhooks"])
def test_a_worker_of_threads_may_open_as_many_files_as_its_machine_allows(stubs: Path, command: str) -> None:
    (stubs / "celery").write_text("#!/bin/sh\necho $(ulimit -Sn) $(ulimit -Hn)\n")
    limited = ["sh", "-c", 'ulimit -Sn 64; exec "$0" "$@"', str(ENTRYPOINT), command]
    env = {"PATH": f"{stubs}:/usr/bin:/bin", "TMPDIR": str(stubs)}
    output = subprocess.run(limited, env=env, capture_output=True, text=True, check=True).stdout
    soft, hard = output.split()
    assert soft == hard != "64"


def test_a_worker_takes_the_queues_that_are_named(stubs: Path) -> None:
    line = started_by("worker", "deletions", "-c", "8", path=stubs)
    assert line[line.index("-Q") + 1] == "deletions"
    assert line[-2:] == ["-c", "8"]


def test_a_worker_with_options_alone_takes_all_queues(stubs: Path) -> None:
    line = started_by("worker", "--loglevel", "DEBUG", path=stubs)
    assert line[line.index("-Q") + 1] == "jobs,deletions,webhooks"
    assert line[-2:] == ["--loglevel", "DEBUG"]


def test_the_operators_command_gets_its_arguments(stubs: Path) -> None:
    assert started_by("broker", "table", "create", path=stubs) == ["broker", "table", "create"]


@pytest.mark.parametrize("command", [(), ("migrate",)])
def test_what_is_no_command_ends_with_2_and_the_list(stubs: Path, command: tuple[str, ...]) -> None:
    code, output, errors = run(*command, path=stubs)
    assert (code, output) == (2, "")
    assert re.findall(r"^  ([a-z-]+) ", errors, re.MULTILINE) == [*COMMANDS, "broker", "healthcheck"]


def test_sigterm_reaches_the_process_itself(stubs: Path) -> None:
    (stubs / "celery").write_text(
        '#!/bin/sh\ntrap "echo asked to stop; exit 0" TERM\necho up\nwhile :; do sleep 0.05; done\n'
    )
    process = start("beat", path=stubs)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "asked to stop\n")


class _Health(Handler):
    """Answers the one path with the status that its server holds."""

    def reply(self) -> None:
        is_asked = self.path == self.server.path  # type: ignore[attr-defined] # set by the fixture's user
        self.answer(self.server.status if is_asked else 404)  # type: ignore[attr-defined] # the same


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with serving(_Health) as running:
        yield running


@pytest.mark.parametrize(
    ("command", "variable", "path"),
    [
        ("api", "API_PORT", "/healthz"),
        ("console", "CONSOLE_PORT", "/healthz"),
        ("worker-jobs", "METRICS_PORT", "/healthz"),
        ("worker-deletions", "METRICS_PORT", "/healthz"),
        ("worker-webhooks", "METRICS_PORT", "/healthz"),
        ("beat", "METRICS_PORT", "/healthz"),
        ("flower", "FLOWER_PORT", "/healthcheck"),
    ],
)
def test_the_health_check_asks_the_process_that_runs(
    stubs: Path, server: ThreadingHTTPServer, command: str, variable: str, path: str
) -> None:
    server.path, server.status = path, 200  # type: ignore[attr-defined] # its handler's
    # no proxy may stand between the check and its own container
    environ = {variable: str(server.server_port), "http_proxy": f"http://127.0.0.1:{free_ports(1)[0]}"}
    assert run(command, path=stubs, **environ)[0] == 0
    assert run("healthcheck", path=stubs, **environ)[0] == 0
    server.status = 503  # type: ignore[attr-defined] # its handler's
    code, _, errors = run("healthcheck", path=stubs)
    assert code == 1
    assert errors == f"http://127.0.0.1:{server.server_port}{path}: HTTP Error 503: Service Unavailable\n"


def test_a_container_that_has_started_nothing_is_unwell(stubs: Path) -> None:
    assert run("healthcheck", path=stubs)[0] != 0


@pytest.mark.parametrize(
    ("command", "port"),
    [
        ("api", Settings().api_port),
        ("console", Settings().console_port),
        (
            "worker",
            Settings.from_env(
                {"CSP_BASE_URL": "http://127.0.0.1", "CSP_API_TOKEN": "x", "RECYCLE_POLICY": "reuse"},
                process=Process.WORKER,
            ).metrics_port,
        ),
        ("beat", Settings.from_env({}, process=Process.BEAT).metrics_port),
        ("flower", 5555),
    ],
)
def test_the_health_check_knows_the_ports_that_are_used_by_default(stubs: Path, command: str, port: int) -> None:
    run(command, path=stubs)
    (url,) = (stubs / "broker-health-url").read_text().split()
    assert f":{port}/" in url
    exposed = re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[0].split()
    assert str(port) in exposed


def test_a_real_process_answers_its_health_check_and_stops_by_sigterm(tmp_path: Path, redis_url: str) -> None:
    environ = {"REDIS_URL": redis_url, "METRICS_PORT": str(free_ports(1)[0]), "API_BIND": "127.0.0.1"}
    process = start("beat", path=tmp_path, **environ)
    try:
        assert wait_until(
            lambda: run("healthcheck", path=tmp_path)[0] == 0, 30, give_up=lambda: process.poll() is not None
        )
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0


def test_what_the_build_needs_is_locked_at_releases_that_their_ranges_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (builder,) = project["build-system"]["requires"]
    (lister,) = (each for each in project["project"]["optional-dependencies"]["dev"] if "cyclonedx" in each)
    lines = [line.rstrip(" \\") for line in BUILD_LOCK.read_text().splitlines() if line[0].isalnum()]
    locked = {each.name: each.specifier for each in map(Requirement, lines)}
    for wanted in (Requirement(builder), Requirement(lister)):
        (version,) = locked[wanted.name]
        assert version.operator == "=="
        assert wanted.specifier.contains(version.version)
    assert BUILD_LOCK.read_text().count("--hash=sha256:") >= len(lines)


def test_the_image_gets_only_what_it_copies() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == {
        file for files in copied for file in files.split()
    }


def test_the_package_has_every_file_of_the_api_and_of_the_console() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged: set[Path] = set()
    for package in setuptools["packages"]:
        directory = ROOT.joinpath(*package.split("."))
        for pattern in ("*.py", *setuptools["package-data"].get(package, ())):
            packaged.update(directory.glob(pattern))
    here = {path for path in (ROOT / "broker_api").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path) for path in here - packaged if path.name != "py.typed"} == set()


def test_the_image_gets_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    copied = re.findall(r"^COPY (broker_[a-z]+) \1$", DOCKERFILE, re.MULTILINE)
    assert set(copied) == packages


def test_the_entry_point_and_the_health_check_are_where_they_are_copied_to() -> None:
    (directory,) = re.findall(r"^WORKDIR (/app)$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^COPY .*deploy/entrypoint.sh deploy/$", DOCKERFILE, re.MULTILINE)
    path = f"{directory}/deploy/entrypoint.sh"
    assert f'ENTRYPOINT ["{path}"]' in DOCKERFILE
    assert f'CMD ["{path}", "healthcheck"]' in DOCKERFILE


def test_every_stage_has_the_same_pinned_base() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.[0-9]+-slim-[a-z]+", base)
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)
    assert stages == [("$BASE", "dependencies"), ("dependencies", "broker"), ("$BASE", "")]


def test_the_labels_of_the_image_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z.]+)="([^"]*)"', DOCKERFILE))
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "revision": "$REVISION",
        "base.name": "$BASE",
    }
