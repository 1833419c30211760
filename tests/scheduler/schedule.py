"""Tasks that run one at a time, in simulated time: each runs until it stops, and a strategy chooses the next one.

A task is a greenlet that runs real, blocking code. It stops before each of its steps, while it sleeps, and while it
waits at a gate. So only the strategy decides the order, and the same decisions give the same run.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from greenlet import getcurrent, greenlet

from tests.fakes import START, FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Result = TypeVar("Result")

NEVER_SEC = 1e8
"""No run lasts so long. A longer timeout means to wait for ever."""


class Deadlock(AssertionError):
    """Each task that has not ended waits for another."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next step of a task, and the process to which the task belongs."""

    what: str
    by: object = None


_BEGIN = Step("begin")


class Task(greenlet):
    """Work that runs from stop to stop."""

    def __init__(self, schedule: Schedule, number: int, name: str, work: Callable[[], object]) -> None:
        super().__init__(work, schedule.hub)
        self.schedule = schedule
        self.number = number
        self.name = name
        self.next_step = _BEGIN
        self.place: tuple[float, int] | None = None
        """The time when it may go on, and its order among tasks of that time. None while it runs or waits for ever."""


class Ready(Protocol):
    """The tasks that may go on now: at least one."""

    def first(self) -> Task:
        """Return the task that has been ready for the longest time."""

    def all(self) -> list[Task]:
        """Return all ready tasks in the order of their start."""


class Strategy(Protocol):
    """Chooses the next task and the length of each pause. Without a pause (None) a task does not stop."""

    stops_at_locks: bool
    """Whether a task also stops before it takes a free lock."""

    def step_pause(self) -> float | None:
        """Return the pause before a step in seconds."""

    def sleep_pause(self, seconds: float) -> float | None:
        """Return the pause of a task that sleeps for `seconds`. Without a pause, time passes for all tasks."""

    def take(self, ready: Ready) -> Task:
        """Return the task that runs next."""


class Schedule:
    """One run: its tasks, its time, and the order in which steps were taken.

    One greenlet makes and runs it. Time passes only when no task is ready, or by `time.advance`.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.time = VirtualTime(self)
        self.hub = getcurrent()
        self.steps: list[tuple[str, str]] = []
        """The steps so far of tasks that have a name: (name, step)."""
        self.after_step: Callable[[], object] = lambda: None
        self._queue: list[tuple[float, int, Task]] = []
        """By place. An entry is old if its task has another place now, or no place."""
        self._waiting: dict[Task, None] = {}
        """The tasks that wait at a gate without a timeout."""
        self._places = count()
        self._numbers = count()
        self._results: dict[str, Any] = {}
        self._is_closed = False

    # -- from outside of the tasks

    def add(self, name: str, work: Callable[[], object]) -> None:
        """Start a task now: it runs up to its first stop. `run` returns its result by its name."""
        Task(self, next(self._numbers), name, lambda: self._results.update({name: work()})).switch()

    def run(self, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Run until all tasks have ended, or `until` returns true; return the results of tasks that have a name.

        Raises the error of a task, `Deadlock`, and the errors of the strategy.
        """
        while not until() and (self._wait_for_one() or self._waiting):
            if not self._queue:
                raise Deadlock(
                    ", ".join(f"{each.name or 'a task'} waits to {each.next_step.what}" for each in self._waiting)
                )
            task = self.strategy.take(self)
            if task.name:
                self.steps.append((task.name, task.next_step.what))
            task.place = None
            task.switch()
            self.after_step()
        return self._results

    def close(self) -> None:
        """End all tasks that are left. They do not stop any more."""
        self._is_closed = True
        left = [task for _, _, task in self._queue if task.place is not None] + list(self._waiting)
        for task in sorted(set(left), key=lambda each: each.number):
            if not task.dead:
                task.throw()

    # -- from everywhere

    def start(self, work: Callable[[], object], *, after: float = 0.0) -> None:
        """Start a task without a name, `after` so many seconds."""
        self._put(Task(self, next(self._numbers), "", work), self.time.monotonic() + after)

    # -- from within a task

    def together(self, works: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run all `works` at the same time, wait for them, and return their results in order."""
        results: dict[int, Result] = {}
        all_done = Gate()

        def do(number: int, work: Callable[[], Result]) -> None:
            results[number] = work()
            if len(results) == len(works):
                all_done.open()

        for number, work in enumerate(works):
            self.start(lambda number=number, work=work: do(number, work))  # type: ignore[misc] # bound in the loop
        all_done.wait("go on with the others")
        return [results[number] for number in range(len(works))]

    def sleep(self, task: Task, seconds: float) -> None:
        """Stop the current task for `seconds`."""
        self._put(task, self.time.monotonic() + seconds)
        self._switch(task)

    def wait(self, task: Task, *, until: float) -> None:
        """Stop the current task until `let_go`, or until a time."""
        self.hold(task, until=until)
        self._switch(task)

    # -- for gates

    def let_go(self, task: Task) -> None:
        """Make a waiting task ready."""
        self._put(task, self.time.monotonic())

    def hold(self, task: Task, *, until: float) -> None:
        """Make a task wait again that was let go and has not run since."""
        if until < NEVER_SEC:
            self._put(task, until)
        else:
            task.place = None
            self._waiting[task] = None

    # -- `Ready`

    def first(self) -> Task:
        """Implement `Ready`."""
        return self._queue[0][2]

    def all(self) -> list[Task]:
        """Implement `Ready`."""
        now = self.time.monotonic()
        ready = [task for due, place, task in self._queue if due <= now and task.place == (due, place)]
        return sorted(ready, key=lambda each: each.number)

    def _put(self, task: Task, due: float) -> None:
        self._waiting.pop(task, None)
        task.place = (due, next(self._places))
        heapq.heappush(self._queue, (*task.place, task))

    def _switch(self, task: Task) -> None:
        if not self._is_closed:
            assert getcurrent() is task, "a task stops itself"
            self.hub.switch()

    def _wait_for_one(self) -> bool:
        """Let time pass until a task is ready; return False if none will be."""
        while self._queue and self._queue[0][2].place != self._queue[0][:2]:
            heapq.heappop(self._queue)
        if self._queue:
            self.time.reach(self._queue[0][0])
        return bool(self._queue)


class VirtualTime(FakeClock):
    """The clock of a schedule. A sleep outside of its tasks lets time pass."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule
        self._seconds = 0.0

    def now(self) -> int:
        return START + int(self._seconds)

    def unix(self) -> float:
        """Return the Unix time with its fraction."""
        return START + self._seconds

    def monotonic(self) -> float:
        return self._seconds

    def sleep(self, seconds: float) -> None:
        task = present_task()
        pause = None if task is None else self._schedule.strategy.sleep_pause(seconds)
        if task is None or pause is None:
            self.advance(seconds)
        else:
            self._schedule.sleep(task, pause)

    def advance(self, seconds: float) -> None:
        """Let time pass. Tasks that become due run afterwards."""
        self._seconds += seconds

    def reach(self, moment: float) -> None:
        """Let time pass until a moment, if it is not past."""
        self._seconds = max(self._seconds, moment)


class Gate:
    """A place where tasks wait until it is open.

    When it closes, it also holds the tasks that were let go and have not run since.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._is_open = is_open
        self._waiting: dict[Task, float] = {}
        """The waiting tasks in order of arrival, each with the end of its wait."""

    def wait(self, what: str, *, timeout: float = inf) -> None:
        """Stop the current task before a step until the gate opens, for at most `timeout` seconds."""
        task = present_task()
        if task is None:
            return
        task.next_step = Step(what)
        schedule = task.schedule
        self._waiting[task] = schedule.time.monotonic() + timeout
        try:
            if self._is_open:
                schedule.sleep(task, 0)
            else:
                schedule.wait(task, until=self._waiting[task])
        finally:
            del self._waiting[task]

    def open(self) -> None:
        """Let all waiting tasks go."""
        self._is_open = True
        for task in self._waiting:
            task.schedule.let_go(task)

    def close(self) -> None:
        """Hold all tasks from now on."""
        self._is_open = False
        for task, until in self._waiting.items():
            task.schedule.hold(task, until=until)


def present_task() -> Task | None:
    """Return the current task, or None outside of all tasks."""
    present = getcurrent()
    return present if isinstance(present, Task) else None


def stop(what: str, *, by: object = None) -> None:
    """Stop the current task before a step, if its strategy says so. Outside of all tasks, do nothing."""
    task = present_task()
    if task is None:
        return
    pause = task.schedule.strategy.step_pause()
    if pause is not None:
        task.next_step = Step(what, by)
        task.schedule.sleep(task, pause)
