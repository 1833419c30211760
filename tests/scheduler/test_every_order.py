"""The search itself: it runs every order once, and finds exactly the wrong ones."""

from __future__ import annotations

from itertools import combinations
from math import comb, factorial
from typing import TYPE_CHECKING

import pytest

from tests.scheduler.locks import Lock
from tests.scheduler.schedule import Deadlock, Schedule, stop
from tests.scheduler.strategies import choose, explore

if TYPE_CHECKING:
    from collections.abc import Callable


def steps(count: int) -> Callable[[], None]:
    """Return an operation of `count` steps."""

    def work() -> None:
        for number in range(count):
            stop(str(number))

    return work


def run_both(schedule: Schedule, a: Callable[[], object], b: Callable[[], object]) -> str:
    """Run two operations, and return the order of their steps."""
    schedule.add("a", a)
    schedule.add("b", b)
    schedule.run()
    return "".join(name for name, _ in schedule.steps)


def orders_of(*counts: int) -> list[str]:
    """Play operations of so many steps each; return the orders as strings of the operations' letters."""
    orders: list[str] = []

    def play(schedule: Schedule) -> None:
        for name, count in zip("abc", counts, strict=False):
            schedule.add(name, steps(count))
        schedule.run()
        orders.append("".join(name for name, _ in schedule.steps))

    assert explore(play) == len(orders)
    return orders


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 3), (1, 1), (2, 3), (5, 4), (6, 6)])
def test_two_operations_have_as_many_orders_as_there_are_ways_to_merge_their_steps(first: int, second: int) -> None:
    orders = orders_of(first, second)
    assert len(orders) == len(set(orders)) == comb(first + second, first)


def test_the_orders_of_two_operations_are_all_the_merges_there_are() -> None:
    merges = {"".join("a" if place in places else "b" for place in range(7)) for places in combinations(range(7), 3)}
    assert set(orders_of(3, 4)) == merges


def test_three_operations_have_as_many_orders_as_the_multinomial_says() -> None:
    orders = orders_of(2, 3, 4)
    assert len(orders) == len(set(orders)) == factorial(9) // (factorial(2) * factorial(3) * factorial(4))


def test_an_operation_that_takes_more_steps_after_some_orders_is_run_in_each_of_them() -> None:
    """B takes one step if it comes first, else three: so the orders are ba and abbb."""
    orders: set[str] = set()

    def play(schedule: Schedule) -> None:
        seen: list[str] = []

        def first() -> None:
            stop("write")
            seen.append("a")

        def second() -> None:
            stop("look")
            if seen:
                steps(2)()

        orders.add(run_both(schedule, first, second))

    assert explore(play) == 2
    assert orders == {"ba", "abbb"}


def test_a_choice_within_an_operation_is_taken_in_every_way() -> None:
    taken: list[tuple[int, int]] = []

    def play(schedule: Schedule) -> None:
        taken.append((choose(schedule, 2), choose(schedule, 3)))

    assert explore(play) == 6
    assert set(taken) == {(each, other) for each in range(2) for other in range(3)}


def test_a_lost_update_is_found_in_exactly_the_orders_in_which_both_read_before_either_writes() -> None:
    wrong: set[str] = set()

    def play(schedule: Schedule) -> None:
        counter = {"value": 0}

        def increment() -> None:
            stop("read")
            value = counter["value"]
            stop("write")
            counter["value"] = value + 1

        order = run_both(schedule, increment, increment)
        if counter["value"] != 2:
            wrong.add(order)

    assert explore(play) == 6
    assert wrong == {"abab", "abba", "baab", "baba"}


def test_a_lock_repairs_the_lost_update_and_leaves_only_the_orders_that_it_allows() -> None:
    def play(schedule: Schedule) -> None:
        counter = {"value": 0}
        lock = Lock()

        def increment() -> None:
            stop("begin")
            with lock:
                value = counter["value"]
                stop("write")
                counter["value"] = value + 1

        run_both(schedule, increment, increment)
        assert counter["value"] == 2

    # One begins. Then it ends before the other begins, or the other begins and waits for its end.
    assert explore(play) == 4


def test_a_lock_that_is_taken_is_not_taken_by_who_does_not_wait() -> None:
    lock = Lock()
    assert lock.acquire(blocking=False)
    assert not lock.acquire(blocking=False)
    lock.release()
    assert lock.acquire(blocking=False)


def test_a_deadlock_is_reported_with_the_order_that_leads_to_it() -> None:
    def play(schedule: Schedule) -> None:
        here, there = Lock(), Lock()

        def take(first: Lock, second: Lock) -> None:
            stop("begin")
            with first:
                stop("go on")
                with second:
                    pass

        run_both(schedule, lambda: take(here, there), lambda: take(there, here))

    with pytest.raises(Deadlock, match="a waits to take a lock, b waits to take a lock") as found:
        explore(play)
    assert found.value.__notes__ == ["in order 2: a: begin, b: begin, a: go on, b: go on"]


def test_stops_before_locks_show_what_happens_between_two_of_them() -> None:
    """A counter is read under a lock, and later written under it; the lock is free in between."""

    def play(schedule: Schedule) -> None:
        counter = {"value": 0}
        lock = Lock()

        def increment() -> None:
            with lock:
                value = counter["value"]
            with lock:
                counter["value"] = value + 1

        run_both(schedule, increment, increment)
        assert counter["value"] == 2

    assert explore(play) == 1
    with pytest.raises(AssertionError):
        explore(play, at_locks=True)


def test_work_that_does_not_repeat_itself_is_refused() -> None:
    counts = iter([2, 3])

    def play(schedule: Schedule) -> None:
        choose(schedule, next(counts))

    with pytest.raises(AssertionError, match="the same decisions"):
        explore(play)
