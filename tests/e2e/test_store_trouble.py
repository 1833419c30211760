"""DynamoDB in trouble, for seconds on end and for every call, under more clients than the API has threads."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev import programs
from deploy.dev.processes import free_ports, wait_until
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program

PROCESSES, THREADS, CLIENTS = 2, 6, 16
TROUBLE_SEC = 3
MOST_TRIES = 8
"""What one call of a track may ask of the store, repetitions included: six tries, and a look at its claim."""
SETTINGS = {
    "POOL": "1000",
    "API_WORKERS": str(PROCESSES),
    "API_THREADS": str(THREADS),
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "CLEANUP_INTERVAL_SEC": "86400",
    "AUTO_EXPIRY_INTERVAL_SEC": "86400",
    "POOL_GAUGE_CACHE_SEC": "3600",
    "SYNC_INTERVAL_SEC": "86400",
}
_REPEATED = 4
PATIENT_SEC = 20
"""Far beyond the deadline of a request (3 s): who waits longer hangs."""


@pytest.fixture(scope="module")
def proxy(dynamodb_local_url: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(free_ports(1)[0], dynamodb_local_url)
    with proxy.running():
        yield proxy


@pytest.fixture(scope="module")
def stack(proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a broker without beat, whose pool is full."""

    def services(plan: Plan, scratch: Path) -> list[Program]:
        return [
            programs.worker_jobs(plan, scratch),
            programs.worker_deletions(plan, scratch),
            programs.api(plan, scratch),
        ]

    here = SETTINGS | {"DDB_ENDPOINT_URL": proxy.url, "DDB_TABLE_NAME": "InTrouble"}
    with Stack(tmp_path_factory.mktemp("stack"), here, services=services) as started:
        assert started.run_job("sync")["state"] == "succeeded"
        yield started


class Client(threading.Thread):
    """Lives one track's life after the other, by the rules: what was not answered for good is sent again."""

    def __init__(self, api_url: str, name: str, over: threading.Event) -> None:
        super().__init__(name=name)
        self.answers: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.calls = self.lives = 0
        self._api_url, self._over = api_url, over
        self._session = requests.Session()

    def run(self) -> None:
        while not self._over.is_set():
            self.live(f"{self.name}-{self.lives}")

    def live(self, track: str) -> None:
        """Allocate, ask for the same a few times, and give it back."""
        held = self._until_answered(track, "/allocate").json()
        for _ in range(_REPEATED):
            assert self._until_answered(track, "/allocate").json() == held
        self._until_answered(track, f"/sandboxes/{held['sandbox_id']}/mark-for-deletion")
        self.lives += 1

    def _until_answered(self, track: str, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track}
        while True:
            answer = self._session.post(f"{self._api_url}/v1{path}", headers=headers, timeout=PATIENT_SEC)
            self.calls += 1
            self.answers[answer.status_code] += 1
            if answer.status_code in {200, 201}:
                return answer
            error = answer.json()["error"]
            if (answer.status_code, error["code"]) != (
                503,
                "SERVICE_UNAVAILABLE",
            ) or "Retry-After" not in answer.headers:
                self.wrong.append(answer.text)
                raise AssertionError(answer.text)


class Prober(threading.Thread):
    """Asks `/healthz` again and again, on a connection of its own each time, as a supervisor does."""

    def __init__(self, api_url: str, over: threading.Event) -> None:
        super().__init__()
        self.answers: Counter[int] = Counter()
        self._url, self._over = f"{api_url}/healthz", over

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.answers[requests.get(self._url, timeout=PATIENT_SEC).status_code] += 1


LOST = {"response": {"abort_bytes": 0}}


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param({"error": {"code": "ProvisionedThroughputExceededException"}}, id="throttled"),
        pytest.param({"error": {"code": "InternalServerError", "status": 500}}, id="failing"),
        pytest.param({"timeout_ms": 30000}, id="silent"),
        pytest.param({"reset": True}, id="resetting"),
        pytest.param(LOST, id="losing-answers"),
    ],
)
def test_every_call_is_answered_health_stays_green_and_all_goes_on_by_itself(
    stack: Stack, proxy: FaultProxy, rule: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    before = stack.as_admin("GET", "/stats").json()
    over = threading.Event()
    clients = [Client(stack.api_url, f"{request.node.callspec.id}-{number}", over) for number in range(CLIENTS)]
    prober = Prober(stack.api_url, over)
    for thread in (*clients, prober):
        thread.start()
    try:
        assert wait_until(lambda: all(client.lives for client in clients), 60)
        calls_before = sum(client.calls for client in clients)
        proxy.inject({"probability": 1.0, **rule})
        in_trouble = threading.Event()
        threading.Timer(TROUBLE_SEC, in_trouble.set).start()
        assert in_trouble.wait(60)
        in_flight = CLIENTS
        calls = sum(client.calls for client in clients) - calls_before + in_flight
        struck = proxy.inject()
        refused = Counter(client.name for client in clients for _ in range(client.answers[503]))
        lives = {client.name: client.lives for client in clients}
        assert wait_until(lambda: all(client.lives > lives[client.name] + 1 for client in clients), 60)
    finally:
        over.set()
        proxy.inject()
        for thread in (*clients, prober):
            thread.join(90)
    assert not any(thread.is_alive() for thread in (*clients, prober))
    assert [client.wrong for client in clients if client.wrong] == []
    assert struck > 0
    assert refused, "nobody noticed"
    assert struck <= MOST_TRIES * calls, (struck, calls)
    assert prober.answers.keys() == {200}
    assert prober.answers.total() > 20

    # Each life took one sandbox and gave it back, although calls were lost on its way.
    after = stack.as_admin("GET", "/stats").json()
    assert (after["allocated"], after["total"]) == (0, before["total"])
    assert after["pending_deletion"] - before["pending_deletion"] == sum(client.lives for client in clients)
