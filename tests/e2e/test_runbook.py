"""Every command of the runbook that needs no AWS runs on a broker of real processes, and does what its text says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import requests

from broker_common.core.policy import RecyclePolicy
from deploy.dev.processes import ROOT, wait_until
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack, started_when_healthy
from tests.observability.deployed import rules

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNBOOK = (ROOT / "deploy" / "RUNBOOK.md").read_text()
TABLE = "ToRestore"
"""Other tests have tables on the same engine."""
SETTINGS = {"MOCK_CSP_DELETE_SECONDS": "0", "POOL": "8", "RATE_LIMIT_BURST": "10000"}
WITH_WEBHOOKS = True


@pytest.fixture(autouse=True)
def _jq() -> None:
    if shutil.which("jq") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("jq is missing")
        pytest.skip("jq is missing (Debian: apt-get install jq)")


def section(title: str) -> str:
    """Return the text under a heading, up to the next one of its rank or a higher one."""
    (found,) = re.findall(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    return str(found[1])


def blocks(title: str) -> list[str]:
    """Return the fenced commands of a section."""
    return re.findall(r"^ *```\n(.*?)^ *```", section(title), re.MULTILINE | re.DOTALL)


def inline(text: str) -> list[str]:
    """Return the commands between backticks in running text, which may be broken over lines."""
    prose = re.sub(r"^ *```\n.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`((?:broker|curl|for) [^`]+)`", prose)]


class Shell:
    """An operator's shell, with the variables that the runbook's first lines set."""

    def __init__(self, stack: Stack, directory: Path) -> None:
        self._directory = directory
        self._env = dict(stack.plan.env) | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "BROKER_API_URL": f"{stack.api_url}/v1",
            "BROKER_ADMIN_TOKEN": ADMIN_TOKEN,
            "BROKER_WORKER_URL": " ".join(
                map(stack.plan.url, ("METRICS_PORT", "DELETIONS_METRICS_PORT", "WEBHOOKS_METRICS_PORT"))
            ),
            "BROKER_BEAT_URL": stack.plan.url("BEAT_METRICS_PORT"),
            "API": stack.api_url,
        }

    def run(self, commands: str, *, exit_code: int = 0, **words: str) -> str:
        """Run commands, with some of their words replaced; returns what they print."""
        # Here nobody can be asked.
        for asks in ("broker bulk delete", "broker webhook remove"):
            commands = commands.replace(asks, f"{asks} --yes")
        for word, by in words.items():
            commands = re.sub(rf"\b{word}\b", by, commands)
        bash = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            bash, cwd=self._directory, env=self._env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == exit_code, (commands, done.stdout, done.stderr)
        assert '"error":{"code"' not in done.stdout, (commands, done.stdout)
        return done.stdout


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Shell:
    return Shell(stack, tmp_path)


@pytest.fixture
def endpoint_id(stack: Stack) -> Iterator[str]:
    """Yield the id of a webhook endpoint, which the test may remove."""
    wanted = {"url": "http://127.0.0.1:9/", "kinds": ["pool.low"]}
    made: str = stack.as_admin("POST", "/webhooks", json=wanted).json()["endpoint_id"]
    yield made
    stack.as_admin("DELETE", f"/webhooks/{made}")


def allocate(stack: Stack, track: str) -> dict[str, Any]:
    answer = stack.as_track(track, "POST", "/allocate")
    assert answer.status_code in {200, 201}, answer.text
    held: dict[str, Any] = answer.json()
    return held


def status_of(stack: Stack, sandbox_id: str) -> str:
    return str(stack.as_admin("GET", f"/sandboxes/{sandbox_id}").json()["status"])


def give_back(stack: Stack, track: str) -> str:
    sandbox_id: str = allocate(stack, track)["sandbox_id"]
    assert stack.as_track(track, "POST", f"/sandboxes/{sandbox_id}/mark-for-deletion").status_code == 200
    return sandbox_id


def is_available(stack: Stack, sandbox_id: str) -> bool:
    return wait_until(lambda: status_of(stack, sandbox_id) == "available", 20)


def of_absent(command: str) -> bool:
    """Tell whether a command asks Flower or the console, which this stack does not have."""
    return "127.0.0.1:5555/" in command or "127.0.0.1:8081/" in command


ALERTS = re.findall(r"^### (\w+)", RUNBOOK, re.MULTILINE)
PROCEDURES = re.findall(r"^## (.+)", RUNBOOK.split("\n# Procedures")[1], re.MULTILINE)


def anchor(title: str) -> str:
    """Return what a link to a heading names, by GitHub's rule."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_table_of_symptoms_leads_to_every_section() -> None:
    linked = set(re.findall(r"\]\(#(.+?)\)", section("What do you see?")))
    assert linked == {anchor(title) for title in (*ALERTS, *PROCEDURES)}


def test_every_link_within_the_runbook_leads_to_a_heading() -> None:
    headings = {anchor(title) for title in re.findall(r"^#+ (.+)", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.+?)\)", RUNBOOK)) <= headings


def test_the_api_is_asked_by_broker_alone() -> None:
    asked = re.findall(r"curl [^`\n]+", RUNBOOK)
    assert [command for command in asked if "/metrics" not in command and not of_absent(command)] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_the_commands_of_an_alert_can_be_pasted(stack: Stack, shell: Shell, endpoint_id: str, alert: str) -> None:
    for command in inline(section(alert)):
        if of_absent(command):
            continue  # their addresses are literals there
        held = allocate(stack, "of-the-runbook")
        sandbox_id = held["sandbox_id"]
        if "sandbox retry" in command:
            stack.as_admin("POST", f"/sandboxes/{sandbox_id}/release", json={"lease_id": held["lease_id"]})
            stack.run_job("cleanup")
            assert is_available(stack, sandbox_id)
            stack.as_admin("POST", f"/sandboxes/{sandbox_id}/quarantine", json={"reason": "a test"})
        shell.run(command, ID=sandbox_id, LEASE=held["lease_id"], NAME="expire", ENDPOINT_ID=endpoint_id)
        if "pause cleanup" in command:
            stack.as_admin("POST", "/pause", json={"cleanup": False})
            assert wait_until(lambda: stack.run_job("cleanup")["state"] == "succeeded", 10)


def test_the_longest_held_lease_is_ended_by_the_id_that_the_list_showed(stack: Stack, shell: Shell) -> None:
    held = allocate(stack, "is-forgotten")
    (look,) = (code for code in inline(section("BrokerTracksRefused")) if "--sort allocated_at" in code)
    (end,) = (code for code in inline(section("BrokerTracksRefused")) if "sandbox release" in code)

    def listed() -> list[str]:
        rows = [json.loads(line) for line in shell.run(look).splitlines()]
        return next((row for row in rows if row[0] == held["sandbox_id"] and row[2] == "is-forgotten"), [])

    assert wait_until(lambda: bool(listed()), 10)
    sandbox_id, lease_id, *_ = listed()
    assert shell.run(end, ID=sandbox_id, LEASE="another", exit_code=1) == ""
    assert status_of(stack, sandbox_id) == "allocated"
    assert "has ended" in shell.run(end, ID=sandbox_id, LEASE=lease_id)


def test_the_three_looks_can_be_pasted(shell: Shell) -> None:
    _, looks = blocks("Before you begin")
    shown = shell.run(looks)
    assert [line.split()[:2] for line in shown.splitlines()[:6]] == [
        [part, "OK"] for part in ("api", "api", "worker", "worker", "worker", "beat")
    ]
    for told in ("dynamodb ok", "\noldest deletion ", "\nlast sync ", "\noperation  state"):
        assert told in shown


def test_what_is_looked_for_in_logs_is_found_in_them(stack: Stack, shell: Shell, tmp_path: Path) -> None:
    stack.as_admin("POST", "/pause", json={"allocate": True})
    assert wait_until(lambda: stack.as_track("is-refused", "POST", "/allocate").status_code == 503, 10)
    stack.as_admin("POST", "/pause", json={"allocate": False})
    (tmp_path / "api.log").write_text(stack.output("api"))
    filters = [" ".join(code.split()) for code in re.findall(r"`(jq [^`]+)`", RUNBOOK)]
    assert len(filters) == 4
    for command in filters:
        found = shell.run(f"cat api.log | grep '^{{' | {command}")
        assert "paus" in found, command
        assert "null" not in found, command
    assert wait_until(lambda: stack.as_track("is-refused", "POST", "/allocate").status_code == 201, 10)


def test_every_series_that_is_named_is_recorded_or_exposed(stack: Stack) -> None:
    named = set(re.findall(r"(?<![\w/-])(?:[a-z_]+:)?broker[_:][\w:]+", re.sub(r"/deploy/\S+", "", RUNBOOK)))
    recorded = {rule["record"] for rule in rules("record")}
    assert len(named & recorded) > 10
    exposed = requests.get(f"{stack.api_url}/metrics", timeout=10).text + stack.metrics_of("worker-jobs")
    exposed += stack.metrics_of("beat")
    assert [name for name in named - recorded if f"# TYPE {name.removesuffix('_count')} " not in exposed] == []


def test_paused_deletions_wait_until_they_are_resumed(stack: Stack, shell: Shell) -> None:
    pause, resume = blocks("Pause deletions, or anything else")
    assert re.search(r"^cleanup +paused +admin +2", shell.run(pause), re.MULTILINE)
    sandbox_id = give_back(stack, "waits")
    assert wait_until(lambda: stack.run_job("cleanup")["state"] == "skipped", 10)
    assert status_of(stack, sandbox_id) == "pending_deletion"
    assert re.search(r"^cleanup +runs", shell.run(resume), re.MULTILINE)
    assert wait_until(lambda: stack.run_job("cleanup")["state"] == "succeeded", 10)
    assert is_available(stack, sandbox_id)


def test_a_sandbox_is_quarantined_released_and_given_back_into_service(stack: Stack, shell: Shell) -> None:
    quarantine, release, lift = blocks("Quarantine a sandbox")
    (retry,) = inline(section("Quarantine a sandbox"))
    assert {f"`{policy}`" for policy in RecyclePolicy} <= set(section("Quarantine a sandbox").split())
    free = stack.as_admin("GET", "/sandboxes?status=available").json()["sandboxes"][0]["sandbox_id"]
    assert f"{free} is deletion_failed" in shell.run(quarantine, ID=free)
    assert f"{free} is pending_deletion" in shell.run(retry, ID=free)

    held = allocate(stack, "is-released")
    kept = allocate(stack, "keeps-it")["sandbox_id"]
    for sandbox_id in (held["sandbox_id"], kept):
        shown = shell.run(quarantine, ID=sandbox_id)
        assert f"{sandbox_id} is allocated, and is set aside" in shown
        assert re.search(r"^lease_id +\S", shown, re.MULTILINE)
    assert status_of(stack, kept) == "allocated"
    assert f"{kept} is allocated, and goes the usual way" in shell.run(lift, ID=kept)
    assert shell.run(release, ID=held["sandbox_id"], LEASE=kept, exit_code=1) == ""
    told = shell.run(release, ID=held["sandbox_id"], LEASE=held["lease_id"])
    assert told == f"{held['sandbox_id']} is pending_deletion: the lease {held['lease_id']} has ended\n"
    give_back(stack, "keeps-it")
    stack.run_job("cleanup")
    assert is_available(stack, free)
    assert is_available(stack, kept)
    assert wait_until(lambda: status_of(stack, held["sandbox_id"]) == "deletion_failed", 20)
    shell.run(retry, ID=held["sandbox_id"])
    stack.run_job("cleanup")
    assert is_available(stack, held["sandbox_id"])


def test_an_upgrade_is_prepared_and_finished_as_often_as_you_like(shell: Shell) -> None:
    prepare, finish = blocks("Upgrade from a release without history")
    for _ in range(2):
        assert shell.run(prepare) == "table SandboxPool was there already\n"
        assert shell.run(finish) == "the upgrade is finished: every process knows within 5 s\n"


def test_nothing_is_asked_of_the_provider_while_it_is_drained(stack: Stack, shell: Shell) -> None:
    drain, resume = blocks("Drain for a provider's maintenance")
    shell.run(drain)
    assert wait_until(lambda: stack.run_job("sync")["state"] == "skipped", 10)
    sandbox_id = give_back(stack, "meanwhile")
    shell.run(resume)
    assert wait_until(lambda: stack.run_job("cleanup")["state"] == "succeeded", 10)
    assert is_available(stack, sandbox_id)


def test_a_rotated_token_can_be_hashed_and_checked(shell: Shell, tmp_path: Path) -> None:
    make, digest, attempt = blocks("Rotate tokens")
    assert shell.run(make) == "", "it is not shown"
    token = (tmp_path / "new-token.txt").read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", token)
    assert (tmp_path / "new-token.txt").stat().st_mode & 0o077 == 0
    assert shell.run(digest) == f"{hashlib.sha256(token.strip().encode()).hexdigest()}\n"
    assert shell.run(attempt, exit_code=1) == "", "the API does not know it"
    for known, told in ((TRACK_TOKEN, "the token is good"), (ADMIN_TOKEN, "principal  admin")):
        (tmp_path / "new-token.txt").write_text(f"{known}\n")
        assert shell.run(attempt).startswith(told)


def test_a_lease_is_extended_as_the_procedure_says(shell: Shell, stack: Stack) -> None:
    held = allocate(stack, "needs-longer")
    (extend,) = blocks("Extend a lease")
    told = shell.run(extend, ID=held["sandbox_id"])
    assert told.startswith(f"{held['sandbox_id']} is held until ")
    assert told.endswith(f"as before: the lease {held['lease_id']}\n")
    assert "as before" not in shell.run(extend.replace("2h", "5h"), ID=held["sandbox_id"])


@pytest.mark.parametrize("title", ["Change LAB_DURATION_HOURS while allocations run", "Upgrade without downtime"])
def test_the_looks_of_a_procedure_can_be_pasted(shell: Shell, title: str) -> None:
    (look,) = blocks(title)
    assert shell.run(look)


@pytest.fixture
def table(ministack_url: str) -> Any:
    return boto3.resource(
        "dynamodb",
        region_name="us-east-1",
        endpoint_url=ministack_url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.mark.timeout(300)  # two brokers start, and some twenty commands
def test_after_a_restore_nobody_s_sandbox_is_given_out_again_and_all_come_back(
    tmp_path: Path, ministack_url: str, table: Any
) -> None:
    save, restore, pause, reconcile, wipe = blocks("Restore the table from a point in time")
    (item,) = re.findall(r"--item '(.*)'", pause)
    here = SETTINGS | {"DDB_ENDPOINT_URL": ministack_url}
    with Stack(tmp_path, here | {"DDB_TABLE_NAME": TABLE}, with_webhooks=True) as stack:
        stack.run_job("sync")
        rewound = table.Table(TABLE).scan()["Items"]
        held = allocate(stack, "a-student")["sandbox_id"]
        shell = Shell(stack, tmp_path)
        shell.run(save)
        assert stack.as_track("late", "POST", "/allocate").status_code == 503
        csp = {"CSP_BASE_URL": stack.csp_url, "CSP_API_TOKEN": stack.plan.env["CSP_API_TOKEN"]}
        assert "restore-table-to-point-in-time" in restore  # what AWS does there is played by the scan before

        later = here | csp | {"DDB_TABLE_NAME": f"{TABLE}-restored"}
        restored = Stack(tmp_path / "later", later, services=started_when_healthy, with_webhooks=True)
        (tmp_path / "later").mkdir()
        restored.create_table()
        for record in [*rewound, {name: _plain(value) for name, value in json.loads(item).items()}]:
            table.Table(f"{TABLE}-restored").put_item(Item=record)
        for name in ("api", "worker-jobs", "worker-deletions", "beat"):
            stack.stop(name)
        with restored as again:
            assert status_of(again, held) == "available", "the record is wrong, as the text says"
            shell = Shell(again, tmp_path)
            assert again.as_track("another", "POST", "/allocate").json()["error"]["code"] == "TABLE_CHANGED"
            assert requests.get(f"{again.api_url}/readyz", timeout=10).status_code == 503
            shell.run(reconcile.replace("DDB_TABLE_NAME=SandboxPool-restored", ""))
            assert again.as_track("another", "POST", "/allocate").status_code == 503
            shell.run(wipe)
            assert wait_until(lambda: again.as_admin("GET", "/stats").json()["available"] == 7, 20)
            assert status_of(again, held) == "deletion_failed"
            look, let_in, bulk, expire = inline(section("Restore the table from a point in time"))
            assert re.search(r"^available +7$", shell.run(look), re.MULTILINE)
            shell.run(let_in)
            assert wait_until(lambda: again.as_track("another", "POST", "/allocate").status_code == 201, 10)
            shell.run(bulk)
            assert "paused" not in shell.run(expire)
            again.run_job("cleanup")
            assert is_available(again, held)


def _plain(value: dict[str, Any]) -> Any:
    ((_, plain),) = value.items()
    return plain
