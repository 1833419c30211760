"""Measure the memory of real processes before and after many requests and tasks.

In a round each sandbox of the pool is allocated, read many times, given back, and wiped by a task of its own. Each round
has new tracks, so that memory kept for each track, request or task shows.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.dev import programs
from tests.e2e.stack import TRACK_TOKEN, Stack
from tests.long.bench.load import Generator, allocations, marks, new_tracks, request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploy.dev.plan import Plan
    from deploy.dev.processes import Program
    from tests.long.bench.load import Load

POOL = 100
"""The number of sandboxes, and so of tasks, in a round."""
REQUESTS_OF_A_LIFE = 20
_WARM_UP_ROUNDS = 4
_CLIENTS = 8
"""No more than one process has threads for calls of the store. So no client is refused, even if all meet one process."""
_CHILDREN = 2
"""The processes of the API and of the worker for jobs: few, so that each has much to do."""
_NOISE_BYTES = 3 * 2**20
_NOISE_BYTES_EACH = 128
"""A process may still grow after its warm-up: by `_NOISE_BYTES`, and by `_NOISE_BYTES_EACH` for each request or task."""
_SELDOM = "86400"
_SETTINGS = {
    "POOL": str(POOL),
    "API_WORKERS": str(_CHILDREN),
    "MOCK_CSP_DELETE_SECONDS": "0",
    "RATE_LIMIT_RPS": "1000000",
    "RATE_LIMIT_BURST": "1000000",
    "REQUEST_DEADLINE_SEC": "10",
    "SYNC_INTERVAL_SEC": _SELDOM,
    "CLEANUP_INTERVAL_SEC": _SELDOM,
    "AUTO_EXPIRY_INTERVAL_SEC": _SELDOM,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The growth of one process's memory in bytes, and its even share of the requests or tasks."""

    process: str
    before: int
    after: int
    share: int
    """Requests for a process of the API, tasks for one of a worker."""

    @property
    def bytes(self) -> int:
        """The growth in bytes."""
        return self.after - self.before

    @property
    def is_flat(self) -> bool:
        """Whether the growth is within the noise; a leak of 1 KiB for each request is far more."""
        return self.bytes < _NOISE_BYTES + self.share * _NOISE_BYTES_EACH

    def __str__(self) -> str:
        megabytes = f"{self.before / 2**20:7.1f} -> {self.after / 2**20:7.1f} MiB"
        return f"{self.process:24} {megabytes}, {self.bytes / self.share:8.1f} bytes for each of {self.share}"


def measure(rounds: int, scratch: Path, say: Callable[[str], None]) -> list[Growth]:
    """Run a broker for `rounds`, and return the growth of each of its processes since the first few, its warm-up.

    `say` gets lines on the progress and on the growth of each process, also if a round fails.
    """
    seen: list[dict[str, int]] = []
    with Stack(scratch, _SETTINGS, services=_services) as stack, Generator() as generator:
        assert stack.run_job("sync")["state"] == "succeeded"
        lives = _Lives(stack, generator)
        try:
            for number in range(1, rounds + 1):
                lives.run_round()
                seen.append(_memory_of(stack))
                say(f"round {number}: " + ", ".join(f"{name} {size / 2**20:.1f}" for name, size in seen[-1].items()))
        finally:
            say(f"answers by status: {dict(lives.statuses)}")
            growths = _growths(seen) if len(seen) > _WARM_UP_ROUNDS else []
            for growth in growths:
                say(str(growth))
    return growths


def _growths(seen: Sequence[Mapping[str, int]]) -> list[Growth]:
    """Compare the last round with the end of the warm-up."""
    before, after = seen[_WARM_UP_ROUNDS - 1], seen[-1]
    assert after.keys() == before.keys(), "a process was replaced"
    tasks = (len(seen) - _WARM_UP_ROUNDS) * POOL
    share = {
        "api": tasks * REQUESTS_OF_A_LIFE // _CHILDREN,
        "worker-jobs": tasks // _CHILDREN,
        "worker-deletions": tasks,
    }
    return [
        Growth(process=name, before=before[name], after=after[name], share=share[name.split()[0]]) for name in before
    ]


class _Lives:
    """Rounds of requests and tasks."""

    def __init__(self, stack: Stack, generator: Generator) -> None:
        self.statuses: Counter[int] = Counter()
        self._stack = stack
        self._generator = generator

    def run_round(self) -> None:
        tracks = new_tracks(POOL)
        allocated = self._send(allocations(TRACK_TOKEN, tracks))
        assert set(allocated.statuses) == {201}, allocated.statuses
        held = {tracks[answer.number]: json.loads(answer.body)["sandbox_id"] for answer in allocated.answers}
        between = [call for track, sandbox_id in held.items() for call in _calls_between(track, sandbox_id)]
        random.shuffle(between)
        statuses = self._send(between).statuses
        assert set(statuses) == {200, 400, 401, 404}, statuses
        marked = self._send(marks(TRACK_TOKEN, held))
        assert set(marked.statuses) == {200}, marked.statuses
        cleanup = self._stack.run_job("cleanup")
        assert cleanup["result"]["deleted"] == POOL, cleanup

    def _send(self, requests: Sequence[bytes]) -> Load:
        load = self._generator.send(self._stack.plan.number("API_PORT"), requests, clients=_CLIENTS)
        self.statuses += load.statuses
        return load


def _calls_between(track: str, sandbox_id: str) -> list[bytes]:
    """Return the calls of a track that holds a sandbox, and calls that fail."""
    calls = [
        *[_request("POST", "/v1/allocate", track)] * 2,
        *[_request("GET", _path(sandbox_id), track)] * 2,
        _request("GET", "/v1/sandboxes", track),
        _request("GET", _path(f"no-{track}"), track),
        *[_request("GET", f"/v1/nothing/{track}", track)] * 4,
        *[_request("POST", "/v1/allocate", track, token=track)] * 4,
        *[_request("POST", "/v1/allocate", track * 4)] * 4,  # too long
    ]
    assert len(calls) == REQUESTS_OF_A_LIFE - 2  # and one to allocate, one to mark
    return calls


def _path(sandbox_id: str) -> str:
    return f"/v1/sandboxes/{sandbox_id}"


def _request(method: str, path: str, track: str, *, token: str = TRACK_TOKEN) -> bytes:
    return request(method, path, track, token=token)


_WORKERS = ("worker-jobs", "worker-deletions")


def _services(plan: Plan, scratch: Path) -> list[Program]:
    return [programs.worker_jobs(plan, scratch), programs.worker_deletions(plan, scratch), programs.api(plan, scratch)]


def _memory_of(stack: Stack) -> dict[str, int]:
    """Return the resident memory of the API's and the workers' processes, in bytes.

    Shared memory counts too: memory that children share with their parent is no leak.
    """
    found = {}
    for name in ("api", *_WORKERS):
        parent = stack.pid(name)
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (str(parent), *children):
            (line,) = re.findall(r"^Rss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            found[f"{name} {pid}"] = int(line) * 1024
    return found
