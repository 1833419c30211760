"""The measured servers: DynamoDB Local, Redis, and the real API under gunicorn, on free ports of this machine.

No worker and no scheduler runs, so that nothing but the API is at work; an API's log lines go to /dev/null, because
what reads them elsewhere is not its cost.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prometheus_client.multiprocess import MultiProcessCollector
from redis import Redis

from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.dynamo_transport import make_client
from broker_common.adapters.redis_table_memory import MEMORY_KEY
from deploy.dev import programs
from deploy.dev.dynamodb_local import dynamodb_local
from deploy.dev.plan import LOOPBACK, make_plan
from deploy.dev.processes import Process, Program, call, free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mypy_boto3_dynamodb import DynamoDBClient

TRACK_TOKEN = "the-track-token"
ADMIN_TOKEN = "the-admin-token"
API_PROCESSES = 4
API, DYNAMODB, REDIS = "API", "DynamoDB Local", "Redis"
"""The names of the servers whose processor time is measured."""
REGION = "us-east-1"
_REDIS_DATABASES = 16
_SCHEDULER_CLOCK = 2
"""`CPUCLOCK_SCHED`: the part of the id of a process's clock that says what it counts."""
_START_SEC = 60


@dataclass(frozen=True, slots=True)
class Api:
    """One API server, of several processes."""

    port: int
    metrics: Path
    """The directory of its processes' counters."""
    pid: int
    """The process that has started the others."""

    def cpu_seconds(self) -> float:
        """Return the processor time of all its processes so far."""
        return cpu_seconds_of(self.pid)

    def counts(self) -> Counter[str]:
        """Return the sum of the counters of all its processes since its start, by their names in /metrics.

        Each operation of DynamoDB and each outcome also has a counter of its own: `calls:<operation>`,
        `outcome:<outcome>`.
        """
        return sum(self.by_process().values(), Counter())

    def by_process(self) -> defaultdict[str, Counter[str]]:
        """Return the same for each process, by its id.

        They come from the files that /metrics reads. A scrape would count the pool, by calls of DynamoDB that belong to
        no allocation.
        """
        files: defaultdict[str, list[str]] = defaultdict(list)
        for path in self.metrics.glob("*_*.db"):
            if path.stat().st_size:  # a process that has just made it has not written to it yet
                files[path.stem.rpartition("_")[2]].append(str(path))
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for pid, paths in files.items():
            for metric in MultiProcessCollector.merge(paths):  # type: ignore[no-untyped-call] # prometheus_client leaves it untyped
                for sample in metric.samples:
                    if sample.name.endswith(("_total", "_count")):
                        found[pid][sample.name] += int(sample.value)
                    if sample.name == "broker_dynamodb_request_seconds_count":
                        found[pid][f"calls:{sample.labels['operation']}"] += int(sample.value)
                        found[pid][f"outcome:{sample.labels['outcome']}"] += int(sample.value)
        return found


class Servers:
    """DynamoDB Local, Redis, and API servers on tables of their own. Use it in a `with` statement."""

    def __init__(self, scratch: Path, *, processes: int = API_PROCESSES) -> None:
        self.processes = processes
        """The default number of processes of an API."""
        self._scratch = scratch
        self._dynamodb_port, self._redis_port = free_ports(2)
        self._tables: dict[str, int] = {}
        self._running = ExitStack()
        self._masters: dict[str, int] = {}
        self._apis = 0

    @property
    def dynamodb_url(self) -> str:
        """The URL of DynamoDB Local."""
        return f"http://{LOOPBACK}:{self._dynamodb_port}"

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            dynamodb = starting.enter_context(_running(dynamodb_local(self._dynamodb_port)))
            redis = starting.enter_context(_running(programs.valkey(self._redis_port)))
            self._masters = {DYNAMODB: dynamodb.pid, REDIS: redis.pid}
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time of DynamoDB Local and of Redis so far."""
        return {kind: cpu_seconds_of(master) for kind, master in self._masters.items()}

    def directory(self, name: str) -> Path:
        """Return a new directory that exists until the end of the bench."""
        directory = self._scratch / name
        directory.mkdir()
        return directory

    def client(self, *, connections: int = 8) -> DynamoDBClient:
        """Return a client like the broker's, with a longer timeout."""
        return make_client(region=REGION, endpoint_url=self.dynamodb_url, timeout_sec=60, connections=connections)

    def make_table(self, name: str) -> str:
        """Create an empty table, as `broker table create` does; return its name."""
        create_table(self.client(), name)
        return name

    @contextmanager
    def api(
        self,
        table: str,
        *,
        application: str = "broker_api.wsgi:app",
        processes: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Iterator[Api]:
        """Run an API server on a table, with rate limit, metrics and logs on; `variables` are for `application`."""
        processes = processes or self.processes
        self._apis += 1
        scratch = self._scratch / f"api-{self._apis}"
        (port,) = free_ports(1)
        env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
            "TMPDIR": str(self._scratch),
            "API_PORT": str(port),
            "API_WORKERS": str(processes),
            "BROKER_API_TOKEN": TRACK_TOKEN,
            "BROKER_ADMIN_TOKEN": ADMIN_TOKEN,
            "LOG_FORMAT": "json",
            "DDB_ENDPOINT_URL": self.dynamodb_url,
            "DDB_TABLE_NAME": table,
            "REDIS_URL": self._redis_of(table),
            **(variables or {}),
        }
        program = programs.api(make_plan(env), scratch)
        command = ["sh", "-c", 'exec "$@" >/dev/null', "sh", *program.command[:-1], application]
        with _running(replace(program, command=command)) as process:
            metrics = scratch / "prometheus-api"
            started = wait_until(lambda: _count_ready(port, metrics) >= processes, _START_SEC)
            assert started, f"{application}: only some of its processes are up"
            yield Api(port, metrics, process.pid)

    def _redis_of(self, table: str) -> str:
        """Return the URL of a database of Redis for a table: a broker remembers its table there."""
        number = self._tables.setdefault(table, len(self._tables)) % _REDIS_DATABASES
        url = f"redis://{LOOPBACK}:{self._redis_port}/{number}"
        with Redis.from_url(url) as redis:
            redis.delete(MEMORY_KEY)
        return url


def cpu_seconds_of(master: int) -> float:
    """Return the processor time of a process and its children so far."""
    children = [int(child) for child in Path(f"/proc/{master}/task/{master}/children").read_text().split()]
    return sum(_cpu_seconds(pid) for pid in (master, *children))


def _cpu_seconds(pid: int) -> float:
    """Return user and system time of a process with all its threads (clock_getcpuclockid(3), to the nanosecond)."""
    return time.clock_gettime((~pid << 3) | _SCHEDULER_CLOCK)


def _count_ready(port: int, metrics: Path) -> int:
    """Return the number of processes of an API that have answered a request: each has a file of counters."""
    assert call("GET", f"http://{LOOPBACK}:{port}/healthz")[0] == HTTPStatus.OK
    return len(list(metrics.glob("counter_*.db")))


@contextmanager
def _running(program: Program) -> Iterator[Process]:
    lines: list[str] = []
    process = Process(program, lambda _, line: lines.append(line))
    process.start()
    try:
        ready = wait_until(process.is_ready, _START_SEC, give_up=process.has_ended)
        assert ready, "\n".join([f"{program.name} {process.ending()}", *lines])
        yield process
    finally:
        process.kill()  # to stop in order takes processor time, and shows nothing here
        process.stop()
