"""A stateless model checker: runs a few operations in every order of their steps.

Each operation is a greenlet that stops before each of its steps, so exactly one runs at a time and nothing but the
schedule decides which. A run is repeated from its beginning with the last decision changed, depth first, until no
decision is left that could be another one. Nothing is drawn at random. A case may say which steps commute: of orders
that differ only in the order of neighbours that do, one is run (sleep sets: they leave out no state and no outcome).
Source: P. Godefroid, "Model Checking for Programming Languages using VeriSoft", POPL 1997, and "Partial-Order Methods
for the Verification of Concurrent Systems", LNCS 1032, chapter 5.

Knows nothing of the broker.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self


class Deadlock(AssertionError):
    """Every operation that has not ended waits for another."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was taken, of how many possibilities."""

    taken: int
    of: int


@dataclass(frozen=True, slots=True)
class Step:
    """What an operation does next, and on whose part: the process that it belongs to."""

    what: str
    by: object = None


class Redundant(Exception):
    """This order differs only by steps that commute from one that is run elsewhere."""


class Operation(greenlet):
    """Work that runs from stop to stop."""

    def __init__(self, schedule: Schedule, name: str, work: Callable[[], object]) -> None:
        super().__init__(work)
        self.schedule = schedule
        self.name = name
        self.next_step = Step("begin")
        self.is_runnable: Callable[[], bool] = _always


class Schedule:
    """One order of steps: made as planned, and beyond the plan always by the first possibility.

    `at_locks`: operations also stop before they take a `Lock` that is free. `commute` says whether two steps of two
    operations lead to the same, whichever comes first.
    """

    def __init__(
        self,
        plan: Sequence[Decision] = (),
        *,
        at_locks: bool = False,
        commute: Callable[[Step, Step], bool] | None = None,
    ) -> None:
        self.at_locks = at_locks
        self._commute = commute or (lambda _one, _other: False)
        self.made: list[Decision] = []
        self.steps: list[tuple[str, str]] = []
        """What was done so far: the operation's name and its step."""
        self.after_step: Callable[[], object] = lambda: None
        self._plan = plan
        self._operations: list[Operation] = []
        self._results: dict[str, Any] = {}

    def choose(self, of: int) -> int:
        """Take one of several possibilities; every one is taken in some order."""
        if of == 1:
            return 0
        place = len(self.made)
        decision = self._plan[place] if place < len(self._plan) else Decision(0, of)
        assert decision.of == of, "the same decisions must lead to the same place"
        self.made.append(decision)
        return decision.taken

    def add(self, name: str, work: Callable[[], object]) -> None:
        """Begin an operation: it runs at once, up to its first stop."""
        operation = Operation(self, name, lambda: self._results.update({name: work()}))
        self._operations.append(operation)
        operation.switch()

    def run(self) -> dict[str, Any]:
        """Run all operations to their ends, and return what each has returned; an error of one is raised.

        Raises `Redundant` where every order from here on is also run from another place.
        """
        asleep: list[Operation] = []
        while waiting := [each for each in self._operations if not each.dead]:
            runnable = [each for each in waiting if each.is_runnable()]
            if not runnable:
                raise Deadlock(", ".join(f"{each.name} waits to {each.next_step.what}" for each in waiting))
            awake = [each for each in runnable if each not in asleep]
            if not awake:
                raise Redundant
            taken = self.choose(len(awake))
            operation = awake[taken]
            # All orders that go on with one of these are run by now; it comes next again only after what matters to it.
            asleep = [each for each in asleep + awake[:taken] if self._commute(each.next_step, operation.next_step)]
            self.steps.append((operation.name, operation.next_step.what))
            operation.switch()
            self.after_step()
        return self._results

    def close(self) -> None:
        """End what is left of a run that failed."""
        for operation in self._operations:
            operation.is_runnable = _never
            if not operation.dead:
                operation.throw()

    def __str__(self) -> str:
        return ", ".join(f"{name}: {step}" for name, step in self.steps)


def stop(step: str, *, by: object = None, until: Callable[[], bool] | None = None) -> None:
    """Stop the present operation before a step of its own, which cannot be taken until a condition holds.

    Outside of any operation, goes on.
    """
    operation = getcurrent()
    if not isinstance(operation, Operation) or operation.is_runnable is _never:
        return
    operation.next_step, operation.is_runnable = Step(step, by), until or _always
    assert operation.parent is not None
    operation.parent.switch()


class Lock:
    """Stands for a `threading.Lock`: an operation that waits for it is not runnable. It has no time-outs."""

    def __init__(self) -> None:
        self._is_taken = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        operation = getcurrent()
        if self._is_taken or (isinstance(operation, Operation) and operation.schedule.at_locks):
            stop("take a lock", until=(lambda: not self._is_taken) if blocking else None)
        if self._is_taken:
            if blocking:
                raise Deadlock("a lock is waited for that nobody can release")
            return False
        self._is_taken = True
        return True

    def release(self) -> None:
        assert self._is_taken
        self._is_taken = False

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def explore(
    play: Callable[[Schedule], object],
    *,
    at_locks: bool = False,
    commute: Callable[[Step, Step], bool] | None = None,
) -> int:
    """Play every order, and return how many there are (with `commute`: how many that differ by more).

    `play` arranges everything anew, adds its operations, runs the schedule and judges what came of it; it must do
    the same whenever the decisions are the same. What it raises is raised, with the order in a note.
    """
    plan: list[Decision] = []
    orders, share = 0, Fraction(0)
    while True:
        schedule = Schedule(plan, at_locks=at_locks, commute=commute)
        try:
            play(schedule)
            orders += 1
        except Redundant:
            pass
        except Exception as error:
            error.add_note(f"in order {orders + 1}: {schedule}")
            raise
        finally:
            schedule.close()
        part = 1
        for decision in schedule.made:
            part *= decision.of
        share += Fraction(1, part)
        plan = schedule.made
        while plan and plan[-1].taken == plan[-1].of - 1:
            plan.pop()
        if not plan:
            break
        plan[-1] = Decision(plan[-1].taken + 1, plan[-1].of)
    # Were each decision a fair draw, the probabilities of all orders would add up to one: less, and one was left out.
    assert share == 1
    return orders


def _always() -> bool:
    return True


def _never() -> bool:
    return False
