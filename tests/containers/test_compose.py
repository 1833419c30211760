"""`deploy/compose.yaml` as it is committed, on an engine: from `up` to `stop`. The tests are the steps, in this order.

Only the images of others are replaced (no registry is asked), Grafana is left out, and the ports of this machine are
free ones.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import ROOT, free_ports, wait_until
from tests.containers import images
from tests.containers.stacks import ADMIN, TRACK_TOKEN, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.containers.engine import Engine
    from tests.containers.steps import Steps

OURS = ("api", "console", "worker-jobs", "worker-deletions", "worker-webhooks", "beat", "flower", "csp")
"""The services of our image that keep running."""
OTHERS = ("dynamodb", "redis", "prometheus")
ONCE = ("table", "first-sync")
CLIENTS = ("track.sh", "track.py")
WORKERS = 3
A_RELEASE = 2_000_000
SECONDS_TO_BE_SEEN = 90
"""Prometheus asks DNS for its targets every 30 s, and each target every 15 s."""
_FORM = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


@pytest.fixture(scope="module")
def stack(
    engine: Engine, images_built: None, steps: Steps, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Yield the whole stack, when every service is healthy."""
    ports = dict(zip(("api", "console", "flower", "prometheus"), free_ports(4), strict=True))
    scratch = tmp_path_factory.mktemp("compose")
    stack = Stack(engine=engine, tree=ROOT, scratch=scratch, project="sandbox-broker", ports=ports)
    try:
        with steps.step("compose up --wait"):
            try:
                stack.compose("up", "--detach", "--wait")
            except AssertionError as error:
                pytest.fail(f"{error}\n{stack.logs()}", pytrace=False)
        yield stack
    finally:
        with steps.step("compose down"):
            stack.compose("down", "--timeout", "0")


def sizes(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def test_the_image_says_what_it_is(engine: Engine, images_built: None) -> None:
    labels = engine.inspect(images.BROKER)["Config"]["Labels"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.base.name"] == images.base_name()


def test_a_new_release_is_small_layers_of_at_most_2_mb_packed(
    engine: Engine, images_built: None, steps: Steps, tmp_path: Path
) -> None:
    tree = tmp_path / "next"
    tree.mkdir()
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    subprocess.run(
        ["cp", "--archive", "--parents", *kept, ".dockerignore", "deploy/Dockerfile", tree], cwd=ROOT, check=True
    )
    for changed in ("broker_common/__init__.py", "README.md", "deploy/entrypoint.sh"):
        with (tree / changed).open("a") as file:
            file.write("\n# the next release\n")
    project = tree / "pyproject.toml"
    project.write_text(re.sub(r'^version = ".*"$', 'version = "99.0.0"', project.read_text(), flags=re.MULTILINE))
    with steps.step("docker build of a changed release, with its commit and its base named"):
        commit = "0123456789abcdef0123456789abcdef01234567"
        words = [word.replace("$(git rev-parse HEAD)", commit) for word in images.documented_build(release=True)]
        engine.docker(*[re.sub(r"BASE=.*", f"BASE={images.base_name()}", word) for word in words], cwd=tree)
        following = words[words.index("-t") + 1]
    assert engine.inspect(following)["Config"]["Labels"]["org.opencontainers.image.revision"] == commit

    old, new = images.layers(engine, images.BROKER), images.layers(engine, following)
    changed_layers = set(new) - set(old)
    with steps.step("its new layers are packed"):
        packed = images.packed_sizes(engine, following, changed_layers)
    steps.say(
        f"layers: {len(new)}, of which {len(changed_layers)} are new in a release: {sum(packed.values()):,} bytes packed"
    )
    for line in engine.docker("history", "--format", "{{.Size}} {{.CreatedBy}}", images.BROKER).splitlines():
        if not line.startswith("0B"):
            steps.say(f"    {sizes(line)[:100]}")
    assert changed_layers
    assert sum(packed.values()) <= A_RELEASE


def test_every_service_is_up_and_what_runs_once_ends_with_0(stack: Stack) -> None:
    def states() -> dict[str, dict[str, Any]]:
        found = stack.containers()
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each["State"] for each in found}

    assert wait_until(lambda: all(states()[name]["Status"] == "exited" for name in ONCE), 60)
    now = states()
    assert now.keys() == {*OURS, *OTHERS, *ONCE}
    assert {name for name, state in now.items() if state["Status"] == "exited"} == set(ONCE)
    assert [now[name]["ExitCode"] for name in ONCE] == [0, 0]
    assert {now[name]["Health"]["Status"] for name in (*OURS, *OTHERS)} == {"healthy"}


@pytest.mark.parametrize("service", [*OURS, *OTHERS])
def test_a_container_has_no_rights(stack: Stack, service: str) -> None:
    (container,) = stack.containers(service)
    user, capabilities, privileges, root = confinement(stack.engine, container["Id"])
    assert user != "0"
    if service in OURS:
        assert user == "10001"
    assert (capabilities, privileges) == ("0000000000000000", "1")
    assert "ro" in root.split(",")


def confinement(engine: Engine, container: str) -> tuple[str, str, str, str]:
    """Return the user, all capabilities, no_new_privs and the mount options of / of a container's first process."""
    status = engine.docker("exec", container, "cat", "/proc/1/status")
    user, capabilities, privileges = (
        re.findall(rf"^{name}:\s+(\w+)", status, re.MULTILINE)[0] for name in ("Uid", "CapBnd", "NoNewPrivs")
    )
    mounts = engine.docker("exec", container, "cat", "/proc/1/mounts")
    (root,) = re.findall(r"^overlay / overlay (\S+)", mounts, re.MULTILINE)
    return user, capabilities, privileges, root


def test_the_first_sync_has_filled_the_pool(stack: Stack) -> None:
    def available() -> int:
        overview = requests.get(f"{stack.url('api')}/v1/admin/overview", headers=ADMIN, timeout=30).json()
        found: int = overview["counts"]["available"]
        return found

    assert wait_until(lambda: available() > 0, 60)  # counts are kept for some seconds


@pytest.mark.parametrize("client", CLIENTS)
def test_an_example_client_sets_a_lab_up_and_cleans_it_up(
    stack: Stack, steps: Steps, client: str, tmp_path: Path
) -> None:
    program = ["bash"] if client.endswith(".sh") else [str(ROOT / ".venv" / "bin" / "python")]
    env = {
        "PATH": os.environ["PATH"],
        "BROKER_API_URL": f"{stack.url('api')}/v1",
        "BROKER_TOKEN": TRACK_TOKEN,
        "TRACK_ID": f"lab-of-{client}",
        "STATE_FILE": str(tmp_path / "sandbox.json"),
    }

    def call(word: str) -> str:
        words = [*program, str(ROOT / "deploy" / "examples" / client), word]
        done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with steps.step(f"{client} setup and cleanup"):
        sandbox_id = json.loads(call("setup"))["sandbox_id"]
        assert status_of(stack, sandbox_id) == "allocated"
        call("cleanup")
    # Beat's cleanup may have wiped it already.
    assert status_of(stack, sandbox_id) in {"pending_deletion", "available"}


def status_of(stack: Stack, sandbox_id: str) -> str:
    answer = requests.get(f"{stack.url('api')}/v1/admin/sandboxes/{sandbox_id}", headers=ADMIN, timeout=30)
    return str(answer.json()["status"])


def test_a_cleanup_wipes_what_was_given_back(stack: Stack, steps: Steps) -> None:
    def pending() -> int:
        answer = requests.get(f"{stack.url('api')}/v1/admin/overview", headers=ADMIN, timeout=30)
        return int(answer.json()["counts"]["pending_deletion"])

    def wiped() -> int:
        query = {"kind": "sandbox.wiped"}
        answer = requests.get(f"{stack.url('api')}/v1/admin/events", params=query, headers=ADMIN, timeout=30)
        return len(answer.json()["events"])

    with steps.step("broker job run cleanup, until all is wiped"):
        command = ("broker", "job", "run", "cleanup", "--wait")
        stack.compose("run", "--rm", "--no-deps", "first-sync", *command)
        assert wait_until(lambda: pending() == 0, 60)
    assert wait_until(lambda: wiped() == len(CLIENTS), 60)


def test_three_workers_run_by_scale(stack: Stack, steps: Steps) -> None:
    with steps.step(f"compose up --scale worker-jobs={WORKERS}"):
        stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", f"worker-jobs={WORKERS}")
    assert len(stack.containers("worker-jobs")) == WORKERS


def test_prometheus_has_every_target_up_and_every_rule_ok(stack: Stack, steps: Steps) -> None:
    def asked(path: str) -> dict[str, Any]:
        data: dict[str, Any] = requests.get(f"{stack.url('prometheus')}/api/v1/{path}", timeout=10).json()["data"]
        return data

    expected = sorted(
        ["broker-api", "broker-beat", "broker-console", "broker-flower"]
        + ["broker-worker/deletions", "broker-worker/webhooks"]
        + ["broker-worker/jobs"] * WORKERS
    )

    def up() -> list[str]:
        found = [each for each in asked("targets")["activeTargets"] if each["health"] == "up"]
        return sorted("/".join([each["labels"]["job"], *each["labels"].get("queues", "").split()]) for each in found)

    with steps.step("Prometheus has every target up"):
        assert wait_until(lambda: up() == expected, SECONDS_TO_BE_SEEN), asked("targets")
    rules = [rule for group in asked("rules")["groups"] for rule in group["rules"]]

    def not_ok() -> list[dict[str, Any]]:
        groups = asked("rules")["groups"]
        return [rule for group in groups for rule in group["rules"] if rule["health"] != "ok"]

    with steps.step(f"Prometheus' {len(rules)} rules are ok"):
        assert wait_until(lambda: not not_ok(), SECONDS_TO_BE_SEEN), not_ok()


def test_a_person_signs_in_to_the_console_and_sees_the_pool(stack: Stack) -> None:
    token = ADMIN["Authorization"].removeprefix("Bearer ")
    seen: list[requests.Response] = []

    def signs_in() -> bool:
        with requests.Session() as browser:
            (form,) = _FORM.findall(browser.get(f"{stack.url('console')}/signin", timeout=30).text)
            sent = {"csrf_token": form, "token": token}
            seen.append(browser.post(f"{stack.url('console')}/signin", data=sent, timeout=30))
        return seen[-1].status_code == 200

    # On a busy machine the API may take too long for the console, which then says so, with 503.
    assert wait_until(signs_in, 60), seen[-1].text
    assert "Sign out" in seen[-1].text
    assert "available" in seen[-1].text.lower()


def test_flower_knows_every_worker(stack: Stack) -> None:
    url = f"{stack.url('flower')}/api/workers"
    assert requests.get(url, timeout=30).status_code == 401
    # It asks the workers when it is told to.
    workers = requests.get(url, params={"refresh": 1}, auth=("admin", "admin"), timeout=60).json()
    assert len(workers) == WORKERS + 2


def test_a_process_has_room_below_its_limit_of_memory(stack: Stack, steps: Steps) -> None:
    lines = stack.engine.docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.MemPerc}}").splitlines()
    for line in sorted(lines):
        steps.say(f"    {line}")
    used = {line.split()[0]: float(line.split()[-1].removesuffix("%")) for line in lines}
    limited = [each["Name"].removeprefix("/") for each in stack.containers(*OURS) if each["HostConfig"]["Memory"]]
    assert len(limited) == len(OURS) + WORKERS - 1
    assert [name for name in limited if used[name] > 75] == []


def test_every_process_stops_by_itself(stack: Stack, steps: Steps) -> None:
    with steps.step("compose stop"):
        codes = stack.stop()
    steps.say(f"    {codes}")
    assert len(codes) == len(OURS) + len(OTHERS) + WORKERS - 1
    # A JVM that is told to stop ends with 143.
    ended = {name: code for name, code in codes.items() if code != 0 and "dynamodb" not in name}
    assert ended == {}
