"""The broker under test: real processes over DynamoDB Local, behind a proxy that injects faults.

The checks read past the proxy: the table by a client of its own, the provider by its mock's log.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import requests
from botocore.exceptions import BotoCoreError, ClientError
from celery import Celery

from broker_common.adapters.celery_names import DELETIONS_QUEUE
from broker_common.adapters.dynamo_items import sandbox_key
from broker_common.adapters.dynamo_transport import make_client
from deploy.dev import programs
from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import Program, free_ports, wait_until
from tests import backends
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack, worker_program
from tests.fault_proxy import FaultProxy
from tests.long.history.load import Answer
from tests.long.history.planted import Place
from tests.long.history.record import (
    Account,
    Call,
    ClaimRow,
    Delete,
    Fault,
    Kind,
    PlaceRow,
    ReservationRow,
    Row,
    Scan,
    read_fact,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from random import Random

    from broker_common.core.facts import Fact
    from deploy.dev.plan import Plan
    from tests.long.history.load import Request
    from tests.long.history.planted import Bug

LAB_SEC, MAX_LAB_SEC, BUFFER_SEC = 6, 12, 2
DELETE_SEC = 0.2
SETTINGS = {
    "DDB_TABLE_NAME": "History",
    "POOL": "30",
    "API_WORKERS": "3",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    # Long enough for a busy machine: a 503 must come from a fault, not from a slow machine.
    "REQUEST_DEADLINE_SEC": "6",
    "LAB_DURATION_HOURS": repr(LAB_SEC / 3600),
    "MAX_LAB_DURATION_HOURS": repr(MAX_LAB_SEC / 3600),
    "EXPIRY_BUFFER_HOURS": repr(BUFFER_SEC / 3600),
    "SYNC_INTERVAL_SEC": "2",
    "CLEANUP_INTERVAL_SEC": "1",
    "AUTO_EXPIRY_INTERVAL_SEC": "1",
    "DELETION_BACKOFF_BASE_SEC": "0.5",
    "DELETION_BACKOFF_MAX_SEC": "3",
    "CSP_TIMEOUT_CONNECT_SEC": "0.5",
    "CSP_TIMEOUT_READ_SEC": "1.5",
    "CIRCUIT_BREAKER_TIMEOUT_SEC": "1",
    "K_CANDIDATES": "5",
    "MOCK_CSP_OTHERS": "20",
    "MOCK_CSP_DELETE_SECONDS": str(DELETE_SEC),
    "MOCK_CSP_LIST_SECONDS": "0.3",
}
WORKERS = ("worker-1", "worker-2")
_SCAN_PAUSE_SEC = 0.25
_LATE_SEC = 0.3
"""A little more than the time that the broker gives the store for one call."""
_WARM_UP_TRACKS, _WARM_UP_ROUNDS = 16, 3
_FEED_PAGE, _PAST_PAGE = 500, 50
_CHILDREN = 2
"""The number of processes of each worker."""


class Broker:
    """A running broker, the `Surroundings` of its clients, and the record of the run. Use it in a `with` statement."""

    def __init__(self, scratch: Path, database_url: str, bug: Bug | None = None) -> None:
        """Use the database at `database_url`; plant `bug`, if given, in its processes."""
        proxy_port, *metrics_ports = free_ports(1 + len(WORKERS))
        self.database_url = database_url
        self._proxy = FaultProxy(proxy_port, database_url)
        settings = SETTINGS | {"DDB_ENDPOINT_URL": self._proxy.url}
        services = partial(_services, bug=bug, metrics_ports=metrics_ports)
        self.stack = Stack(scratch, settings, services=services)
        self.names = ["api", *WORKERS, "beat"]
        self.calls: list[Call] = []
        self.scans: list[Scan] = []
        self.lateness: list[Fault] = []
        self._over = threading.Event()
        self._watcher = ThreadPoolExecutor(1)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as running:
            running.enter_context(self._proxy.running())
            running.enter_context(self.stack)
            # The first one may be skipped while beat's own runs.
            assert wait_until(lambda: self.stack.run_job("sync")["state"] == "succeeded", 60)
            self._warm_up()
            running.callback(self._watcher.shutdown)
            running.callback(self._over.set)
            self._watching = self._watcher.submit(self._watch)
            assert wait_until(lambda: bool(self.scans), 60, give_up=self._watching.done)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    # -- `Surroundings` of the clients

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def record(self, call: Call) -> None:
        self.calls.append(call)

    def together(self, *acts: Callable[[], Any]) -> list[Any]:
        if len(acts) == 1:
            return [acts[0]()]
        with ThreadPoolExecutor(len(acts)) as pool:
            return list(pool.map(lambda act: act(), acts))

    def send(self, request: Request, *, patience: float) -> Answer | None:
        headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": request.track_id, **request.headers}
        return self._send(request.method, request.path, headers, request.body, patience)

    # -- operators

    def operate(self, method: str, path: str, body: Mapping[str, Any] | None, *, patience: float) -> Answer | None:
        return self._as_operator(method, path, body, patience)

    def release(self, scan: Scan, rng: Random, *, patience: float = 20.0) -> None:
        """Release an allocation of the last scan."""
        held = [row for row in scan.rows if row.lease_id is not None]
        if not held:
            return
        row = rng.choice(held)
        began = self.now()
        answer = self._as_operator("POST", f"/sandboxes/{row.sandbox_id}/release", {"lease_id": row.lease_id}, patience)
        self.record(
            Call(
                kind=Kind.RELEASE,
                began=began,
                ended=self.now(),
                status=answer.status if answer else None,
                body=answer.body if answer else {},
                sandbox_id=row.sandbox_id,
                lease_id=row.lease_id,
                patience=patience,
            )
        )

    def ask(self, job: str) -> None:
        """Request `sync`, `cleanup`, `expire`, `reserve` or `bulk-retry`. It may fail."""
        self._as_operator("POST", f"/{job}", None, 20.0)

    def counts(self) -> Mapping[str, int]:
        """Return the number of sandboxes in each status, from the operators' call."""
        answer = self._as_operator("GET", "/stats", None, 20.0)
        return answer.body if answer and answer.status == 200 else {}

    def read_feed(self) -> tuple[Fact, ...]:
        """Return all facts of sandboxes as a reader of the feed gets them.

        It reads to the end and once more from there, so the last facts come twice.
        """
        events, after, ends = list[dict[str, Any]](), "", 0
        while ends < 2:
            page = self._read(f"/events?limit={_FEED_PAGE}" + (f"&after={after}" if after else ""))
            events += page["events"]
            after, ends = page["cursor"], ends + page["is_last"]
        return tuple(_fact(event) for event in events if event["sandbox_id"] is not None)

    def read_pasts(self, feed: Iterable[Fact]) -> tuple[Fact, ...]:
        """Return the history of each sandbox in the table, and of each that the feed names, the newest fact first."""
        ids = {row.sandbox_id for row in self.scans[-1].rows} | {fact.sandbox_id for fact in feed}
        return tuple(fact for sandbox_id in sorted(ids) for fact in self._read_past(sandbox_id))

    def _read_past(self, sandbox_id: str) -> Iterator[Fact]:
        cursor: str | None = ""
        while cursor is not None:
            page = self._read(f"/sandboxes/{sandbox_id}/history?limit={_PAST_PAGE}" + (cursor and f"&cursor={cursor}"))
            yield from map(_fact, page["facts"])
            cursor = page["cursor"]

    def _read(self, path: str) -> Mapping[str, Any]:
        answer = self._as_operator("GET", path, None, 20.0)
        assert answer is not None, f"{path} was not answered"
        assert answer.status == 200, f"{path} was answered {answer}"
        return answer.body

    # -- faults

    def inject(self, *rules: Mapping[str, Any]) -> int:
        """Replace the proxy's rules for calls of the store; return how often the earlier rules failed a call."""
        return self._proxy.inject(*rules)

    def switch(self, **switches: Any) -> Mapping[str, Any]:
        """Set switches of the provider and reset all others; return the earlier ones."""
        url = f"{self.stack.csp_url}/_mock/switches"
        before: Mapping[str, Any] = requests.get(url, timeout=10).json()
        taken = requests.put(url, json=switches, timeout=10)
        assert taken.status_code == 200, taken.text
        return before

    def kill_child(self, name: str, rng: Random) -> int:
        """Kill a child of a process; return how many were killed (0 or 1)."""
        threads = Path(f"/proc/{self.stack.pid(name)}/task").glob("*/children")
        children = [child for thread in threads for child in thread.read_text().split()]
        if children:
            with suppress(ProcessLookupError):
                os.kill(int(rng.choice(children)), signal.SIGKILL)
        return min(1, len(children))

    def deliver_again(self, rng: Random) -> None:
        """Queue deletes as if delivered twice or late: for all that wait, and for a few other sandboxes.

        Celery delivers at least once. Without Redis nothing happens.
        """
        waiting = [row.sandbox_id for row in self.scans[-1].rows if row.status == "pending_deletion"]
        others = [row.sandbox_id for row in rng.sample(self.scans[-1].rows, 5)]
        if not self.stack.is_running("redis"):
            return
        with Celery(broker=self.stack.plan.env["REDIS_URL"], set_as_current=False) as queue:
            for sandbox_id in waiting * 2 + others:
                message = {"sandbox_id": sandbox_id, "run_id": "nobody-asked"}
                queue.send_task("broker.delete_sandbox", kwargs=message, queue=DELETIONS_QUEUE)

    def supervise(self) -> None:
        """Start each ended process again. Call this from the main thread."""
        for name in self.names:
            if not self.stack.is_running(name):
                self.stack.start(name)

    def rest(self) -> None:
        """End all processes except the API: without clients, nothing changes any more."""
        for name in self.names:
            if name != "api":
                self.stack.kill(name)

    # -- reads past the broker

    def accounts(self) -> list[dict[str, Any]]:
        """Return the provider's active sandbox accounts."""
        found = requests.get(f"{self.stack.csp_url}/_mock/accounts", timeout=10).json()["accounts"]
        return [each for each in found if (each["account_type"], each["state"]) == ("sandbox", "active")]

    def list_account(self, account: Mapping[str, Any]) -> None:
        """Make the provider list this account."""
        given = {name: value for name, value in account.items() if name != "wiped_at"}
        requests.post(f"{self.stack.csp_url}/_mock/accounts", json=given, timeout=10).raise_for_status()

    def hide_account(self, account: Mapping[str, Any]) -> None:
        """Make the provider no longer list an account."""
        requests.delete(f"{self.stack.csp_url}/_mock/accounts/{account['csp_id']}", timeout=10).raise_for_status()

    def listed(self) -> tuple[Account, ...]:
        """Return the accounts for the history."""
        return tuple(Account(sandbox_id=str(each["csp_id"]), external_id=each["id"]) for each in self.accounts())

    def deletes(self) -> tuple[Delete, ...]:
        """Return the provider's log. A delete that still runs counts as ended now."""
        found = requests.get(f"{self.stack.csp_url}/_mock/deletes", timeout=10).json()["deletes"]
        return tuple(
            Delete(
                external_id=each["external_id"],
                began=each["started_at"],
                ended=each["ended_at"] or self.now(),
                answer=each["answer"],
                applied=each["applied"],
            )
            for each in found
        )

    def scan(self, client: Any) -> Scan:
        """Read the whole table."""
        began, items, request = self.now(), list[dict[str, Any]](), dict[str, Any]()
        while True:
            page = client.scan(TableName=self.stack.plan.settings.ddb_table_name, ConsistentRead=True, **request)
            items += [{name: _value(value) for name, value in item.items()} for item in page["Items"]]
            if "LastEvaluatedKey" not in page:
                return _read_scan(items, began, self.now())
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]

    def _warm_up(self) -> None:
        """Make the first, slow calls of each API process before the record begins."""

        def is_served(number: int) -> bool:
            track_id = f"warm-up-{number}"
            given = self.stack.as_track(track_id, "POST", "/allocate")
            path = f"/sandboxes/{given.json().get('sandbox_id')}/mark-for-deletion"
            return given.ok and self.stack.as_track(track_id, "POST", path).ok

        def warm_up(number: int) -> bool:
            return wait_until(lambda: is_served(number), 60)

        for _ in range(_WARM_UP_ROUNDS):
            assert all(self.together(*[partial(warm_up, number) for number in range(_WARM_UP_TRACKS)]))

    def _watch(self) -> None:
        """Scan the table repeatedly, and note when the store or the machine is slow."""
        direct, proxied = connect(self.database_url), connect(self._proxy.url)
        table = self.stack.plan.settings.ddb_table_name
        ended = self.now()
        while not self._over.wait(_SCAN_PAUSE_SEC):
            self.scans.append(self.scan(direct))
            with suppress(BotoCoreError, ClientError):  # a fault of the proxy
                proxied.get_item(TableName=table, Key=sandbox_key("probe"))
            began, ended = ended, self.now()
            if ended - began > _SCAN_PAUSE_SEC + _LATE_SEC:
                self.lateness.append(
                    Fault(name="none: the store or the machine was late", began=began, ended=ended, refuses_calls=True)
                )
        self.scans.append(self.scan(direct))

    def stop_watching(self) -> None:
        """Scan the table a last time and stop. Raises the error of any scan."""
        self._over.set()
        self._watching.result()

    def _as_operator(self, method: str, path: str, body: Mapping[str, Any] | None, patience: float) -> Answer | None:
        return self._send(method, f"/admin{path}", {"Authorization": f"Bearer {ADMIN_TOKEN}"}, body, patience)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Mapping[str, Any] | None, patience: float
    ) -> Answer | None:
        connection = http.client.HTTPConnection(LOOPBACK, self.stack.plan.number("API_PORT"), timeout=patience)
        sent = dict(headers)
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, f"/v1{path}", None if body is None else json.dumps(body), sent)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return Answer(
            status=response.status,
            body=json.loads(text) if text else {},
            replayed=response.headers.get("Idempotent-Replayed") == "true",
            retry_after=int(response.headers.get("Retry-After", 0)),
        )


def connect(url: str) -> Any:
    """Return a client of a local database, with dummy credentials."""
    os.environ.update(backends.AWS_ENVIRONMENT)
    return make_client(region="us-east-1", endpoint_url=url, timeout_sec=60, connections=1)


def _services(plan: Plan, scratch: Path, *, bug: Bug | None, metrics_ports: list[int]) -> list[Program]:
    """Return two workers, the API and beat, with the bug in its processes."""
    planted = {} if bug is None else {"PLANTED_BUG": bug.value}
    ours = replace(plan, env={**plan.env, **planted})
    found = []
    for name, port in zip(WORKERS, metrics_ports, strict=True):
        worker = worker_program(ours, scratch, name=name, metrics_port=port, children=_CHILDREN)
        if bug is not None and bug.place is not Place.API:
            command = list(worker.command)
            command[command.index("broker_worker.celery_app")] = "tests.long.history.planted_celery"
            worker = replace(worker, command=command)
        found.append(worker)
    api = programs.api(ours, scratch)
    if bug is not None and bug.place is Place.API:
        api = replace(api, command=[*api.command[:-1], "tests.long.history.planted_wsgi:app"])
    return [*found, api, programs.beat(plan)]


def _value(attribute: Mapping[str, Any]) -> Any:
    """Return an attribute's value."""
    ((kind, content),) = attribute.items()
    return int(content) if kind == "N" else content


def _fact(shown: Mapping[str, Any]) -> Fact:
    return read_fact({name: value for name, value in shown.items() if name != "fact_id"})


def _read_scan(items: list[dict[str, Any]], began: float, ended: float) -> Scan:
    return Scan(
        began=began,
        ended=ended,
        rows=tuple(Row.of(item) for item in items if item["SK"] == "META"),
        # The pointer to a place has the key of a claim, and no lease.
        claims=tuple(ClaimRow.of(item) for item in items if item["SK"].startswith("CLAIM#") and "lease_id" in item),
        places=tuple(PlaceRow.of(item, item["SK"]) for item in items if item["PK"] == "LINE"),
        reservations=tuple(
            ReservationRow.of(item, json.loads(item["track_names"]))
            for item in items
            if item["PK"] == "POOL" and item["SK"].startswith("RESERVATION#")
        ),
    )
