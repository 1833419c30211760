"""Watch the pool: sample it each minute, tell which leases end soon, and tell when few sandboxes are available.

Each fact is told once, because its write is conditional on what was told before: a sandbox remembers the end that was
told, and the pool its level. So several runs at once do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError, UnsafeToAct
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.ids import new_id
from broker_common.core.job_names import Job
from broker_common.core.lease import warn
from broker_common.core.parallel import for_each
from broker_common.core.samples import PoolLevel, Sample, minute_of
from broker_common.core.sandbox import Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import ItemFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from broker_common.core.counts import Counts
    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import PoolCount, SandboxStore

_IN_SERVICE = (Status.AVAILABLE, Status.RESERVED, Status.ALLOCATED, Status.PENDING_DELETION)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchResult:
    """What one run found: sandboxes that are available, tracks that wait, leases that it told to end soon.

    `failed`: leases that the next run tries again.
    """

    available: int
    waiting: int
    expiring: int
    failed: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Sampled the pool: {self.available} available. Told that {self.expiring} leases end soon"


class _Told(Enum):
    """What a look at one lease showed."""

    NOW = "this run told that it ends soon"
    BEFORE = "that was told before"
    NOT_DUE = "it does not end soon, or has ended"
    FAILED = "it could not be told"


class Watcher:
    """Samples the pool, and tells what is coming. One object serves all runs of a process."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        counts: Counts,
        guard: Guard,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
        threads: int,
    ) -> None:
        self._store = store
        self._counts = counts
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._threads = threads
        self._told: Mapping[str, int] = {}
        """The versions of records, by sandbox, in which the end is known to be told: these are not read again."""

    def run(self, *, by: Actor) -> WatchResult:
        """Sample the pool, tell its level, and tell which leases end soon.

        A run reads the index entries of all leases that end soon, and a record only if this process does not know yet
        that its end was told. If the pool cannot be counted, the leases are told all the same.

        Raises `UnsafeToAct`, and `StoreUnavailable` if the pool or the index cannot be read.
        """
        self._guard.check()
        try:
            count = self._count()
            self._store.write_sample(
                Sample(at=minute_of(self._clock.now()), by_status=count.by_status, waiting=count.waiting)
            )
            self._tell_level(count, by)
        finally:
            outcomes = self._tell_ends(by)
        return WatchResult(
            available=count.by_status[Status.AVAILABLE],
            waiting=count.waiting,
            expiring=outcomes.count(_Told.NOW),
            failed=outcomes.count(_Told.FAILED),
        )

    # -- the pool

    def _count(self) -> PoolCount:
        """Return the latest count of the pool. This process counts only while no other one does."""
        try:
            return self._counts.latest()[1]
        finally:
            self._counts.give_back()

    def _tell_level(self, count: PoolCount, by: Actor) -> None:
        """Tell that the pool is low, or has recovered, if that is not what was told last."""
        if not self._policy.pool_low_percent:
            return
        before = self._store.read_level()
        is_low = judge(count.by_status, was_low=before.is_low, percent=self._policy.pool_low_percent)
        # An older count must not undo what a newer one has told.
        if is_low == before.is_low or count.began_at <= before.counted_at:
            return
        fact = PoolFact(
            kind=PoolFactKind.LOW if is_low else PoolFactKind.RECOVERED,
            fact_id=new_id(self._rng),
            at=self._clock.now(),
            principal=by.principal,
            request_id=by.request_id,
            details={
                **{status.value: count.by_status[status] for status in _IN_SERVICE},
                "in_service": in_service(count.by_status),
                "waiting": count.waiting,
                "low_percent": self._policy.pool_low_percent,
            },
        )
        try:
            self._store.write_level(before, PoolLevel(is_low=is_low, counted_at=count.began_at), fact)
        except Conflict:
            return  # another run has just told it

    # -- leases

    def _tell_ends(self, by: Actor) -> list[_Told]:
        """Tell which leases end soon, and return what each look showed."""
        if not self._policy.expiry_warning_sec:
            return []
        ending = dict(self._store.read_ending(until=self._clock.now() + self._policy.expiry_warning_sec))
        known = {each: version for each, version in ending.items() if self._told.get(each) == version}
        due = [each for each in ending if each not in known]
        looks = for_each(partial(self._tell_end, by), due, threads=self._threads)
        told = {each: version for each, (_, version) in zip(due, looks, strict=True) if version is not None}
        self._told = {**known, **told}
        return [outcome for outcome, _ in looks]

    def _tell_end(self, by: Actor, sandbox_id: str) -> tuple[_Told, int | None]:
        """Tell that a lease ends soon, if it does; return what the look showed, and the version that has it told."""
        try:
            sandbox = self._store.get(sandbox_id)
            while sandbox is not None and (lease := sandbox.lease) and lease.ends_soon(self._clock.now(), self._policy):
                if lease.warned_for == lease.expires_at:
                    return _Told.BEFORE, sandbox.version
                self._guard.check()
                warning = warn(sandbox, by=by, now=self._clock.now(), policy=self._policy)
                try:
                    self._store.commit(warning)
                except Conflict as conflict:
                    sandbox = conflict.current  # perhaps it was extended, or has ended
                else:
                    return _Told.NOW, warning.result.version
        except UnsafeToAct:
            raise
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.WATCH, sandbox_id=sandbox_id, error=error.message))
            return _Told.FAILED, None
        return _Told.NOT_DUE, None


def in_service(by_status: Mapping[Status, int]) -> int:
    """Return how many sandboxes are in service: available, set aside, held, or waiting for their wipe."""
    return sum(by_status[status] for status in _IN_SERVICE)


def judge(by_status: Mapping[Status, int], *, was_low: bool, percent: int) -> bool:
    """Tell whether the pool is low: less than `percent` of the sandboxes in service are available.

    A low pool has recovered once at least one and a half times `percent` are available. A pool of which nothing is in
    service is low. A pool without any sandbox is neither: it stays as it was.
    """
    available, serving = by_status[Status.AVAILABLE], in_service(by_status)
    if not sum(count for status, count in by_status.items() if status is not Status.DELETED):
        return was_low
    if not available:
        return True
    needed = percent * 3 / 2 if was_low else percent
    return available * 100 < needed * serving
