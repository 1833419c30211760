"""The policies under `deploy/iam`: each process asks DynamoDB for what its policy lists, and for all of it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import requests
from redis import Redis

from deploy.dev import programs
from deploy.dev.processes import ROOT, wait_until
from tests.e2e.stack import Stack
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

TABLE = "table/SandboxPool"
INDEX = f"{TABLE}/index/StatusIndex"
SETTINGS = {
    "DDB_TABLE_NAME": "OfPermissions",  # other tests have tables on the same engine
    "LAB_DURATION_HOURS": "0.0002",  # less than a second
    "EXPIRY_BUFFER_HOURS": "0",
    "STALE_GRACE_HOURS": "0",
    "STALE_BRAKE_PERCENT": "100",
    "MOCK_CSP_DELETE_SECONDS": "0",
    "AUTO_EXPIRY_INTERVAL_SEC": "2",
}


@dataclass(frozen=True)
class Gate:
    """A proxy before DynamoDB that notes which permissions each request needs."""

    url: str
    needed: set[tuple[str, str]] = field(default_factory=set)


def permissions(operation: str, request: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return the (action, resource) of a request.

    Source: "Using IAM with DynamoDB transactions" in the DynamoDB developer guide: there is no permission for a
    transaction, only for what is in it.
    """
    if operation == "TransactWriteItems":
        for action in request["TransactItems"]:
            ((kind, _),) = action.items()
            yield f"dynamodb:{kind}Item", TABLE
    else:
        yield f"dynamodb:{operation}", INDEX if "IndexName" in request else TABLE


@contextmanager
def gate(engine_url: str) -> Iterator[Gate]:
    """Run a proxy before the engine."""
    engine = urlsplit(engine_url).netloc

    class Recording(Handler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            body = self.read_body()
            _, operation = self.headers["X-Amz-Target"].split(".")
            if "Authorization" in self.headers:  # what is not signed asks for the time alone, and needs no permission
                opened.needed.update(permissions(operation, json.loads(body)))
            connection = http.client.HTTPConnection(engine, timeout=30)
            try:
                connection.request("POST", self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Recording) as server:
        opened = Gate(f"http://127.0.0.1:{server.server_port}")
        yield opened


def listed(process: str) -> set[tuple[str, str]]:
    """Return the (action, resource) of a policy."""
    policy = json.loads((ROOT / "deploy" / "iam" / f"{process}.json").read_text())
    return {
        (action, statement["Resource"].removeprefix("arn:aws:dynamodb:*:*:"))
        for statement in policy["Statement"]
        for action in statement["Action"]
    }


def read_to_the_last_page(stack: Stack, path: str) -> None:
    """Follow the cursors of a listing: its last part may need other permissions than its first."""
    cursor = None
    while True:
        answer = stack.as_admin("GET", path, params={"limit": "5"} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        cursor = answer.json()["cursor"]
        if cursor is None:
            return


def use_everything(stack: Stack) -> None:
    """Do all that tracks, operators and jobs can have done to the table."""

    def allocate(track: str) -> dict[str, Any]:
        answer = stack.as_track(track, "POST", "/allocate")
        assert answer.status_code == 201, answer.text
        held: dict[str, Any] = answer.json()
        return held

    stack.run_job("sync")
    assert requests.get(f"{stack.api_url}/readyz", timeout=10).status_code == 200
    held = allocate("a-track")
    assert stack.as_track("a-track", "GET", "/sandboxes").status_code == 200
    assert wait_until(lambda: stack.as_track("a-track", "POST", "/allocate").status_code == 201, 10)  # overdue
    assert stack.as_track("a-track", "POST", f"/sandboxes/{held['sandbox_id']}/mark-for-deletion").status_code == 200
    forgotten = allocate("forgetful")
    path = f"/sandboxes/{forgotten['sandbox_id']}"
    assert wait_until(lambda: stack.as_admin("GET", path).json()["status"] == "pending_deletion", 30)  # sent by beat
    assert requests.get(f"{stack.plan.flower_url}/", timeout=10).status_code == 200
    assert requests.get(f"{stack.console_url}/signin", timeout=10).status_code == 200
    stack.run_job("cleanup")
    assert wait_until(lambda: stack.as_admin("GET", path).json()["status"] == "available", 20)

    stack.accept_table()  # the one that all know already

    for status in ("", "?status=available", "?track_id=a-track", "?name=lab&sort=-created_at"):
        read_to_the_last_page(stack, f"/sandboxes{status}")
    read_to_the_last_page(stack, f"/sandboxes/{held['sandbox_id']}/history")
    assert stack.as_admin("GET", "/events").json()["count"] > 0
    assert stack.as_admin("GET", "/stats").json()["total"] == 20
    released = allocate("released")
    body = {"lease_id": released["lease_id"]}
    assert stack.as_admin("POST", f"/sandboxes/{released['sandbox_id']}/release", json=body).status_code == 200
    kept = allocate("quarantined")["sandbox_id"]
    assert stack.as_admin("POST", f"/sandboxes/{kept}/quarantine", json={"reason": "a test"}).status_code == 200
    assert stack.as_admin("DELETE", f"/sandboxes/{kept}/quarantine").status_code == 200
    free = [each["sandbox_id"] for each in stack.as_admin("GET", "/sandboxes?status=available").json()["sandboxes"]]
    for sandbox_id in free[:3]:
        path = f"/sandboxes/{sandbox_id}/quarantine"
        assert stack.as_admin("POST", path, json={"reason": "a test"}).status_code == 200
    assert stack.as_admin("POST", f"/sandboxes/{free[0]}/retry-deletion").status_code == 200
    assert stack.as_admin("POST", "/bulk-delete?status=deletion_failed").json()["deleted"] == 2
    assert stack.as_admin("POST", "/bulk-retry").status_code == 200
    assert stack.as_admin("POST", "/pause", json={"expire": False}).status_code == 200
    assert requests.get(f"{stack.api_url}/metrics", timeout=10).status_code == 200

    for sandbox_id in free[3:6]:
        requests.delete(f"{stack.csp_url}/_mock/accounts/{sandbox_id}", timeout=10)
    stack.run_job("sync")
    stack.run_job("purge-stale")
    stack.run_job("sync")
    with Redis.from_url(stack.plan.env["REDIS_URL"]) as redis:
        redis.hset("sandbox-broker:table", "identity", "another")
    stack.accept_table()


def operate(plan: Plan, *words: str, **env: str) -> None:
    """Run the operator's command."""
    command = (sys.executable, "-m", "broker_common.cli", *words)
    subprocess.run(command, env={**plan.env, **env}, check=True, timeout=60)


def check_in_the_pod_of(process: str, plan: Plan, its_gate: Gate) -> None:
    """Run `broker check` with the rights of a process, as the runbook says."""
    operate(plan, "check", "--process", process, DDB_ENDPOINT_URL=its_gate.url)


@pytest.fixture(scope="module")
def needed(ministack_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[tuple[str, str]]]]:
    """Yield what the processes of a broker that did everything have needed."""
    with ExitStack() as gates:
        operator, *others = (gates.enter_context(gate(ministack_url)) for _ in range(6))
        of = dict(zip(("api", "worker", "beat", "flower", "console"), others, strict=True))
        kind = {"worker-jobs": "worker", "worker-deletions": "worker", "worker-webhooks": "worker"}

        def services(plan: Plan, scratch: Path) -> list[Program]:
            return [
                replace(program, env={**program.env, "DDB_ENDPOINT_URL": of[kind.get(program.name, program.name)].url})
                for program in programs.services(plan, scratch)
            ]

        here = SETTINGS | {"DDB_ENDPOINT_URL": operator.url}
        with Stack(
            tmp_path_factory.mktemp("stack"),
            here,
            with_flower=True,
            with_console=True,
            with_webhooks=True,
            services=services,
        ) as stack:
            use_everything(stack)
            for process in ("api", "worker"):
                check_in_the_pod_of(process, stack.plan, of[process])
            operate(stack.plan, "upgrade", "finish")
        yield {"operator": operator.needed} | {name: each.needed for name, each in of.items()}


@pytest.mark.parametrize("process", ["api", "worker", "operator"])
def test_a_process_needs_exactly_what_its_policy_lists(needed: dict[str, set[tuple[str, str]]], process: str) -> None:
    assert needed[process] == listed(process)


@pytest.mark.parametrize("process", ["beat", "flower", "console"])
def test_a_process_without_a_policy_needs_nothing_of_dynamodb(
    needed: dict[str, set[tuple[str, str]]], process: str
) -> None:
    assert needed[process] == set()
