"""The scripts under `deploy/examples`, run as a lab's setup and cleanup on a broker of real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from deploy.dev.processes import ROOT, free_ports, wait_until
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Script = Callable[..., subprocess.CompletedProcess[str]]

EXAMPLES = ROOT / "deploy" / "examples"
COMMANDS = {"track.sh": ["bash", str(EXAMPLES / "track.sh")], "track.py": [sys.executable, str(EXAMPLES / "track.py")]}
SETTINGS = {"POOL": "40", "RATE_LIMIT_BURST": "1000"}


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


def test_cleanup_gives_back_what_a_setup_got_whose_answer_was_lost_after_an_operator_had_released_the_first(
    stack: Stack, script: Script, tmp_path: Path
) -> None:
    first = json.loads(script("setup").stdout)
    lease = {"lease_id": first["lease_id"]}
    stack.as_admin("POST", f"/sandboxes/{first['sandbox_id']}/release", json=lease).raise_for_status()
    second: list[dict[str, Any]] = []

    class LosesAnswers(Handler):
        def reply(self) -> None:
            second.append(stack.as_track(self.headers["X-Track-ID"], "POST", "/allocate").json())

    with serving(LosesAnswers) as server:
        lost = script("setup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1", PATIENCE_SEC="0")
    assert (lost.returncode, lost.stdout) == (75, "")
    assert (tmp_path / "sandbox.json").read_text() == ""
    assert second[0]["lease_id"] != first["lease_id"]
    assert status_of(stack, second[0]["sandbox_id"]) == "allocated"
    ended = script("cleanup")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert status_of(stack, second[0]["sandbox_id"]) == "pending_deletion"
    assert not (tmp_path / "sandbox.json").exists()


def test_cleanup_gives_back_all_that_the_track_holds_even_if_the_state_file_says_otherwise(
    stack: Stack, script: Script, tmp_path: Path
) -> None:
    track = f"several-{tmp_path.name}"
    held = [json.loads(script("setup", TRACK_ID=track).stdout)]
    keys = ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"})
    held += [stack.as_track(track, "POST", "/allocate", headers=key).json() for key in keys]
    (tmp_path / "sandbox.json").write_text(json.dumps(held[0] | {"lease_id": "of-before"}, separators=(",", ":")))
    ended = script("cleanup", TRACK_ID=track)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [status_of(stack, each["sandbox_id"]) for each in held] == ["pending_deletion"] * 3
    assert stack.as_track(track, "GET", "/sandboxes").json()["count"] == 0


def test_extend_keeps_all_that_the_track_holds_for_so_long_from_now(stack: Stack, script: Script) -> None:
    track = "extends"
    assert "the track holds no sandbox" in script("extend", "60", TRACK_ID=track).stderr
    held = [json.loads(script("setup", TRACK_ID=track).stdout)]
    held += [stack.as_track(track, "POST", "/allocate", headers={"Idempotency-Key": key}).json() for key in "ab"]
    for seconds, least in ((5 * 3600, 5 * 3600), (60, 5 * 3600)):
        asked_at = int(time.time())
        extended = script("extend", str(seconds), TRACK_ID=track)
        assert (extended.returncode, extended.stderr) == (0, "")
        said = {each["lease_id"]: each["expires_at"] for each in map(json.loads, extended.stdout.splitlines())}
        assert said.keys() == {each["lease_id"] for each in held}
        assert all(abs(until - asked_at - least) < 60 for until in said.values())
    listed = stack.as_track(track, "GET", "/sandboxes").json()["sandboxes"]
    assert {each["lease_id"]: each["expires_at"] for each in listed} == said
    refused = script("extend", str(9 * 3600), TRACK_ID=track)
    assert (refused.returncode, "DURATION_LIMIT" in refused.stderr) == (69, True)
    script("cleanup", TRACK_ID=track)


HELD = b'{"count":1,"sandboxes":[{"lease_id":"a","name":"a\\",\\"lease_id\\":\\"b","sandbox_id":"1"}]}'
NONE_HELD = b'{"count":0,"sandboxes":[]}'


@pytest.mark.parametrize(
    ("listed", "marked", "ending"),
    [
        ([HELD, NONE_HELD], (409, b'{"error":{"code":"LEASE_MISMATCH","message":"m"}}'), (0, "already taken it back")),
        ([HELD, HELD], (200, b'{"lease_id":"a","sandbox_id":"1"}'), (75, "still lists it as held")),
        ([HELD, HELD], (404, b'{"error":{"code":"SANDBOX_NOT_FOUND","message":"m"}}'), (75, "still lists it as held")),
        ([HELD], (200, b"{}"), (69, "not an answer of the broker")),
        ([HELD], (403, b'{"error":{"code":"FORBIDDEN","message":"m"}}'), (69, "FORBIDDEN")),
        ([b'{"count":1,"sandboxes":[{}]}'], (200, b""), (69, "not an answer of the broker")),
        ([b'{"error":{"code":"INTERNAL","message":"m"},"sandboxes":[]}'], (200, b""), (69, "INTERNAL")),
    ],
)
def test_cleanup_is_done_only_when_the_broker_says_that_nothing_is_held(
    script: Script, tmp_path: Path, listed: list[bytes], marked: tuple[int, bytes], ending: tuple[int, str]
) -> None:
    asked: list[str] = []

    class Scripted(Handler):
        def reply(self) -> None:
            if self.command == "GET":
                self.answer(200, listed[sum(path == self.path for path in asked)])
            else:
                assert json.loads(self.read_body()) == {"lease_id": "a"}
                self.answer(*marked)
            asked.append(self.path)

    state = tmp_path / "sandbox.json"
    state.write_text("kept")
    with serving(Scripted) as server:
        result = script("cleanup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1")
    assert (result.returncode, ending[1] in result.stderr) == (ending[0], True), result.stderr
    assert state.exists() == (ending[0] != 0)
    assert set(asked) <= {"/v1/sandboxes", "/v1/sandboxes/1/mark-for-deletion"}


def test_a_cleanup_that_cannot_ask_the_broker_keeps_the_state_file_and_says_so(script: Script, tmp_path: Path) -> None:
    state = tmp_path / "sandbox.json"
    state.write_text('{"sandbox_id":"1","lease_id":"a"}')
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1"
    assert script("cleanup", BROKER_API_URL=url, PATIENCE_SEC="0").returncode == 75
    assert state.read_text() == '{"sandbox_id":"1","lease_id":"a"}'


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


def test_without_patience_setup_does_not_wait_and_an_empty_pool_is_exit_code_75(stack: Stack, script: Script) -> None:
    result = script("setup", NAME_PREFIX="nobody-s-", PATIENCE_SEC="0")
    assert result.returncode == 75
    assert "409 NO_SANDBOXES_AVAILABLE" in result.stderr
    assert stack.as_admin("GET", "/waiting").json()["places"] == []


def test_when_no_sandbox_comes_free_in_time_setup_gives_its_place_up_with_exit_code_75(
    stack: Stack, script: Script
) -> None:
    result = script("setup", NAME_PREFIX="nobody-s-", PATIENCE_SEC="1")
    assert result.returncode == 75
    assert "202 waiting" in result.stderr
    assert stack.as_admin("GET", "/waiting").json()["places"] == []


def waiting_tracks(stack: Stack) -> list[str]:
    return [each["track_id"] for each in stack.as_admin("GET", "/waiting").json()["places"]]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_setup_that_is_stopped_while_it_waits_gives_its_place_up_at_once(
    stack: Stack, tmp_path: Path, command: str, how: signal.Signals
) -> None:
    track = f"stopped-{command}-{how.name}"
    environment = {
        "PATH": os.environ["PATH"],
        "BROKER_API_URL": f"{stack.api_url}/v1",
        "BROKER_TOKEN": TRACK_TOKEN,
        "TRACK_ID": track,
        "NAME_PREFIX": "nobody-s-",
        "STATE_FILE": str(tmp_path / "sandbox.json"),
    }
    # In a session of its own and by the script's own id: as a platform stops it, not as a terminal does.
    with subprocess.Popen([*COMMANDS[command], "setup"], env=environment, start_new_session=True) as setup:
        assert wait_until(lambda: track in waiting_tracks(stack), 20)
        setup.send_signal(how)
        assert setup.wait(10) == 128 + how
    assert track not in waiting_tracks(stack)


def test_a_setup_that_waits_gets_the_sandbox_that_another_track_gives_back(stack: Stack, script: Script) -> None:
    name = stack.as_admin("GET", "/sandboxes?status=available&limit=1").json()["sandboxes"][0]["name"]
    first = json.loads(script("setup", NAME_PREFIX=name, TRACK_ID="first").stdout)
    with ThreadPoolExecutor(1) as another:
        second = another.submit(script, "setup", NAME_PREFIX=name, TRACK_ID="second")
        assert wait_until(lambda: "second" in waiting_tracks(stack), 20)
        assert script("cleanup", TRACK_ID="first").returncode == 0
        assert wait_until(lambda: stack.run_job("cleanup")["state"] == "succeeded", 20)
        result = second.result()
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["sandbox_id"] == first["sandbox_id"]
    script("cleanup", TRACK_ID="second")


def test_setup_asks_to_wait_comes_back_when_told_and_leaves_the_line_only_if_it_gets_nothing(script: Script) -> None:
    asked: list[tuple[str, str | None]] = []

    class Waits(Handler):
        def reply(self) -> None:
            asked.append((f"{self.command} {self.path}", self.headers["Prefer"]))
            if len(asked) == 1:
                self.answer(202, b'{"position":1,"state":"waiting"}', Retry_After="1")
            else:
                self.answer(201, b'{"sandbox_id":"1","lease_id":"a"}')

    with serving(Waits) as server:
        result = script("setup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1", PATIENCE_SEC="300")
    assert (result.returncode, asked) == (0, [("POST /v1/allocate", "wait=30")] * 2), result.stderr


def test_a_broker_that_cannot_be_reached_in_time_is_exit_code_75(script: Script) -> None:
    assert script("setup", BROKER_API_URL=f"http://127.0.0.1:{free_ports(1)[0]}/v1", PATIENCE_SEC="1").returncode == 75


def test_cleanup_gives_back_what_a_setup_got_that_was_cut_off(stack: Stack, script: Script, tmp_path: Path) -> None:
    held = json.loads(script("setup").stdout)
    (tmp_path / "sandbox.json").write_text("")  # killed before it could write
    assert script("cleanup").returncode == 0
    assert status_of(stack, held["sandbox_id"]) == "pending_deletion"
    again = json.loads(script("setup").stdout)
    assert again["sandbox_id"] != held["sandbox_id"]
    (tmp_path / "sandbox.json").unlink()  # another machine than that of setup
    assert script("cleanup").returncode == 0
    assert status_of(stack, again["sandbox_id"]) == "pending_deletion"


def test_a_broken_off_answer_is_asked_for_again(script: Script) -> None:
    asked: list[str] = []

    class BreaksOff(Handler):
        def reply(self) -> None:
            asked.append(self.path)
            if len(asked) > 1:
                self.answer(201, b'{"sandbox_id":"1","lease_id":"a"}')
                return
            self.send_response(201)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b'{"sandbox_id":"1","lease_id":"a"')

    with serving(BreaksOff) as server:
        result = script("setup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1/")
    assert (result.returncode, asked) == (0, ["/v1/allocate"] * 2), result.stderr


def test_a_date_as_retry_after_does_not_stop_the_script(script: Script) -> None:
    asked: list[str] = []

    class SendsADate(Handler):
        def reply(self) -> None:
            asked.append(self.path)
            if len(asked) == 1:
                self.answer(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
            else:
                self.answer(201, b'{"sandbox_id":"1","lease_id":"a"}')

    with serving(SendsADate) as server:
        result = script("setup", BROKER_API_URL=f"http://127.0.0.1:{server.server_port}/v1")
    assert (result.returncode, len(asked)) == (0, 2), result.stderr


@pytest.mark.parametrize("status", [200, 301, 404])
def test_an_answer_that_is_not_the_broker_s_is_exit_code_69_and_what_is_held_is_not_forgotten(
    script: Script, tmp_path: Path, status: int
) -> None:
    class Foreign(Handler):
        def reply(self) -> None:
            self.answer(status, b"<html>Welcome</html>", Location="/elsewhere")

    state = tmp_path / "sandbox.json"
    with serving(Foreign) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        for words in (("setup",), ("cleanup",)):
            result = script(*words, BROKER_API_URL=url)
            assert (result.returncode, result.stdout) == (69, ""), words
            assert "is BROKER_API_URL right?" in result.stderr
        state.write_text('{"sandbox_id":"1","lease_id":"a"}')
        assert script("cleanup", BROKER_API_URL=url).returncode == 69
    assert state.read_text() == '{"sandbox_id":"1","lease_id":"a"}'


def test_the_token_is_not_replaced_by_one_of_netrc(script: Script, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login somebody password else")
    (tmp_path / ".netrc").chmod(0o600)
    result = script("setup", HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    script("cleanup")


def test_a_track_whose_id_has_quotes_is_named_as_it_is(stack: Stack, script: Script) -> None:
    track = 'the "first" \\ lab'
    held = json.loads(script("setup", TRACK_ID=track).stdout)
    assert stack.as_track(track, "GET", "/sandboxes").json()["sandboxes"][0]["sandbox_id"] == held["sandbox_id"]
    script("cleanup", TRACK_ID=track)


def test_a_state_file_that_cannot_be_written_is_exit_code_73_before_anything_is_held(
    stack: Stack, script: Script, tmp_path: Path
) -> None:
    assert script("setup", TRACK_ID="keeps-nothing", STATE_FILE=str(tmp_path / "no" / "where")).returncode == 73
    assert stack.as_track("keeps-nothing", "GET", "/sandboxes").json()["count"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("BROKER_API_URL", "nonsense"), ("BROKER_TOKEN", "clé"), ("BROKER_TOKEN", "two\nlines")),
        *(("NAME_PREFIX", "\t"), ("PATIENCE_SEC", "1.5"), ("PATIENCE_SEC", "long")),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_exit_code_64(script: Script, name: str, value: str) -> None:
    result = script("setup", **{name: value})
    assert (result.returncode, result.stdout) == (64, "")
    assert name in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [(), ("begin",), ("setup", "cleanup", "both"), ("extend",), ("extend", "1h"), ("extend", "1", "2")]
)
def test_wrong_use_is_exit_code_64(script: Script, words: tuple[str, ...]) -> None:
    assert script(*words).returncode == 64


@pytest.mark.parametrize("name", ["BROKER_API_URL", "BROKER_TOKEN", "TRACK_ID"])
def test_a_missing_setting_is_named_with_exit_code_64(script: Script, name: str) -> None:
    result = script("setup", **{name: ""})
    assert (result.returncode, name in result.stderr) == (64, True)
