"""One simulated run: API processes with the real allocation code, their tracks, and sandboxes that come back."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import TYPE_CHECKING
from unittest.mock import patch

from broker_common.core import candidate_cache
from broker_common.core.allocation import AllocateRequest, Allocation, Allocator
from broker_common.core.candidate_cache import CandidateCache
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import NoSandboxesAvailable, StoreUnavailable
from broker_common.core.guard import Guard
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.lease import end
from broker_common.core.pauses import PauseCache
from broker_common.core.policy import Policy
from broker_common.core.sandbox import ORDER_LIMIT, DeletionReason, Status
from broker_common.core.telemetry import AllocateEnded
from broker_common.core.waiting import WaitingLine
from broker_common.core.wipe import begin_attempt, confirm_wipe
from tests.fakes import BY, FakeTableMemory, make_sandbox
from tests.long.simulation.flood import FloodedStore, Workers, simulated_threads
from tests.long.simulation.table import SimulatedStore, TableConditions
from tests.scheduler.locks import known_locks
from tests.scheduler.schedule import Schedule
from tests.scheduler.strategies import ByTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Recorder
    from broker_common.core.store import SandboxStore
    from broker_common.core.telemetry import Event
    from tests.long.simulation.flood import Flood

DEADLINE_SEC = 3
"""`REQUEST_DEADLINE_SEC`."""
ALLOCATE_CALLS = ("allocate", "read_candidates", "get_claim")
"""The calls of a request. Besides, a process reads the pauses every three seconds, for any number of requests."""
RETURNS_AHEAD = 1.1
"""The allocated sandboxes at the start, as a multiple of those that come back in the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario. Without a `rate`, all requests come at once."""

    processes: int = 4
    threads: int = 16
    """`API_THREADS`."""
    requests: int = 1000
    rate: float | None = None
    """Requests per second, as a Poisson process. Each goes to a random process."""
    returns: float = 0.0
    """Sandboxes per second that come back, are wiped, and are available again at a new place."""
    free: int = 1000
    """The available sandboxes at the start."""
    table: TableConditions = field(default_factory=TableConditions)
    flood: Flood | None = None
    """Facts that workers tell and send meanwhile."""
    cache_size: int = 15
    candidate_age: float = candidate_cache.CANDIDATE_AGE_SEC
    seed: int = 1


@dataclass(slots=True)
class Result:
    """The result of a run. Latencies are in seconds from a request's arrival, with its wait for a thread."""

    allocated: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    unavailable: list[float] = field(default_factory=list)
    false_refusals: int = 0
    conflicts: int = 0
    calls: int = 0
    throttled: int = 0
    contended: int = 0
    """The transactions that met another one on the same item."""
    seconds: float = 0.0
    hottest: str = ""
    """The partition of the index with the most writes."""
    heat: float = 0.0
    """Its write units per second."""
    told: int = 0
    """The facts of a flood that were told."""
    sent: int = 0
    """The deliveries of a flood that were sent."""

    @property
    def conflicts_per_allocation(self) -> float:
        return self.conflicts / len(self.allocated)

    @property
    def calls_per_request(self) -> float:
        return self.calls / (len(self.allocated) + len(self.refused) + len(self.unavailable))

    def summary(self) -> dict[str, float | int | str]:
        """Return the figures of the run, latencies in milliseconds."""
        return {
            "allocated": len(self.allocated),
            "refused": len(self.refused),
            "unavailable": len(self.unavailable),
            "false_refusals": self.false_refusals,
            "conflicts": round(self.conflicts_per_allocation, 4) if self.allocated else 0,
            "calls": round(self.calls_per_request, 3),
            "p50_ms": milliseconds(self.allocated, 50),
            "p99_ms": milliseconds(self.allocated, 99),
            "refused_p99_ms": milliseconds(self.refused, 99),
            "throttled": self.throttled,
            "contended": round(self.contended / len(self.allocated), 3) if self.allocated else 0,
            "seconds": round(self.seconds, 2),
            "hottest": self.hottest,
            "heat": round(self.heat),
            "told_a_second": round(self.told / self.seconds),
            "sent_a_second": round(self.sent / self.seconds),
        }


def milliseconds(latencies: list[float], percent: int) -> float:
    """Return a percentile, or 0 without values."""
    if len(latencies) < 2:
        return round(1000 * sum(latencies), 1)
    return round(1000 * statistics.quantiles(latencies, n=100, method="inclusive")[percent - 1], 1)


def simulate(scenario: Scenario) -> Result:
    """Run a scenario: the same one gives the same result.

    Fails if a sandbox is given to two tracks at once.
    """
    schedule = Schedule(ByTime())
    with (
        known_locks(),
        simulated_threads(schedule),
        patch.object(candidate_cache, "CANDIDATE_AGE_SEC", scenario.candidate_age),
    ):
        try:
            return _Run(scenario, schedule).result()
        finally:
            schedule.close()


class Process:
    """An API process: threads that serve requests, and a queue of requests that wait for one."""

    def __init__(
        self,
        *,
        schedule: Schedule,
        store: SandboxStore,
        recorder: Recorder,
        threads: int,
        seed: int,
        cache_size: int = 15,
    ) -> None:
        rng, clock, policy = Random(seed), schedule.time, Policy()
        self._schedule = schedule
        self._idle = threads
        self._queue: deque[Callable[[], None]] = deque()
        guard = Guard(store=store, memory=FakeTableMemory(), recorder=recorder, clock=clock, rng=rng)
        reservations = KnownReservations(store, clock)
        self.allocator = Allocator(
            store=store,
            guard=guard,
            candidate_cache=CandidateCache(store, clock, rng, size=cache_size),
            line=WaitingLine(
                store=store,
                guard=guard,
                reservations=reservations,
                pool_count=lambda: None,
                recorder=recorder,
                clock=clock,
                rng=rng,
                policy=policy,
            ),
            pauses=PauseCache(store, clock, rng),
            reservations=reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            work_sec=DEADLINE_SEC,
        )

    def accept(self, request: Callable[[], None]) -> None:
        """Serve a request by an idle thread, or as soon as one is idle."""
        self._queue.append(request)
        if self._idle:
            self._idle -= 1
            self._schedule.start(self._serve)

    def _serve(self) -> None:
        while self._queue:
            self._queue.popleft()()
        self._idle += 1


class _Run:
    """The state of a run, which is also the recorder of all its processes."""

    def __init__(self, scenario: Scenario, schedule: Schedule) -> None:
        self.scenario = scenario
        self.schedule = schedule
        self.time = schedule.time
        self._rng = Random(scenario.seed)
        self._workers: Workers | None = None
        if scenario.flood is None:
            self.store = SimulatedStore(schedule, self._rng, scenario.table)
        else:
            self.store = store = FloodedStore(schedule, self._rng, scenario.table, scenario.flood)
            self._workers = Workers(schedule, store, scenario.flood)
        self._result = Result()
        self._holders: dict[str, str] = {}
        self._allocated: deque[str] = deque()
        self._unanswered = scenario.requests
        self._fill()

    def record(self, event: Event) -> None:
        assert isinstance(event, AllocateEnded)
        self._result.conflicts += event.conflicts

    def result(self) -> Result:
        """Run the scenario and return its result."""
        scenario = self.scenario
        processes = [
            Process(
                schedule=self.schedule,
                store=self.store,
                recorder=self,
                threads=scenario.threads,
                seed=1000 * scenario.seed + number,
                cache_size=scenario.cache_size,
            )
            for number in range(scenario.processes)
        ]
        self.schedule.start(lambda: self._arrive(processes))
        if scenario.returns:
            self.schedule.start(self._give_back_some)
        if self._workers is not None:
            self.schedule.start(self._workers.run)
        self.schedule.run(lambda: not self._unanswered)
        result, store = self._result, self.store
        if self._workers is not None:
            result.told, result.sent = self._workers.told, self._workers.sent
        heat = store.heat()
        result.seconds = self.time.monotonic()
        result.calls = sum(store.sent[method] for method in ALLOCATE_CALLS)
        result.contended = store.throttled["conflict"]
        result.throttled = store.throttled.total() - store.throttled["conflict"]
        result.hottest = max(heat, key=lambda name: heat[name], default="")
        result.heat = heat.get(result.hottest, 0) / result.seconds
        return result

    def _fill(self) -> None:
        scenario, rng = self.scenario, self._rng
        self.store.seed(
            *[
                make_sandbox(f"free-{number}", status_order=rng.randrange(ORDER_LIMIT))
                for number in range(scenario.free)
            ]
        )
        if scenario.returns and scenario.rate:
            count = int(RETURNS_AHEAD * scenario.returns * scenario.requests / scenario.rate)
            self._allocated.extend(f"used-{number}" for number in range(count))
            self.store.seed(
                *[
                    make_sandbox(
                        name,
                        status=Status.ALLOCATED,
                        dirty=True,
                        lease_id=name,
                        allocated_to_track=name,
                        idempotency_key=name,
                    )
                    for name in self._allocated
                ]
            )

    def _arrive(self, processes: list[Process]) -> None:
        for number in range(self.scenario.requests):
            if self.scenario.rate:
                self.time.sleep(self._rng.expovariate(self.scenario.rate))
            request = AllocateRequest(track_id=f"track-{number}", idempotency_key="lab")
            process = self._rng.choice(processes)
            process.accept(self._answer(process, request, self.time.monotonic()))

    def _answer(self, process: Process, request: AllocateRequest, arrived_at: float) -> Callable[[], None]:
        def answer() -> None:
            result = self._result
            began_at = self.time.monotonic()
            outcome = result.allocated
            try:
                with deadline_in(DEADLINE_SEC, self.time):
                    allocation = process.allocator.allocate(request, by=BY)
            except NoSandboxesAvailable:
                outcome = result.refused
                result.false_refusals += self.store.shows_since(began_at - 1)
            except StoreUnavailable:
                outcome = result.unavailable
            else:
                assert isinstance(allocation, Allocation), "a request that does not wait gets no place"
                claim = allocation.claim
                assert claim.sandbox_id not in self._holders, "a sandbox has one holder"
                self._holders[claim.sandbox_id] = claim.lease.track_id
                self._allocated.append(claim.sandbox_id)
            outcome.append(self.time.monotonic() - arrived_at)
            self._unanswered -= 1

        return answer

    def _give_back_some(self) -> None:
        while self._unanswered:
            self.time.sleep(self._rng.expovariate(self.scenario.returns))
            if self._allocated:
                sandbox_id = self._allocated.popleft()
                self.schedule.start(lambda sandbox_id=sandbox_id: self._give_back(sandbox_id))  # type: ignore[misc] # bound in the loop

    def _give_back(self, sandbox_id: str) -> None:
        self._holders.pop(sandbox_id, None)
        give_back(self.store, sandbox_id, order=self._rng.randrange(ORDER_LIMIT), now=self.time.now())


def give_back(
    store: SimulatedStore, sandbox_id: str, *, order: int, now: int, reservations: KnownReservations | None = None
) -> None:
    """End an allocation and wipe its sandbox, with the writes that the broker makes.

    `reservations`: those that it may be set aside for.
    """
    policy = Policy()
    allocated = store.get(sandbox_id)
    assert allocated
    marking = end(allocated, reason=DeletionReason.MARKED, by=BY, now=now)
    store.commit(marking)
    taking = begin_attempt(marking.result, attempt_id="attempt", by=BY, now=now, policy=policy)
    store.commit(taking)
    confirm = partial(confirm_wipe, taking.result, accepted_only=False, order=order, by=BY, now=now, policy=policy)
    if reservations is None:
        store.commit(confirm())
    else:
        reservations.commit_freed(
            allocated.name, lambda reservation_id: confirm(reservation_id=reservation_id), store=store
        )
