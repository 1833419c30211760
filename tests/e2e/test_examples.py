"""The scripts under `deploy/examples`, run as a lab's setup and cleanup on a broker of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import ROOT, free_ports
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Script = Callable[..., subprocess.CompletedProcess[str]]

EXAMPLES = ROOT / "deploy" / "examples"
COMMANDS = {"track.sh": ["bash", str(EXAMPLES / "track.sh")], "track.py": [sys.executable, str(EXAMPLES / "track.py")]}
SETTINGS = {"POOL": "6", "RATE_LIMIT_BURST": "1000"}


@pytest.fixture(params=COMMANDS)
def script(request: pytest.FixtureRequest, stack: Stack, tmp_path: Path) -> Script:
    """Return what runs the script as a track of its own; keyword arguments go over its environment."""
    environment = {
        "PATH": os.environ["PATH"],
        "BROKER_API_URL": f"{stack.api_url}/v1",
        "BROKER_TOKEN": TRACK_TOKEN,
        "TRACK_ID": f"lab-of-{request.param}-{request.node.originalname[-20:]}",
        "STATE_FILE": str(tmp_path / "sandbox.json"),
        "PATIENCE_SEC": "30",
    }

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        words = (*COMMANDS[request.param], *words)
        return subprocess.run(words, env=environment | env, capture_output=True, text=True, check=False, timeout=60)

    return run


def status_of(stack: Stack, sandbox_id: str) -> str:
    return str(stack.as_admin("GET", f"/sandboxes/{sandbox_id}").json()["status"])


def test_setup_gets_a_sandbox_and_cleanup_gives_it_back_however_often_they_run(stack: Stack, script: Script) -> None:
    first, again = script("setup"), script("setup")
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    held = json.loads(first.stdout)
    assert json.loads(again.stdout) == held
    assert status_of(stack, held["sandbox_id"]) == "allocated"
    ended = script("cleanup")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert status_of(stack, held["sandbox_id"]) == "pending_deletion"
    repeated = script("cleanup")
    assert repeated.returncode == 0
    assert "nothing to give back" in repeated.stderr


def test_cleanup_ends_no_lease_but_its_own_and_is_content_when_that_has_ended(
    stack: Stack, script: Script, tmp_path: Path
) -> None:
    held = json.loads(script("setup").stdout)
    (tmp_path / "sandbox.json").write_text(json.dumps(held | {"lease_id": "of-before"}, separators=(",", ":")))
    ended = script("cleanup")
    assert ended.returncode == 0
    assert "taken it back before (LEASE_MISMATCH)" in ended.stderr
    assert status_of(stack, held["sandbox_id"]) == "allocated"


def test_a_request_without_a_final_answer_is_sent_again_as_it_was(script: Script) -> None:
    asked: list[tuple[str | None, str | None]] = []

    class Troubled(Handler):
        def reply(self) -> None:
            asked.append((self.path, self.headers["X-Track-ID"]))
            if len(asked) == 1:
                return  # the connection closes without an answer
            status = {2: 503, 3: 429}.get(len(asked), 201)
            body = b'{"sandbox_id":"1","lease_id":"a"}' if status == 201 else b"<html>"
            self.answer(status, body, Retry_After="0")

    with serving(Troubled) as server:
        result = script("setup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1")
    assert result.returncode == 0, result.stderr
    assert len(asked) == 4
    assert len(set(asked)) == 1


def test_a_wrong_token_is_exit_code_77(script: Script) -> None:
    result = script("setup", BROKER_TOKEN="wrong")
    assert (result.returncode, result.stdout) == (77, "")
    assert "UNAUTHORIZED" in result.stderr


def test_what_the_broker_refuses_is_exit_code_69_with_its_words(script: Script) -> None:
    result = script("setup", NAME_PREFIX="x" * 200)
    assert result.returncode == 69
    assert "X-Sandbox-Name-Prefix" in result.stderr


def test_when_no_sandbox_comes_free_in_time_it_is_exit_code_75(script: Script) -> None:
    result = script("setup", NAME_PREFIX="nobody-s-", PATIENCE_SEC="1")
    assert result.returncode == 75
    assert "NO_SANDBOXES_AVAILABLE" in result.stderr


def test_a_broker_that_cannot_be_reached_in_time_is_exit_code_75(script: Script) -> None:
    assert script("setup", BROKER_API_URL=f"http://127.0.0.1:{free_ports(1)[0]}/v1", PATIENCE_SEC="1").returncode == 75


@pytest.mark.parametrize("words", [(), ("begin",), ("setup", "cleanup", "both")])
def test_wrong_use_is_exit_code_64(script: Script, words: tuple[str, ...]) -> None:
    assert script(*words).returncode == 64


@pytest.mark.parametrize("name", ["BROKER_API_URL", "BROKER_TOKEN", "TRACK_ID"])
def test_a_missing_setting_is_named_with_exit_code_64(script: Script, name: str) -> None:
    result = script("setup", **{name: ""})
    assert (result.returncode, name in result.stderr) == (64, True)
