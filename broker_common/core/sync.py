"""Sync: update the pool from the provider's list of accounts. How the two are compared is in `comparison`.

The pool is read before the provider is asked, and every write holds only for the version that was read. So a change
that another process makes meanwhile wins, and the next sync sees it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from broker_common.core.comparison import Comparison, counts_for_brake
from broker_common.core.errors import (
    BrokerError,
    ListNotWhole,
    OutcomeUnknown,
    StoreMisconfigured,
    StoreUnavailable,
    SyncBraked,
)
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.ids import new_id
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.pool import add, differs, mark_stale, remove, restore, update_account
from broker_common.core.sandbox import ORDER_LIMIT, Account, Sandbox, Status, Wipe, next_version
from broker_common.core.schema import Upgrade
from broker_common.core.store import COMMIT_AT_ONCE, Conflict, Watermark
from broker_common.core.telemetry import AccountSkipped, DeleteContradicted, ItemFailed, PoolSynced, SyncProgressed
from broker_common.core.wipe import backoff_seconds, contradict, is_thought_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from broker_common.core.facts import Change
    from broker_common.core.guard import Guard
    from broker_common.core.known_reservations import KnownReservations
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Provider, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore
    from broker_common.core.telemetry import Event

_PROGRESS_STEP = 5000
"""A long run logs its progress each time it has written so many sandboxes."""
_CHECK_ACCOUNTS_SEC = 24 * 3600
"""How often the account records are read. Only a person can remove one while the sandbox is in the pool."""


class _Done(StrEnum):
    """The outcome of one write of a sync."""

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
    """A planned write of a sync. `make` makes it, and returns its telemetry.

    The plan has what was read before, but not the time: a long sync writes for minutes, and `make` takes the time.
    """

    sandbox_id: str
    done: _Done
    make: Callable[[], Event | None]


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """An account to add: its position among the candidates, and the version that its own must exceed."""

    account: Account
    order: int
    above: int

    @property
    def sandbox_id(self) -> str:
        """The id of the new sandbox."""
        return self.account.sandbox_id


_Element = TypeVar("_Element")
_Item = TypeVar("_Item", Sandbox, _Newcomer)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """The counts of one run.

    `refused`: listed accounts that were not added or updated. `contradicted`: delete calls that the provider answered
    with 404, although it still lists the account. `tombstones_listed`: tombstones whose account it still lists. The
    brake compares `missing` with `judged`.
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


class Syncer:
    """Updates the pool from the provider's list."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        provider: Provider,
        guard: Guard,
        reservations: KnownReservations,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
        threads: int,
    ) -> None:
        self._store = store
        self._reservations = reservations
        self._guard = guard
        self._provider = provider
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._threads = threads

    def run(self, *, by: Actor, force: bool = False) -> SyncResult:
        """Add, update, restore, mark stale and remove sandboxes, as the provider's list says.

        Never changes a sandbox that is allocated or waits to be wiped. Raises `ListNotWhole` if the list may lack
        accounts, and `SyncBraked` if too many records are missing from it and `force` is false. In both cases sandboxes
        were added and updated, but no missing one was marked stale or removed. Raises `ProviderError` if there is no
        usable list; then nothing was changed. Raises `UnsafeToAct` before the first write, or between two writes.
        """
        self._guard.check()
        watermark = self._store.read_watermark()
        # A process of an earlier release may add sandboxes without account records until the upgrade is finished.
        is_upgraded, began = self._guard.is_upgraded(Upgrade.FACTS), self._clock.now()
        checked_at = watermark.accounts_checked_at if watermark and is_upgraded else None
        checks_accounts = checked_at is None or began - checked_at >= _CHECK_ACCOUNTS_SEC
        pool = self._store.read_all(with_accounts=checks_accounts)
        listing = self._provider.list_accounts()
        for skipped in listing.skipped:
            self._recorder.record(AccountSkipped(reason=skipped.reason, sandbox_id=skipped.sandbox_id))
        # The list may have taken minutes, and the table may have been replaced meanwhile.
        self._guard.check(look_now=True)
        now = self._clock.now()
        comparison = Comparison(pool, listing)
        for refused in comparison.refused:
            self._recorder.record(refused)
        absent = [record for record in pool.sandboxes if comparison.is_missing(record)]
        judged, missing = sum(map(counts_for_brake, pool.sandboxes)), sum(map(counts_for_brake, absent))
        braked = listing.doubt is None and not force and self._is_braked(judged=judged, missing=missing)
        # Most records need no write, so threads are used only for the writes.
        writes = [self._plan_present(record, comparison, by) for record in pool.sandboxes]
        if listing.doubt is None and not braked:
            seen_at = watermark.synced_at if watermark else None
            writes += [self._plan_absent(record, by, seen_at) for record in absent]
        unrecorded = comparison.without_account_record if checks_accounts else []
        changes = self._in_batches(_Done.ACCOUNT_RECORDED, list, self._store.record_accounts, unrecorded)
        if checks_accounts:
            checked_at = began if is_upgraded and changes[_Done.ACCOUNT_RECORDED] == len(unrecorded) else None
        newcomers = self._newcomers(comparison.new)
        reserved = self._plan_reserved(newcomers, by)
        writes += reserved.values()
        changes += self._in_steps("records changed", list(filter(None, writes)), self._make_all)
        available = [each for each in newcomers if each.sandbox_id not in reserved]
        changes += self._in_batches(_Done.ADDED, partial(self._added, by), self._store.commit, available)
        result = SyncResult(
            synced=len(listing.accounts),
            added=changes[_Done.ADDED],
            updated=changes[_Done.UPDATED],
            restored=changes[_Done.RESTORED],
            contradicted=changes[_Done.CONTRADICTED],
            stale=changes[_Done.STALE],
            removed=changes[_Done.REMOVED],
            skipped=len(listing.skipped),
            refused=len(comparison.refused),
            tombstones_listed=comparison.count_listed(Status.DELETED),
            overtaken=changes[_Done.OVERTAKEN],
            failed=changes[_Done.FAILED],
            missing=missing,
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
                f"the provider's list may lack accounts, because {listing.doubt}. Its accounts were added and updated,"
                " but no missing sandbox was marked stale or removed. The next sync reads the list again"
            )
        if braked:
            self._store.record(
                PoolFact(
                    kind=PoolFactKind.SYNC_BRAKED,
                    fact_id=new_id(self._rng),
                    at=self._clock.now(),
                    principal=by.principal,
                    request_id=by.request_id,
                    details={"missing": missing, "judged": judged},
                )
            )
            raise SyncBraked(
                f"{missing} of {judged} sandboxes are missing from the provider's list, or not active in it. This is"
                f" more than {self._policy.stale_brake_percent} %, so no missing sandbox was marked stale or removed."
                " If the list is right, run the sync with force"
            )
        if len(pool.sandboxes) + result.added + result.overtaken > result.removed:
            # On a table without any record, the watermark would mean that the records were lost. A new account that
            # was overtaken has a record: another sync added it, or a track allocated it after a lost answer.
            self._store.write_watermark(
                Watermark(synced_at=now, accounts=len(listing.accounts), accounts_checked_at=checked_at)
            )
        return result

    def _is_braked(self, *, judged: int, missing: int) -> bool:
        policy = self._policy
        return missing >= policy.stale_brake_min and missing * 100 > policy.stale_brake_percent * judged

    def _newcomers(self, accounts: Sequence[Account]) -> list[_Newcomer]:
        """Return the accounts to add. A sandbox that was removed earlier gets a version above that of its last fact."""
        removed = self._store.read_removed([account.sandbox_id for account in accounts]) if accounts else {}
        return [_Newcomer(account, self._order(), removed.get(account.sandbox_id, 0)) for account in accounts]

    def _plan_present(self, record: Sandbox, comparison: Comparison, by: Actor) -> _Write | None:
        """Plan what the list's entry of a record needs, or what another record with the same account needs."""
        if record.is_free and comparison.is_shared(record):
            return self._plan(_Done.STALE, record, partial(mark_stale, record, by=by, last_seen=None))
        if is_thought_gone(record) and comparison.has_active_account(record):
            return self._plan_contradiction(record, by)
        account = comparison.entry_of(record)
        if account is None:
            return None
        if record.status is Status.STALE:
            return self._plan_freed(
                _Done.RESTORED, account, partial(restore, record, account, order=self._order(), by=by)
            )
        if (record.is_free or record.status is Status.DELETION_FAILED) and differs(record, account):
            return self._plan(_Done.UPDATED, record, partial(update_account, record, account, by=by))
        return None

    def _plan_contradiction(self, record: Sandbox, by: Actor) -> _Write:
        """Plan to wipe a sandbox again whose delete call was answered with 404."""
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

    def _plan_absent(self, record: Sandbox, by: Actor, seen_at: int | None) -> _Write:
        """Plan what a missing record needs, if the list is right."""
        if record.is_free:
            return self._plan(_Done.STALE, record, partial(mark_stale, record, by=by, last_seen=seen_at))
        return self._plan(_Done.REMOVED, record, partial(remove, record, by=by, policy=self._policy))

    def _plan(self, done: _Done, record: Sandbox, change: Callable[..., Change]) -> _Write:
        """Plan a change of a record. `change` takes the time as `now`."""
        return _Write(record.sandbox_id, done, lambda: self._store.commit(change(now=self._clock.now())))

    def _plan_freed(self, done: _Done, account: Account, change: Callable[..., Change]) -> _Write:
        """Plan a change by which a sandbox may become free. `change` takes the time as `now`, and `reservation_id`."""

        def make() -> None:
            self._reservations.commit_freed(
                account.name,
                lambda reservation_id: change(now=self._clock.now(), reservation_id=reservation_id),
                store=self._store,
            )

        return _Write(account.sandbox_id, done, make)

    def _plan_reserved(self, newcomers: Sequence[_Newcomer], by: Actor) -> dict[str, _Write]:
        """Plan the additions of those that reservations lack, by sandbox id. The others are added in batches."""
        lacking = self._reservations.lacking()
        planned: dict[str, _Write] = {}
        for each in newcomers:
            reservation = next(
                (one for one in lacking if lacking[one] > 0 and each.account.name.startswith(one.prefix)), None
            )
            if reservation is not None:
                lacking[reservation] -= 1
                planned[each.sandbox_id] = self._plan_freed(_Done.ADDED, each.account, partial(self._add_one, each, by))
        return planned

    @staticmethod
    def _add_one(newcomer: _Newcomer, by: Actor, *, now: int, reservation_id: str | None) -> Change:
        return add(
            newcomer.account,
            order=newcomer.order,
            by=by,
            now=now,
            version=next_version(newcomer.above, now),
            reservation_id=reservation_id,
        )

    def _added(self, by: Actor, newcomers: Sequence[_Newcomer]) -> list[Change]:
        now = self._clock.now()
        return [self._add_one(each, by, now=now, reservation_id=None) for each in newcomers]

    def _order(self) -> int:
        return self._rng.randrange(ORDER_LIMIT)

    def _in_batches(
        self,
        done: _Done,
        prepare: Callable[[Sequence[_Item]], Sequence[object]],
        write: Callable[..., None],
        items: Sequence[_Item],
    ) -> Counter[_Done]:
        """Make the same kind of write for many items, in batches.

        `prepare` is called just before a batch is written, and returns what to write.
        """

        def write_part(part: Sequence[_Item]) -> Counter[_Done]:
            batches = [part[first : first + COMMIT_AT_ONCE] for first in range(0, len(part), COMMIT_AT_ONCE)]
            return sum(
                for_each(partial(self._write_batch, done, prepare, write), batches, threads=self._threads), Counter()
            )

        return self._in_steps(done.value, items, write_part)

    def _in_steps(
        self, change: str, items: Sequence[_Element], write: Callable[[Sequence[_Element]], Counter[_Done]]
    ) -> Counter[_Done]:
        """Call `write` with one part of the items after the other, and record the progress of a long run."""
        changes: Counter[_Done] = Counter()
        for first in range(0, len(items), _PROGRESS_STEP):
            part = items[first : first + _PROGRESS_STEP]
            changes += write(part)
            if len(items) > _PROGRESS_STEP:
                self._recorder.record(SyncProgressed(change=change, done=first + len(part), total=len(items)))
        return changes

    def _make_all(self, writes: Sequence[_Write]) -> Counter[_Done]:
        return Counter(for_each(self._make, writes, threads=self._threads))

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
            except StoreMisconfigured as error:  # no item can be written
                return self._failed(batch, error)
            except BrokerError:
                # One item fails the whole batch, so each is written alone. If the batch was applied after all, and only
                # its answer was lost, the same write succeeds again and changes nothing.
                pass
            else:
                return Counter({done: len(batch)})
        changes: Counter[_Done] = Counter()
        for position, (item, each) in enumerate(zip(batch, prepared, strict=True)):
            self._guard.check()
            try:
                write(each)
            except Conflict:
                changes[_Done.OVERTAKEN] += 1
            except BrokerError as error:
                # A store that is busy or away fails the rest at once: to try each would only add to its load.
                is_away = isinstance(error, StoreUnavailable) and not isinstance(error, OutcomeUnknown)
                failed = batch[position:] if is_away else [item]
                changes += self._failed(failed, error)
                if is_away:
                    break
            else:
                changes[done] += 1
        return changes

    def _failed(self, items: Sequence[_Item], error: BrokerError) -> Counter[_Done]:
        for each in items:
            self._recorder.record(ItemFailed(job=Job.SYNC, sandbox_id=each.sandbox_id, error=error.message))
        return Counter({_Done.FAILED: len(items)})

    def _make(self, write: _Write) -> _Done:
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
