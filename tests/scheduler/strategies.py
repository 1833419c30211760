"""Strategies: by time alone, by time with random pauses, or every order, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from tests.scheduler.schedule import Schedule, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from tests.scheduler.schedule import Ready, Task


class ByTime:
    """Takes the task that has been due for the longest time. Steps take no time, so tasks stop only to wait."""

    stops_at_locks = False

    def step_pause(self) -> float | None:
        return None

    def sleep_pause(self, seconds: float) -> float | None:
        return seconds

    def take(self, ready: Ready) -> Task:
        return ready.first()


class AtRandom(ByTime):
    """Pauses before each step, from `least` to `most` seconds by `rng`, so that other tasks run between."""

    def __init__(self, rng: Random, *, least: float, most: float) -> None:
        self._rng = rng
        self._pauses = (least, most)

    def step_pause(self) -> float | None:
        return self._rng.uniform(*self._pauses)


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of the possibility that was taken, `of` so many."""

    taken: int
    of: int


class Redundant(Exception):
    """This order differs from another, which is run, only by steps that commute."""


class EveryOrder:
    """One order: it follows the plan, and after the plan always takes the first possibility.

    A task that sleeps goes on at once, and time passes. To let time pass at any other step, add a task for that.
    `commute` says whether two steps of two tasks lead to the same state in either order.
    """

    def __init__(
        self,
        plan: Sequence[Decision] = (),
        *,
        at_locks: bool = False,
        commute: Callable[[Step, Step], bool] | None = None,
    ) -> None:
        self.stops_at_locks = at_locks
        self.made: list[Decision] = []
        self._commute = commute or (lambda _one, _other: False)
        self._plan = plan
        self._asleep: list[Task] = []

    def step_pause(self) -> float | None:
        return 0

    def sleep_pause(self, seconds: float) -> float | None:
        return None

    def take(self, ready: Ready) -> Task:
        """Implement `Strategy`. Raises `Redundant` if every order from here on is also run from another place."""
        awake = [each for each in ready.all() if each not in self._asleep]
        if not awake:
            raise Redundant
        taken = self.choose(len(awake))
        task = awake[taken]
        # All orders that go on with one of these were run. Each may come next again only after a step that affects it.
        asleep = self._asleep + awake[:taken]
        self._asleep = [each for each in asleep if self._commute(each.next_step, task.next_step)]
        return task

    def choose(self, of: int) -> int:
        """Return one of `of` possibilities. Each is taken in some order."""
        if of == 1:
            return 0
        place = len(self.made)
        decision = self._plan[place] if place < len(self._plan) else Decision(0, of)
        assert decision.of == of, "the same decisions must lead to the same place"
        self.made.append(decision)
        return decision.taken


def choose(schedule: Schedule, of: int) -> int:
    """Return one of `of` possibilities in a run of `explore`, which takes each in some order."""
    assert isinstance(schedule.strategy, EveryOrder)
    return schedule.strategy.choose(of)


def explore(
    play: Callable[[Schedule], object],
    *,
    at_locks: bool = False,
    commute: Callable[[Step, Step], bool] | None = None,
) -> int:
    """Play every order; return their number. With `commute`, orders that differ only by steps that commute count once.

    `play` sets everything up, adds its tasks, runs the schedule and checks the outcome. The same decisions must give the
    same run. An error of `play` is raised with the order in a note.

    A run is repeated from its beginning with the last decision changed, depth first, until each decision has taken every
    possibility. Of orders that differ only in neighbours that commute, one is run (sleep sets: they leave out no state
    and no outcome). Source: P. Godefroid, "Model Checking for Programming Languages using
    VeriSoft", POPL 1997, and "Partial-Order Methods for the Verification of Concurrent Systems", LNCS 1032, chapter 5.
    """
    plan: list[Decision] = []
    orders, share = 0, Fraction(0)
    while True:
        strategy = EveryOrder(plan, at_locks=at_locks, commute=commute)
        schedule = Schedule(strategy)
        try:
            play(schedule)
            orders += 1
        except Redundant:
            pass
        except Exception as error:
            order = ", ".join(f"{name}: {step}" for name, step in schedule.steps)
            error.add_note(f"in order {orders + 1}: {order}")
            raise
        finally:
            schedule.close()
        part = 1
        for decision in strategy.made:
            part *= decision.of
        share += Fraction(1, part)
        plan = strategy.made
        while plan and plan[-1].taken == plan[-1].of - 1:
            plan.pop()
        if not plan:
            break
        plan[-1] = Decision(plan[-1].taken + 1, plan[-1].of)
    # If each decision were a fair draw, the probabilities of all orders would add up to one. Less: one was left out.
    assert share == 1
    return orders
