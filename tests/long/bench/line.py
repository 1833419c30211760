"""Tracks that wait in line over HTTP, and sandboxes that become free one after the other."""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import call, wait_until
from tests.long.bench.load import Answer, new_tracks, percentile
from tests.long.bench.servers import ADMIN_TOKEN, TRACK_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_SEC = 10
"""For how long each track asks to be held."""
_STACK_BYTES = 256 * 1024
_JOIN_SEC = 120
_SPACING_SEC = 0.5
"""The time from one freed sandbox to the next."""


def wait_in_line(port: int, waiting: int, served: int) -> list[Answer]:
    """Keep so many tracks waiting until so many were served: for each that was, a new one joins. Return their answers."""
    answers: list[Answer] = []
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.is_set():
            (track,) = new_tracks(1)
            while not is_over.is_set():
                answer, pause = _ask(port, track)
                if answer.status == HTTPStatus.CREATED:
                    answers.append(answer)
                    break
                is_over.wait(pause)

    before = threading.stack_size(_STACK_BYTES)
    threads = [threading.Thread(target=wait) for _ in range(waiting)]
    for each in threads:
        each.start()
    threading.stack_size(before)
    ended_well = wait_until(lambda: len(answers) >= served, _JOIN_SEC + 2 * served)
    is_over.set()
    for each in threads:
        each.join()
    assert ended_well, f"{len(answers)} of {served} tracks were served"
    return answers


def _ask(port: int, track: str) -> tuple[Answer, float]:
    """Allocate for a track that waits; return the answer, and after how many seconds to ask again."""
    connection = HTTPConnection(LOOPBACK, port, timeout=WAIT_SEC + 30)
    headers = {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track, "Prefer": f"wait={WAIT_SEC}"}
    began = time.monotonic()
    try:
        connection.request("POST", "/v1/allocate", headers=headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    return Answer(0, response.status, began, time.monotonic(), body), float(response.headers.get("Retry-After", 1))


def free_some(port: int, waiting: int, sandboxes: int, free: Callable[[int], str]) -> dict[str, float]:
    """Once all tracks wait, make one sandbox after the other available; return when each was, by its id.

    `free` makes the sandbox of a number available, and returns its id.
    """
    assert wait_until(lambda: _count_waiting(port) >= waiting, _JOIN_SEC), "not all tracks have joined the line"
    freed: dict[str, float] = {}
    for number in range(sandboxes):
        freed[free(number)] = time.monotonic()
        time.sleep(_SPACING_SEC)
    return freed


def _count_waiting(port: int) -> int:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    status, body = call("GET", f"http://{LOOPBACK}:{port}/v1/admin/waiting", headers=headers)
    assert status == HTTPStatus.OK, body
    return int(body["count"])


def delays(freed: dict[str, float], answers: list[Answer]) -> list[float]:
    """Return how long after it was available each freed sandbox was in its track's answer, in seconds."""
    given = {json.loads(each.body)["sandbox_id"]: each.ended for each in answers}
    return [given[sandbox_id] - at for sandbox_id, at in freed.items() if sandbox_id in given]


def percentiles(seconds: list[float]) -> dict[str, str]:
    """Return the cells of a table."""
    return {f"p{percent}": f"{percentile(seconds, percent):.2f} s" for percent in (50, 99)}
