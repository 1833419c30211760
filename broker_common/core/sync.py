"""Sync: keep the pool in step with the provider's list of accounts.

The pool is read before the provider is asked, and every write holds only for the version that was read: whatever
happens meanwhile wins, and the next sync sees it.

A clean record is known by the provider's label (`csp_id`, our sandbox id); a dirty one by its account, because that is
what has to be wiped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from broker_common.core.errors import BrokerError, ListNotWhole, SyncBraked
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.ids import new_id
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.pool import add, describe, differs, go_stale, remove, restore
from broker_common.core.sandbox import ORDER_LIMIT, Account, Sandbox, Status, Wipe, next_version
from broker_common.core.store import COMMIT_AT_ONCE, Conflict, Watermark
from broker_common.core.telemetry import (
    AccountRefused,
    AccountSkipped,
    DeleteContradicted,
    ItemFailed,
    PoolSynced,
    RefusalReason,
    SyncProgressed,
)
from broker_common.core.wipe import backoff_seconds, contradict, is_thought_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from broker_common.core.facts import Change
    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import AccountListing, Clock, Provider, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import Pool, SandboxStore
    from broker_common.core.telemetry import Event

_PROGRESS_STEP = 5000
"""A line of the log says after so many new sandboxes how far a long run has come."""


class _Done(StrEnum):
    """What a sync did with a record that was not as it should be."""

    ADDED = "added"
    UPDATED = "updated"
    RESTORED = "restored"
    CONTRADICTED = "contradicted"
    STALE = "stale"
    REMOVED = "removed"
    ACCOUNT_RECORDED = "account recorded"
    OVERTAKEN = "overtaken"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class _Write:
    """A write that a sync has to make; `make` returns what is to be said of it once it is made.

    It is made of what was read before, and of the time at which it is made: a long sync writes for minutes.
    """

    sandbox_id: str
    done: _Done
    make: Callable[[], Event | None]


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """An account to be added: its place among the candidates, and the version that it goes on above."""

    account: Account
    order: int
    above: int

    @property
    def sandbox_id(self) -> str:
        """The sandbox that it becomes."""
        return self.account.sandbox_id


_Item = TypeVar("_Item", Sandbox, _Newcomer)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What one run saw and did.

    `refused`: accounts that were listed and could not be taken in. `contradicted`: deletes that the provider answered
    with 404 though it still lists the account. `tombstones_listed`: deleted sandboxes whose account it still lists.
    `missing` and `judged` are what the brake weighed.
    """

    synced: int
    added: int
    updated: int
    restored: int
    contradicted: int
    stale: int
    removed: int
    skipped: int
    refused: int
    tombstones_listed: int
    overtaken: int
    failed: int
    missing: int
    judged: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Synced {self.synced} sandboxes, marked {self.stale} as stale"


class _Survey:
    """What a list says of the pool: which entry speaks of which record, what is new, and what is refused.

    An account belongs to one record. An entry is refused whose account another record has, or whose record must keep
    the account that it has: one that is held, waits to be wiped, or is dirty.
    """

    def __init__(self, pool: Pool, listing: AccountListing) -> None:
        self._is_whole = listing.doubt is None
        self._records = {record.sandbox_id: record for record in pool.sandboxes}
        self._holders: dict[str, list[str]] = defaultdict(list)
        for record in pool.sandboxes:
            self._holders[record.account_key].append(record.sandbox_id)
        self._active_accounts = {account.key for account in listing.accounts}
        undecided = replace(listing, accounts=(), inactive=())
        self._undecided = undecided.sandbox_ids
        self._ids, self._accounts = listing.sandbox_ids, listing.account_keys
        self._entries: dict[str, Account] = {}
        self.new: list[Account] = []
        self.refused: list[AccountRefused] = [
            AccountRefused(reason=RefusalReason.AMBIGUOUS, sandbox_id=account.sandbox_id)
            for account in listing.ambiguous
        ]
        for account in listing.accounts:
            self._take(account)
        self.without_account_record = [
            self._records[holders[0]] for key, holders in self._holders.items() if pool.accounts.get(key) not in holders
        ]

    def entry_of(self, record: Sandbox) -> Account | None:
        """Return the active entry that a record may follow."""
        return self._entries.get(record.sandbox_id)

    def has_active_account(self, record: Sandbox) -> bool:
        """Tell whether a record's account is listed as active, under whatever id, and is no other record's, too."""
        return record.account_key in self._active_accounts and not self.is_shared(record)

    def is_shared(self, record: Sandbox) -> bool:
        """Tell whether another record has the same account, as earlier releases could add it."""
        return len(self._holders[record.account_key]) > 1

    def is_listed(self, record: Sandbox) -> bool:
        """Tell whether any entry has a record's id or account, active or not."""
        return record.sandbox_id in self._ids or record.account_key in self._accounts

    def count_listed(self, status: Status) -> int:
        """Count the records of a status that are listed."""
        return sum(record.status is status and self.is_listed(record) for record in self._records.values())

    def misses(self, record: Sandbox) -> bool:
        """Tell whether a record is to be taken out of service, or removed, if the list is to be believed.

        Out of service goes what is not listed as active, and nothing is forgotten that is listed at all.
        """
        if record.status is Status.AVAILABLE and not self.is_shared(record):
            return record.sandbox_id not in self._entries and record.sandbox_id not in self._undecided
        return record.status in {Status.DELETION_FAILED, Status.DELETED} and not self.is_listed(record)

    def _take(self, account: Account) -> None:
        """Find the record that an active entry speaks of, or refuse it."""
        record = self._records.get(account.sandbox_id)
        others = [each for each in self._holders.get(account.key, ()) if each != account.sandbox_id]
        if others:
            self._refuse(account, RefusalReason.ID_TAKEN, held_by=others[0])
        elif record is None:
            self.new.append(account)
        elif record.account_key == account.key or self._may_change_account(record):
            self._entries[record.sandbox_id] = account
        else:
            self._refuse(account, RefusalReason.ID_CHANGED, held_by=record.sandbox_id)

    def _may_change_account(self, record: Sandbox) -> bool:
        if record.dirty:
            # Stale and dirty: its account answered 404. If it is not listed either, it is gone: what is listed in its
            # place is wiped before anybody gets it.
            return record.status is Status.STALE and self._is_whole and record.account_key not in self._accounts
        return record.status in {Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED}

    def _refuse(self, account: Account, reason: RefusalReason, *, held_by: str) -> None:
        self.refused.append(AccountRefused(reason=reason, sandbox_id=account.sandbox_id, held_by=held_by))


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

    def run(self, *, by: Actor, force: bool = False) -> SyncResult:
        """Add, describe again, restore, mark stale and remove, as the provider's list says.

        Never touches a sandbox that is allocated or waits to be wiped. Raises `ListNotWhole` when the list may lack
        accounts, and `SyncBraked` when too many records are missing from it and `force` is false: then nothing was
        marked stale for its absence or removed, and what was added and updated stays. Raises `ProviderError` when there
        is no usable list; that changes nothing. Raises `UnsafeToAct` before the first write, or between two.
        """
        self._guard.check()
        pool = self._store.read_all()
        watermark = self._store.read_watermark()
        listing = self._provider.list_accounts()
        for skipped in listing.skipped:
            self._recorder.record(AccountSkipped(reason=skipped.reason, sandbox_id=skipped.sandbox_id))
        # The list may have taken minutes: the table may be another one by now.
        self._guard.check(look_now=True)
        now = self._clock.now()
        survey = _Survey(pool, listing)
        for refused in survey.refused:
            self._recorder.record(refused)
        missed = [record for record in pool.sandboxes if survey.misses(record)]
        judged, lost = sum(map(_weighs, pool.sandboxes)), sum(map(_weighs, missed))
        braked = listing.doubt is None and not force and self._is_braked(judged=judged, missing=lost)
        # Most of a pool is as it should be: threads are for what has to be written.
        writes = [self._see(record, survey, by) for record in pool.sandboxes]
        if listing.doubt is None and not braked:
            seen_at = watermark.synced_at if watermark else None
            writes += [self._miss(record, by, seen_at) for record in missed]
        changes = self._in_batches(
            _Done.ACCOUNT_RECORDED, list, self._store.record_accounts, survey.without_account_record
        )
        changes += Counter(for_each(self._carry_out, filter(None, writes), threads=self._threads))
        changes += self._in_batches(
            _Done.ADDED, partial(self._added, by), self._store.commit, self._newcomers(survey.new)
        )
        result = SyncResult(
            synced=len(listing.accounts),
            added=changes[_Done.ADDED],
            updated=changes[_Done.UPDATED],
            restored=changes[_Done.RESTORED],
            contradicted=changes[_Done.CONTRADICTED],
            stale=changes[_Done.STALE],
            removed=changes[_Done.REMOVED],
            skipped=len(listing.skipped),
            refused=len(survey.refused),
            tombstones_listed=survey.count_listed(Status.DELETED),
            overtaken=changes[_Done.OVERTAKEN],
            failed=changes[_Done.FAILED],
            missing=lost,
            judged=judged,
        )
        self._recorder.record(
            PoolSynced(
                synced=result.synced,
                stale=result.stale,
                tombstones_listed=result.tombstones_listed,
                braked=braked,
            )
        )
        if listing.doubt is not None:
            raise ListNotWhole(
                f"the provider's list may lack accounts, because {listing.doubt}: what it has was added and updated;"
                " nothing was marked stale or removed"
            )
        if braked:
            self._store.record(
                PoolFact(
                    kind=PoolFactKind.SYNC_BRAKED,
                    fact_id=new_id(self._rng),
                    at=self._clock.now(),
                    principal=by.principal,
                    request_id=by.request_id,
                    details={"missing": lost, "judged": judged},
                )
            )
            raise SyncBraked(
                f"{lost} of {judged} sandboxes are missing from the provider's list, or not active in it, more than"
                f" {self._policy.stale_brake_percent} %: nothing was marked stale or removed;"
                " if the list is right, run the sync with force"
            )
        if len(pool.sandboxes) + result.added > result.removed:
            # Of a table without any record, the watermark would say that its records were lost.
            self._store.write_watermark(Watermark(synced_at=now, accounts=len(listing.accounts)))
        return result

    def _is_braked(self, *, judged: int, missing: int) -> bool:
        policy = self._policy
        return missing >= policy.stale_brake_min and missing * 100 > policy.stale_brake_percent * judged

    def _newcomers(self, accounts: Sequence[Account]) -> list[_Newcomer]:
        """Return accounts to be added; a sandbox that was here before goes on above the version of its last fact."""
        removed = self._store.read_removed([account.sandbox_id for account in accounts]) if accounts else {}
        return [_Newcomer(account, self._order(), removed.get(account.sandbox_id, 0)) for account in accounts]

    def _see(self, record: Sandbox, survey: _Survey, by: Actor) -> _Write | None:
        """Decide about a record by what the list says of it, and by whether its account is its own."""
        if record.status is Status.AVAILABLE and survey.is_shared(record):
            return self._plan(_Done.STALE, record, partial(go_stale, record, by=by, last_seen=None))
        if is_thought_gone(record) and survey.has_active_account(record):
            return self._contradict(record, by)
        account = survey.entry_of(record)
        if account is None:
            return None
        if record.status is Status.STALE:
            return self._plan(_Done.RESTORED, record, partial(restore, record, account, order=self._order(), by=by))
        if record.status in {Status.AVAILABLE, Status.DELETION_FAILED} and differs(record, account):
            return self._plan(_Done.UPDATED, record, partial(describe, record, account, by=by))
        return None

    def _contradict(self, record: Sandbox, by: Actor) -> _Write:
        """Plan to send a sandbox back to be wiped whose delete was answered with 404."""
        pause = backoff_seconds(record, jitter=self._rng.uniform(1, 2), policy=self._policy)

        def make() -> Event:
            now = self._clock.now()
            change = contradict(record, retry_at=now + pause, by=by, now=now, policy=self._policy)
            self._store.commit(change)
            wipe = change.result.wipe or Wipe()
            return DeleteContradicted(
                sandbox_id=record.sandbox_id,
                lease_id=record.latest_lease_id,
                attempts=wipe.tries,
                error=wipe.last_error,
            )

        return _Write(record.sandbox_id, _Done.CONTRADICTED, make)

    def _miss(self, record: Sandbox, by: Actor, seen_at: int | None) -> _Write:
        """Decide about a record that the list, which is to be believed, does not name as it should."""
        if record.status is Status.AVAILABLE:
            return self._plan(_Done.STALE, record, partial(go_stale, record, by=by, last_seen=seen_at))
        return self._plan(_Done.REMOVED, record, partial(remove, record, by=by, policy=self._policy))

    def _plan(self, done: _Done, record: Sandbox, change: Callable[..., Change]) -> _Write:
        """Plan a change of a record; `change` takes the time, as `now`."""
        return _Write(record.sandbox_id, done, lambda: self._store.commit(change(now=self._clock.now())))

    def _added(self, by: Actor, newcomers: Sequence[_Newcomer]) -> list[Change]:
        now = self._clock.now()
        return [
            add(each.account, order=each.order, by=by, now=now, version=next_version(each.above, now))
            for each in newcomers
        ]

    def _order(self) -> int:
        return self._rng.randrange(ORDER_LIMIT)

    def _in_batches(
        self,
        done: _Done,
        prepare: Callable[[Sequence[_Item]], Sequence[object]],
        write: Callable[..., None],
        items: Sequence[_Item],
    ) -> Counter[_Done]:
        """Make the same write for many items, several with one call, and say now and then how far that is.

        `prepare` returns what is to be written of a batch, at the time at which it is written.
        """
        changes: Counter[_Done] = Counter()
        for first_of_step in range(0, len(items), _PROGRESS_STEP):
            part = items[first_of_step : first_of_step + _PROGRESS_STEP]
            batches = [part[first : first + COMMIT_AT_ONCE] for first in range(0, len(part), COMMIT_AT_ONCE)]
            for counted in for_each(partial(self._write_batch, done, prepare, write), batches, threads=self._threads):
                changes += counted
            if len(items) > _PROGRESS_STEP:
                so_far = first_of_step + len(part)
                self._recorder.record(SyncProgressed(change=done.value, done=so_far, total=len(items)))
        return changes

    def _write_batch(
        self,
        done: _Done,
        prepare: Callable[[Sequence[_Item]], Sequence[object]],
        write: Callable[..., None],
        batch: Sequence[_Item],
    ) -> Counter[_Done]:
        self._guard.check()
        prepared = prepare(batch)
        if len(batch) > 1:
            try:
                write(*prepared)
            except Conflict:
                pass  # one of them keeps the others out: each by itself
            except BrokerError as error:
                for each in batch:
                    self._recorder.record(ItemFailed(job=Job.SYNC, sandbox_id=each.sandbox_id, error=error.message))
                return Counter({_Done.FAILED: len(batch)})
            else:
                return Counter({done: len(batch)})
        singles = [
            _Write(item.sandbox_id, done, partial(write, each)) for item, each in zip(batch, prepared, strict=True)
        ]
        return Counter(map(self._carry_out, singles))

    def _carry_out(self, write: _Write) -> _Done:
        self._guard.check()
        try:
            event = write.make()
        except Conflict:
            return _Done.OVERTAKEN
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.SYNC, sandbox_id=write.sandbox_id, error=error.message))
            return _Done.FAILED
        if event is not None:
            self._recorder.record(event)
        return write.done


def _weighs(record: Sandbox) -> bool:
    """Tell whether a record counts for the brake: a sync takes it out of service or forgets it when it is missing.

    A dirty tombstone counts: forgotten on a list that was cut short, its sandbox would come back as new and clean.
    A clean one does not: its account is expected to go, and would wear the brake out under `retire`.
    """
    in_service = record.status in {Status.AVAILABLE, Status.DELETION_FAILED}
    return in_service or (record.status is Status.DELETED and record.dirty)
