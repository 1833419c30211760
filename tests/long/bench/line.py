"""Tracks that wait in line over HTTP, and sandboxes that become free one after the other."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

from deploy.dev.plan import LOOPBACK
from deploy.dev.processes import wait_until
from tests.long.bench.load import Answer, new_tracks, percentile
from tests.long.bench.servers import ADMIN_TOKEN, TRACK_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.pool import AsyncResult

WAIT_SEC = 10
"""For how long each track asks to be held."""
_STACK_BYTES = 256 * 1024
_JOIN_SEC = 300
SERVED = (HTTPStatus.CREATED, HTTPStatus.OK)
"""A track is answered 200 if an earlier answer, which said that the outcome was unknown, was of a write that was made."""
_APART_SEC = 0.02
"""The time from one track that joins to the next: their rush is not measured here."""
_SPACING_SEC = 0.5
"""The time from one freed sandbox to the next."""


def wait_in_line(port: int, waiting: int, served: int) -> list[Answer]:
    """Keep so many tracks waiting until so many were served: for each that was, a new one joins. Return their answers.

    Ends at once with the error of a request that the API does not answer.
    """
    answers: list[Answer] = []
    is_over = threading.Event()

    def wait() -> None:
        while not is_over.is_set():
            (track,) = new_tracks(1)
            while not is_over.is_set():
                try:
                    answer, pause = ask(port, track)
                except (OSError, HTTPException):
                    is_over.set()  # the API has ended: the scenario has failed
                    raise
                if answer.status in SERVED:
                    answers.append(answer)
                    break
                is_over.wait(pause)

    with small_stacks(), ThreadPoolExecutor(waiting) as threads:
        waits = []
        for _ in range(waiting):
            waits.append(threads.submit(wait))
            is_over.wait(_APART_SEC)
        limit_sec = _JOIN_SEC + 2 * served
        ended_well = wait_until(lambda: len(answers) >= served, limit_sec, give_up=is_over.is_set)
        is_over.set()
    for each in waits:
        each.result()
    assert ended_well, f"{len(answers)} of {served} tracks were served"
    return answers


@contextmanager
def small_stacks() -> Iterator[None]:
    """Start threads with small stacks during the context: there are many of them."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)


def ask(port: int, track: str, *, wait_sec: int = WAIT_SEC, lab: str | None = None) -> tuple[Answer, float]:
    """Allocate for a track that waits; return the answer, and after how many seconds to ask again."""
    named = {"X-Instruqt-Track-ID": lab} if lab else {}
    return _send("POST", port, "/v1/allocate", {**_headers(track), "Prefer": f"wait={wait_sec}", **named})


def give_back(port: int, track: str, sandbox_id: str) -> None:
    """Mark the sandbox of a track for deletion, again after a 503. Fails unless that succeeds."""
    while True:
        answer, pause = _send("POST", port, f"/v1/sandboxes/{sandbox_id}/mark-for-deletion", _headers(track))
        if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
        time.sleep(pause)
    assert answer.status == HTTPStatus.OK, answer


def _headers(track: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TRACK_TOKEN}", "X-Track-ID": track}


def _send(method: str, port: int, path: str, headers: Mapping[str, str]) -> tuple[Answer, float]:
    connection = HTTPConnection(LOOPBACK, port, timeout=WAIT_SEC + 30)
    began = time.monotonic()
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    return Answer(0, response.status, began, time.monotonic(), body), float(response.headers.get("Retry-After", 1))


def free_some(
    port: int, waiting: int, sandboxes: int, free: Callable[[int], str], tracks: AsyncResult[list[Answer]]
) -> dict[str, float]:
    """Once all tracks wait, make one sandbox after the other available; return when each was, by its id.

    `free` makes the sandbox of a number available, and returns its id. `tracks`: the work of `wait_in_line`, whose
    error is raised if it ends before.
    """
    have_joined = wait_until(lambda: count_waiting(port) >= waiting, _JOIN_SEC, give_up=tracks.ready)
    if not have_joined and tracks.ready():
        tracks.get()
    assert have_joined, f"{count_waiting(port)} of {waiting} tracks have joined the line"
    freed: dict[str, float] = {}
    for number in range(sandboxes):
        freed[free(number)] = time.monotonic()
        time.sleep(_SPACING_SEC)
    return freed


def count_waiting(port: int) -> int:
    """Return how many tracks wait in line; 0 if the API is too busy to say it."""
    answer, _ = _send("GET", port, "/v1/admin/waiting?limit=1", {"Authorization": f"Bearer {ADMIN_TOKEN}"})
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return 0
    assert answer.status == HTTPStatus.OK, answer
    return int(json.loads(answer.body)["waiting"])


def delays(freed: dict[str, float], answers: list[Answer]) -> list[float]:
    """Return how long after it was available each freed sandbox was in its track's answer, in seconds."""
    given = {json.loads(each.body)["sandbox_id"]: each.ended for each in answers}
    return [given[sandbox_id] - at for sandbox_id, at in freed.items() if sandbox_id in given]


def percentiles(seconds: list[float]) -> dict[str, str]:
    """Return the cells of a table."""
    return {f"p{percent}": f"{percentile(seconds, percent):.2f} s" for percent in (50, 99)}
