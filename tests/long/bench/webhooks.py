"""Real workers on DynamoDB Local: how fast a flood of facts is told and sent, and what tracks notice of it.

The facts are loaded while the only endpoint is disabled, and it is enabled when all are told. So telling them and sending
them can be measured one after the other: nobody tells the facts of the allocations while the flood is sent. The receiver
accepts everything at once, in a process of its own.

Workers and receiver run on other machines in production. Here they get only the processor time that the others leave,
and allocations are asked for at a steady rate, well below what this machine can do. But DynamoDB Local, which makes one
write after the other, works for both sides. A control shows what that alone costs: instead of the workers, a bare client
of boto3 with as many threads makes the calls of a worker, again and again.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from broker_common.adapters.celery_queue import CeleryWebhookQueue
from broker_common.adapters.dynamo_facts import untold_key
from broker_common.adapters.dynamo_table import INDEX, SHARDS
from broker_common.core.facts import FactKind, allocated
from broker_common.core.lease import candidate_of
from broker_common.services import BULK_THREADS, build_store, connect_redis
from deploy.dev import programs
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import wait_until
from tests.bulk_load import load_records
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.fakes import BY, make_claim
from tests.long.bench.bare import make_bare_client
from tests.long.bench.load import allocations, new_tracks
from tests.long.bench.pool import make_pool
from tests.long.bench.servers import DYNAMODB, cpu_seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_dynamodb import DynamoDBClient

    from broker_common.core.facts import Fact
    from broker_common.settings import Settings
    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program
    from tests.long.bench.load import Generator, Load
    from tests.long.bench.servers import Servers

WAYS = ALONE, FLOOD, CONTROL = "alone", "beside the flood", "beside a bare client"
_PATIENCE_SEC = 1800
_TAIL_SEC = 60.0
"""How long the rest of a flood is watched without allocations."""
_SETTLE_SEC = 1.0
_HAND_ON_SEC = 2.0
_CLIENTS = 16
_SHARE = 0.5
"""The rate of the allocations, as a share of that most."""
_CONTROL_THREADS = BULK_THREADS
_PAGE = 100
"""The facts or deliveries that a worker finds by one call."""
_BEGUN, _ENDED = "begun#control", "ended#control"
"""The places in the index of what the control does, and of what it has done."""
_CONTROL_FIELDS = tuple(f"field_{number}" for number in range(14))
_WARM_UPS = 2
"""So many rounds without a pause come first. The last of them tells the most that the tracks get."""
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
    """What tracks noticed in one round, and the processor time that the API took for each allocation.

    `database_seconds` is that of DynamoDB Local, for all who used it meanwhile.
    """

    load: Load
    api_milliseconds: float
    database_seconds: float


@dataclass(frozen=True, slots=True)
class Flood:
    """A flood that one worker told or sent, and rounds of allocations: each as many, at the same rate."""

    a_second: float
    """How many facts it told or sent a second without allocations beside."""
    milliseconds: float
    """Its processor time for each of these."""
    paces: dict[str, list[float]]
    """How many a second in each round, by what went on beside the allocations."""
    rounds: dict[str, list[Allocations]]
    """By the same: `ALONE`, `FLOOD`, `CONTROL`."""
    database_milliseconds: dict[str, list[float]]
    """DynamoDB Local's processor time for each of the facts beside, beyond what it takes for the allocations alone."""


@dataclass(frozen=True, slots=True)
class Floods:
    """Both floods of the same facts, and the rate at which allocations were asked for."""

    allocations_a_second: float
    told: Flood
    sent: Flood


@dataclass(slots=True, kw_only=True)
class _Tracks:
    """Tracks that ask the API of a stack for `size` allocations a round; `asked` counts them."""

    servers: Servers
    stack: Stack
    generator: Generator
    size: int
    asked: int = 0

    def most(self) -> float:
        """Return how many allocations a second they get if each asks again at once."""
        return self.generator.send(self._port, self._requests(), clients=_CLIENTS).rate

    def allocate(self, rate: float) -> Allocations:
        """Ask for so many allocations a second."""
        used, database = cpu_seconds_of(self.stack.pid("api")), self.servers.cpu_seconds()[DYNAMODB]
        load = self.generator.send_steadily(self._port, self._requests(), clients=_CLIENTS, rate=rate)
        used = cpu_seconds_of(self.stack.pid("api")) - used
        return Allocations(load, 1000 * used / self.size, self.servers.cpu_seconds()[DYNAMODB] - database)

    @property
    def _port(self) -> int:
        return self.stack.plan.number("API_PORT")

    def _requests(self) -> list[bytes]:
        self.asked += self.size
        return allocations(TRACK_TOKEN, new_tracks(self.size))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a worker does in a flood: `count` tells how much of it is done, and `is_over` whether all is."""

    worker: str
    count: Callable[[], int]
    is_over: Callable[[], bool]


def send_flood(servers: Servers, generator: Generator, *, facts: int, rounds: int, round_size: int) -> Floods:
    """Tell and send so many facts. Beside each, tracks allocate `rounds` times `round_size`, in each of three ways.

    The figures of one round mean nothing. So workers, receiver and control have the lowest priority only with several: on
    a busy machine they would not even start.
    """
    lowest = rounds > 1
    services = partial(_services, lowest=lowest)
    on_table = {"DDB_ENDPOINT_URL": servers.dynamodb_url, "DDB_TABLE_NAME": _TABLE}
    with (
        _receiver(lowest=lowest) as (port, accepted),
        _Control(servers.dynamodb_url, _write_as_teller, lowest=lowest) as tell_control,
        _Control(servers.dynamodb_url, _write_as_sender, lowest=lowest) as send_control,
        Stack(servers.directory(_TABLE), _SETTINGS | on_table, services=services, with_webhooks=True) as stack,
    ):
        assert stack.run_job("sync")["state"] == "succeeded"
        client, store = servers.client(), build_store(stack.plan.settings)
        made = round_size * (_WARM_UPS + 2 * len(WAYS) * rounds)
        load_records(client, _TABLE, make_pool(made + 100, first=1_000_000))
        endpoint = _register(stack, port)
        stack.stop(_TELLER)
        load_records(client, _TABLE, _facts(facts))
        tracks = _Tracks(servers=servers, stack=stack, generator=generator, size=round_size)
        rate = _SHARE * [tracks.most() for _ in range(_WARM_UPS)][-1]

        def all_are_told() -> bool:
            return store.oldest_untold() is None

        # Each allocation makes a fact, too.
        telling = _Work(worker=_TELLER, count=lambda: tracks.asked - _count_untold(client), is_over=all_are_told)
        sending = _Work(worker=_SENDER, count=accepted, is_over=lambda: accepted() >= facts)
        stack.start(_TELLER)
        told = _measure(tracks, tell_control, telling, rate, rounds)
        assert wait_until(all_are_told, _PATIENCE_SEC), "the facts are not told in time"
        stack.stop(_TELLER)
        _change(stack, endpoint, enabled=True)
        with _handing_on(stack.plan.settings, endpoint["endpoint_id"]):
            sent = _measure(tracks, send_control, sending, rate, rounds)
        return Floods(rate, told, sent)


def _measure(tracks: _Tracks, control: _Control, work: _Work, rate: float, rounds: int) -> Flood:
    """Measure allocations beside the work, beside nothing, and beside the control; then the rest of the work alone.

    The order of the three changes from round to round, so that other work of the machine affects all alike.
    """
    found: dict[str, list[Allocations]] = {way: [] for way in WAYS}
    paces: dict[str, list[float]] = {way: [] for way in WAYS}
    facts: dict[str, list[int]] = {way: [] for way in WAYS}

    def run(way: str, count: Callable[[], int]) -> None:
        before, began = count(), time.monotonic()
        found[way].append(tracks.allocate(rate))
        facts[way].append(count() - before)
        paces[way].append(facts[way][-1] / (time.monotonic() - began))

    def beside_flood() -> None:
        before = work.count()
        assert wait_until(lambda: work.count() > before or work.is_over(), _PATIENCE_SEC)
        run(FLOOD, work.count)

    def beside_control() -> None:
        with control.at_work():
            run(CONTROL, control.count)

    def alone() -> None:
        run(ALONE, lambda: 0)

    for number in range(rounds):
        is_odd = number % 2 == 1
        if not is_odd:
            beside_flood()
        with _suspended(tracks.stack, work.worker):
            for each in (beside_control, alone) if is_odd else (alone, beside_control):
                each()
        if is_odd:
            beside_flood()
    is_over = work.is_over()
    before, began, used = work.count(), time.monotonic(), cpu_seconds_of(tracks.stack.pid(work.worker))
    wait_until(work.is_over, _TAIL_SEC)
    seconds, done = time.monotonic() - began, max(1, work.count() - before)
    used = cpu_seconds_of(tracks.stack.pid(work.worker)) - used
    assert not is_over or rounds == 1, "the flood was over before the allocations"
    database = {
        way: [
            1000 * (beside.database_seconds - alone.database_seconds) / max(1, number)
            for beside, alone, number in zip(found[way], found[ALONE], facts[way], strict=True)
        ]
        for way in (FLOOD, CONTROL)
    }
    return Flood(done / seconds, 1000 * used / done, paces, found, database)


def _services(plan: Plan, scratch: Path, *, lowest: bool) -> list[Program]:
    workers = [programs.worker_jobs(plan, scratch), programs.worker_webhooks(plan, scratch)]
    if lowest:
        last = ("sh", "-c", '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 "$@"', "sh")
        workers = [replace(worker, command=(*last, *worker.command)) for worker in workers]
    return [*workers, programs.api(plan, scratch), programs.beat(plan)]


def _end_with_parent() -> None:
    """End this process when the bench has ended, also by a kill."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _come_last() -> None:
    """Give this process the lowest priority.

    Linux with `sched_autogroup` compares the priorities of sessions, and those of processes only within a session.
    """
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")
    os.nice(19)


@contextmanager
def _suspended(stack: Stack, worker: str) -> Iterator[None]:
    """Suspend a worker, which leads a group of processes."""
    group = stack.pid(worker)
    os.killpg(group, signal.SIGSTOP)
    try:
        time.sleep(_SETTLE_SEC)
        yield
    finally:
        os.killpg(group, signal.SIGCONT)


@contextmanager
def _handing_on(settings: Settings, endpoint_id: str) -> Iterator[None]:
    """Queue the endpoint for the sender as often as the job `deliver` does, which the teller would run."""
    queue = CeleryWebhookQueue(settings.redis_url, connect_redis(settings))
    is_over = threading.Event()

    def hand_on() -> None:
        while not is_over.wait(_HAND_ON_SEC):
            queue.send([endpoint_id])

    with ThreadPoolExecutor(1) as threads:
        handing_on = threads.submit(hand_on)
        try:
            yield
        finally:
            is_over.set()
        handing_on.result()


def _facts(count: int) -> Iterator[Fact]:
    """Return facts of so many sandboxes, which have no records: those of allocations now, but of another kind."""
    now = int(time.time())
    for sandbox in make_pool(count, first=5_000_000):
        (track,) = new_tracks(1)
        claim = make_claim(sandbox, track, allocated_at=now, expires_at=now + 4 * 3600)
        yield replace(allocated(candidate_of(sandbox), claim, by=BY), kind=FactKind.MARKED)


def _count_untold(client: DynamoDBClient) -> int:
    """Return how many facts the index shows as untold."""
    return sum(
        page["Count"]
        for shard in range(SHARDS)
        for page in client.get_paginator("query").paginate(
            TableName=_TABLE,
            IndexName=INDEX,
            Select="COUNT",
            KeyConditionExpression="status_key = :place",
            ExpressionAttributeValues={":place": {"S": untold_key(shard)}},
        )
    )


def _register(stack: Stack, port: int) -> dict[str, Any]:
    """Register an endpoint that is told all facts from now on, and is sent none yet."""
    wanted = {"url": f"http://{LOOPBACK}:{port}/", "kinds": ["sandbox.marked"]}
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
def _receiver(*, lowest: bool) -> Iterator[tuple[int, Callable[[], int]]]:
    """Run a receiver; yields its port, and what tells how many deliveries it has accepted."""
    context = multiprocessing.get_context("spawn")
    count, port = context.Value("q", 0), context.Value("i", 0)
    process = context.Process(target=_receive, args=(count, port, lowest), daemon=True)
    process.start()
    try:
        assert wait_until(lambda: port.value > 0, 60)
        yield port.value, lambda: count.value
    finally:
        process.kill()
        process.join()


class _Control:
    """A process that makes the calls of a flood by bare boto3; `write` makes the writes. Use it in a `with` statement."""

    def __init__(self, dynamodb_url: str, write: Callable[[Any, dict[str, Any]], None], *, lowest: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._is_at_work, self._count = context.Event(), context.Value("q", 0)
        arguments = (dynamodb_url, write, self._is_at_work, self._count, lowest)
        self._process = context.Process(target=_make_calls, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def count(self) -> int:
        """Return how many facts it has made the calls of."""
        made: int = self._count.value
        return made

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Make calls inside the context."""
        self._is_at_work.set()
        try:
            before = self.count()
            assert wait_until(lambda: self.count() > before, _PATIENCE_SEC), "the control makes no calls"
            time.sleep(_SETTLE_SEC)
            yield
        finally:
            self._is_at_work.clear()


def _make_calls(
    dynamodb_url: str, write: Callable[[Any, dict[str, Any]], None], is_at_work: Any, count: Any, lowest: bool
) -> None:
    """Make the calls of a worker: for each fact, read its range of a partition, and `write`.

    For each page of facts, read a page of the index and the items that this names. Each thread has a page of items, so
    these calls cost the same however large the flood is.
    """
    _end_with_parent()
    if lowest:
        _come_last()
    client: Any = make_bare_client(dynamodb_url)
    partition = {"S": f"CONTROL{write.__name__}"}

    def find() -> None:
        page = client.query(
            TableName=_TABLE,
            IndexName=INDEX,
            Limit=_PAGE,
            KeyConditionExpression="status_key = :place AND status_order <= :now",
            ExpressionAttributeValues={":place": {"S": _ENDED}, ":now": {"N": str(int(time.time() * 1000))}},
            ProjectionExpression="PK, SK",
        )
        client.batch_get_item(RequestItems={_TABLE: {"Keys": page["Items"], "ConsistentRead": True}})

    def act(thread: int) -> None:
        is_at_work.wait()
        ranges = [f"{thread}#{number}#" for number in range(_PAGE)]
        for each in ranges:
            client.put_item(TableName=_TABLE, Item=_control_item({"PK": partition, "SK": {"S": f"{each}0"}}, _ENDED))
        for number, each in enumerate(itertools.cycle(ranges)):
            is_at_work.wait()
            if number % _PAGE == 0:
                find()
            client.query(
                TableName=_TABLE,
                ConsistentRead=True,
                Limit=10,
                KeyConditionExpression="PK = :partition AND SK BETWEEN :first AND :last",
                ExpressionAttributeValues={":partition": partition, ":first": {"S": each}, ":last": {"S": f"{each}:"}},
            )
            write(client, {"PK": partition, "SK": {"S": f"{each}0"}})
            with count.get_lock():
                count.value += 1

    threads = [threading.Thread(target=act, args=(number,)) for number in range(_CONTROL_THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _write_as_teller(client: Any, key: dict[str, Any]) -> None:
    """Put an item that is in the index, and delete it: a teller puts a delivery, and deletes the mark of the fact."""
    new = {**key, "SK": {"S": f"{key['SK']['S']}#new"}}
    client.put_item(TableName=_TABLE, Item=_control_item(new, _BEGUN), ConditionExpression="attribute_not_exists(PK)")
    client.delete_item(TableName=_TABLE, Key=new)


def _write_as_sender(client: Any, key: dict[str, Any]) -> None:
    """Put an item twice, which moves it in the index, if six of its fields are as they were: so does a sender."""
    for place in (_BEGUN, _ENDED):
        client.put_item(
            TableName=_TABLE,
            Item=_control_item(key, place),
            ConditionExpression=" AND ".join(f"{name} = :was" for name in _CONTROL_FIELDS[:6]),
            ExpressionAttributeValues={":was": {"S": "control"}},
        )


def _control_item(key: dict[str, Any], place: str) -> dict[str, Any]:
    """Return an item of about the size of a delivery."""
    return {
        **key,
        **{name: {"S": "control"} for name in _CONTROL_FIELDS},
        "status_key": {"S": place},
        "status_order": {"N": str(int(time.time() * 1000))},
        "payload": {"S": "x" * 700},
    }


def _receive(count: Any, port: Any, lowest: bool) -> None:
    _end_with_parent()
    if lowest:
        _come_last()

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
