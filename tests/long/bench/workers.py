"""Real workers on DynamoDB Local: the load of one process, and the gain by more workers while tracks are served.

One worker runs jobs. Others wipe: they take the deletions alone. The provider is the mock, which takes a given time for
each delete. The API is there because the deletions come from tracks that give back, and to be watched meanwhile.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import requests

from deploy.dev import programs
from deploy.dev.processes import free_ports, wait_until
from tests.bulk_load import load_records
from tests.e2e.stack import TRACK_TOKEN, Stack, api_program, worker_program
from tests.long.bench import flood
from tests.long.bench.load import Generator, Load, allocations, new_tracks
from tests.long.bench.pool import make_pool
from tests.long.bench.servers import cpu_seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program
    from tests.long.bench.servers import Servers

_PATIENCE_SEC = 60
_JOBS = "jobs"
"""The worker that runs jobs."""
_SELDOM = "86400"
_SETTINGS = {
    "API_WORKERS": "1",
    "MOCK_CSP_OTHERS": "0",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "SYNC_INTERVAL_SEC": _SELDOM,
    "CLEANUP_INTERVAL_SEC": _SELDOM,
    "AUTO_EXPIRY_INTERVAL_SEC": _SELDOM,
}
_POOL = ("-P", "threads")
"""How a worker that wipes makes several calls at once."""
AT_ONCE, LIMIT = 4, 10
"""The calls that each worker makes at once, and `CSP_MAX_CONCURRENCY`."""
DELETE_SEC = 1.0
_OTHER_IDS = 1_000_000
"""The offset of the tracks' sandboxes from the provider's accounts."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of workers in an interval."""

    items: int
    seconds: float
    cpu_seconds: float
    """The processor time of all their processes."""
    at_once: float = 1
    """The mean number of running calls of the provider."""

    @property
    def rate(self) -> float:
        """Items per second."""
        return self.items / self.seconds

    @property
    def cpu_milliseconds(self) -> float:
        """The processor time of the workers for each item."""
        return 1000 * self.cpu_seconds / self.items


@dataclass(frozen=True, slots=True)
class Served:
    """The loads of tracks on two APIs: the rounds of each API in turn, and the processor time of both."""

    loads: Sequence[Load]
    api_cpu_seconds: float

    @property
    def api_milliseconds(self) -> float:
        """The APIs' processor time for each allocation."""
        return 1000 * self.api_cpu_seconds / sum(len(load.answers) for load in self.loads)


@dataclass(frozen=True, slots=True)
class Step:
    """The work of so many workers that wipe, and the service for tracks at that time. Without them nothing is deleted."""

    name: str
    deletions: Work | None
    served: Served


class _Site:
    """A broker that starts with the worker for jobs, and one that wipes."""

    def __init__(self, stack: Stack, wiping: Sequence[str], apis: Sequence[str]) -> None:
        self.stack = stack
        self._wiping = wiping
        self._apis = apis
        self._running = 1

    def add_workers(self, running: int) -> None:
        """Start workers that wipe until `running` run."""
        self.stack.start(*self._wiping[self._running : running])
        self._running = running

    def kill_workers(self) -> None:
        """End all workers that wipe at the same time."""
        for name in self._wiping[: self._running]:
            self.stack.kill(name)

    def run(self, job: str, counted: str) -> Work:
        """Run a job and measure it. The counters in its result give its items."""
        cpu, began = self._cpu_seconds(), time.monotonic()
        run = self.stack.run_job(job)
        seconds, cpu = time.monotonic() - began, self._cpu_seconds() - cpu
        assert run["state"] == "succeeded", run
        return Work(run["result"][counted], seconds, cpu)

    @property
    def port(self) -> int:
        """The port of the first API."""
        return self.stack.plan.number("API_PORT")

    @contextmanager
    def watch_deletions(self) -> Iterator[list[Work]]:
        """Measure the deletions that end during the context. The list has its one element at the end."""
        found: list[Work] = []
        cpu, began = self._cpu_seconds(), time.time()
        yield found
        ended, cpu = time.time(), self._cpu_seconds() - cpu
        spans = [(each["started_at"], each["ended_at"] or ended) for each in self.deletes()]
        under_way = sum(max(0.0, min(until, ended) - max(since, began)) for since, until in spans)
        items = sum(began <= until < ended for _, until in spans)
        found.append(Work(items, ended - began, cpu, under_way / (ended - began)))

    def deletes(self) -> list[dict[str, Any]]:
        """Return the provider's log of deletes."""
        found: list[dict[str, Any]] = requests.get(f"{self.stack.csp_url}/_mock/deletes", timeout=30).json()["deletes"]
        return found

    def api_cpu_seconds(self) -> float:
        """Return the processor time of all APIs so far."""
        return sum(cpu_seconds_of(self.stack.pid(name)) for name in self._apis)

    def _cpu_seconds(self) -> float:
        return sum(cpu_seconds_of(self.stack.pid(name)) for name in (_JOBS, *self._wiping[: self._running]))


@contextmanager
def _site(
    servers: Servers, table: str, settings: Mapping[str, str], *, workers: int, at_once: int, apis: Sequence[int] = ()
) -> Iterator[_Site]:
    """Run a broker on a table of its own; `apis` are the ports of further APIs."""
    wiping = [f"wipes-{number}" for number in range(1, workers + 1)]
    on_table = {"DDB_ENDPOINT_URL": servers.dynamodb_url, "DDB_TABLE_NAME": table}
    further = {f"api-{number}": port for number, port in enumerate(apis, start=2)}
    services = _services(wiping, at_once, further)
    with Stack(
        servers.directory(table), _SETTINGS | on_table | dict(settings), services=services, later=wiping[1:]
    ) as stack:
        yield _Site(stack, wiping, ["api", *further])


def _services(
    wiping: Sequence[str], at_once: int, further_apis: Mapping[str, int]
) -> Callable[[Plan, Path], list[Program]]:
    """Return the `services` of a stack with one process for jobs, and workers that wipe."""
    options = {_JOBS: ("-Q", "jobs", "-c", "1")} | {
        name: ("-Q", "deletions", *_POOL, "-c", str(at_once)) for name in wiping
    }
    ports = dict(zip(options, free_ports(len(options)), strict=True))

    def services(plan: Plan, scratch: Path) -> list[Program]:
        def worker(name: str) -> Program:
            usual = worker_program(plan, scratch, name=name, metrics_port=ports[name], children=1)
            return replace(usual, command=[*usual.command, *options[name]])  # the last of equal options counts

        apis = [api_program(plan, scratch, name=name, port=port) for name, port in further_apis.items()]
        return [*map(worker, options), programs.api(plan, scratch), *apis, programs.beat(plan)]

    return services


def scale(servers: Servers, *, rounds: int, round_size: int) -> list[Step]:
    """Measure two APIs without deletions, then beside 1, 2 and 4 workers that wipe in a flood of them, then without again.

    At each step each API gets `rounds` times `round_size` allocations, from one client, without a pause.
    """
    waiting = 50 * rounds + 300
    settings = {
        "POOL": str(waiting),
        "MOCK_CSP_DELETE_SECONDS": str(DELETE_SEC),
        "CSP_MAX_CONCURRENCY": str(LIMIT),
    }
    further = free_ports(1)
    with ExitStack() as opened:
        generators = [opened.enter_context(Generator()) for _ in range(2)]
        threads = opened.enter_context(ThreadPoolExecutor(2))
        site = opened.enter_context(_site(servers, "scaling", settings, workers=4, at_once=AT_ONCE, apis=further))
        site.run("sync", "synced")
        held = generators[0].allocate(site.port, TRACK_TOKEN, waiting, clients=4)
        generators[0].give_back(site.port, TRACK_TOKEN, held, clients=4)
        load_records(servers.client(), "scaling", make_pool(6 * 2 * rounds * round_size, first=_OTHER_IDS))

        def allocate(generator: Generator, port: int) -> Load:
            return generator.send(port, allocations(TRACK_TOKEN, new_tracks(round_size)), clients=1)

        def serve_tracks() -> Served:
            before = site.api_cpu_seconds()
            loads = [load for _ in range(rounds) for load in threads.map(allocate, generators, (site.port, *further))]
            return Served(loads, site.api_cpu_seconds() - before)

        serve_tracks()  # warms up
        steps = [Step("no worker", None, serve_tracks())]
        assert site.stack.as_admin("POST", "/cleanup").ok
        for workers in (1, 2, 4):
            site.add_workers(workers)
            _wait_until_under_way(site, min(workers * AT_ONCE, LIMIT))
            with site.watch_deletions() as deletions:
                served = serve_tracks()
            steps.append(Step(f"{workers} of {AT_ONCE} calls", deletions[0], served))
        # Wait for the full number: between the end of a call and the next one there is one less.
        _wait_until_under_way(site, LIMIT)
        site.kill_workers()
        return [*steps, Step("no worker, again", None, serve_tracks())]


def _wait_until_under_way(site: _Site, calls: int) -> None:
    """Wait until so many deletes run; fail if the flood ends before."""
    found = wait_until(lambda: sum(each["ended_at"] is None for each in site.deletes()) >= calls, _PATIENCE_SEC)
    assert found, f"{calls} deletes were not under way at once: the flood was over before"


def size(servers: Servers, *, items: int, lab_sec: int) -> dict[str, Work]:
    """Measure each job on `items` sandboxes, by one process of a worker, beside a provider that answers at once.

    `lab_sec` is long enough to give sandboxes back before they expire.
    """
    settings = {
        "POOL": str(items),
        "MOCK_CSP_DELETE_SECONDS": "0",
        "LAB_DURATION_HOURS": str(lab_sec / 3600),
        "EXPIRY_BUFFER_HOURS": "0",
    }
    with _site(servers, "sizing", settings, workers=1, at_once=1) as site, Generator() as generator:
        works = {
            "sync: new sandboxes": site.run("sync", "synced"),
            "sync: unchanged sandboxes": site.run("sync", "synced"),
        }
        held = generator.allocate(site.port, TRACK_TOKEN, items, clients=4)
        generator.give_back(site.port, TRACK_TOKEN, held, clients=4)
        works["cleanup: deletions"] = site.run("cleanup", "deleted")
        generator.allocate(site.port, TRACK_TOKEN, items, clients=4)
        due = time.monotonic() + lab_sec
        assert wait_until(lambda: time.monotonic() > due, 2 * lab_sec)
        return works | {"expire: allocations that are due": site.run("expire", "expired")}


def serve_class(servers: Servers, generator: Generator, crowd: flood.Crowd, *, with_reservation: bool) -> flood.Outcome:
    """Serve a class beside a flood of others. Its reservation is booked over HTTP, and filled by the job of the worker.

    Other than in the rest of this module, the worker cleans up all the time.
    """
    settings = {
        "POOL": str(crowd.pool),
        "API_WORKERS": str(servers.processes),
        "MOCK_CSP_DELETE_SECONDS": str(DELETE_SEC),
        "CSP_MAX_CONCURRENCY": str(LIMIT),
        "CLEANUP_INTERVAL_SEC": "1",
    }
    table = "class-with" if with_reservation else "class-without"
    with _site(servers, table, settings, workers=1, at_once=LIMIT) as site:
        site.run("sync", "synced")
        reserved = crowd.students if with_reservation else 0
        if reserved:
            _reserve(site, reserved)
        return generator.start(flood.bring_class, site.port, crowd, reserved).get()


def _reserve(site: _Site, count: int) -> None:
    """Book sandboxes for a class that starts now, and wait until all are set aside."""
    now = int(time.time())
    booking = {"name": "A class", "count": count, "starts_at": now, "ends_at": now + 7200, "track_names": [flood.LAB]}
    booked = site.stack.as_admin("POST", "/reservations", json=booking)
    assert booked.status_code == HTTPStatus.CREATED, booked.text
    path = f"/reservations/{booked.json()['reservation_id']}"
    filled = wait_until(lambda: site.stack.as_admin("GET", path).json()["set_aside"] == count, _PATIENCE_SEC)
    assert filled, f"the job has not set aside {count} sandboxes: {site.stack.as_admin('GET', path).text}"
