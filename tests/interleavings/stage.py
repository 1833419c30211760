"""The stage on which operations of the broker run at the same time: processes over one store, checked after every step.

Besides the records, the stage knows the truth about each account: whether a student has worked in it since the provider
last reported a wipe, and whether a delete call is running or has an unknown outcome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from broker_common.core.allocation import Allocation
from broker_common.core.errors import BrokerError, NoSandboxesAvailable, ProviderFailing
from broker_common.core.facts import Fact
from broker_common.core.lease import begin, candidate_of
from broker_common.core.line import Place, Wish, new_place_id
from broker_common.core.policy import Policy
from broker_common.core.ports import WipeAnswer
from broker_common.core.sandbox import Claim, Sandbox, Status
from broker_common.core.waiting import Waiting
from tests import line_model
from tests.fakes import (
    BY,
    WRITES,
    Crashed,
    FakeProvider,
    Fault,
    FlakyStore,
    MemoryStore,
    changed,
    flat,
    make_claim,
    make_sandbox,
)
from tests.interleavings.calls import LOOKS, LOOKS_AT_NOBODY
from tests.lifecycle import Violation, check_history, check_record, check_usage, kinds_of
from tests.scheduler.schedule import present_task, stop
from tests.scheduler.strategies import choose
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import AccountListing
    from broker_common.core.reservation import Reservation
    from tests.scheduler.schedule import Schedule

POLICY = Policy(stale_brake_min=1)
OVERDUE = POLICY.lab_duration_sec + POLICY.expiry_buffer_sec
WINDOW = POLICY.attempt_window_sec
UNKNOWN_SEC = 2
"""So long another process may not know of a new place."""


@dataclass(frozen=True, slots=True)
class Moment:
    """All stored records, claims and places after one step."""

    records: dict[str, Sandbox]
    claims: dict[tuple[str, str], Claim]
    places: tuple[Place, ...]
    reservations: dict[str, Reservation]
    now: int

    def due(self) -> dict[str, Place]:
        """Return to whom each available sandbox is due, by sandbox id."""
        free = [candidate_of(each) for each in self.records.values() if each.status is Status.AVAILABLE]
        return line_model.find_due(self.places, free, self.now)


@dataclass(frozen=True, slots=True)
class Request:
    """A running allocate: its track, and the prefix that its sandbox must have. Its idempotency key is the track's id."""

    track_id: str
    prefix: str

    def is_ahead(self, other: Place, places: tuple[Place, ...]) -> bool:
        """Tell whether another track's place comes before this request."""
        own = next((each for each in places if each.track_id == self.track_id), None)
        if own is not None and own.wish.prefix != self.prefix:
            return other != own
        return own is None or line_model.in_order([own, other])[0] != own


class Provider(FakeProvider):
    """The provider as one process sees it: the task stops before a call leaves, and before its answer arrives."""

    def __init__(self, stage: Stage, process: int) -> None:
        super().__init__(stage.memory)
        self._stage = stage
        self.process = process

    def list_accounts(self) -> AccountListing:
        self._stage.step(self.process, "list_accounts")
        return super().list_accounts()

    def delete_account(self, external_id: str, *, send_within: float) -> WipeAnswer:
        clock = self._stage.clock
        began_at = clock.monotonic()
        self._stage.step(self.process, "delete_account")
        if clock.monotonic() - began_at > send_within:
            raise ProviderFailing("too late to be sent", outcome_unknown=False)
        self.during_delete = lambda _: self._stage.deleting(self)
        return super().delete_account(external_id, send_within=send_within)


class Stage:
    """Processes over one `MemoryStore`, and the operations that they run at the same time.

    After every step the stored records and claims are checked against the contract's promises. After the last step each
    refusal and each allocation is checked against all that was stored during its request. Time passes only in pauses
    between tries, and by `time_passes`.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        processes: int = 2,
        policy: Policy = POLICY,
        shards: int = 1,
        has_line: bool = False,
    ) -> None:
        """Start the processes. Each has already read the pauses and the table's identity.

        Tracks may wait only with `has_line`.
        """
        self.clock = schedule.time
        self.memory = MemoryStore(self.clock, shards=shards)
        self.deletes: list[Sandbox] = []
        """The records of the sandboxes at the moments of their delete calls."""
        self._schedule = schedule
        self._faults: dict[int, tuple[Fault, ...]] = {}
        self._requests: dict[str, Request] = {}
        self._answered_after: dict[str, int] = {}
        self._moments: list[Moment] = []
        self._versions: Counter[str] = Counter()
        self._used: set[str] = set()
        self._doubted: set[str] = set()
        self._in_flight: Counter[str] = Counter()
        self._policy = policy
        self._looks = LOOKS if has_line else LOOKS_AT_NOBODY
        schedule.after_step = self._watch
        self.worlds = [self._process(number) for number in range(processes)]

    # -- to arrange

    def pool(self, count: int) -> None:
        """Put `count` available sandboxes in the store."""
        self.memory.seed(*[make_sandbox(f"sbx-{number}") for number in range(count)])

    def used(self, *records: Sandbox) -> None:
        """Store records of sandboxes in which a student has worked since their last wipe."""
        self.memory.seed(*records)
        self._used.update(record.sandbox_id for record in records)

    def held(self, track_id: str = "ann", sandbox_id: str = "sbx-0", *, overdue: bool = False) -> Claim:
        """Store a sandbox that a track holds since now, or for too long, and return its claim."""
        began_at = self.clock.now() - (OVERDUE if overdue else 0)
        free = make_sandbox(sandbox_id)
        claim = make_claim(free, track_id, allocated_at=began_at, expires_at=began_at + POLICY.lab_duration_sec)
        self.used(begin(free, claim.lease, by=BY).result)
        return claim

    def pending(self) -> None:
        """Store a sandbox that the track ann has just given back."""
        claim = self.held("ann")
        self.worlds[0].mark(claim.sandbox_id, "ann")

    def waits(self, *track_ids: str, prefix: str = "", since: int = 60, late_by: int = -3) -> list[Place]:
        """Store the places of tracks that have waited for `since` seconds, in this order. Each is late by `late_by`."""
        joined_at = self.clock.now() - since
        places = [
            Place(
                place_id=new_place_id(0, joined_at + number, track_id),
                track_id=track_id,
                idempotency_key=track_id,
                wish=Wish(prefix=prefix),
                round=0,
                joined_at=joined_at + number,
                back_by=self.clock.now() - late_by,
            )
            for number, track_id in enumerate(track_ids)
        ]
        for each in places:
            self.memory.join(each)
        return places

    def reserve(self, reservation: Reservation, *, set_aside: int = 0) -> None:
        """Store a reservation that all processes know, with so many of the available sandboxes set aside for it."""
        free = [each for each in self.records().values() if each.status is Status.AVAILABLE]
        for sandbox in free[:set_aside]:
            self.memory.seed(changed(sandbox, status=Status.RESERVED, reservation_id=reservation.reservation_id))
        self.memory.reservations[reservation.reservation_id] = replace(reservation, set_aside=set_aside)
        for world in self.worlds:
            world.start()
            world.pauses.current()
            world.guard.check()
            world.line.places()
            world.reservations.current()

    def look_ahead(self, world: World, reservation_id: str | None = None) -> None:
        """Fill the candidate cache of a process, as earlier requests do."""
        search = world.allocator._candidates.search("", reservation_id)
        candidate = search.next()
        assert candidate is not None
        search.give_back(candidate)

    def may_fail(self, world: World, *faults: Fault) -> None:
        """Let one call of a process fail in one of these ways, or none fail: each possibility is played."""
        self._faults[self.worlds.index(world)] = faults

    # -- to play

    def play(self, name: str, work: Callable[[], object], *, arrives: bool = False) -> None:
        """Add an operation. Its result is what it returns, or the `BrokerError` that it raises.

        With `arrives`, its work before the first call is a step of its own. That matters if it shares its process'
        memory with another operation, or if time passes.
        """

        def operation() -> object:
            if arrives:
                stop("arrive")
            try:
                result = work()
            except BrokerError as error:
                result = error
            self._answered_after[name] = len(self._moments)
            return result

        self._schedule.add(name, operation)

    def allocate(
        self,
        name: str,
        world: World,
        track_id: str | None = None,
        *,
        prefix: str = "",
        arrives: bool = False,
        work: Callable[[], object] | None = None,
    ) -> None:
        """Add an allocate by a track. Without `track_id` the track has the name of the operation."""
        track_id = track_id or name
        self._requests[name] = Request(track_id, prefix)
        self.play(name, work or (lambda: world.allocate(track_id, prefix=prefix)), arrives=arrives)

    def wait(
        self, name: str, world: World, track_id: str | None = None, *, prefix: str = "", arrives: bool = False
    ) -> None:
        """Add an allocate by a track that waits if it must. Without `track_id` the track has the operation's name."""
        track_id = track_id or name
        self.allocate(
            name, world, track_id, prefix=prefix, arrives=arrives, work=lambda: world.wait(track_id, prefix=prefix)
        )

    def time_passes(self, seconds: float) -> None:
        """Add an operation that only lets time pass."""

        def passing() -> None:
            stop(f"{seconds} s")
            self.clock.advance(seconds)

        self._schedule.add("time", passing)

    def run(self) -> dict[str, Any]:
        """Run all operations to their end, and return their results by name."""
        self._moments = [self._moment()]
        self._check_reservations()
        self._versions.update({sandbox_id: record.version for sandbox_id, record in self.records().items()})
        results = self._schedule.run()
        for name, request in self._requests.items():
            self._judge(name, request, results[name])
        self._check_facts()
        return results

    def settle(self) -> dict[str, Sandbox]:
        """Let time pass and cleanup run until no sandbox waits; return the records at the end."""
        janitor = self._process(len(self.worlds))
        for _ in range(2):
            self.clock.advance(2 * POLICY.deletion_backoff_max_sec)
            for sandbox_id in list(janitor.cleaner.find_due()):
                janitor.cleaner.delete_sandbox(sandbox_id, by=BY)
                self._watch()
        return self.records()

    # -- to look at

    def records(self) -> dict[str, Sandbox]:
        """Return all records by id."""
        return self.memory.dump()[0]

    def claims(self) -> dict[tuple[str, str], Claim]:
        """Return all claims by (track, key)."""
        return self.memory.dump()[1]

    def moments(self) -> list[Moment]:
        """Return the stored records and claims at the beginning and after each step."""
        return list(self._moments)

    def statuses(self) -> list[Status]:
        """Return the status of each sandbox, in the order of their ids."""
        return [record.status for _, record in sorted(self.records().items())]

    # -- what is watched

    def step(self, process: int, method: str) -> None:
        """Stop before a call of a process. The call may then fail by `may_fail`."""
        stop(method, by=process)
        if process not in self._faults or present_task() is None:
            return
        possible = [each for each in self._faults[process] if each is Fault.CRASH_BEFORE or method in WRITES]
        taken = choose(self._schedule, 1 + len(possible))
        if taken == 0:
            return
        self._faults.clear()
        fault = possible[taken - 1]
        self._schedule.steps.append(("fault", fault.value))
        if fault is Fault.CRASH_BEFORE:
            raise Crashed
        store = self.worlds[process].store
        assert isinstance(store, FlakyStore)
        store.fail(method, fault)

    def deleting(self, provider: Provider) -> None:
        """Note a delete call that has left, and wait for its answer."""
        record = provider.deletes[-1].record
        if record is None or record.status is not Status.PENDING_DELETION:
            raise Violation(f"the provider was asked to delete {record}")
        self.deletes.append(record)
        answer = provider.answers[0] if provider.answers else WipeAnswer.WIPED
        if answer in {WipeAnswer.WIPED, WipeAnswer.ACCEPTED}:
            self._used.discard(record.sandbox_id)
        self._in_flight[record.sandbox_id] += 1
        try:
            self.step(provider.process, "answer of delete_account")
        except Crashed:
            self._doubted.add(record.sandbox_id)
            raise
        finally:
            self._in_flight[record.sandbox_id] -= 1
        if answer is WipeAnswer.ACCEPTED or getattr(answer, "outcome_unknown", False):
            self._doubted.add(record.sandbox_id)

    def _process(self, number: int) -> World:
        def stepping(memory: MemoryStore) -> FlakyStore:
            store = FlakyStore(memory)
            store.before_call = lambda method: None if method in self._looks else self.step(number, method)
            return store

        world = World(
            clock=self.clock,
            memory=self.memory,
            provider=Provider(self, number),
            wrap=stepping,
            policy=self._policy,
            seed=number,
        )
        world.pauses.current()
        world.reservations.current()
        world.guard.check()
        return world

    def _watch(self) -> None:
        before = self._moments[-1]
        if self._is_still(before):
            self._moments.append(before)
            return
        now = self._moment()
        self._moments.append(now)
        self._check_reservations()
        for sandbox_id in before.records.keys() | now.records.keys():
            was, becomes = before.records.get(sandbox_id), now.records.get(sandbox_id)
            if was is not becomes:
                self._check_change(sandbox_id, was, becomes)
        shared = [key for key, count in Counter(each.account_key for each in now.records.values()).items() if count > 1]
        if shared:
            raise Violation(f"two sandboxes have one account: {shared}")
        held = {
            (flat(each).allocated_to_track, flat(each).idempotency_key): (
                each.sandbox_id,
                flat(each).lease_id,
                flat(each).expires_at,
                each.name,
                each.external_id,
            )
            for each in now.records.values()
            if each.status is Status.ALLOCATED
        }
        claimed = {
            key: (claim.sandbox_id, claim.lease.lease_id, claim.lease.expires_at, claim.name, claim.external_id)
            for key, claim in now.claims.items()
        }
        holders = [each for each in now.records.values() if each.status is Status.ALLOCATED]
        if held != claimed or len(holders) != len(held):
            raise Violation(f"claims {claimed} while allocated are {holders}")
        self._check_line(before, now)

    def _is_still(self, moment: Moment) -> bool:
        """Tell whether all that is stored is as it was. Most steps only read, so this is asked far more than the rest."""
        memory = self.memory
        return (
            memory._records == moment.records
            and memory._claims == moment.claims
            and memory.reservations == moment.reservations
            and self.clock.now() == moment.now
            and (moment.places == self._places() if memory._line or moment.places else True)
        )

    def _places(self) -> tuple[Place, ...]:
        return tuple(MemoryStore.read_line(self.memory))

    def _moment(self) -> Moment:
        records, claims = self.memory.dump()
        return Moment(records, claims, self._places(), dict(self.memory.reservations), self.clock.now())

    def _check_line(self, before: Moment, now: Moment) -> None:
        """Check that nobody has a place and a claim, or two places, and that a new holder took what was due to it."""
        owners = Counter((each.track_id, each.idempotency_key) for each in now.places)
        if owners.keys() & now.claims.keys() or owners.total() != len(owners):
            raise Violation(f"claims {list(now.claims)} while there are the places {now.places}")
        for (track_id, _), claim in now.claims.items() - before.claims.items():
            owner = before.due().get(claim.sandbox_id)
            request = next((each for each in self._requests.values() if each.track_id == track_id), None)
            if owner is None or request is None or before.now - owner.joined_at <= UNKNOWN_SEC:
                continue
            if request.is_ahead(owner, before.places):
                raise Violation(f"{track_id} took {claim.sandbox_id}, which was due to {owner}")

    def _check_reservations(self) -> None:
        """Check the counters of the reservations against the sandboxes, and against what may be set aside."""
        reserved = Counter(each.reservation_id for each in self.records().values() if each.reservation_id is not None)
        for each in self.memory.reservations.values():
            if each.set_aside != reserved.pop(each.reservation_id, 0) or each.lacking < 0:
                raise Violation(f"the counters are wrong: {each}")
        if reserved:
            raise Violation(f"set aside for no reservation: {reserved}")

    def _check_change(self, sandbox_id: str, was: Sandbox | None, becomes: Sandbox | None) -> None:
        """Check one write of one record against the contract."""
        if not kinds_of(was.status if was else None, becomes.status if becomes else None):
            raise Violation(f"no such transition: {was} -> {becomes}")
        if was and becomes and was.lease and becomes.lease:
            if becomes.lease.expires_at < was.lease.expires_at:
                raise Violation(f"a lease is shortened: {was} -> {becomes}")
            told = becomes.lease.warned_for
            if told not in {was.lease.warned_for, was.lease.expires_at}:
                raise Violation(f"another end is told than that of the lease: {was} -> {becomes}")
            if becomes.lease != replace(was.lease, expires_at=becomes.lease.expires_at, warned_for=told):
                raise Violation(f"no such transition, to another lease: {was} -> {becomes}")
        if becomes is None:
            if was is None or (was.dirty and was.status is not Status.DELETED):
                raise Violation(f"removed: {was}")
            return
        check_record(becomes)
        if becomes.version <= self._versions[sandbox_id]:
            raise Violation(f"the version does not grow: {was} -> {becomes}")
        self._versions[sandbox_id] = becomes.version
        if becomes.status is Status.PENDING_DELETION and becomes.status_order != flat(becomes).next_attempt_at:
            raise Violation(f"no cleanup will find {becomes}")
        self._check_truth(sandbox_id, was, becomes)

    def _check_facts(self) -> None:
        """Check the facts of each sandbox against each other, and the last one against the record; check the usage."""
        check_usage(self.memory.facts, self.memory.usage.values())
        of_sandbox = defaultdict[str, list[Fact]](list)
        for fact in self.memory.facts:
            if isinstance(fact, Fact):
                of_sandbox[fact.sandbox_id].append(fact)
        for sandbox_id, facts in of_sandbox.items():
            check_history(facts)
            record = self.records().get(sandbox_id)
            if facts[-1].status is not (record.status if record else None):
                raise Violation(f"the facts end with {facts[-1]}, and the record is {record}")

    def _check_truth(self, sandbox_id: str, was: Sandbox | None, becomes: Sandbox) -> None:
        """Check a record against the truth about its account."""
        if becomes.status is Status.ALLOCATED:
            self._used.add(sandbox_id)
        if becomes.is_free and sandbox_id in self._used:
            raise Violation(f"became available unwiped: {was} -> {becomes}")
        at_once = becomes.is_free and was and was.status is Status.PENDING_DELETION
        if at_once and (sandbox_id in self._doubted or self._in_flight[sandbox_id]):
            raise Violation(f"became available at once, although a delete may still run: {was} -> {becomes}")
        if becomes.is_free or becomes.status is Status.ALLOCATED:
            self._doubted.discard(sandbox_id)

    def _judge(self, name: str, request: Request, result: object) -> None:
        """Check the answer of an allocate against all that was stored from the beginning until then."""
        key = (request.track_id, request.track_id)
        moments = self._moments[: self._answered_after[name] + 1]
        if isinstance(result, Waiting) and all(
            result.place.place_id != each.place_id for m in moments for each in m.places
        ):
            raise Violation(f"{name} was told a place that was never stored: {result}")
        if isinstance(result, NoSandboxesAvailable | Waiting):
            free = [
                {
                    record.sandbox_id
                    for record in moment.records.values()
                    if record.status is Status.AVAILABLE
                    and record.name.startswith(request.prefix)
                    and not (
                        record.sandbox_id in moment.due()
                        and request.is_ahead(moment.due()[record.sandbox_id], moment.places)
                    )
                }
                for moment in moments
            ]
            if set.intersection(*free):
                raise Violation(f"{name} was refused, although there was always {set.intersection(*free)}")
            if key in moments[-1].claims:
                raise Violation(f"{name} was refused, and holds {moments[-1].claims[key]}")
        elif isinstance(result, Allocation):
            if all(moment.claims.get(key) != result.claim for moment in moments):
                raise Violation(f"{name} was given {result.claim}, which was never stored")
            if not result.replayed and moments[0].claims.get(key) == result.claim:
                raise Violation(f"{name} was given as new what it held before: {result.claim}")
