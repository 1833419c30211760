"""A whole broker of real processes on free ports, for tests that kill, stop and restart them.

The programs are those of `make run`; nothing here starts again what ended.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import boto3
import requests
from coverage import Coverage

from broker_common.adapters.dynamo_table import create_table
from deploy.dev import programs
from deploy.dev.plan import make_plan
from deploy.dev.processes import Process, free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from mypy_boto3_dynamodb import DynamoDBClient

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

_START_SEC = 60
TRACK_TOKEN = "the-track-token"
MAKE_RUN_WORKERS = ("worker-jobs", "worker-deletions", "worker-webhooks")
"""The workers of `make run`."""
ADMIN_TOKEN = "the-admin-token"


def worker_program(plan: Plan, scratch: Path, *, name: str, metrics_port: int, children: int) -> Program:
    """Return a worker of several processes for both queues."""
    return _worker(plan, scratch, name, metrics_port, queues="jobs,deletions", options=("-c", str(children)))


def deletions_program(plan: Plan, scratch: Path, *, name: str, metrics_port: int, threads: int) -> Program:
    """Return a worker for deletions with so many threads, under a name of its own."""
    options = ("-P", "threads", "-c", str(threads))
    return _worker(plan, scratch, name, metrics_port, queues="deletions", options=options)


def _worker(plan: Plan, scratch: Path, name: str, metrics_port: int, *, queues: str, options: Sequence[str]) -> Program:
    with_port = replace(plan, env={**plan.env, "METRICS_PORT": str(metrics_port)})
    return programs.worker(with_port, scratch, name=name, queues=queues, options=options, port="METRICS_PORT")


def api_program(plan: Plan, scratch: Path, *, name: str, port: int) -> Program:
    """Return the API of `make run` under a name of its own, so that a broker can have several instances."""
    instance = programs.api(replace(plan, env={**plan.env, "API_PORT": str(port)}), scratch / name)
    return replace(instance, name=name)


def with_workers(
    names: Sequence[str], *, children: int, further_apis: Mapping[str, int] | None = None
) -> Callable[[Plan, Path], list[Program]]:
    """Return the `services` of a stack with several workers, the API, further instances of it by port, and beat."""
    ports = free_ports(len(names))

    def services(plan: Plan, scratch: Path) -> list[Program]:
        workers = [
            worker_program(plan, scratch, name=name, metrics_port=port, children=children)
            for name, port in zip(names, ports, strict=True)
        ]
        apis = [api_program(plan, scratch, name=name, port=port) for name, port in (further_apis or {}).items()]
        return [*workers, programs.api(plan, scratch), *apis, programs.beat(plan)]

    return services


def with_deletion_workers(
    names: Sequence[str], *, threads: int, further_apis: Mapping[str, int] | None = None
) -> Callable[[Plan, Path], list[Program]]:
    """Return the `services` of a stack as it is deployed: like `with_workers`, but each worker wipes in threads.

    Beside them is the worker for jobs.
    """
    ports = free_ports(len(names))

    def services(plan: Plan, scratch: Path) -> list[Program]:
        workers = [
            deletions_program(plan, scratch, name=name, metrics_port=port, threads=threads)
            for name, port in zip(names, ports, strict=True)
        ]
        apis = [api_program(plan, scratch, name=name, port=port) for name, port in (further_apis or {}).items()]
        jobs = programs.worker_jobs(plan, scratch)
        return [jobs, *workers, programs.api(plan, scratch), *apis, programs.beat(plan)]

    return services


def started_when_healthy(plan: Plan, scratch: Path) -> list[Program]:
    """Return the services of `make run`; an API counts as started although it is not ready."""
    return [
        replace(each, ready_url=each.ready_url.replace("/readyz", "/healthz"))
        for each in programs.services(plan, scratch)
    ]


class Stack:
    """A broker with engines, mock provider, table, API, workers and beat; use it in a `with` statement.

    `settings` go over the defaults of `make run`, as its environment does: `DDB_ENDPOINT_URL` and `DDB_TABLE_NAME` use
    a server that runs already, `API_WORKERS` sets the API's processes, `POOL` the provider's accounts, `MOCK_CSP_…`
    the provider's behaviour. No sync has run when the stack is up: `run_job("sync")`. `services` says which processes
    the broker has; the one that answers at `API_PORT` must be among them. Those named in `later` wait for `start`.
    Flower, the console and the worker for webhooks are left out, unless they are asked for.
    """

    def __init__(
        self,
        scratch: Path,
        settings: Mapping[str, str] | None = None,
        *,
        with_flower: bool = False,
        with_console: bool = False,
        with_webhooks: bool = False,
        services: Callable[[Plan, Path], list[Program]] = programs.services,
        later: Collection[str] = (),
    ) -> None:
        names = (
            "API_PORT",
            "CONSOLE_PORT",
            "FLOWER_PORT",
            "METRICS_PORT",
            "DELETIONS_METRICS_PORT",
            "WEBHOOKS_METRICS_PORT",
            "BEAT_METRICS_PORT",
            "DYNAMODB_PORT",
            "REDIS_PORT",
            "MOCK_CSP_PORT",
        )
        self.plan = make_plan(
            {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
            | {"TMPDIR": str(scratch)}
            | {name: str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
            | {"BROKER_API_TOKEN": TRACK_TOKEN, "BROKER_ADMIN_TOKEN": ADMIN_TOKEN, "LOG_FORMAT": "json", "POOL": "20"}
            | dict(settings or {})
        )
        asked_for = {"flower": with_flower, "console": with_console, "worker-webhooks": with_webhooks}
        left_out = {name for name, is_there in asked_for.items() if not is_there}
        self._lines: defaultdict[str, list[str]] = defaultdict(list)
        self._parts = [self._process(program) for program in programs.parts(self.plan, scratch)]
        self._services = [
            self._process(program) for program in services(self.plan, scratch) if program.name not in left_out
        ]
        self._processes = {process.name: process for process in self._parts + self._services}
        self._at_once = [process for process in self._services if process.name not in later]
        self._session = requests.Session()
        self._session.trust_env = False

    @property
    def api_url(self) -> str:
        """Where the API answers, without the base path."""
        return self.plan.api_url

    @property
    def console_url(self) -> str:
        """Where the console answers, if the stack has one."""
        return self.plan.console_url

    def metrics_of(self, name: str) -> str:
        """Return what a worker, beat or the console exposes."""
        url = re.sub("/(healthz|readyz)$", "/metrics", self._processes[name].program.ready_url)
        return requests.get(url, timeout=10).text

    @property
    def csp_url(self) -> str:
        """Where the provider answers."""
        return self.plan.env["CSP_BASE_URL"]

    def switch(self, **switches: Any) -> None:
        """Set these switches of the provider."""
        requests.patch(f"{self.csp_url}/_mock/switches", json=switches, timeout=30).raise_for_status()

    def delete_log(self) -> dict[str, Any]:
        """Return the `deletes` that the provider was asked for, and how many were `in_flight` at once."""
        found: dict[str, Any] = requests.get(f"{self.csp_url}/_mock/deletes", timeout=30).json()
        return found

    def leave_services(self, external_id: str, names: Sequence[str]) -> None:
        """Have a student leave services in an account."""
        body = {"id": external_id, "names": names}
        requests.post(f"{self.csp_url}/_mock/services", json=body, timeout=30).raise_for_status()

    def forget_services(self) -> None:
        """Empty the provider's accounts of services, and its log of calls about services."""
        requests.delete(f"{self.csp_url}/_mock/services", timeout=30).raise_for_status()

    def service_log(self) -> dict[str, Any]:
        """Return the names of the `services` in each account, by its uuid, and the `calls` about services."""
        found: dict[str, Any] = requests.get(f"{self.csp_url}/_mock/services", timeout=30).json()
        return found

    def forget_deletes(self) -> None:
        """Empty the provider's log of deletes."""
        requests.delete(f"{self.csp_url}/_mock/deletes", timeout=30).raise_for_status()

    def stats(self) -> dict[str, int]:
        """Return the counts of the pool."""
        found: dict[str, int] = self.as_admin("GET", "/stats").json()
        return found

    def dynamodb(self) -> DynamoDBClient:
        """Return a client that writes past the broker."""
        env = self.plan.env
        session = boto3.Session(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
        return session.client("dynamodb", endpoint_url=self.plan.env["DDB_ENDPOINT_URL"])

    def __enter__(self) -> Self:
        try:
            self._start(self._parts)
            self.create_table()
            self._start(self._at_once)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes at once: to stop them in order takes a fifth of the processor time of a short test.

        Only if coverage is measured they stop in order, since what is killed saves no coverage.
        """
        self._session.close()
        started = [process for process in reversed(self._processes.values()) if process.started_at]
        if Coverage.current() is None:
            for process in started:
                process.kill_group()
        for process in started:
            process.stop()

    def create_table(self) -> None:
        """Create the table where it is missing, as `broker table create` does."""
        create_table(self.dynamodb(), self.plan.settings.ddb_table_name)

    def accept_table(self) -> None:
        """Say that the table is right as it is now, which takes some seconds to reach every process."""
        command = (sys.executable, "-m", "broker_common.cli", "table", "accept")
        subprocess.run(command, env=self.plan.env, check=True, timeout=_START_SEC)

    def pid(self, name: str) -> int:
        """Return the process id of a program: a worker's main process, of `api` gunicorn's master."""
        return self._processes[name].pid

    def is_running(self, name: str) -> bool:
        """Tell whether a process runs."""
        return self._processes[name].poll() is None

    def exit_code(self, name: str) -> int | None:
        """Return how a process ended: negative for a signal, None while it runs."""
        return self._processes[name].poll()

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """Send a process a signal; unless it is SIGKILL, do not wait for an effect.

        After a SIGKILL its children are killed, too, and both are gone when this returns.
        """
        process = self._processes[name]
        process.kill(signum)
        if signum == signal.SIGKILL:
            process.stop()

    def stop(self, name: str) -> str:
        """Stop a process as `make run` does, and wait; returns how it went (`stopped after …` or `killed after …`)."""
        return self._processes[name].stop()

    def start(self, *names: str) -> None:
        """Start processes that were stopped or killed, or are to run only from now on, and wait until they answer."""
        self._start([self._processes[name] for name in names])

    def restart(self, name: str) -> None:
        """Stop a process and start it again."""
        self.stop(name)
        self.start(name)

    def output(self, name: str) -> str:
        """Return all that a process has written, over its restarts, too."""
        return "\n".join(self._lines[name])

    def records(self, *names: str) -> list[dict[str, Any]]:
        """Return the log lines of these processes that are JSON objects."""
        found = []
        for line in [line for name in names for line in list(self._lines[name])]:
            with suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
        return found

    def as_track(self, track_id: str, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Call the API as a track; `path` is what comes after the base path."""
        headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track_id} | kwargs.pop("headers", {})
        return self._call(method, path, headers, kwargs)

    def as_admin(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Call the API as an operator; `path` is what comes after the base path and `/admin`."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"} | kwargs.pop("headers", {})
        return self._call(method, f"/admin{path}", headers, kwargs)

    def run_job(self, call: str, **kwargs: Any) -> dict[str, Any]:
        """Have `sync`, `cleanup`, `expire` or `purge-stale` run, and return the run once it has ended."""
        answer = self.as_admin("POST", f"/{call}", **kwargs)
        assert answer.status_code == requests.codes.accepted, answer.text
        run: dict[str, Any] = {}

        def has_ended() -> bool:
            nonlocal run
            run = self.as_admin("GET", f"/jobs/{answer.json()['job_id']}").json()
            return run["state"] not in {"queued", "running"}

        assert wait_until(has_ended, _START_SEC), f"{call} did not end: {run}"
        return run

    def _call(self, method: str, path: str, headers: dict[str, str], kwargs: dict[str, Any]) -> requests.Response:
        url = f"{self.api_url}{self.plan.settings.api_base_path}{path}"
        return self._session.request(method, url, headers=headers, timeout=kwargs.pop("timeout", 30), **kwargs)

    def _process(self, program: Program) -> Process:
        return Process(program, lambda name, line: self._lines[name].append(line))

    def _start(self, processes: list[Process]) -> None:
        for process in processes:
            process.start()
        for process in processes:
            ready = wait_until(process.is_ready, _START_SEC, give_up=process.has_ended)
            assert ready, f"{process.name} {process.ending()}\n{self.output(process.name)}"
