"""A class that comes over HTTP within some seconds, beside a flood of others in a pool that is too small for both."""

from __future__ import annotations

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING

from deploy.dev.processes import wait_until
from tests.long.bench.line import SERVED, WAIT_SEC, ask, count_waiting, give_back, small_stacks
from tests.long.bench.load import new_tracks, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

LAB = "the-lab-of-the-class"
UNITS = {"of the class served at once": "%", "p50 to the 201": "s", "p99 to the 201": "s"}
"""The units of an outcome's figures; the others are numbers of tracks."""
_JOIN_SEC = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """A class of `students`, and the others.

    `others`: how many tracks there are beside the class at any time, each of which keeps its sandbox for about
    `hold_sec`. The class comes within `arrive_sec`; each of its tracks waits for up to `limit_sec`.
    """

    students: int
    others: int
    pool: int
    hold_sec: float
    arrive_sec: float
    limit_sec: float

    @property
    def watched_sec(self) -> float:
        """For how long the others are counted from the class's first request on, whether all of it is served or not."""
        return self.arrive_sec + self.limit_sec


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a class and the others got.

    `at_once`: how many of the class got a sandbox without waiting. `seconds`: the time of each of the class to its 201;
    the limit for those without one, who are `unserved`.
    """

    at_once: int
    seconds: Sequence[float]
    unserved: int
    others_served: int

    @property
    def figures(self) -> dict[str, float]:
        """The figures that the bench shows, in the units of `UNITS`."""
        return {
            "of the class served at once": 100 * self.at_once / len(self.seconds),
            "p50 to the 201": percentile(self.seconds, 50),
            "p99 to the 201": percentile(self.seconds, 99),
            "of the class not served in time": self.unserved,
            "others served meanwhile": self.others_served,
        }

    @property
    def cells(self) -> dict[str, str]:
        """The same as cells of a table."""
        units = {name: UNITS.get(name, "") for name in self.figures}
        return {
            name: f"{value:.2f} s" if units[name] == "s" else f"{value:.0f} {units[name]}".strip()
            for name, value in self.figures.items()
        }


def ratios(above: Outcome, below: Outcome) -> dict[str, float]:
    """Return the ratios of two outcomes, except of what is 0 in the second."""
    return {name: above.figures[name] / value for name, value in below.figures.items() if value}


def bring_class(port: int, crowd: Crowd, reserved: int) -> Outcome:
    """Let the others take all that is not reserved; once the rest of them wait, let the class come."""
    is_over = threading.Event()
    with small_stacks(), ThreadPoolExecutor(crowd.others + crowd.students) as threads:
        try:
            others = [threads.submit(_come_and_go, port, crowd, number, is_over) for number in range(crowd.others)]
            left_over = crowd.others - (crowd.pool - reserved)
            assert wait_until(lambda: count_waiting(port) >= left_over, _JOIN_SEC), "the others do not fill the pool"
            began = time.monotonic()
            students = [threads.submit(_attend, port, crowd, number, began) for number in range(crowd.students)]
            is_over.wait(crowd.watched_sec)
        finally:
            is_over.set()
    served = [at for each in others for at in each.result() if began <= at <= began + crowd.watched_sec]
    return sum_up([each.result() for each in students], len(served), limit_sec=crowd.limit_sec)


def sum_up(students: Sequence[tuple[bool, float]], others_served: int, *, limit_sec: float) -> Outcome:
    """Return the outcome for a class: of each, whether it had a sandbox at once, and the time to its 201 (or infinity)."""
    return Outcome(
        at_once=sum(was_at_once for was_at_once, _ in students),
        seconds=[min(seconds, limit_sec) for _, seconds in students],
        unserved=sum(seconds > limit_sec for _, seconds in students),
        others_served=others_served,
    )


def _come_and_go(port: int, crowd: Crowd, number: int, is_over: threading.Event) -> list[float]:
    """Be one track after the other, until it is over; return when each got its sandbox."""
    rng = Random(number)
    served: list[float] = []
    while not is_over.is_set():
        (track,) = new_tracks(1)
        while not is_over.is_set():
            answer, pause = ask(port, track)
            if answer.status in SERVED:
                served.append(answer.ended)
                if not is_over.wait(crowd.hold_sec * rng.uniform(0.5, 1.5)):
                    give_back(port, track, json.loads(answer.body)["sandbox_id"])
                break
            is_over.wait(pause)
    return served


def _attend(port: int, crowd: Crowd, number: int, began: float) -> tuple[bool, float]:
    """Come at one's time, and ask without waiting, then waiting; return whether the first answer was 201, and the time."""
    comes_at = began + crowd.arrive_sec * number / crowd.students
    time.sleep(max(0.0, comes_at - time.monotonic()))
    (track,) = new_tracks(1)
    answer, pause = ask(port, track, wait_sec=0, lab=LAB)
    asked = answer.began
    if answer.status == HTTPStatus.CREATED:
        return True, answer.seconds
    while (left := asked + crowd.limit_sec - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        left = max(0.0, asked + crowd.limit_sec - time.monotonic())
        answer, pause = ask(port, track, wait_sec=min(WAIT_SEC, math.ceil(left)), lab=LAB)
        if answer.status in SERVED:
            return False, answer.ended - asked
    return False, math.inf
