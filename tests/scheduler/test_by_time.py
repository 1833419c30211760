"""Simulated time: due tasks run, in the same order each time."""

from __future__ import annotations

import threading
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tests.scheduler.locks import known_locks
from tests.scheduler.schedule import Deadlock, Gate, Schedule, stop
from tests.scheduler.strategies import AtRandom, ByTime, explore

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(ByTime())


def at_once(schedule: Schedule, *works: Callable[[], Any]) -> list[Any]:
    """Run `works` at the same time in tasks, and return their results."""
    results: list[Any] = []
    schedule.start(lambda: results.extend(schedule.together(works)))
    schedule.run()
    return results


def test_tasks_go_on_in_the_order_in_which_they_are_due(schedule: Schedule) -> None:
    seen: list[tuple[str, float]] = []

    def wake(name: str, *pauses: float) -> None:
        for seconds in pauses:
            schedule.time.sleep(seconds)
            seen.append((name, schedule.time.monotonic()))

    at_once(schedule, lambda: wake("a", 2, 2), lambda: wake("b", 1, 1, 1))
    # Of two tasks that are due at the same time, the one that has slept longer goes first.
    assert seen == [("b", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 4)]


def test_what_is_done_at_once_has_its_results_in_the_order_in_which_it_was_asked_for(schedule: Schedule) -> None:
    def take(seconds: float) -> float:
        schedule.time.sleep(seconds)
        return seconds

    assert at_once(schedule, lambda: take(3), lambda: take(1), lambda: take(2)) == [3, 1, 2]
    assert schedule.time.monotonic() == 3


def test_a_task_may_begin_later(schedule: Schedule) -> None:
    begun: list[float] = []
    schedule.start(lambda: begun.append(schedule.time.monotonic()), after=5)
    schedule.start(lambda: begun.append(schedule.time.monotonic()))
    schedule.run()
    assert begun == [0, 5]


def test_a_run_may_end_while_tasks_are_left_and_closing_it_ends_them(schedule: Schedule) -> None:
    ended: list[float] = []

    def go_on() -> None:
        try:
            while True:
                schedule.time.sleep(1)
        finally:
            ended.append(schedule.time.monotonic())

    schedule.start(go_on)
    schedule.run(lambda: schedule.time.monotonic() >= 3)
    assert ended == []
    schedule.close()
    assert ended == [3]


def test_an_error_of_a_task_is_raised(schedule: Schedule) -> None:
    def fail() -> None:
        schedule.time.sleep(1)
        raise ValueError("of the task")

    schedule.start(fail)
    with pytest.raises(ValueError, match="of the task"):
        schedule.run()


def test_tasks_that_all_wait_for_ever_are_a_deadlock(schedule: Schedule) -> None:
    schedule.add("a", lambda: Gate().wait("go on"))
    with pytest.raises(Deadlock, match="a waits to go on"):
        schedule.run()


def test_a_gate_that_is_closed_again_holds_who_has_not_gone_on_yet(schedule: Schedule) -> None:
    gate, passed = Gate(), list[str]()

    def go(name: str, *, closes: bool) -> None:
        gate.wait("go on")
        passed.append(name)
        if closes:
            gate.close()

    def open_it() -> None:
        for _ in range(2):
            schedule.time.sleep(1)
            passed.append("open")
            gate.open()

    at_once(schedule, lambda: go("a", closes=True), lambda: go("b", closes=False), open_it)
    assert passed == ["open", "a", "open", "b"]


def test_tasks_take_turns_at_a_lock_in_the_order_in_which_they_came(schedule: Schedule) -> None:
    turns: list[tuple[int, float]] = []

    def take_a_turn(number: int) -> None:
        with lock:
            schedule.time.sleep(1)
            turns.append((number, schedule.time.monotonic()))

    with known_locks():
        lock = threading.Lock()
    at_once(schedule, *[lambda number=number: take_a_turn(number) for number in range(3)])
    assert turns == [(0, 1), (1, 2), (2, 3)]


def test_a_task_waits_for_a_lock_no_longer_than_it_said(schedule: Schedule) -> None:
    def hold() -> None:
        with lock:
            schedule.time.sleep(2)

    def wait() -> tuple[bool, float]:
        return lock.acquire(timeout=0.5), schedule.time.monotonic()

    with known_locks():
        lock = threading.Lock()
    assert at_once(schedule, hold, wait)[1] == (False, 0.5)


def test_the_end_of_an_earlier_wait_for_a_lock_does_not_end_a_later_one(schedule: Schedule) -> None:
    """The first wait, of up to 3 s, ends after 1 s. The second begins at 2 s and ends at 4 s."""

    def hold() -> None:
        for seconds in (1, 2.5):
            with lock:
                schedule.time.sleep(seconds)
            schedule.time.sleep(0.5)

    def wait() -> list[tuple[bool, float]]:
        waited = []
        for timeout in (3, 60):
            waited.append((lock.acquire(timeout=timeout), schedule.time.monotonic()))
            lock.release()
            schedule.time.sleep(1)
        return waited

    with known_locks():
        lock = threading.Lock()
    assert at_once(schedule, hold, wait)[1] == [(True, 1), (True, 4)]


def test_steps_are_no_stops_where_time_alone_decides(schedule: Schedule) -> None:
    seen: list[str] = []

    def work(name: str) -> None:
        for _ in range(2):
            stop("step")
            seen.append(name)

    at_once(schedule, lambda: work("a"), lambda: work("b"))
    assert seen == ["a", "a", "b", "b"]


def random_run(seed: int) -> list[str]:
    schedule, seen = Schedule(AtRandom(Random(seed), least=0.1, most=0.9)), list[str]()

    def work(name: str) -> None:
        for _ in range(10):
            stop("step")
            seen.append(name)

    at_once(schedule, lambda: work("a"), lambda: work("b"))
    assert 1 < schedule.time.monotonic() < 9
    return seen


def test_steps_at_random_come_in_the_same_order_for_the_same_seed_and_in_another_for_another_one() -> None:
    assert random_run(1) == random_run(1) != random_run(2)
    assert sorted(random_run(1)) == ["a"] * 10 + ["b"] * 10


def test_who_sleeps_while_every_order_is_run_lets_time_pass_for_all_and_goes_on() -> None:
    seen: set[tuple[float, ...]] = set()

    def play(schedule: Schedule) -> None:
        def sleep() -> float:
            stop("sleep")
            schedule.time.sleep(5)
            return schedule.time.monotonic()

        def look() -> float:
            stop("look")
            return schedule.time.monotonic()

        schedule.add("sleeper", sleep)
        schedule.add("looker", look)
        seen.add(tuple(schedule.run().values()))

    assert explore(play) == 2
    assert seen == {(5, 5), (0, 5)}
