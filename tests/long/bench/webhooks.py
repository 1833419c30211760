"""Real workers on DynamoDB Local: how fast a flood of facts is told, and what tracks notice of it.

The facts are those of allocations while the only endpoint is disabled. So telling them, sending them, and allocating
can be measured one after the other. The receiver accepts everything at once, in a process of its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from broker_common.services import build_store
from deploy.dev import programs
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import wait_until
from tests.bulk_load import load_records
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.long.bench.load import allocations, new_tracks
from tests.long.bench.pool import make_pool
from tests.long.bench.servers import cpu_seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program
    from tests.long.bench.load import Generator, Load
    from tests.long.bench.servers import Servers

_PATIENCE_SEC = 900
_TELLER, _SENDER = "worker-jobs", "worker-webhooks"
_TABLE = "webhooks"
_SELDOM = "86400"
_SETTINGS = {
    "POOL": "1",
    "MOCK_CSP_OTHERS": "0",
    "API_WORKERS": "1",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "SYNC_INTERVAL_SEC": _SELDOM,
    "CLEANUP_INTERVAL_SEC": _SELDOM,
    "AUTO_EXPIRY_INTERVAL_SEC": _SELDOM,
}
_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Allocations:
    """What tracks noticed: rounds of allocations, and the processor time that the API took for each of them."""

    rounds: list[Load]
    api_milliseconds: float


@dataclass(frozen=True, slots=True)
class Flood:
    """How fast one process turned facts into deliveries, and how fast one process sent these."""

    told_a_second: float
    sent_a_second: float
    sender_milliseconds: float
    """The processor time of the sender for each delivery."""
    alone: Allocations
    """While nothing was sent."""
    meanwhile: Allocations
    """While deliveries were sent without a pause."""


def send_flood(servers: Servers, generator: Generator, *, facts: int, rounds: int, round_size: int) -> Flood:
    """Tell and send so many facts. Before and meanwhile, a client allocates `rounds` times `round_size`."""
    on_table = {"DDB_ENDPOINT_URL": servers.dynamodb_url, "DDB_TABLE_NAME": _TABLE}
    with (
        _receiver() as (port, count),
        Stack(servers.directory(_TABLE), _SETTINGS | on_table, services=_services) as stack,
    ):
        assert stack.run_job("sync")["state"] == "succeeded"
        load_records(servers.client(), _TABLE, make_pool(facts + 2 * rounds * round_size + 100, first=1_000_000))
        endpoint = _register(stack, port)
        api = stack.plan.number("API_PORT")

        def allocate(number: int, clients: int) -> Load:
            return generator.send(api, allocations(TRACK_TOKEN, new_tracks(number)), clients=clients)

        def allocate_rounds() -> Allocations:
            used = cpu_seconds_of(stack.pid("api"))
            loads = [allocate(round_size, 1) for _ in range(rounds)]
            used = cpu_seconds_of(stack.pid("api")) - used
            return Allocations(loads, 1000 * used / (rounds * round_size))

        store = build_store(stack.plan.settings)
        stack.stop(_TELLER)
        made = len(allocate(facts, 16).answers)
        stack.start(_TELLER)
        began = time.monotonic()
        assert wait_until(lambda: store.oldest_untold() is None, _PATIENCE_SEC)
        told_a_second = made / (time.monotonic() - began)
        alone = allocate_rounds()
        before = cpu_seconds_of(stack.pid(_SENDER))
        _change(stack, endpoint, enabled=True)
        assert wait_until(lambda: count() > 0, _PATIENCE_SEC)
        began, already = time.monotonic(), count()
        meanwhile = allocate_rounds()
        is_flood_over = count() >= made
        assert wait_until(lambda: count() >= 0.9 * made, _PATIENCE_SEC)
        sent, seconds = count() - already, time.monotonic() - began
        spent = cpu_seconds_of(stack.pid(_SENDER)) - before
        assert not is_flood_over or made < 1000, "the flood was over before the allocations"
        return Flood(told_a_second, sent / seconds, 1000 * spent / sent, alone, meanwhile)


def _services(plan: Plan, scratch: Path) -> list[Program]:
    workers = [programs.worker_jobs(plan, scratch), programs.worker_webhooks(plan, scratch)]
    return [*workers, programs.api(plan, scratch), programs.beat(plan)]


def _register(stack: Stack, port: int) -> dict[str, Any]:
    """Register an endpoint that is told all facts from now on, and is sent none yet."""
    wanted = {"url": f"http://{LOOPBACK}:{port}/", "kinds": ["sandbox.allocated"]}
    answer = stack.as_admin("POST", "/webhooks", json=wanted)
    assert answer.status_code == HTTPStatus.CREATED, answer.text
    endpoint: dict[str, Any] = answer.json()
    assert wait_until(lambda: time.time() > endpoint["active_from"], _PATIENCE_SEC)
    return _change(stack, endpoint, enabled=False)


def _change(stack: Stack, endpoint: dict[str, Any], *, enabled: bool) -> dict[str, Any]:
    path = f"/webhooks/{endpoint['endpoint_id']}"
    answer = stack.as_admin("PATCH", path, json={"enabled": enabled, "version": endpoint["version"]})
    assert answer.status_code == HTTPStatus.OK, answer.text
    changed: dict[str, Any] = answer.json()
    return changed


@contextmanager
def _receiver() -> Iterator[tuple[int, Callable[[], int]]]:
    """Run a receiver; yields its port, and what tells how many deliveries it has accepted."""
    context = multiprocessing.get_context("spawn")
    count, port = context.Value("q", 0), context.Value("i", 0)
    process = context.Process(target=_receive, args=(count, port), daemon=True)
    process.start()
    try:
        assert wait_until(lambda: port.value > 0, 60)
        yield port.value, lambda: count.value
    finally:
        process.kill()
        process.join()


def _receive(count: Any, port: Any) -> None:
    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
            except (asyncio.IncompleteReadError, ConnectionError):
                return writer.close()
            count.value += 1
            writer.write(_ANSWER)

    async def serve() -> None:
        server = await asyncio.start_server(take, LOOPBACK, 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(serve())
