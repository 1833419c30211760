"""Sync: keep the pool in step with the provider's list of accounts.

The pool is read before the provider is asked, and every write holds only for the version that was read: whatever
happens meanwhile wins, and the next sync sees it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.domain import (
    ORDER_LIMIT,
    Account,
    Sandbox,
    Status,
    bury,
    describe,
    go_stale,
    new_sandbox,
    restore,
)
from broker_common.core.errors import BrokerError, Conflict, SyncBraked
from broker_common.core.events import AccountSkipped, ItemFailed, PoolSynced
from broker_common.core.jobs import Job
from broker_common.core.parallel import for_each
from broker_common.core.ports import Watermark

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from broker_common.core.domain import Policy
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock, Provider, Recorder, SandboxStore


class _Change(StrEnum):
    """What a sync did with a record that was not as it should be."""

    ADDED = "added"
    UPDATED = "updated"
    RESTORED = "restored"
    STALE = "stale"
    REMOVED = "removed"
    OVERTAKEN = "overtaken"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Write:
    """A write that a sync has to make."""

    sandbox_id: str
    change: _Change
    make: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What one run saw and did. `missing` and `judged` are what the brake weighed."""

    synced: int
    added: int
    updated: int
    restored: int
    stale: int
    removed: int
    skipped: int
    overtaken: int
    failed: int
    missing: int
    judged: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Synced {self.synced} sandboxes, marked {self.stale} as stale"


class Syncer:
    """Brings the pool in step with the provider."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        provider: Provider,
        guard: Guard,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
        threads: int,
    ) -> None:
        self._store = store
        self._guard = guard
        self._provider = provider
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._threads = threads

    def run(self, *, force: bool = False) -> SyncResult:
        """Add, describe anew, restore, mark stale and remove, as the provider's list says.

        Never touches a sandbox that is allocated or waits to be wiped. Raises `SyncBraked` when too many records are
        missing from the list and `force` is false (what was added and updated stays), and `ProviderError` when there is
        no usable list; that changes nothing. Raises `UnsafeToAct` before the first write, or between two.
        """
        self._guard.check()
        records = {sandbox.sandbox_id: sandbox for sandbox in self._store.read_all()}
        watermark = self._store.read_watermark()
        listing = self._provider.list_accounts()
        for skipped in listing.skipped:
            self._recorder.record(AccountSkipped(reason=skipped.reason, sandbox_id=skipped.sandbox_id))
        # The list may have taken minutes: the table may be another one by now.
        self._guard.check(afresh=True)
        now = self._clock.now()
        listed = {account.sandbox_id for account in listing.accounts}
        unreadable = {skipped.sandbox_id for skipped in listing.skipped}
        missing = [
            record
            for record in records.values()
            if record.sandbox_id not in listed and record.sandbox_id not in unreadable
        ]
        judged, lost = self._weigh(records, missing)
        braked = not force and self._is_braked(judged=judged, missing=lost)
        # Most of a pool is as it should be: threads are for what has to be written.
        writes = [self._see(account, records.get(account.sandbox_id), now) for account in listing.accounts]
        if not braked:
            complete = not any(skipped.sandbox_id is None for skipped in listing.skipped)
            seen_at = watermark.synced_at if watermark else None
            writes += [self._miss(record, now, seen_at, complete=complete) for record in missing]
        changes = Counter(for_each(self._carry_out, filter(None, writes), threads=self._threads))
        result = SyncResult(
            synced=len(listing.accounts),
            added=changes[_Change.ADDED],
            updated=changes[_Change.UPDATED],
            restored=changes[_Change.RESTORED],
            stale=changes[_Change.STALE],
            removed=changes[_Change.REMOVED],
            skipped=len(listing.skipped),
            overtaken=changes[_Change.OVERTAKEN],
            failed=changes[_Change.FAILED],
            missing=lost,
            judged=judged,
        )
        self._recorder.record(PoolSynced(synced=result.synced, stale=result.stale, braked=braked))
        if braked:
            raise SyncBraked(
                f"{lost} of {judged} sandboxes are missing from the provider's list, more than"
                f" {self._policy.stale_brake_percent} %: nothing was marked stale or removed;"
                " if the list is right, run the sync with force"
            )
        self._store.write_watermark(Watermark(synced_at=now, accounts=len(listing.accounts)))
        return result

    def _weigh(self, records: dict[str, Sandbox], missing: list[Sandbox]) -> tuple[int, int]:
        """Count the records that a sync would take out of service or forget if missing, and those that are.

        A dirty tombstone counts: forgotten on a list that was cut short, its sandbox would come back as new and clean.
        A clean one does not: its account is expected to go, and would wear the brake out under `retire`.
        """

        def counts(record: Sandbox) -> bool:
            in_service = record.status in {Status.AVAILABLE, Status.DELETION_FAILED}
            return in_service or (record.status is Status.DELETED and record.dirty)

        return sum(map(counts, records.values())), sum(map(counts, missing))

    def _is_braked(self, *, judged: int, missing: int) -> bool:
        policy = self._policy
        return missing >= policy.stale_brake_min and missing * 100 > policy.stale_brake_percent * judged

    def _see(self, account: Account, record: Sandbox | None, now: int) -> _Write | None:
        """Decide about an account that the provider lists."""
        if record is None:
            # Milliseconds: a record that is removed and added again never takes a version that was there before.
            new = new_sandbox(account, order=self._order(), now=now, version=now * 1000)
            return _Write(account.sandbox_id, _Change.ADDED, partial(self._store.add, new))
        if record.status is Status.STALE:
            return self._put(_Change.RESTORED, record, restore(record, account, order=self._order(), now=now))
        if record.status in {Status.AVAILABLE, Status.DELETION_FAILED}:
            described = describe(record, account, now=now)
            return None if described is record else self._put(_Change.UPDATED, record, described)
        return None

    def _miss(self, record: Sandbox, now: int, seen_at: int | None, *, complete: bool) -> _Write | None:
        """Decide about a record that the provider does not list.

        `complete`: every entry of the list could at least be told apart; else a record is not removed for its absence.
        """
        if record.status is Status.AVAILABLE:
            return self._put(_Change.STALE, record, go_stale(record, now=now, last_seen=seen_at))
        if record.status is Status.DELETION_FAILED and complete:
            return self._put(_Change.REMOVED, record, bury(record, now=now, policy=self._policy))
        if record.status is Status.DELETED and complete:
            return self._put(_Change.REMOVED, record, None)
        return None

    def _put(self, change: _Change, before: Sandbox, after: Sandbox | None) -> _Write:
        """Plan to put `after` in the place of a record, or nothing."""
        make = partial(self._store.remove, before) if after is None else partial(self._store.update, before, after)
        return _Write(before.sandbox_id, change, make)

    def _order(self) -> int:
        return self._rng.randrange(ORDER_LIMIT)

    def _carry_out(self, write: _Write) -> _Change:
        self._guard.check()
        try:
            write.make()
        except Conflict:
            return _Change.OVERTAKEN
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.SYNC, sandbox_id=write.sandbox_id, error=error.message))
            return _Change.FAILED
        return write.change
