"""The pages of the console, as one person reads them, over a large pool on DynamoDB Local.

The pool has a history: sandboxes that are leased and that wait for their wipe, a day of samples, classes to come, and a
line. Each page is read several times in turn; the time is that of the whole answer.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import requests

from broker_common.core.line import Place, Wish, new_place_id
from broker_common.core.samples import Sample
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AllocateOutcome
from broker_common.services import build_store
from deploy.dev import programs
from deploy.dev.processes import wait_until
from tests.bulk_load import load_records
from tests.e2e.stack import ADMIN_TOKEN, TRACK_TOKEN, Stack
from tests.long.bench.load import Generator, allocations, marks, new_tracks
from tests.long.bench.pool import make_pool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program
    from tests.long.bench.servers import Servers

_TABLE = "console"
_SETTINGS = {
    "API_WORKERS": "1",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
}
_CLASSES, _WAITING = 20, 100
_DAY_SEC = 24 * 3600
_PATIENCE_SEC = 60
_CSRF_TOKEN = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Pages:
    """The seconds that each page took, and the memory of the console after that, in bytes (PSS)."""

    seconds: Mapping[str, list[float]]
    first_seconds: Mapping[str, float]
    """Those of the first view, which fills what the API and the console keep."""
    memory: int


def read_pages(servers: Servers, generator: Generator, *, pool: int, leases: int, views: int) -> Pages:
    """Fill a pool, and read each page `views` times after a first time."""
    on_table = {"DDB_ENDPOINT_URL": servers.dynamodb_url, "DDB_TABLE_NAME": _TABLE}
    scratch = servers.directory(_TABLE)
    with Stack(scratch, _SETTINGS | on_table, services=_services, with_console=True) as stack:
        sandbox_id = _fill(stack, servers, generator, pool=pool, leases=leases)
        session = _sign_in(stack)
        paths = {
            "Overview": "/",
            "Sandboxes": "/sandboxes",
            "Sandboxes, filtered and sorted": "/sandboxes?status=allocated&name=lab-adventure&sort=name",
            "Sandbox": f"/sandboxes/{sandbox_id}",
            "Line": "/line",
            "Reservations": "/reservations",
            "Jobs": "/jobs",
            "Webhooks": "/webhooks",
            "Events": "/events",
            "Usage": "/usage",
        }
        first = {name: _read(session, stack, path) for name, path in paths.items()}
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(views):
            for name, path in paths.items():
                seconds[name].append(_read(session, stack, path))
        return Pages(seconds, first, _memory_of(stack.pid("console")))


def _services(plan: Plan, scratch: Path) -> list[Program]:
    return [programs.api(plan, scratch), programs.console(plan)]


def _fill(stack: Stack, servers: Servers, generator: Generator, *, pool: int, leases: int) -> str:
    """Give the broker a past and a future; returns the id of a sandbox that has a history."""
    load_records(servers.client(), _TABLE, make_pool(pool))
    tracks = new_tracks(leases)
    port = stack.plan.number("API_PORT")
    load = generator.send(port, allocations(TRACK_TOKEN, tracks), clients=8)
    assert load.succeeded > leases // 2, "a busy machine refuses some"
    held = stack.as_admin("GET", "/sandboxes?status=allocated&limit=100").json()["sandboxes"]
    ended = {each["allocated_to_track"]: each["sandbox_id"] for each in held[: len(held) // 2]}
    assert generator.send(port, marks(TRACK_TOKEN, ended), clients=8).succeeded == len(ended)
    now = int(time.time())
    store = build_store(stack.plan.settings)
    for minute in range(now - now % 60 - _DAY_SEC, now, 60):
        wave = minute // 600 % 40
        counts = {Status.AVAILABLE: pool - leases - 10 * wave, Status.ALLOCATED: leases + 10 * wave}
        store.write_sample(Sample(at=minute, by_status=counts, waiting=wave))
        store.add_allocates(minute, {AllocateOutcome.SUCCESS: 10 + wave})
    for number in range(_CLASSES):
        starts_at = now + 3600 * (2 + 6 * number)
        wanted = {"name": f"Class {number}", "count": 10, "starts_at": starts_at, "ends_at": starts_at + 3 * 3600}
        assert wait_until(partial(_book, stack, wanted), _PATIENCE_SEC), "a busy machine may refuse some tries"
    load_records(servers.client(), _TABLE, [_place(number, now) for number in range(_WAITING)])
    return str(next(iter(ended.values())))


def _book(stack: Stack, wanted: Mapping[str, object]) -> bool:
    return stack.as_admin("POST", "/reservations", json=wanted).status_code == HTTPStatus.CREATED


def _place(number: int, now: int) -> Place:
    """Return a place for a name that no sandbox has, so that it stays."""
    return Place(
        place_id=new_place_id(1, now, f"{number:08}"),
        track_id=f"waiting-{number}",
        idempotency_key=f"waiting-{number}",
        wish=Wish(prefix="other-"),
        round=1,
        joined_at=now,
        back_by=now + _DAY_SEC,
        track_name="networking-101",
    )


def _sign_in(stack: Stack) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    found = _CSRF_TOKEN.search(session.get(f"{stack.console_url}/signin", timeout=30).text)
    assert found
    form = {"csrf_token": found[1], "token": ADMIN_TOKEN}
    session.post(f"{stack.console_url}/signin", data=form, timeout=30).raise_for_status()
    return session


def _read(session: requests.Session, stack: Stack, path: str) -> float:
    """Read a page, and return how long that took, in seconds."""
    began = time.perf_counter()
    answer = session.get(f"{stack.console_url}{path}", timeout=60)
    seconds = time.perf_counter() - began
    assert answer.status_code == HTTPStatus.OK, f"{path}: {answer.status_code}"
    assert "aria-current" in answer.text, f"{path}: not the page"
    return seconds


def _memory_of(parent: int) -> int:
    """Return the memory of a process and its children in bytes: what they share counts once (PSS)."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (str(parent), *children)]
    return sum(int(size) * 1024 for text in texts for size in re.findall(r"^Pss: +(\d+) kB$", text, re.MULTILINE))
