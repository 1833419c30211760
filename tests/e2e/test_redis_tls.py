"""A whole broker on a Redis that asks for a password and is reached by TLS alone, as managed ones are."""

from __future__ import annotations

import asyncio
import ssl
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import requests
import trustme

from deploy.dev import programs
from deploy.dev.processes import free_ports, wait_until
from deploy.dev.programs import valkey
from tests.backends import running
from tests.e2e.stack import ADMIN_TOKEN, MAKE_RUN_WORKERS, TRACK_TOKEN, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSWORD = "the+password/of=redis"
QUOTED = "the%2Bpassword%2Fof%3Dredis"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusted(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the certificate that the broker must trust."""
    file = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.fixture(scope="module")
def tls_port(authority: trustme.CA) -> Iterator[int]:
    """Yield the port at which a Redis-compatible server with a password answers by TLS."""
    (port,) = free_ports(1)
    program = valkey(port)
    guarded = replace(program, command=(*program.command, "--requirepass", PASSWORD))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running(guarded), terminate_tls(context, port) as outside:
        yield outside


@contextmanager
def terminate_tls(context: ssl.SSLContext, inside: int) -> Iterator[int]:
    """Pass on what comes by TLS to a port of this machine; yields the port outside."""
    loop = asyncio.new_event_loop()

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            there, back = await asyncio.open_connection("127.0.0.1", inside)
            await asyncio.gather(pump(reader, back), pump(there, writer))
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def end() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_every_process_works_over_tls_and_none_tells_a_secret(tmp_path: Path, tls_port: int, trusted: Path) -> None:
    settings = {
        "REDIS_URL": f"rediss://:{QUOTED}@127.0.0.1:{tls_port}/0?ssl_ca_certs={trusted}",
        "AUTO_EXPIRY_INTERVAL_SEC": "1",
        "MOCK_CSP_DELETE_SECONDS": "0",
    }
    with Stack(tmp_path, settings, with_flower=True, with_webhooks=True) as stack:
        assert stack.run_job("sync")["state"] == "succeeded"
        assert requests.get(f"{stack.api_url}/readyz", timeout=10).json()["checks"]["redis"] == "ok"
        answer = stack.as_track("a-track", "POST", "/allocate")
        assert int(answer.headers["X-RateLimit-Remaining"]) < int(answer.headers["X-RateLimit-Limit"])
        path = f"/sandboxes/{answer.json()['sandbox_id']}"
        assert stack.as_track("a-track", "POST", f"{path}/mark-for-deletion").status_code == 200
        stack.run_job("cleanup")
        assert wait_until(lambda: stack.as_admin("GET", path).json()["status"] == "available", 20)
        metrics = {
            name: f"{stack.plan.url(name)}/metrics"
            for name in (
                "API_PORT",
                "METRICS_PORT",
                "DELETIONS_METRICS_PORT",
                "WEBHOOKS_METRICS_PORT",
                "BEAT_METRICS_PORT",
            )
        }
        metrics["flower"] = f"{stack.plan.flower_url}/metrics"
        sent = 'broker_beat_sent_total{job="expire"}'
        assert wait_until(lambda: sent in requests.get(metrics["BEAT_METRICS_PORT"], timeout=10).text, 20)
        shown = {name: requests.get(url, timeout=10).text for name, url in metrics.items()}
        for name in ("beat", "api", *MAKE_RUN_WORKERS, "flower"):
            stack.stop(name)  # what they say as they stop is read, too
    shown |= {name: stack.output(name) for name in ("api", *MAKE_RUN_WORKERS, "beat", "flower")}
    assert all(shown.values())
    secrets = (PASSWORD, QUOTED, TRACK_TOKEN, ADMIN_TOKEN, stack.plan.env["CSP_API_TOKEN"], stack.plan.operator_token)
    assert [(name, secret) for name, text in shown.items() for secret in secrets if secret in text] == []


def test_a_redis_whose_certificate_another_authority_signed_is_not_talked_to(tmp_path: Path, tls_port: int) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    settings = {"REDIS_URL": f"rediss://:{QUOTED}@127.0.0.1:{tls_port}/0?ssl_ca_certs={stranger}"}
    with Stack(tmp_path, settings, services=lambda plan, scratch: [programs.api(plan, scratch)]) as stack:
        checks = requests.get(f"{stack.api_url}/readyz", timeout=10).json()["checks"]
        refused = stack.as_admin("POST", "/sync")
    assert (checks["dynamodb"], checks["redis"] == "ok") == ("ok", False)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "QUEUE_UNAVAILABLE")
