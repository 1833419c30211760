"""A load of allocations over HTTP, from processes of its own so that it does not share an interpreter with what it measures."""

from __future__ import annotations

import http.client
import multiprocessing
import threading
import time
import uuid
from dataclasses import dataclass
from itertools import chain
from urllib.parse import urlsplit

_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What a load measured: every request's latency in seconds, by status, and the time from first to last."""

    latencies: dict[int, list[float]]
    seconds: float

    @property
    def rate(self) -> float:
        """New allocations a second."""
        return len(self.latencies.get(http.HTTPStatus.CREATED, ())) / self.seconds


def allocate_many(url: str, token: str, *, clients: int, requests: int) -> Load:
    """Have `clients` tracks at a time allocate, `requests` in all, each a new track; `url` is the API's with its base path."""
    per_client = requests // clients
    shares = [clients // _PROCESSES + (1 if number < clients % _PROCESSES else 0) for number in range(_PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        parts = pool.starmap(_drive, [(url, token, share, per_client) for share in shares if share], chunksize=1)
    calls = list(chain.from_iterable(parts))
    latencies: dict[int, list[float]] = {}
    for status, began, ended in calls:
        latencies.setdefault(status, []).append(ended - began)
    return Load(latencies, max(ended for *_, ended in calls) - min(began for _, began, _ in calls))


def _drive(url: str, token: str, clients: int, requests: int) -> list[tuple[int, float, float]]:
    calls: list[tuple[int, float, float]] = []
    parts = urlsplit(url)

    def act() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        for _ in range(requests):
            headers = {"Authorization": f"Bearer {token}", "X-Track-ID": str(uuid.uuid4())}
            began = time.monotonic()
            connection.request("POST", f"{parts.path}/allocate", headers=headers)
            answer = connection.getresponse()
            answer.read()
            calls.append((answer.status, began, time.monotonic()))
        connection.close()

    threads = [threading.Thread(target=act) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls
