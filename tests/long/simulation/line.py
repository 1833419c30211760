"""One simulated run of waiting: a line of tracks at an empty pool, and an observer who knows the true line at each moment."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, TypeVar

from broker_common.core.allocation import AllocateRequest
from broker_common.core.errors import NoSandboxesAvailable, StoreUnavailable
from broker_common.core.lease import candidate_of
from broker_common.core.line import FRONT_MIN, FRONT_RETRY_SEC, Place, Turns
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Status
from broker_common.core.waiting import Waiting
from tests.fakes import BY, StoreWrapper, make_sandbox
from tests.long.simulation.broker import Process, give_back, milliseconds
from tests.long.simulation.table import SimulatedStore, TableConditions
from tests.scheduler.locks import known_locks
from tests.scheduler.schedule import Schedule
from tests.scheduler.strategies import ByTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.telemetry import Event

Answer = TypeVar("Answer")

WINDOW_SEC = 2.0
"""How long what a process knows of the line may be out of date (promise 8)."""
GLANCE_SEC = 0.1
"""How often the observer looks at the true line."""
LINE_READS = ("read_line", "read_candidates", "read_place")
LINE_WRITES = ("join", "renew", "leave")
ENOUGH_SEC = 120.0
"""Who is not served so long after twice the time in which enough sandboxes come back is starved."""
TRIP_SEC = (0.01, 0.1)
"""How long an answer and the next request travel, together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineScenario:
    """A scenario. All tracks join within `join_sec`, while no sandbox is free. Shares are of the tracks, at random."""

    processes: int = 4
    threads: int = 16
    """`API_THREADS`. A quarter of them hold calls."""
    tracks: int = 1000
    pool: int = 100
    returns: float = 5.0
    """Sandboxes per second that come back, as a Poisson process, those first that were given first."""
    join_sec: float = 30.0
    dead: float = 0.1
    """Tracks that never come back: half of them after their first answer, the others at a random moment."""
    late: float = 0.05
    """Tracks that are up to a minute late every tenth time that they come back."""
    held: float = 0.3
    """Tracks that ask to be held for 20 seconds. The others ask for an answer at once."""
    customers: int = 1
    prefixes: tuple[str, ...] = ("",)
    """What the tracks want. Half of the sandboxes have names that begin with `a-`, and half with `b-`."""
    newcomers: float = 1.0
    """Requests per second of tracks that do not wait."""
    table: TableConditions = field(default_factory=TableConditions)
    seed: int = 1


@dataclass(slots=True)
class LineResult:
    """The result of a run. Times are in seconds."""

    idle: list[float] = field(default_factory=list)
    """From each moment when a sandbox became available to its allocation, while more than the front waits."""
    waits: list[tuple[int, float]] = field(default_factory=list)
    """The position at which a track joined, and how long it waited."""
    violations: list[str] = field(default_factory=list)
    """The allocations that were due to a place ahead throughout the window."""
    out_of_turn: int = 0
    """The allocations that were due to a place ahead at their moment."""
    lost_places: int = 0
    """The places of tracks that came back in time, and were given another place all the same."""
    newcomers_served: int = 0
    unavailable: int = 0
    reads: float = 0.0
    """Read calls per second of a process, while nobody joins: the mean of the busiest one."""
    writes: float = 0.0
    """Writes to the line for each `Retry-After` that a track was told, and for each three seconds of held calls."""
    conflicts: int = 0
    seconds: float = 0.0
    starved: int = 0
    """The tracks that kept coming back and got nothing in more than twice the time that they needed."""

    def summary(self) -> dict[str, float | int | str]:
        """Return the figures of the run. Times are in seconds."""
        return {
            "violations": len(self.violations),
            "out_of_turn": self.out_of_turn,
            "starved": self.starved,
            "lost_places": self.lost_places,
            "idle_p50_s": round(milliseconds(self.idle, 50) / 1000, 2),
            "idle_p99_s": round(milliseconds(self.idle, 99) / 1000, 2),
            "wait_p50_s": round(milliseconds([each for _, each in self.waits], 50) / 1000, 1),
            "longest_wait_s": round(max(each for _, each in self.waits), 1),
            "reads": round(self.reads, 2),
            "writes": round(self.writes, 2),
            "conflicts": round(self.conflicts / len(self.waits), 3),
            "unavailable": self.unavailable,
            "seconds": round(self.seconds),
        }


def simulate_line(scenario: LineScenario) -> LineResult:
    """Run a scenario until every track that still comes back has its sandbox, or is starved.

    The same scenario gives the same result.
    """
    schedule = Schedule(ByTime())
    with known_locks():
        try:
            return LineRun(scenario, schedule).result()
        finally:
            schedule.close()


@dataclass(slots=True)
class Track:
    """A waiting track, and what it was told last."""

    name: str
    request: AllocateRequest
    is_late: bool
    dies_at: float
    joined_at: float = 0.0
    asked_at: float = 0.0
    place: Place | None = None
    position: int = 0
    is_served: bool = False


class CountedStore(StoreWrapper):
    """One process's way to the store; counts its calls by their names."""

    def __init__(self, inner: SimulatedStore) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()

    def _call(self, method: str, call: Callable[[], Answer]) -> Answer:
        self.calls[method] += 1
        return call()


class WatchedStore(SimulatedStore):
    """Reports each change at the moment when it is made."""

    on_change: Callable[[Change], None] = staticmethod(lambda _: None)

    def places(self) -> list[Place]:
        """Return the true line."""
        return list(self._line.values())

    def _write(self, change: Change) -> None:
        super()._write(change)
        self.on_change(change)


class _Judge:
    """Knows the true line and what the index showed in the last two seconds, and so whether a sandbox is due to another."""

    def __init__(self, run: LineRun) -> None:
        self._run = run
        self._glances: deque[tuple[float, list[Place], list[Candidate]]] = deque()

    def glance(self) -> None:
        """Remember the present."""
        run = self._run
        now = run.time.monotonic()
        while self._glances and self._glances[0][0] < now - WINDOW_SEC - GLANCE_SEC:
            self._glances.popleft()
        self._glances.append((now, [each for each in run.store.places() if run.is_alive(each)], run.store.shown()))

    def judge(self, candidate: Candidate, place_id: str | None) -> tuple[bool, bool]:
        """Tell whether a sandbox that is being taken is due to a place ahead: now, and throughout the window.

        A process reads the line and the index one after the other, so each may be of another moment of the window.
        """
        self.glance()
        start, now = self._run.time.now(), self._run.time.monotonic()
        is_due_now = self._is_due(candidate, place_id, self._glances[-1][1], self._glances[-1][2], start)
        return is_due_now, is_due_now and all(
            self._is_due(candidate, place_id, places, shown, start - int(now - at))
            for at, places, _ in reversed(self._glances)
            for _, _, shown in reversed(self._glances)
        )

    @staticmethod
    def _is_due(
        candidate: Candidate, place_id: str | None, places: list[Place], free: list[Candidate], now: int
    ) -> bool:
        """Tell whether a place ahead gets a sandbox only if this one is free."""
        ahead = [each.place_id for each in places if place_id is None or each.place_id < place_id]
        others = [each for each in free if each.sandbox_id != candidate.sandbox_id]
        served = [sum(map(Turns(places, some, now=now).is_next, ahead)) for some in ([*others, candidate], others)]
        return served[0] > served[1]


class LineRun:
    """The state of a run, which is also the recorder of all its processes."""

    def __init__(self, scenario: LineScenario, schedule: Schedule, *, store: type[WatchedStore] = WatchedStore) -> None:
        self.scenario = scenario
        self.schedule = schedule
        self.time = schedule.time
        self._rng = Random(scenario.seed)
        self.store = store(schedule, self._rng, scenario.table)
        self.store.on_change = self._see
        self._result = LineResult()
        self._judge = _Judge(self)
        self._begins_at = scenario.join_sec
        """When sandboxes begin to come back."""
        self._ends_at = scenario.join_sec + 2 * scenario.tracks / scenario.returns + ENOUGH_SEC
        self._freed_at: dict[str, float] = {}
        self._used: deque[str] = deque()
        self._tracks = {name: self._new_track(name) for name in (f"track-{each}" for each in range(scenario.tracks))}
        self._stores = [CountedStore(self.store) for _ in range(scenario.processes)]
        self._processes = [
            Process(
                schedule=schedule,
                store=store,
                recorder=self,
                threads=scenario.threads,
                seed=1000 * scenario.seed + number,
            )
            for number, store in enumerate(self._stores)
        ]
        self._holding: Counter[int] = Counter()
        self._told = 0
        """How many times a track was told when to be back."""
        self._held_sec = 0.0

    def record(self, event: Event) -> None:
        self._result.conflicts += getattr(event, "conflicts", 0)

    def result(self) -> LineResult:
        """Run the scenario and return its result."""
        scenario, result = self.scenario, self._result
        for number in range(scenario.pool):
            name = f"{'ab'[number % 2]}-{number}"
            self._used.append(name)
            self.store.seed(
                make_sandbox(
                    name,
                    name=name,
                    status=Status.ALLOCATED,
                    dirty=True,
                    lease_id=name,
                    allocated_to_track=name,
                    idempotency_key=name,
                )
            )
        for track in self._tracks.values():
            self.schedule.start(lambda track=track: self._ask(track), after=track.joined_at)  # type: ignore[misc] # bound in the loop
        for work in (self._glance_on, self._give_back_some, self._send_newcomers, self._count_calls):
            self.schedule.start(work)
        self.schedule.run(self._is_over)
        result.seconds = self.time.monotonic()
        result.starved = sum(not each.is_served and self._comes_back(each) for each in self._tracks.values())
        return result

    def is_alive(self, place: Place) -> bool:
        """Tell whether the track of a place still comes back to it."""
        return self._comes_back(self._tracks[place.track_id])

    def _comes_back(self, track: Track) -> bool:
        return self.time.monotonic() < track.dies_at

    def _is_over(self) -> bool:
        if self.time.monotonic() > self._ends_at:
            return True
        return all(each.is_served or not self._comes_back(each) for each in self._tracks.values())

    def _new_track(self, name: str) -> Track:
        scenario, rng = self.scenario, self._rng
        joined_at = rng.uniform(0, scenario.join_sec)
        dies_at = float("inf")
        if rng.random() < scenario.dead:
            dies_at = joined_at + (1 if rng.random() < 0.5 else rng.uniform(0, scenario.tracks / scenario.returns))
        request = AllocateRequest(
            track_id=name,
            idempotency_key="lab",
            prefix=rng.choice(scenario.prefixes),
            customer=f"customer-{rng.randrange(scenario.customers)}" if scenario.customers > 1 else None,
            wait_sec=20 if rng.random() < scenario.held else 0,
        )
        return Track(name, request, is_late=rng.random() < scenario.late, dies_at=dies_at, joined_at=joined_at)

    # -- tracks

    def _ask(self, track: Track) -> None:
        if self._comes_back(track):
            track.asked_at = self.time.monotonic()
            number = self._rng.randrange(self.scenario.processes)
            self._processes[number].accept(lambda: self._answer(track, number))

    def _answer(self, track: Track, number: int) -> None:
        slot: list[int] = []

        def may_hold() -> bool:
            if not slot and self._holding[number] < self.scenario.threads // 4:
                self._holding[number] += 1
                slot.append(number)
            return bool(slot) and self._comes_back(track)

        pause, began = 1.0, self.time.monotonic()
        try:
            answer = self._processes[number].allocator.allocate(track.request, by=BY, may_hold=may_hold)
        except StoreUnavailable:
            self._result.unavailable += 1
        else:
            if not isinstance(answer, Waiting):
                self._serve(track, answer.claim.sandbox_id)
                return
            pause = self._note(track, answer)
        finally:
            if slot:
                self._holding.subtract(slot)
                self._held_sec += self.time.monotonic() - began
        self.schedule.start(lambda: self._ask(track), after=pause)

    def _serve(self, track: Track, sandbox_id: str) -> None:
        track.is_served = True
        self._used.append(sandbox_id)
        self._result.waits.append((track.position, self.time.monotonic() - track.joined_at))

    def _note(self, track: Track, told: Waiting) -> float:
        """Remember what a track was told, and return after how long it asks again."""
        self._told += 1
        if track.place is None:
            track.position = told.position
        elif track.place.place_id != told.place.place_id:
            self._result.lost_places += 1
        track.place = told.place
        pause = told.retry_after + self._rng.uniform(*TRIP_SEC)
        if track.is_late and self._rng.random() < 0.1:
            pause += self._rng.uniform(0, 60)
        return pause

    def _send_newcomers(self) -> None:
        number = 0
        while self.scenario.newcomers:
            self.time.sleep(self._rng.expovariate(self.scenario.newcomers))
            number += 1
            request = AllocateRequest(track_id=f"newcomer-{number}", idempotency_key="lab")
            process = self._rng.choice(self._processes)
            process.accept(lambda request=request, process=process: self._refuse(process, request))  # type: ignore[misc] # bound in the loop

    def _refuse(self, process: Process, request: AllocateRequest) -> None:
        try:
            answer = process.allocator.allocate(request, by=BY)
        except NoSandboxesAvailable:
            return
        except StoreUnavailable:
            self._result.unavailable += 1
            return
        assert not isinstance(answer, Waiting)
        self._used.append(answer.claim.sandbox_id)
        self._result.newcomers_served += 1

    # -- sandboxes

    def _give_back_some(self) -> None:
        self.time.sleep(self._begins_at)
        while True:
            self.time.sleep(self._rng.expovariate(self.scenario.returns))
            if self._used:
                name = self._used.popleft()
                self.schedule.start(lambda name=name: self._give_back(name))  # type: ignore[misc] # bound in the loop

    def _give_back(self, name: str) -> None:
        give_back(self.store, name, order=self._rng.randrange(ORDER_LIMIT), now=self.time.now())

    def _see(self, change: Change) -> None:
        """Note a sandbox that became available, and judge who takes one."""
        before, after = change.before, change.after
        if after is None:
            return
        if after.is_free:
            self._freed_at[after.sandbox_id] = self.time.monotonic()
        elif after.status is Status.ALLOCATED and before is not None and after.lease is not None:
            track = self._tracks.get(after.lease.track_id)
            place = next((each for each in self.store.places() if each.track_id == after.lease.track_id), None)
            is_due_now, is_due_throughout = self._judge.judge(candidate_of(before), place.place_id if place else None)
            self._result.out_of_turn += is_due_now
            if is_due_throughout:
                self._result.violations.append(f"{self.time.monotonic():.1f} s: {after.lease.track_id}, {place}")
            if track and self._is_long():
                self._result.idle.append(self.time.monotonic() - self._freed_at[after.sandbox_id])

    # -- the observer

    def _is_long(self) -> bool:
        """Tell whether more tracks wait than are in the front."""
        now = self.time.now()
        return sum(each.is_live(now) and self.is_alive(each) for each in self.store.places()) > FRONT_MIN

    def _glance_on(self) -> None:
        while True:
            self._judge.glance()
            self.time.sleep(GLANCE_SEC)

    def _count_calls(self) -> None:
        """Count the calls from the moment when all have joined until the line is as short as its front."""
        self.time.sleep(self.scenario.join_sec + 5)
        began, told, before = self.time.monotonic(), self._renewals(), [Counter(each.calls) for each in self._stores]
        while self._is_long():
            self.time.sleep(1)
        seconds = self.time.monotonic() - began
        if not seconds:
            return
        calls = [Counter(each.calls) - old for each, old in zip(self._stores, before, strict=True)]
        self._result.reads = max(sum(each[name] for name in LINE_READS) for each in calls) / seconds
        self._result.writes = sum(each[name] for each in calls for name in LINE_WRITES) / (self._renewals() - told)

    def _renewals(self) -> float:
        """Return how many writes to the line the tracks have called for so far."""
        return self._told + self._held_sec / FRONT_RETRY_SEC
