"""A whole broker without processes: every use case over test doubles, built as in one process."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from broker_common.core.allocation import AllocateRequest, Allocation, Allocator
from broker_common.core.bookings import Bookings
from broker_common.core.candidate_cache import CandidateCache
from broker_common.core.cleanup import Cleaner
from broker_common.core.counts import Counts
from broker_common.core.deliveries import Deliverer
from broker_common.core.expiry import Expirer
from broker_common.core.guard import Guard
from broker_common.core.history import History
from broker_common.core.inventory import Inventory
from broker_common.core.known_reservations import MAX_AGE_SEC as KNOWN_SEC
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.leases import Extension, LeaseEnd, Leases
from broker_common.core.operations import Operations
from broker_common.core.pauses import PauseCache
from broker_common.core.policy import Policy
from broker_common.core.pool_copy import PoolCopy
from broker_common.core.purge import Purger
from broker_common.core.reserving import Reserver
from broker_common.core.sandbox import Sandbox, Status
from broker_common.core.search import Search
from broker_common.core.sync import Syncer, SyncResult
from broker_common.core.waiting import Waiting, WaitingLine
from broker_common.core.watch import Watcher
from tests.fakes import (
    BY,
    FakeClock,
    FakeProvider,
    FakeServices,
    FakeTableMemory,
    FlakyStore,
    MemoryStore,
    RecordingRecorder,
    StoreWrapper,
    at_once,
    changed,
    make_account,
    make_sandbox,
)
from tests.lifecycle import check_change
from tests.webhook_world import Handed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker_common.core.facts import Change
    from broker_common.core.reservation import Reservation
    from broker_common.core.sandbox import Account
    from broker_common.core.store import PoolCount, SandboxStore

WORK_SEC = 3.0
"""`REQUEST_DEADLINE_SEC`."""


class JudgedStore(StoreWrapper):
    """Refuses every write that the contract forbids."""

    def commit(self, *changes: Change) -> None:
        for each in changes:
            check_change(each.before, each.after, each.fact)
        self.inner.commit(*changes)


def flaky_world(**options: Any) -> tuple[World, FlakyStore]:
    """Return a world and its store, whose calls a test can have fail."""
    world = World(wrap=FlakyStore, **options)
    assert isinstance(world.store, FlakyStore)
    return world, world.store


class World:
    """One process's use cases over a store, a provider and a clock.

    The use cases see `store`. `memory` is the store below it, for tests to fill and to read. Each change that the use
    cases commit is checked against the contract.
    """

    def __init__(
        self,
        *,
        clock: FakeClock | None = None,
        memory: MemoryStore | None = None,
        provider: FakeProvider | None = None,
        services: FakeServices | None = None,
        wrap: Callable[[MemoryStore], SandboxStore] = lambda memory: memory,
        policy: Policy | None = None,
        seed: int = 1,
        k_candidates: int = 5,
    ) -> None:
        self.clock = clock or FakeClock()
        self.memory = memory or MemoryStore(self.clock)
        self.store = wrap(self.memory)
        self.policy = replace(policy or Policy(), k_candidates=k_candidates)
        self.recorder = RecordingRecorder()
        self.provider = provider or FakeProvider(self.memory)
        self.services = services
        self.table_memory = FakeTableMemory()
        self.rng = Random(seed)
        self.pool_count: PoolCount | None = None
        """What the use cases know of the pool's counts."""
        self.start()

    def start(self) -> None:
        """Start the process, for the first time or again after a crash, with an empty memory."""
        store, clock, rng, recorder, policy = JudgedStore(self.store), self.clock, self.rng, self.recorder, self.policy
        self.guard = Guard(store=store, memory=self.table_memory, recorder=recorder, clock=clock, rng=rng)
        self.pauses = PauseCache(store, clock, Random(1))
        self.reservations = KnownReservations(store, clock)
        self.line = WaitingLine(
            store=store,
            guard=self.guard,
            reservations=self.reservations,
            pool_count=lambda: self.pool_count,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
        )
        self.allocator = Allocator(
            store=store,
            guard=self.guard,
            candidate_cache=CandidateCache(store, clock, rng, size=policy.k_candidates),
            line=self.line,
            pauses=self.pauses,
            reservations=self.reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            work_sec=WORK_SEC,
        )
        self.leases = Leases(store=store, guard=self.guard, recorder=recorder, clock=clock, policy=policy)
        self.inventory = Inventory(store=store, leases=self.leases)
        self.pool_copy = PoolCopy(store, clock, aside=at_once)
        self.search = Search(copy=self.pool_copy, inventory=self.inventory, clock=clock)
        self.history = History(records=store, reports=store, guard=self.guard, clock=clock)
        self.syncer = Syncer(
            store=store,
            provider=self.provider,
            guard=self.guard,
            reservations=self.reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            threads=1,
        )
        self.cleaner = Cleaner(
            store=store,
            provider=self.provider,
            services=self.services,
            guard=self.guard,
            pauses=self.pauses,
            reservations=self.reservations,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
        )
        self.expirer = Expirer(store=store, guard=self.guard, recorder=recorder, clock=clock, policy=policy, threads=1)
        self.purger = Purger(store=store, guard=self.guard, recorder=recorder, clock=clock, policy=policy, threads=1)
        self.handed = Handed()
        self.deliverer = Deliverer(
            store=store, queue=self.handed, guard=self.guard, recorder=recorder, clock=clock, threads=1
        )
        self.reserver = Reserver(store=store, guard=self.guard, recorder=recorder, clock=clock, rng=rng, threads=1)
        self.watcher = Watcher(
            store=store,
            counts=Counts(store, clock, Random(2), max_age=2.0, policy=policy),
            guard=self.guard,
            recorder=recorder,
            clock=clock,
            rng=rng,
            policy=policy,
            threads=1,
        )
        self.bookings = Bookings(
            store=store,
            copy=self.pool_copy,
            guard=self.guard,
            reserver=self.reserver,
            clock=clock,
            rng=rng,
            policy=policy,
        )
        self.operations = Operations(store=store, guard=self.guard, clock=clock, threads=1)

    def set_policy(self, **changes: object) -> None:
        """Start the process again with another policy."""
        self.policy = replace(self.policy, **changes)  # type: ignore[arg-type] # replace checks the names
        self.start()

    def pool(self, count: int) -> list[Sandbox]:
        """Put `count` available sandboxes in the store, and list them at the provider."""
        free = [make_sandbox(f"sbx-{number}") for number in range(count)]
        self.memory.seed(*free)
        self.provider.accounts = self.accounts(count)
        return free

    @staticmethod
    def accounts(count: int) -> list[Account]:
        """Return the accounts of the sandboxes that `pool` makes."""
        return [make_account(f"sbx-{number}") for number in range(count)]

    def allocate(
        self, track_id: str = "track-1", key: str | None = None, prefix: str = "", **request: Any
    ) -> Allocation:
        """Allocate as the route does."""
        return self.ask(AllocateRequest(track_id=track_id, idempotency_key=key or track_id, prefix=prefix, **request))

    def ask(self, request: AllocateRequest) -> Allocation:
        """Make a request of a track that does not want to wait."""
        answer = self.allocator.allocate(request, by=BY)
        assert isinstance(answer, Allocation), "a track that does not want to wait never waits"
        return answer

    def wait(
        self,
        track_id: str = "track-1",
        key: str | None = None,
        *,
        prefix: str = "",
        wait_sec: float = 0,
        **request: Any,
    ) -> Allocation | Waiting:
        """Allocate as the route does for a track that waits in line, and stays connected."""
        wanted = AllocateRequest(
            track_id=track_id, idempotency_key=key or track_id, prefix=prefix, wait_sec=wait_sec, **request
        )
        return self.allocator.allocate(wanted, by=BY, may_hold=lambda: True)

    def extend(
        self, expires_at: int, sandbox_id: str = "sbx-0", track_id: str = "track-1", lease_id: str | None = None
    ) -> Extension:
        """Extend a lease as the route does."""
        return self.leases.extend(
            track_id=track_id, sandbox_id=sandbox_id, expires_at=expires_at, lease_id=lease_id, by=BY
        )

    def mark(self, sandbox_id: str = "sbx-0", track_id: str = "track-1", lease_id: str | None = None) -> LeaseEnd:
        """Mark for deletion as the route does."""
        return self.leases.mark_for_deletion(track_id=track_id, sandbox_id=sandbox_id, lease_id=lease_id, by=BY)

    def sync(self, accounts: Sequence[Account] | None = None, *, force: bool = False) -> SyncResult:
        """Run a sync; `accounts` are what the provider lists from now on, if they are given."""
        if accounts is not None:
            self.provider.accounts = accounts
        return self.syncer.run(by=BY, force=force)

    def use_and_wipe(self, track_id: str = "track-1") -> Allocation:
        """Have a track take a sandbox and give it back, and have it wiped; then the next allocate may find it."""
        allocation = self.allocate(track_id)
        self.mark(allocation.claim.sandbox_id, track_id)
        self.cleaner.delete_sandbox(allocation.claim.sandbox_id, by=BY)
        self.clock.advance(2)
        return allocation

    def pending(self, sandbox_id: str = "sbx-0", **changes: object) -> Sandbox:
        """Store a sandbox that its track has just given back, and return its record."""
        sandbox = make_sandbox(
            sandbox_id,
            status=Status.PENDING_DELETION,
            dirty=True,
            last_track_id="track-1",
            last_lease_id="lease-1",
            deletion_requested_at=self.clock.now(),
            next_attempt_at=self.clock.now(),
            status_order=self.clock.now(),
        )
        sandbox = changed(sandbox, **changes)
        self.memory.seed(sandbox)
        return sandbox

    def reserve(self, reservation: Reservation, *, set_aside: int = 0) -> Reservation:
        """Store a reservation, with so many available sandboxes set aside for it, as all processes know it."""
        self.memory.reservations[reservation.reservation_id] = replace(reservation, set_aside=set_aside)
        free = [each for each in self.memory.dump()[0].values() if each.status is Status.AVAILABLE]
        for sandbox in free[:set_aside]:
            reserved = changed(sandbox, status=Status.RESERVED, reservation_id=reservation.reservation_id)
            self.memory.seed(reserved)
        self.clock.advance(KNOWN_SEC)
        return reservation

    def counters(self, reservation_id: str = "res-1") -> tuple[int, int]:
        """Return how many sandboxes are set aside for a reservation, and how many were drawn."""
        found = self.memory.read_reservation(reservation_id)
        assert found is not None
        return found.set_aside, found.drawn

    def record(self, sandbox_id: str) -> Sandbox:
        """Return the stored record of a sandbox."""
        sandboxes, _ = self.memory.dump()
        return sandboxes[sandbox_id]
