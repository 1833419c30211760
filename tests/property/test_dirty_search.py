"""Every sequence of jobs, operator calls and a track's calls on one sandbox, tried out to the last distinct state.

The search keeps a truth of its own beside the records: whether a student has touched the account since the provider
last said that it wiped it. That truth is looked at, not the record's own `dirty`.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core import cleanup, comparison, purge, sync
from broker_common.core.errors import BrokerError, ProviderFailing, ProviderMisconfigured, ProviderRejected
from broker_common.core.policy import Policy, RecyclePolicy
from broker_common.core.pool import remove, restore
from broker_common.core.ports import InactiveAccount, SkippedAccount, WipeAnswer
from broker_common.core.sandbox import Account, Claim, Sandbox, Status
from broker_common.core.wipe import confirm_wipe
from tests import lifecycle
from tests.fakes import BY, START, Crashed, FakeClock, MemoryStore, changed, flat, make_account, make_sandbox
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from broker_common.core.facts import Change

_seeds = count()
"""Of its own for each play: no two attempts, and no two leases, have the same id."""
SANDBOX = "sbx-0"
HOUR = 3600
SEEN = make_account(SANDBOX)
RENAMED = make_account(SANDBOX, name="lab-renamed", external_id=SEEN.external_id)
MOVED = make_account("sbx-9", external_id=SEEN.external_id)
SWITCHED_OFF = InactiveAccount(SANDBOX, SEEN.external_id)
OTHER = make_account("other")
"""Keeps the provider's list from being empty; its own record is left out of the search."""


@dataclass(frozen=True)
class State:
    """All that is known at one moment: the record, its claim, the time, and the truth about the account."""

    record: Sandbox | None
    claims: tuple[Claim, ...]
    now: int
    used: bool = False
    """A student has worked in the account since the provider last confirmed a wipe."""
    doubt: bool = False
    """A delete call of this lease was sent of which nobody knows whether, or when, it is carried out."""
    gone: bool = False
    """The provider has removed the account for good."""

    def key(self) -> object:
        """Tell states apart by what can matter later: times only by what is due, ids only by whether there is one."""
        if self.record is None:
            return (None, self.used, self.doubt, self.gone)
        record, fields = self.record, flat(self.record)
        return (
            record.status,
            record.name,
            record.dirty,
            fields.lease_id is not None,
            fields.allocated_to_track,
            record.latest_track_id,
            fields.deletion_retry_count,
            fields.attempt_id is not None,
            fields.outcome_unknown,
            (fields.next_attempt_at or 0) <= self.now,
            record.quarantine is not None,
            record.is_cooling,
            record.is_rested(self.now),
            record.status is Status.ALLOCATED and (fields.expires_at or 0) + HOUR // 2 <= self.now,
            record.status is Status.STALE and record.status_order + 24 * HOUR <= self.now,
            len(self.claims),
            self.used,
            self.doubt,
            self.gone,
        )


class Violation(AssertionError):
    """A used sandbox became available, or was forgotten."""


class Play:
    """One operation, played on one state."""

    def __init__(self, state: State, policy: Policy) -> None:
        self.used, self.doubt, self.gone = state.used, state.doubt, state.gone
        self.world = World(clock=FakeClock(state.now), policy=policy, seed=next(_seeds))
        if state.record:
            self.world.memory.seed(state.record)
        self.world.memory.on_write = self._written
        self.world.provider.accounts = [OTHER]

    def state(self) -> State:
        """Return what came of it."""
        records, claims = self.world.memory.dump()
        return State(
            record=records.get(SANDBOX),
            claims=tuple(claim for claim in claims.values() if claim.sandbox_id == SANDBOX),
            now=self.world.clock.now(),
            used=self.used,
            doubt=self.doubt,
            gone=self.gone,
        )

    def _written(self, before: Sandbox | None, after: Sandbox | None) -> None:
        if after and after.sandbox_id == MOVED.sandbox_id:
            if self.used:
                raise Violation(f"{after} has an account that was not wiped")
            self.gone = True
        if SANDBOX not in {each.sandbox_id for each in (before, after) if each}:
            return
        if before and before.status is Status.DELETED and after is None:
            if self.used and SEEN.key in self.world.provider.listing().account_keys:
                raise Violation(f"{before} was forgotten while it is listed")
            self.gone, self.used = True, False
        if after and after.status is Status.AVAILABLE and self.used:
            raise Violation(f"{before} became available unwiped")
        if after and after.status is Status.AVAILABLE:
            if before and before.status is Status.PENDING_DELETION and self.doubt:
                raise Violation("became available at once, though a delete may still be under way")
            self.doubt = False
        if after and after.status is Status.ALLOCATED:
            self.used, self.doubt = True, False

    def call(self, answer: WipeAnswer | Exception | None) -> None:
        """Have the next delete call answered so; None kills the worker while it waits."""

        def while_waiting(_: str) -> None:
            if answer is None:
                self.doubt = True
                raise Crashed
            if isinstance(answer, ProviderFailing):
                self.doubt |= answer.outcome_unknown
            if answer is WipeAnswer.ACCEPTED:
                self.doubt = True
            if answer in {WipeAnswer.WIPED, WipeAnswer.ACCEPTED}:
                self.used = False

        self.world.provider.during_delete = while_waiting
        self.world.provider.answers.clear()
        if answer is not None:
            self.world.provider.answers.append(answer)


def later(seconds: float) -> Callable[[Play], object]:
    return lambda play: play.world.clock.advance(seconds)


def delete(answer: WipeAnswer | Exception | None) -> Callable[[Play], object]:
    def operation(play: Play) -> None:
        play.call(answer)
        for sandbox_id in list(play.world.cleaner.find_due()):
            play.world.cleaner.delete_sandbox(sandbox_id, by=BY)

    return operation


def overtaken(first: WipeAnswer | Exception, second: WipeAnswer | Exception) -> Callable[[Play], object]:
    """Delete, and while that call hangs beyond all timeouts, another worker deletes; then the first one answers."""

    def operation(play: Play) -> None:
        play.call(first)
        answered_late = play.world.provider.during_delete

        def while_waiting(external_id: str) -> None:
            play.world.clock.advance(play.world.policy.attempt_window_sec)
            play.doubt = True
            delete(second)(play)
            play.world.provider.answers.clear()
            play.world.provider.answers.append(first)
            used, doubt = play.used, play.doubt
            answered_late(external_id)
            play.used, play.doubt = used, doubt

        play.world.provider.during_delete = while_waiting
        for sandbox_id in list(play.world.cleaner.find_due()):
            play.world.cleaner.delete_sandbox(sandbox_id, by=BY)

    return operation


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every change through that the table of states forbids: the search's own truth has to find it."""
    monkeypatch.setattr("tests.world.check_change", lambda *_: None)


def listed(
    *accounts: Account,
    skipped: Sequence[SkippedAccount] = (),
    inactive: Sequence[InactiveAccount] = (),
    doubt: str | None = None,
    force: bool = True,
    meanwhile: Callable[[Play], object] | None = None,
) -> Callable[[Play], object]:
    """Sync with this list; `meanwhile` happens after the pool was read and before the list came."""

    def operation(play: Play) -> None:
        if play.gone and (accounts or inactive):
            return
        play.world.provider.accounts = [OTHER, *accounts]
        play.world.provider.skipped, play.world.provider.inactive = skipped, inactive
        play.world.provider.doubt = doubt
        if meanwhile:
            play.world.provider.during_list = lambda: attempt(meanwhile, play)
        play.world.syncer.run(by=BY, force=force)

    return operation


def attempt(operation: Callable[[Play], object], play: Play) -> None:
    """Play an operation that may be refused, or killed."""
    with suppress(BrokerError, Crashed):
        operation(play)


def release(play: Play) -> None:
    lease_id = play.world.inventory.read(SANDBOX).latest_lease_id
    play.world.leases.release(by=BY, sandbox_id=SANDBOX, lease_id=lease_id or "no lease")


FAILING = ProviderFailing("500", outcome_unknown=False)
TIMED_OUT = ProviderFailing("no answer", outcome_unknown=True)
ANSWERS = [
    *WipeAnswer,
    FAILING,
    TIMED_OUT,
    ProviderRejected("400"),
    ProviderMisconfigured("401"),
    None,
]
SINGLE: dict[str, Callable[[Play], object]] = {
    "allocate by a": lambda play: play.world.allocate("a"),
    "allocate by b": lambda play: play.world.allocate("b"),
    "mark by a": lambda play: play.world.mark(SANDBOX, "a"),
    "release": release,
    "expire": lambda play: play.world.expirer.run(by=BY),
    "quarantine": lambda play: play.world.operations.quarantine(SANDBOX, by=BY, reason="odd"),
    "lift quarantine": lambda play: play.world.operations.lift_quarantine(SANDBOX, by=BY),
    "retry deletion": lambda play: play.world.operations.retry_deletion(SANDBOX, by=BY),
    "bulk retry": lambda play: play.world.operations.bulk_retry(by=BY),
    "bulk delete stale": lambda play: play.world.purger.bulk_delete(Status.STALE, by=BY),
    "bulk delete failed": lambda play: play.world.purger.bulk_delete(Status.DELETION_FAILED, by=BY),
    "purge": lambda play: play.world.purger.run(by=BY),
    **{f"delete: {answer!r}": delete(answer) for answer in ANSWERS},
}
OPERATIONS: dict[str, Callable[[Play], object]] = {
    **SINGLE,
    "a minute": later(61),
    "an hour": later(HOUR),
    "a day": later(25 * HOUR),
    "sync sees it": listed(SEEN),
    "sync sees it renamed": listed(RENAMED),
    "sync misses it": listed(),
    "sync misses it, unforced": listed(force=False),
    "sync cannot read it": listed(skipped=[SkippedAccount("no name", SANDBOX)]),
    "sync misses it in a list that is not whole": listed(doubt="it shifted"),
    "sync sees it switched off": listed(inactive=[SWITCHED_OFF]),
    "sync sees its account under another id": listed(MOVED),
    "sync sees it switched off, and its account under another id": listed(
        MOVED, inactive=[InactiveAccount(SANDBOX, "uuid-else")]
    ),
    **{f"sync sees it, meanwhile {name}": listed(SEEN, meanwhile=each) for name, each in SINGLE.items()},
    **{f"sync misses it, meanwhile {name}": listed(meanwhile=each) for name, each in SINGLE.items()},
    **{
        f"delete: {first!r}, overtaken by {second!r}": overtaken(first, second)
        for first in (WipeAnswer.WIPED, WipeAnswer.ACCEPTED, WipeAnswer.GONE, FAILING)
        for second in (WipeAnswer.WIPED, WipeAnswer.ACCEPTED, WipeAnswer.GONE, TIMED_OUT)
    },
}


def search(recycle: RecyclePolicy, *, cool_down_sec: int = 0) -> dict[object, State]:
    """Play every operation on every state that can be reached; returns those, or raises `Violation` with the way."""
    policy = Policy(recycle=recycle, deletion_max_attempts=2, deletion_backoff_max_sec=60, cool_down_sec=cool_down_sec)
    start = State(record=make_sandbox(SANDBOX), claims=(), now=START)
    found: dict[object, State] = {start.key(): start}
    ways: dict[object, tuple[str, ...]] = {start.key(): ()}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        for name, operation in OPERATIONS.items():
            play = Play(state, policy)
            way = (*ways[state.key()], name)
            try:
                attempt(operation, play)
            except (Violation, lifecycle.Violation) as violation:
                raise Violation(f"{violation} by: {'; '.join(way)}") from violation
            after = play.state()
            if after.key() not in found:
                found[after.key()] = after
                ways[after.key()] = way
                todo.append(after)
    return found


@pytest.mark.parametrize(
    ("recycle", "cool_down_sec"), [*((recycle, 0) for recycle in RecyclePolicy), (RecyclePolicy.REUSE, 30)]
)
def test_no_sequence_of_operations_makes_a_used_sandbox_available(recycle: RecyclePolicy, cool_down_sec: int) -> None:
    found = search(recycle, cool_down_sec=cool_down_sec)
    assert any(state.record.is_cooling for state in found.values() if state.record) == bool(cool_down_sec)
    statuses = {state.record.status for state in found.values() if state.record}
    assert statuses == set(Status) - {Status.RESERVED}  # without reservations; `test_reservations` has them
    assert any(state.record is None for state in found.values())
    for state in found.values():
        held = [flat(state.record).lease_id] if state.record and state.record.status is Status.ALLOCATED else []
        assert [claim.lease.lease_id for claim in state.claims] == held


@pytest.mark.usefixtures("unjudged")
def test_the_search_finds_a_restore_that_forgets_dirt(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(sandbox: Sandbox, account: Account, **arguments: Any) -> Change:
        return replace(restore(replace(sandbox, dirty=False), account, **arguments), before=sandbox)

    monkeypatch.setattr(sync, "restore", forgetful)
    monkeypatch.setattr(sync, "is_thought_gone", lambda _: False)
    with pytest.raises(Violation, match="sync sees it"):
        search(RecyclePolicy.REUSE)


@pytest.mark.usefixtures("unjudged")
def test_the_search_finds_a_purge_that_leaves_no_tombstone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_tombstone(sandbox: Sandbox, **arguments: Any) -> Change:
        return replace(remove(replace(sandbox, dirty=False), **arguments), before=sandbox)

    monkeypatch.setattr(purge, "remove", without_tombstone)
    with pytest.raises(Violation, match="bulk delete"):
        search(RecyclePolicy.CONFIRM)


@pytest.mark.usefixtures("unjudged")
@pytest.mark.parametrize("recycle", RecyclePolicy)
def test_the_search_finds_a_sync_that_takes_inactive_for_absent(
    recycle: RecyclePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison.Comparison, "is_listed", lambda survey, record: record.sandbox_id in survey._entries)
    with pytest.raises(Violation, match="sync sees"):
        search(recycle)


@pytest.mark.usefixtures("unjudged")
def test_the_search_finds_a_sync_that_looks_at_the_label_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_label(survey: comparison.Comparison, account: Account) -> None:
        if account.sandbox_id not in survey._records:
            survey.new.append(account)

    monkeypatch.setattr(comparison.Comparison, "_take", by_label)
    monkeypatch.setattr("tests.fakes.MemoryStore._check_account", lambda *_: None)
    with pytest.raises(Violation, match="under another id"):
        search(RecyclePolicy.REUSE)


@pytest.mark.usefixtures("unjudged")
def test_the_search_finds_a_success_that_overlooks_a_lost_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(sandbox: Sandbox, **arguments: Any) -> Change:
        return replace(confirm_wipe(changed(sandbox, outcome_unknown=False), **arguments), before=sandbox)

    monkeypatch.setattr(cleanup, "confirm_wipe", trusting)
    with pytest.raises(Violation, match="under way"):
        search(RecyclePolicy.REUSE)


@pytest.mark.usefixtures("unjudged")
def test_the_search_finds_a_sync_that_adds_over_a_tombstone(monkeypatch: pytest.MonkeyPatch) -> None:
    read_all = World().memory.read_all.__func__  # type: ignore[attr-defined] # the plain function, to wrap

    def without_tombstones(memory: object, **options: bool) -> object:
        pool = read_all(memory, **options)
        return replace(pool, sandboxes=tuple(each for each in pool.sandboxes if each.status is not Status.DELETED))

    monkeypatch.setattr("tests.fakes.MemoryStore.read_all", without_tombstones)

    commit = MemoryStore.commit

    def add_over(memory: MemoryStore, *changes: Change) -> None:
        for change in changes:
            if change.before is None:
                memory._put(change.sandbox_id, change.after)
            else:
                commit(memory, change)

    monkeypatch.setattr(MemoryStore, "commit", add_over)
    with pytest.raises(Violation, match="sync sees it"):
        search(RecyclePolicy.REUSE)
