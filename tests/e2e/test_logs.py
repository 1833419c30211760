"""Every line of every broker process, over traffic, bad input, forgery, kills and stops, is one JSON object."""

from __future__ import annotations

import json
import re
import signal
import socket
from typing import Any
from urllib.parse import quote

import pytest
import requests

from deploy.dev import programs
from deploy.dev.processes import wait_until
from tests.e2e.stack import ADMIN_TOKEN, MAKE_RUN_WORKERS, TRACK_TOKEN, Stack

BROKER = ("api", *MAKE_RUN_WORKERS, "beat", "flower")
CSP_TOKEN = "the-provider-s-token"
FORGED = '\x1b[31m{"level": "critical"}\u202e\x07'
SETTINGS = {
    "CSP_API_TOKEN": CSP_TOKEN,
    "MOCK_CSP_TOKEN": CSP_TOKEN,
    "MOCK_CSP_DELETE_SECONDS": "0.05",
    "SYNC_INTERVAL_SEC": "2",
    "FLOWER_UNAUTHENTICATED_API": "true",
}
REQUEST_ID = "the-request-of-an-operator"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Return a stack that has been through a lot, and is stopped."""
    with Stack(tmp_path_factory.mktemp("logs"), SETTINGS, with_flower=True, with_webhooks=True) as stack:
        make_table(stack)
        stack.run_job("sync", headers={"X-Request-ID": REQUEST_ID})
        drive(stack)
        forge(stack)
        for part in (*MAKE_RUN_WORKERS, "beat", "api"):
            stack.kill(part)
            stack.start(part)
        stack.kill("redis")
        assert stack.as_admin("POST", "/sync").status_code == 503
        said = "Cannot connect to redis"
        assert wait_until(lambda: said in stack.output("worker-jobs"), 30), stack.output("worker-jobs")
        assert wait_until(lambda: not stack.is_running("beat"), 30), stack.output("beat")
        stack.start("redis")
        stack.start("beat")
        assert wait_until(lambda: requests.get(worker_health(stack), timeout=5).status_code == 200, 60)
        stack.run_job("sync")
        for part in reversed(BROKER):
            stack.kill(part, signal.SIGTERM)
        assert wait_until(lambda: not any(stack.is_running(part) for part in BROKER), 60)
    return stack


def make_table(stack: Stack) -> None:
    """Run the command for the table once, so that its output is there, too."""
    table = stack._process(programs.table(stack.plan))
    table.start()
    assert wait_until(table.has_ended, 60)
    table.stop()


def worker_health(stack: Stack) -> str:
    return f"http://127.0.0.1:{stack.plan.env['METRICS_PORT']}/healthz"


def drive(stack: Stack) -> None:
    """Do what tracks and operators do, with and without mistakes."""
    sandbox_id = stack.as_track("a-track", "POST", "/allocate").json()["sandbox_id"]
    assert stack.as_track("a-track", "GET", f"/sandboxes/{sandbox_id}").status_code == 200
    assert stack.as_track("another", "GET", f"/sandboxes/{sandbox_id}").status_code == 403
    mark = f"/sandboxes/{sandbox_id}/mark-for-deletion"
    assert stack.as_track("a-track", "POST", mark, json={"lease_id": "another"}).status_code == 409
    assert stack.as_track("a-track", "POST", mark).status_code == 200
    stack.run_job("cleanup")
    stack.as_admin("POST", "/pause", json={"allocate": True})
    assert wait_until(lambda: stack.as_track("late", "POST", "/allocate").status_code == 503, 20)
    stack.as_admin("POST", "/pause", json={"allocate": False})
    assert stack.as_admin("POST", "/cleanup", headers={"Authorization": "Bearer a-wrong-token"}).status_code == 401
    assert stack.as_admin("GET", "/sandboxes?status=nonsense").status_code == 400
    for path in ("/", "/api/tasks", "/nowhere"):
        requests.get(f"{stack.plan.flower_url}{path}", timeout=10)


def forge(stack: Stack) -> None:
    """Put what could break or forge a line into every place that a client controls."""
    quoted = quote(FORGED + "\r\n")
    for path in (f"/sandboxes/{quoted}", f"/{quoted}", f"/sandboxes?{quoted}={quoted}"):
        stack.as_track("a-track", "GET", path)
        stack.as_admin("GET", path)
    stack.as_admin("POST", f"/sandboxes/{quoted}/quarantine", json={"reason": FORGED + "\r\n"})
    free = stack.as_admin("GET", "/sandboxes?status=available").json()["sandboxes"][0]["sandbox_id"]
    stack.as_admin("POST", f"/sandboxes/{free}/quarantine", json={"reason": FORGED})
    stack.as_admin("POST", "/pause", json={FORGED: FORGED})
    stack.as_admin("POST", "/pause", data=FORGED.encode(), headers={"Content-Type": "application/json"})
    for name in ("X-Track-ID", "X-Request-ID", "Idempotency-Key", "X-Sandbox-Name-Prefix", "X-Instruqt-Track-ID"):
        raw(stack, b"POST /v1/allocate HTTP/1.1", name.encode() + b": " + FORGED.encode())
        raw(stack, b"POST /v1/allocate HTTP/1.1", name.encode() + b": {'level': \"critical\"}")
    raw(stack, FORGED.encode() + b" / HTTP/1.1", b"")
    raw(stack, b"GET /" + FORGED.encode() + b" HTTP/1.1", b"")
    raw(stack, b"GET /v1/sandboxes HTTP/9.9", b"A: b")
    raw(stack, b"POST /v1/allocate HTTP/1.1", b"Transfer-Encoding: chunked\r\n\r\nzz" + FORGED.encode())
    raw(stack, b"POST /v1/allocate HTTP/1.1", b"Content-Length: " + FORGED.encode())


def raw(stack: Stack, line: bytes, header: bytes) -> None:
    """Send what no client library would, and wait for the end of the answer."""
    with socket.create_connection(("127.0.0.1", stack.plan.number("API_PORT")), timeout=10) as connection:
        token = f"Authorization: Bearer {TRACK_TOKEN}\r\nHost: x\r\nConnection: close\r\n".encode()
        connection.sendall(line + b"\r\n" + token + header + b"\r\n\r\n")
        while connection.recv(4096):
            pass


def lines(stack: Stack, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.output(name).splitlines()]


@pytest.mark.parametrize("name", BROKER)
def test_every_line_of_every_process_is_one_json_object_with_its_fields(stopped: Stack, name: str) -> None:
    texts = stopped.output(name).split("\n")
    assert texts != [""]
    for text in texts:
        assert text.isprintable(), text
        line = json.loads(text)
        assert list(line)[:4] == ["timestamp", "level", "logger", "message"], text
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
        assert line["level"] in {"debug", "info", "warning", "error"}, text
        assert "\n" not in line["message"], text


def test_lines_have_the_fields_that_apply_to_them(stopped: Stack) -> None:
    api, worker = lines(stopped, "api"), lines(stopped, "worker-deletions")

    def first(found: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
        return next(line for line in found if wanted.items() <= line.items())

    given = first(api, action="allocate", outcome="success")
    assert given.keys() >= {"request_id", "track_id", "sandbox_id", "lease_id", "latency_ms"}
    assert (given["track_id"], given["principal"]) == ("a-track", "track")
    assert first(api, action="request", route="/v1/admin/pause", status=200)["principal"] == "admin"
    marked = first(api, action="mark_for_deletion", outcome="success")
    assert (marked["sandbox_id"], marked["lease_id"]) == (given["sandbox_id"], given["lease_id"])
    mistaken = first(api, action="mark_for_deletion", outcome="error")
    assert (mistaken["level"], mistaken["code"]) == ("info", "LEASE_MISMATCH")
    assert first(api, action="allocate", code="PAUSED")["level"] == "info"
    access = first(api, action="request", method="POST", status=201)
    assert access.keys() >= {"request_id", "track_id", "route", "latency_ms"}
    deleted = first(worker, action="delete", outcome="deleted")
    assert deleted["sandbox_id"] == given["sandbox_id"]
    assert deleted["request_id"].startswith("job-cleanup-")
    ended = first(worker, action="background_cleanup", outcome="success")
    assert ended.keys() >= {"request_id", "latency_ms", "requested_by"}
    assert "sandbox_id" not in ended


def test_a_job_s_lines_name_the_request_that_started_it(stopped: Stack) -> None:
    (run,) = [line for line in lines(stopped, "worker-jobs") if line.get("requested_by") == REQUEST_ID]
    assert run["action"] == "background_sync"
    assert any(line.get("request_id") == REQUEST_ID for line in lines(stopped, "api"))


def test_only_what_the_broker_owes_is_an_error(stopped: Stack) -> None:
    assert [line for line in lines(stopped, "api") if line["level"] == "error"] == []


def test_no_secret_is_in_any_line(stopped: Stack) -> None:
    secrets = (TRACK_TOKEN, ADMIN_TOKEN, CSP_TOKEN, stopped.plan.operator_token, "Bearer", "a-wrong-token")
    output = {name: stopped.output(name) for name in (*BROKER, "table")}
    assert [(name, secret) for name, text in output.items() for secret in secrets if secret in text] == []
