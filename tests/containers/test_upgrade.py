"""An upgrade from the release before, and the way back, while labs call the API without a pause.

The order is that of the runbook: the table, the workers, beat, the API's instances behind HAProxy, the console.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import requests

from deploy.dev.processes import ROOT, answers, free_ports, wait_until
from tests.backends import installed, running
from tests.containers.images import BROKER, services_of
from tests.containers.stacks import ADMIN, RELEASE_BEFORE, TRACK_TOKEN, Stack
from tests.haproxy import NO_INSTANCE, Balanced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.containers.engine import Engine
    from tests.containers.steps import Steps

POOL = 500
HOLDERS, LIVES = 3, 3
IN_DOUBT = 2
PAUSE_SEC = 0.5
"""So that the pool lasts while no worker wipes."""
GIVE_UP_SEC = 60
"""How long a lab repeats a call that the API answers 503. The contract asks it to. HAProxy's own 503 is a failure."""
SETTINGS: dict[str, dict[str, str]] = {
    # The default of production. In development there is no load balancer, and no drain.
    "api": {"SHUTDOWN_DRAIN_SEC": "5", "RATE_LIMIT_RPS": "100000", "RATE_LIMIT_BURST": "100000"},
    # In the file of the release before, beat asks AWS for the time, and waits 10 s where that cannot be reached.
    # No sync comes by itself: what it does to wipes in doubt is looked at in the end.
    "beat": {"CLEANUP_INTERVAL_SEC": "3", "SYNC_INTERVAL_SEC": "86400", "DDB_ENDPOINT_URL": "http://dynamodb:8000"},
    "csp": {
        "MOCK_CSP_POOL": str(POOL),
        "MOCK_CSP_DELETE_SECONDS": "0.05",
        # The first deletes are not answered, so that these wipes are in doubt. On a busy machine there are more.
        "MOCK_CSP_DROP_NEXT_DELETES": str(IN_DOUBT),
        "MOCK_CSP_DROP_WHEN": "after",
    },
}
PATIENT: dict[str, Any] = {"stop_grace_period": "120s", "healthcheck": {"disable": True}}
"""On a busy machine a stop takes longer than the file of the release before allows. The test asks each process itself
whether it is healthy: the engine would do so every 10 s, or would start many programs for it."""
HEALTH_PORTS = {"worker": 9101, "beat": 9102, "api": 8080, "console": 8081}
STARTED_SEC = 120
"""How long a process may take to start on a busy machine."""


@dataclass(kw_only=True)
class Lab:
    """A client that lives as a lab does. It keeps what it was told, and repeats each call that is answered 503."""

    url: str
    name: str
    answers: Counter[str] = field(default_factory=Counter)
    """How often it got each status. An error's status stands with its code."""
    failures: list[str] = field(default_factory=list)
    held: dict[str, Any] | None = None
    """What it has from its first allocate to the end."""
    given_back: Counter[str] = field(default_factory=Counter)
    """How often each sandbox was given back."""

    def hold(self, over: threading.Event) -> None:
        """Allocate once, then repeat that and read the sandbox, which must stay the same."""
        while not over.wait(PAUSE_SEC):
            given = self._call(self.name, "POST", "/allocate")
            self.held = self.held or given
            read = self._call(self.name, "GET", f"/sandboxes/{self.held['sandbox_id']}") if self.held else None
            for answer in (given, read):
                if answer and self.held and answer["sandbox_id"] != self.held["sandbox_id"]:
                    self.failures.append(f"{self.name} got {answer['sandbox_id']}, and holds {self.held['sandbox_id']}")

    def live(self, over: threading.Event) -> None:
        """Allocate, read, and give back, each time as another track."""
        for number in count():
            if over.wait(PAUSE_SEC):
                return
            track = f"{self.name}-{number}"
            given = self._call(track, "POST", "/allocate")
            if given:
                path = f"/sandboxes/{given['sandbox_id']}"
                self._call(track, "GET", path)
                if self._call(track, "POST", f"{path}/mark-for-deletion", json={"lease_id": given["lease_id"]}):
                    self.given_back[given["sandbox_id"]] += 1

    def _call(self, track: str, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the answer, or nothing if the call failed, which is kept."""
        headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track}
        give_up_at = time.monotonic() + GIVE_UP_SEC
        while True:
            try:
                answer = requests.request(method, f"{self.url}/v1{path}", headers=headers, timeout=30, **options)
            except requests.RequestException as error:
                self.failures.append(f"{track} {method} {path}: {error!r}")
                return {}
            self.answers[summary(answer)] += 1
            if may_be_repeated(answer) and time.monotonic() < give_up_at:
                time.sleep(float(answer.headers["Retry-After"]))
                continue
            if answer.status_code not in {200, 201}:
                self.failures.append(f"{track} {method} {path}: {answer.status_code} {answer.text[:200]}")
                return {}
            body: dict[str, Any] = answer.json()
            return body


def may_be_repeated(answer: requests.Response) -> bool:
    """Tell whether the API itself answered 503, and when to try again."""
    return answer.status_code == 503 and "Retry-After" in answer.headers and NO_INSTANCE not in answer.text


def summary(answer: requests.Response) -> str:
    """Return the status, and the code of an error of the API."""
    if answer.status_code < 400:
        return str(answer.status_code)
    found = re.search(r'"code": ?"(\w+)"', answer.text)
    return f"{answer.status_code} {found[1] if found and NO_INSTANCE not in answer.text else 'of HAProxy'}"


@contextmanager
def labs_at(url: str) -> Iterator[list[Lab]]:
    """Have labs call an address during the context."""
    labs = [Lab(url=url, name=f"lab-{number}") for number in range(HOLDERS + LIVES)]
    over = threading.Event()
    acts: list[Callable[[threading.Event], None]] = [
        lab.hold if number < HOLDERS else lab.live for number, lab in enumerate(labs)
    ]
    with ThreadPoolExecutor(len(labs)) as pool:
        calling = [pool.submit(act, over) for act in acts]
        try:
            yield labs
        finally:
            over.set()
        for each in calling:
            each.result()


class Upgraded:
    """One compose project whose processes are those of the release before, or of this one."""

    def __init__(self, engine: Engine, tree_before: Path, scratch: Path, haproxy: str, steps: Steps) -> None:
        self.ports = dict(zip(("api", "api-2", "console"), free_ports(3), strict=True))
        self.before, self.after = (
            Stack(
                engine=engine,
                tree=tree,
                scratch=scratch,
                project="broker-upgrade",
                ports=self.ports,
                more=_override(tree, image),
            )
            for tree, image in ((tree_before, RELEASE_BEFORE), (ROOT, BROKER))
        )
        self.balanced = Balanced(haproxy, scratch, [self.ports["api"], self.ports["api-2"]])
        self._engine = engine
        self._steps = steps

    def fill(self) -> None:
        """Start the release before and let it fill the table."""
        with self._steps.step("the release before starts and fills the pool"):
            try:
                self.before.compose("up", "--detach", *workers(self.before), "beat", "api", "api-2")
                self._await_health(self.before, *workers(self.before), "beat", "api", "api-2")
                # `up --wait` takes its end for a failure, in that release's file.
                self.before.compose("run", "--rm", "--no-deps", "first-sync")
            except AssertionError as error:
                pytest.fail(f"{error}\n{self.before.logs()}", pytrace=False)

    def upgrade(self) -> None:
        """Replace each process of the release before by one of this release."""
        with self._steps.step("this release: broker table create, which turns on TTL"):
            self.after.compose("run", "--rm", "--no-deps", "table")
        # Not the console's: it needs the new API.
        for service in ("worker-jobs", "beat", "api"):
            self._check(self.after, service, "run", "--rm", "--no-deps")
        self._replace_all(self.before, self.after)
        for service in ("worker-jobs", "beat", "api", "console"):
            self._check(self.after, service, "exec", "--no-TTY")

    def go_back(self) -> None:
        """Replace each process of this release by one of the release before."""
        self._replace_all(self.after, self.before)

    def deletes(self) -> Counter[str]:
        """Return how often the provider was asked to delete each sandbox."""
        program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:18080/_mock/deletes').read().decode())"
        found = json.loads(self.before.compose("exec", "--no-TTY", "csp", "python", "-c", program))["deletes"]
        return Counter(str(each["csp_id"]) for each in found if each["applied"])

    def sync(self) -> None:
        """Have the pool compared with the provider's list."""
        url = f"http://127.0.0.1:{self.ports['api']}/v1/admin/sync"
        answer = requests.post(url, headers=ADMIN | {"Prefer": "wait=30"}, timeout=60)
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded"), answer.text

    def sandboxes(self, *statuses: str) -> dict[str, dict[str, Any]]:
        """Return every record of these statuses, or of all, that the API lists to an operator."""
        found: dict[str, dict[str, Any]] = {}
        # The available ones last: a record that is wiped meanwhile is then found twice, and not missed.
        for status in statuses or ("allocated", "pending_deletion", "deletion_failed", "stale", "available"):
            cursor: str | None = None
            while True:
                query = {"status": status, "limit": "100"} | ({"cursor": cursor} if cursor else {})
                url = f"http://127.0.0.1:{self.ports['api']}/v1/admin/sandboxes"
                page = requests.get(url, params=query, headers=ADMIN, timeout=30).json()
                assert page["unreadable"] == []
                found |= {each["sandbox_id"]: each for each in page["sandboxes"]}
                cursor = page["cursor"]
                if cursor is None:
                    break
        return found

    def _replace_all(self, old: Stack, new: Stack) -> None:
        """Replace the processes one after the other, in the order of the runbook."""
        for worker in workers(old):
            self._stop(old, worker)
        for worker in workers(new):
            self._start(new, worker)
        self._replace_beat(old, new)
        for instance in ("api", "api-2"):
            self._stop(old, instance)
            self._start(new, instance)
            with self._steps.step("HAProxy has seen that it is ready"):
                assert wait_until(self.balanced.all_are_up, STARTED_SEC), self.balanced.servers()
        if "console" in services_of(old.tree):
            self._stop(old, "console")
        if "console" in services_of(new.tree):
            self._start(new, "console")

    def _replace_beat(self, old: Stack, new: Stack) -> None:
        """Start the new beat beside the old one, then stop the old one."""
        (replaced,) = old.containers("beat")
        with self._steps.step(f"{stack_name(new)}: beat starts beside the other one"):
            new.compose("up", "--detach", "--no-deps", "--no-recreate", "--scale", "beat=2", "beat")
            self._await_health(new, "beat")
        with self._steps.step(f"{stack_name(old)}: beat stops"):
            self._engine.docker("stop", replaced["Id"])
        assert self._engine.inspect(replaced["Id"])["State"]["ExitCode"] == 0, old.logs()
        self._engine.docker("rm", replaced["Id"])

    def _stop(self, stack: Stack, service: str) -> None:
        with self._steps.step(f"{stack_name(stack)}: {service} stops"):
            codes = stack.stop(service)
        assert list(codes.values()) == [0], stack.compose("logs", "--tail", "30", service)

    def _start(self, stack: Stack, service: str) -> None:
        with self._steps.step(f"{stack_name(stack)}: {service} starts"):
            stack.compose("up", "--detach", "--no-deps", service)
            self._await_health(stack, service)

    def _await_health(self, stack: Stack, *services: str) -> None:
        for service in services:
            port = HEALTH_PORTS[service.partition("-")[0]]
            for container in stack.containers(service):
                (network,) = container["NetworkSettings"]["Networks"].values()
                url = f"http://{network['IPAddress']}:{port}/healthz"
                assert wait_until(partial(answers, url), STARTED_SEC), stack.compose("logs", "--tail", "30", service)

    def _check(self, stack: Stack, service: str, *how: str) -> None:
        process = service.partition("-")[0]
        with self._steps.step(f"{stack_name(stack)}: broker check --process {process}"):
            stack.compose(*how, service, "broker", "check", "--process", process)


def workers(stack: Stack) -> list[str]:
    """Return the services of a release that are workers."""
    return [name for name in services_of(stack.tree) if name.startswith("worker")]


def stack_name(stack: Stack) -> str:
    return "this release" if stack.tree == ROOT else "the release before"


def _override(tree: Path, image: str) -> dict[str, dict[str, Any]]:
    """Return an override with the image of a release, this test's settings, and a second instance of the API."""
    services = services_of(tree)
    more: dict[str, dict[str, Any]] = {
        name: {"image": image, "environment": SETTINGS.get(name, {}), **PATIENT}
        for name, service in services.items()
        if "build" in service and "healthcheck" not in service
    }
    more |= {name: {"image": image} for name in ("table", "first-sync")}
    # The provider is no part of a release. This release's mock has what both ask for.
    more["csp"] = {
        "image": BROKER,
        "environment": services_of(ROOT)["csp"]["environment"] | SETTINGS["csp"],
        "volumes": [f"{ROOT}/deploy/dev/mock_csp.py:/mock_csp.py:ro"],
    }
    second = services["api"] | {"image": image, **PATIENT}
    more["api-2"] = second | {"environment": services["api"]["environment"] | SETTINGS["api"]}
    return more


@pytest.fixture
def upgraded(engine: Engine, images_built: None, tree_before: Path, steps: Steps, tmp_path: Path) -> Iterator[Upgraded]:
    haproxy = installed("haproxy", package="haproxy")
    upgraded = Upgraded(engine, tree_before, tmp_path, haproxy, steps)
    try:
        yield upgraded
    finally:
        with steps.step("compose down"):
            upgraded.after.compose("down", "--timeout", "0", "--remove-orphans")


def test_no_call_fails_and_no_record_is_lost_by_an_upgrade_and_by_the_way_back(
    upgraded: Upgraded, steps: Steps
) -> None:
    upgraded.fill()
    with running(upgraded.balanced.program):
        assert wait_until(upgraded.balanced.all_are_up, 60), upgraded.balanced.servers()
        with labs_at(f"http://127.0.0.1:{upgraded.balanced.port}") as labs:
            await_calls(labs, 10)
            upgraded.upgrade()
            await_calls(labs, 10)
            upgraded.go_back()
            await_calls(labs, 10)
        report(labs, upgraded.balanced.servers(), steps)
    assert [failure for lab in labs for failure in lab.failures] == []
    check_records(upgraded, labs, steps)


def await_calls(labs: list[Lab], number: int) -> None:
    """Wait until each lab has made so many more calls."""
    until = {lab.name: sum(lab.answers.values()) + number for lab in labs}
    assert wait_until(lambda: all(sum(lab.answers.values()) >= until[lab.name] for lab in labs), STARTED_SEC)


def report(labs: list[Lab], servers: dict[str, dict[str, str]], steps: Steps) -> None:
    counted: Counter[str] = sum((lab.answers for lab in labs), Counter())
    given_back = sum(sum(lab.given_back.values()) for lab in labs)
    steps.say(f"    answers {dict(counted)}, {given_back} sandboxes given back, {HOLDERS} held all the time")
    for name, seen in servers.items():
        steps.say(f"    HAProxy: {name} was down {seen['chkdown']} times, for {seen['downtime']} s")


def check_records(upgraded: Upgraded, labs: list[Lab], steps: Steps) -> None:
    """Compare what the labs were told with the table, and with what the provider was asked."""
    given_back: Mapping[str, int] = sum((lab.given_back for lab in labs), Counter())
    held = {str(lab.held["sandbox_id"]): lab for lab in labs if lab.held}
    assert len(held) == HOLDERS
    with steps.step("all that was given back is wiped"):
        assert wait_until(lambda: not upgraded.sandboxes("pending_deletion"), STARTED_SEC)
    # Only a sync makes a sandbox available after a wipe in doubt.
    stale = upgraded.sandboxes("stale")
    assert len(stale) >= IN_DOUBT
    assert [each for each in stale.values() if each["dirty"] or not each["deletion_retry_count"]] == []
    with steps.step(f"a sync frees the {len(stale)} sandboxes whose wipe was in doubt"):
        upgraded.sync()
    records = upgraded.sandboxes()
    assert {each["status"] for each in records.values()} == {"available", "allocated"}
    assert len(records) == POOL
    assert {each for each, record in records.items() if record["status"] == "allocated"} == set(held)
    for sandbox_id, lab in held.items():
        assert lab.held is not None
        assert records[sandbox_id]["lease_id"] == lab.held["lease_id"]
        assert records[sandbox_id]["allocated_to_track"] == lab.name
    deletes = upgraded.deletes()
    assert {each: deletes[each] for each in held if deletes[each]} == {}
    assert {each: deletes[each] for each in given_back if deletes[each] < given_back[each]} == {}
