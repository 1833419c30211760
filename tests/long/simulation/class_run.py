"""One simulated run of a class: its reservation is booked, filled, drawn and ended, beside others in the same pool."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar
from unittest.mock import patch

from broker_common.core import reserving
from broker_common.core.allocation import AllocateRequest
from broker_common.core.bookings import Bookings, Wanted
from broker_common.core.guard import Guard
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.policy import Policy
from broker_common.core.pool_copy import PoolCopy
from broker_common.core.reserving import Reserver
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.services import BULK_THREADS
from tests.fakes import BY, START, FakeTableMemory, at_once, make_sandbox
from tests.long.simulation.broker import give_back, milliseconds
from tests.long.simulation.line import LINE_READS, LineRun, LineScenario, Track, WatchedStore
from tests.long.simulation.table import reservation_key
from tests.scheduler.locks import known_locks
from tests.scheduler.schedule import Schedule
from tests.scheduler.strategies import ByTime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from broker_common.core.facts import Change, PoolFact
    from broker_common.core.reservation import Reservation
    from broker_common.core.sandbox import Lease, Sandbox
    from broker_common.core.store import OpenReservations
    from broker_common.core.waiting import Waiting

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

LAB = "the-lab-of-the-class"
STARTS_SEC = 3600
"""When the class starts: so long after it is booked."""
LEAD_SEC = 900
JOB_SEC = 15
"""How often the job `reserve` runs."""
_SETTLE_SEC = 5
"""So long after the class has come, the reads of waiting are counted."""
_OTHERS_BEFORE_SEC = 60
"""The others join the line in this time before the class starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScenario(LineScenario):
    """A class that comes within `within_sec` from its start on. The `tracks` of the line are others, who wait already.

    When the reservation is filled, the pool has only so many free sandboxes that it is short by a share of `short`.
    """

    count: int = 300
    students: int = 300
    within_sec: float = 60.0
    short: float = 0.05
    hold_sec: int | None = None
    lasts_sec: int = 900
    pool: int = 400
    tracks: int = 30
    returns: float = 0.1
    late: float = 0.0


@dataclass(slots=True)
class ClassResult:
    """The result of a run. Times are in seconds."""

    violations: list[str] = field(default_factory=list)
    """The allocations that were due to a place ahead throughout the window (promise 8)."""
    misdrawn: list[str] = field(default_factory=list)
    """Each breach of promise 9: a draw by another track, or at another time; counters that are wrong or too high."""
    passed_over: list[str] = field(default_factory=list)
    """The wiped sandboxes that became available to all while the reservation lacked some."""
    turned_away: list[str] = field(default_factory=list)
    """The tracks of the class that were told to wait while a sandbox was set aside that was due to nobody ahead."""
    at_once: list[float] = field(default_factory=list)
    """How long each first request took that got a sandbox, with its wait for a thread."""
    waits: list[tuple[int, float]] = field(default_factory=list)
    """The position at which a track of the class joined the line, and how long it waited."""
    others: list[float] = field(default_factory=list)
    """How long each of the others waited."""
    idle: list[float] = field(default_factory=list)
    """From the wipe of each sandbox that was set aside while tracks of the class waited, to its draw."""
    aside: list[float] = field(default_factory=list)
    """For how long each drawn sandbox was set aside."""
    fill_sec: float = 0.0
    calls: float = 0.0
    """The calls a second of all processes of the API while the class comes, or in its first second."""
    reads: float = 0.0
    """The reads a second by the busiest process from then on, until the last of the class is served."""
    conflicts: int = 0
    """The draws that met another transaction on the item of the reservation's counters."""
    drawn: int = 0
    starved: int = 0
    """The tracks that kept coming back and got nothing."""
    kept: int = 0
    """The sandboxes that are set aside two runs of the job after the end."""
    unavailable: int = 0

    @property
    def faults(self) -> tuple[list[str], list[str], list[str], list[str], int, int]:
        """All that must be empty or 0."""
        return (self.violations, self.misdrawn, self.passed_over, self.turned_away, self.starved, self.kept)

    def summary(self) -> dict[str, float | int | str]:
        """Return the figures of the run. Times are in seconds, if their names do not say otherwise."""
        waited = [each for _, each in self.waits]
        return {
            "violations": len(self.violations),
            "misdrawn": len(self.misdrawn) + len(self.passed_over) + len(self.turned_away),
            "starved": self.starved,
            "kept": self.kept,
            "fill_s": round(self.fill_sec, 1),
            "at_once": len(self.at_once),
            "p50_ms": milliseconds(self.at_once, 50),
            "p99_ms": milliseconds(self.at_once, 99),
            "waited": len(waited),
            "wait_p50_s": round(milliseconds(waited, 50) / 1000, 1),
            "longest_wait_s": round(max(waited, default=0.0), 1),
            "idle_p50_s": round(milliseconds(self.idle, 50) / 1000, 2),
            "longest_idle_s": round(max(self.idle, default=0.0), 2),
            "aside_p50_s": round(milliseconds(self.aside, 50) / 1000),
            "others_p50_s": round(milliseconds(self.others, 50) / 1000, 1),
            "calls": round(self.calls, 1),
            "reads": round(self.reads, 2),
            "conflicts": round(self.conflicts / self.drawn, 3) if self.drawn else 0,
            "unavailable": self.unavailable,
        }


def simulate_class(scenario: ClassScenario) -> ClassResult:
    """Run a scenario until two runs of the job after the end of the class. The same scenario gives the same result."""
    schedule = Schedule(ByTime())
    with known_locks(), patch.object(reserving, "for_each", partial(_for_each, schedule)):
        try:
            return _ClassRun(scenario, schedule).class_result()
        finally:
            schedule.close()


def _for_each(
    schedule: Schedule, work: Callable[[Item], Outcome], items: Iterable[Item], *, threads: int
) -> list[Outcome]:
    """Do in virtual time what `for_each` does."""
    left = deque(enumerate(items))
    outcomes: dict[int, Outcome] = {}

    def serve() -> None:
        while left:
            number, item = left.popleft()
            outcomes[number] = work(item)

    if left:
        schedule.together([serve] * min(threads, len(left)))
    return [outcomes[number] for number in sorted(outcomes)]


class _ClassStore(WatchedStore):
    """Also takes time for what reservations need."""

    def get(self, sandbox_id: str) -> Sandbox | None:
        partition = self._table_partition(sandbox_id)
        return self._read("get", partition, lambda: super(_ClassStore, self).get(sandbox_id))

    def read_reservations(self) -> OpenReservations:
        return self._read("read_reservations", self._table_partition("POOL"), super().read_reservations)

    def read_booked(self) -> tuple[Reservation, ...]:
        return self._read("read_booked", self._table_partition("POOL"), super().read_booked)

    def read_reservation(self, reservation_id: str) -> Reservation | None:
        partition = self._table_partition(reservation_key(reservation_id))
        return self._read(
            "read_reservation", partition, lambda: super(_ClassStore, self).read_reservation(reservation_id)
        )

    def write_reservation(
        self, before: Reservation | None, after: Reservation, *, version: int, fact: PoolFact | None = None
    ) -> None:
        def write() -> None:
            super(_ClassStore, self).write_reservation(before, after, version=version, fact=fact)

        keys = (reservation_key(after.reservation_id), "POOL/BOOKINGS")
        self._retry("write_reservation", lambda: self._transact(keys, write))

    def mark_opened(self, reservation: Reservation, fact: PoolFact) -> None:
        def write() -> None:
            super(_ClassStore, self).mark_opened(reservation, fact)

        keys = (reservation_key(reservation.reservation_id), "POOL/fact")
        self._retry("mark_opened", lambda: self._transact(keys, write))


class _ClassRun(LineRun):
    """The state of a run: the others are the tracks of a line, and the class comes, too."""

    def __init__(self, scenario: ClassScenario, schedule: Schedule) -> None:
        super().__init__(scenario, schedule, store=_ClassStore)
        self._class = ClassResult()
        self._terms = scenario
        self._begins_at = STARTS_SEC
        self._others = [
            replace(each, joined_at=each.joined_at + _later, dies_at=each.dies_at + _later)
            for each in self._tracks.values()
        ]
        self._students = [self._new_student(f"student-{number}") for number in range(scenario.students)]
        self._tracks = {each.name: each for each in (*self._others, *self._students)}
        self._of_class = {each.name for each in self._students}
        self._wiped: set[str] = set()
        """The sandboxes that were set aside right after their wipe, while tracks of the class waited."""
        rng, clock, store = Random(scenario.seed), self.time, self.store
        guard = Guard(store=store, memory=FakeTableMemory(), recorder=self, clock=clock, rng=rng)
        self._known = KnownReservations(store, clock)
        self._reserver = Reserver(store=store, guard=guard, recorder=self, clock=clock, rng=rng, threads=BULK_THREADS)
        self._bookings = Bookings(
            store=store,
            copy=PoolCopy(store, clock, aside=at_once),
            guard=guard,
            reserver=self._reserver,
            clock=clock,
            rng=rng,
            policy=Policy(),
        )
        self._reservation_id = ""

    def class_result(self) -> ClassResult:
        """Run the scenario and return its result."""
        scenario, found = self._terms, self._class
        free = round(scenario.count * (1 - scenario.short))
        self.store.seed(*(make_sandbox(f"free-{number}") for number in range(free)))
        for name in (f"used-{number}" for number in range(scenario.pool - free)):
            self._used.append(name)
            # By the time of the booking they seem to be free at the start. They are extended.
            self.store.seed(
                make_sandbox(
                    name,
                    status=Status.ALLOCATED,
                    dirty=True,
                    lease_id=name,
                    allocated_to_track=name,
                    idempotency_key=name,
                    expires_at=START + 600,
                )
            )
        self.schedule.start(self._book)
        self.schedule.start(self._run_job, after=STARTS_SEC - LEAD_SEC)
        for track in self._tracks.values():
            self.schedule.start(partial(self._ask, track), after=track.joined_at)
        for work in (self._glance_on, self._send_newcomers, self._count):
            self.schedule.start(work, after=STARTS_SEC - _OTHERS_BEFORE_SEC)
        self.schedule.start(self._give_back_some)
        ends_at = STARTS_SEC + scenario.lasts_sec + 2 * JOB_SEC + 1
        self.schedule.run(lambda: self.time.monotonic() > ends_at)
        found.violations, found.unavailable = self._result.violations, self._result.unavailable
        found.starved = sum(not each.is_served and self._comes_back(each) for each in self._tracks.values())
        found.kept = self._aside()
        return found

    def _new_student(self, name: str) -> Track:
        scenario, rng = self._terms, self._rng
        request = AllocateRequest(
            track_id=name,
            idempotency_key="lab",
            track_name=LAB,
            wait_sec=20 if rng.random() < scenario.held else 0,
        )
        joined_at = STARTS_SEC + rng.uniform(0, scenario.within_sec)
        return Track(name, request, is_late=False, dies_at=float("inf"), joined_at=joined_at)

    # -- the reservation

    def _book(self) -> None:
        terms = self._terms
        wanted = Wanted(
            name="A class",
            count=terms.count,
            starts_at=START + STARTS_SEC,
            ends_at=START + STARTS_SEC + terms.lasts_sec,
            track_names=(LAB,),
            lead_sec=LEAD_SEC,
            hold_sec=terms.hold_sec,
        )
        self._reservation_id = self._bookings.book(wanted, by=BY).reservation.reservation_id

    def _run_job(self) -> None:
        while True:
            self._reserver.run(by=BY)
            if not self._class.fill_sec:
                self._class.fill_sec = self.time.monotonic() - (STARTS_SEC - LEAD_SEC)
            self.time.sleep(JOB_SEC)

    def _give_back(self, name: str) -> None:
        order = self._rng.randrange(ORDER_LIMIT)
        give_back(self.store, name, order=order, now=self.time.now(), reservations=self._known)

    def _reservation(self) -> Reservation | None:
        """Return the reservation as it is now, until it is over."""
        return self.store.reservations.get(self._reservation_id)

    def _aside(self) -> int:
        return sum(each.status is Status.RESERVED for each in self.store.dump()[0].values())

    # -- what the observer sees

    def _see(self, change: Change) -> None:
        before, after, reservation = change.before, change.after, self._reservation()
        if before is not None and before.status is Status.RESERVED and after is not None and after.lease is not None:
            self._judge_draw(before, after.lease)
        if reservation is not None:
            self._judge_counters(reservation)
            if before is not None and before.status is Status.PENDING_DELETION and after is not None:
                self._judge_wiped(after, reservation)
        super()._see(change)

    def _judge_draw(self, before: Sandbox, lease: Lease) -> None:
        found, now, reservation = self._class, self.time.monotonic(), self._reservation()
        found.drawn += 1
        found.aside.append(now - self._freed_at[before.sandbox_id])
        if before.sandbox_id in self._wiped:
            found.idle.append(now - self._freed_at[before.sandbox_id])
        is_open = reservation is not None and reservation.is_open_at(self.time.now())
        is_its_own = lease.track_id in self._of_class and lease.reservation_id == before.reservation_id
        if not is_open or not is_its_own:
            found.misdrawn.append(f"{now:.1f} s: {lease.track_id} has drawn {before.sandbox_id}")

    def _judge_counters(self, reservation: Reservation) -> None:
        now, aside = self.time.monotonic(), self._aside()
        if not 0 <= reservation.set_aside <= reservation.count - reservation.drawn:
            self._class.misdrawn.append(f"{now:.1f} s: more than was booked: {reservation}")
        if reservation.set_aside != aside:
            self._class.misdrawn.append(f"{now:.1f} s: {aside} are set aside, not {reservation.set_aside}")

    def _judge_wiped(self, after: Sandbox, reservation: Reservation) -> None:
        if after.status is Status.RESERVED and self._class_waits():
            self._wiped.add(after.sandbox_id)
        if after.status is Status.AVAILABLE and reservation.short_by_at(self.time.now()):
            self._class.passed_over.append(f"{self.time.monotonic():.1f} s: {after.sandbox_id}")

    def _class_waits(self) -> bool:
        return any(each.track_id in self._of_class for each in self.store.places())

    def _serve(self, track: Track, sandbox_id: str) -> None:
        super()._serve(track, sandbox_id)
        seconds = self.time.monotonic() - track.joined_at
        if track.name not in self._of_class:
            self._class.others.append(seconds)
        elif track.place is None:
            self._class.at_once.append(seconds)
        else:
            self._class.waits.append((track.position, seconds))

    def _note(self, track: Track, told: Waiting) -> float:
        is_first = track.place is None
        pause = super()._note(track, told)
        if is_first and track.name in self._of_class:
            free = [each for each in self.store.shown(since=track.asked_at - 1) if each.reservation_id is not None]
            records = self.store.dump()[0]
            left = sum(records[each.sandbox_id].status is Status.RESERVED for each in free)
            ahead = sum(
                each.track_id in self._of_class and each.place_id < told.place.place_id for each in self.store.places()
            )
            if left > ahead:
                self._class.turned_away.append(f"{self.time.monotonic():.1f} s: {track.name}")
        return pause

    def _count(self) -> None:
        """Count the calls while the class comes, and then while some of it wait."""
        self.time.sleep(_OTHERS_BEFORE_SEC)
        key = reservation_key(self._reservation_id)
        conflicts, comes_sec = self.store.contended[key], max(1.0, self._terms.within_sec)
        before = self._calls()
        self.time.sleep(comes_sec)
        came = self._calls()
        self._class.calls = (came.total() - before.total()) / comes_sec
        self._class.conflicts = self.store.contended[key] - conflicts
        self.time.sleep(_SETTLE_SEC)
        began, first = self.time.monotonic(), [Counter(each.calls) for each in self._stores]
        while not all(each.is_served for each in self._students):
            self.time.sleep(1)
        seconds = self.time.monotonic() - began
        if seconds:
            calls = [Counter(each.calls) - old for each, old in zip(self._stores, first, strict=True)]
            self._class.reads = max(sum(each[name] for name in LINE_READS) for each in calls) / seconds

    def _calls(self) -> Counter[str]:
        return sum((each.calls for each in self._stores), Counter())


_later = STARTS_SEC - _OTHERS_BEFORE_SEC
