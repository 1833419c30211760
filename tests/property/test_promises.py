"""Random operations of two processes on one pool, with faults and crashes, against a small model of the promises.

After every step the promises 1, 2, 4, 5, 6, 10 and 11 are checked, 3 for every refusal and every place in the line, and
8 for every allocation (docs/contract.md).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from broker_common.core import comparison, line, purge, sync
from broker_common.core.errors import (
    AllocationEnded,
    BrokerError,
    DurationLimit,
    InvalidTransition,
    LeaseMismatch,
    ListingUnusable,
    ListNotWhole,
    NoSandboxesAvailable,
    NotSandboxOwner,
    OutcomeUnknown,
    Paused,
    ProviderBusy,
    ProviderCircuitOpen,
    ProviderFailing,
    ProviderMisconfigured,
    ProviderRejected,
    SandboxNotFound,
    StoreUnavailable,
    SyncBraked,
    TableChanged,
)
from broker_common.core.facts import Fact
from broker_common.core.lease import candidate_of
from broker_common.core.line import Place, Wish
from broker_common.core.policy import OPERATOR_MAX_SEC, Policy, RecyclePolicy
from broker_common.core.pool import remove, restore
from broker_common.core.ports import InactiveAccount, SkippedAccount, WipeAnswer
from broker_common.core.sandbox import Lease, Sandbox, Status
from broker_common.core.store import Conflict
from broker_common.core.waiting import LONGEST_SPACING_SEC, Waiting, WaitingLine
from tests import line_model
from tests.fakes import (
    BY,
    START,
    Crashed,
    FakeClock,
    FakeProvider,
    Fault,
    LaggingStore,
    MemoryStore,
    flat,
    make_account,
    make_sandbox,
)
from tests.lifecycle import Violation, check_change, check_histories, check_usage
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker_common.core.allocation import Allocation
    from broker_common.core.facts import Change
    from broker_common.core.sandbox import Account, Claim

PROFILE = settings(
    max_examples=130,
    stateful_step_count=50,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

TRACKS = ("ann", "bob", "cho")
CUSTOMER_OF = {"ann": "one", "bob": "one", "cho": None}
IDS = ("s0", "s1", "s2", "s3", "s4")
BORN: Account = make_account("s5", name="gpu-s5")
ACCOUNTS = {each: make_account(each, name=f"{'gpu' if each > 's2' else 'lab'}-{each}") for each in IDS}
POLICY = Policy(deletion_max_attempts=3, stale_brake_min=2, k_candidates=2)
OVERDUE = POLICY.lab_duration_sec + POLICY.expiry_buffer_sec

tracks = st.sampled_from(TRACKS)
keys = st.sampled_from(["k1", "k2"])
prefixes = st.sampled_from(["", "", "lab-", "gpu-"])
ids = st.sampled_from([*IDS, "s5", "s9", "unknown"])
some_id = st.none() | st.none() | st.sampled_from(IDS)
processes = st.integers(0, 1)
faults = st.lists(
    st.sampled_from([None, None, None, None, *(fault for fault in Fault if fault is not Fault.CONTENDED)]), max_size=3
)
answers = st.sampled_from(
    [
        WipeAnswer.WIPED,
        WipeAnswer.WIPED,
        WipeAnswer.ACCEPTED,
        WipeAnswer.GONE,
        ProviderFailing("500", outcome_unknown=False),
        ProviderFailing("no answer", outcome_unknown=True),
        ProviderRejected("400"),
        ProviderMisconfigured("401"),
        Crashed,
    ]
)


class Promises(RuleBasedStateMachine):
    """Two processes over one store; subclasses choose the recycle policy and the store."""

    recycle = RecyclePolicy.REUSE
    cool_down_sec = 0
    lag = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.memory = LaggingStore(self.clock, Random(7), lag=self.lag) if self.lag else MemoryStore(self.clock)
        self.provider = FakeProvider(self.memory)
        self.provider.during_delete = self._deleting
        self.memory.on_write = self._written
        policy = replace(POLICY, recycle=self.recycle, cool_down_sec=self.cool_down_sec)
        processes = [
            flaky_world(
                clock=self.clock,
                memory=self.memory,
                provider=self.provider,
                policy=policy,
                seed=seed,
                k_candidates=2,
            )
            for seed in (1, 2)
        ]
        self.worlds = [world for world, _ in processes]
        self.flaky = [store for _, store in processes]
        self.used: set[str] = set()
        """Accounts in which a student has worked since the provider last confirmed a wipe."""
        self.answered: dict[str, Claim] = {}
        """Allocations that a track knows and that nothing has ended, by lease."""
        self.free_since: dict[str, float] = {}
        self.told: dict[tuple[str, str], Waiting] = {}
        """The places that tracks know."""
        self.places: dict[str, Place] = {}
        """The stored places after the last step, by id."""
        self.moved_at = float("-inf")
        """When last a sandbox was taken, or a place was new, gone, or no longer late: that may move what is due to whom."""
        self.wiping: dict[str, str | None] = {}
        """The attempt whose delete call the provider last confirmed, by sandbox."""
        self.answer: Any = WipeAnswer.WIPED
        self.writes: list[tuple[Sandbox | None, Sandbox | None]] = []
        """Every write of a record, as it was before and after."""
        self.is_emptied = False
        self.checked = 0
        """How many facts were held against their writes."""

    # -- what is watched all the time

    def _written(self, before: Sandbox | None, after: Sandbox | None) -> None:
        was, becomes = (each.status if each else None for each in (before, after))
        one = after or before
        assert one
        self.writes.append((before, after))
        if before and after and before.dirty and not after.dirty:
            assert self.wiping.get(one.sandbox_id) == flat(before).attempt_id is not None, "cleaned without a wipe"
        if before and after is None:
            self.is_emptied |= len(self._sandboxes()) == 1
            assert was is Status.DELETED or not before.dirty, "a used sandbox left no tombstone"
            if was is Status.DELETED:
                self._forget(one)
        if before and after and before.dirty and before.account_key != after.account_key:
            self._forget(before)
        if becomes is Status.ALLOCATED:
            self.used.add(one.account_key)
        if becomes is Status.AVAILABLE:
            assert one.account_key not in self.used, "a used sandbox became available"
            if was is not Status.AVAILABLE:
                self.free_since[one.sandbox_id] = self.clock.monotonic()
        else:
            self.free_since.pop(one.sandbox_id, None)
        if was is Status.AVAILABLE:
            self.moved_at = self.clock.monotonic()

    def _forget(self, gone: Sandbox) -> None:
        """Hold it to the list that an account is given up for lost: that list is whole, and lacks it."""
        assert self.provider.doubt is None, "an account was given up for a list that is not whole"
        assert gone.account_key not in self.provider.listing().account_keys, "an account was given up that is listed"
        self.used.discard(gone.account_key)

    def _deleting(self, external_id: str) -> None:
        record = self.provider.deletes[-1].record
        assert record, f"the provider was asked to delete {external_id}, which has no record"
        assert record.status is Status.PENDING_DELETION, f"the provider was asked to delete what is {record.status}"
        assert flat(record).attempt_id
        answer = self.answer
        if answer is Crashed:
            raise Crashed
        if answer in {WipeAnswer.WIPED, WipeAnswer.ACCEPTED}:
            self.used.discard(record.account_key)
            self.wiping[record.sandbox_id] = flat(record).attempt_id
        self.provider.answers.append(answer)

    @contextmanager
    def _process(self, index: int, failing: Sequence[Fault | None] = ()) -> Iterator[World]:
        """Act as one process, whose writes fail so; a crash starts it again."""
        self.flaky[index].fail_writes(*failing)
        try:
            yield self.worlds[index]
        except Crashed:
            self.worlds[index].start()
        except TableChanged:
            # The last record has gone, for good: to the broker that looks as if the table were another one.
            assert self.is_emptied
        finally:
            self.flaky[index].fail_writes()

    def _sandboxes(self) -> dict[str, Sandbox]:
        return self.memory.dump()[0]

    def _claims(self) -> dict[tuple[str, str], Claim]:
        return self.memory.dump()[1]

    def _forget_ended(self, may_end: Callable[[Claim], bool]) -> None:
        """Drop the allocations that have ended in the store, each of which the step just taken may have ended."""
        sandboxes = self._sandboxes()
        for lease, claim in list(self.answered.items()):
            if flat(sandboxes[claim.sandbox_id]).lease_id != lease:
                assert may_end(claim), f"{claim} was ended by nobody who may"
                del self.answered[lease]

    # -- steps

    @initialize(free=st.integers(0, len(IDS)))
    def fill(self, free: int) -> None:
        for number, sandbox_id in enumerate(IDS[:free]):
            self.memory.seed(make_sandbox(sandbox_id, name=ACCOUNTS[sandbox_id].name, status_order=number * 2**50))
            self.free_since[sandbox_id] = float("-inf")

    @rule(index=processes, track=tracks, key=keys, prefix=prefixes, waits=st.booleans(), failing=faults)
    def allocate(
        self, index: int, track: str, key: str, prefix: str, failing: list[Fault | None], *, waits: bool = False
    ) -> None:
        held = self._claims().get((track, key))
        overdue = held is not None and held.lease.is_overdue(self.clock.now(), POLICY)
        request = _Request(self, track, key, prefix)
        answer: Allocation | Waiting | None = None
        with self._process(index, failing) as world:
            try:
                if waits:
                    answer = world.wait(track, key, prefix=prefix, customer=CUSTOMER_OF[track])
                else:
                    answer = world.allocate(track, key, prefix)
            except NoSandboxesAvailable:
                assert not waits, "the line is never full here"
                assert held is None or overdue, "a track that holds a sandbox was refused"
                request.check_refusal()
            except Paused:
                assert held is None or overdue
            except StoreUnavailable:
                assert failing
            if isinstance(answer, Waiting):
                assert held is None or overdue, "a track that holds a sandbox waits"
                request.check_refusal()
                request.check_place(answer)
                self.told[track, key] = answer
            elif answer is not None:
                claim = answer.claim
                assert claim == self._claims()[track, key]
                if held is not None and not overdue:
                    assert claim == held
                    assert answer.replayed
                else:
                    assert not answer.replayed
                    assert claim.name.startswith(prefix)
                    request.check_turn(claim.sandbox_id)
                self.answered[claim.lease.lease_id] = claim
        self._forget_ended(lambda ended: overdue and ended == held)

    @rule(index=processes, track=tracks, key=keys, failing=faults)
    @precondition(lambda self: self.places)
    def give_up(self, index: int, track: str, key: str, failing: list[Fault | None]) -> None:
        place = self.memory.read_place(track, key)
        if place is not None:
            self.told.pop((track, key), None)
            with self._process(index, failing) as world:
                try:
                    world.line.leave(place)
                except StoreUnavailable:
                    assert failing
                else:
                    assert self.memory.read_place(track, key) is None

    @rule(
        index=processes,
        track=tracks,
        sandbox_id=ids,
        lease=st.sampled_from(["none", "right", "wrong"]),
        failing=faults,
    )
    def mark(self, index: int, track: str, sandbox_id: str, lease: str, failing: list[Fault | None]) -> None:
        record = self._sandboxes().get(sandbox_id)
        right = record.latest_lease_id if record else None
        lease_id = {"none": None, "right": right, "wrong": "another-lease"}[lease]
        owner = record and (flat(record).allocated_to_track or flat(record).last_track_id)
        accepted = False
        with self._process(index, failing) as world:
            try:
                ending = world.mark(sandbox_id, track, lease_id=lease_id)
            except SandboxNotFound:
                assert record is None or record.status is Status.DELETED
            except NotSandboxOwner:
                assert owner != track
            except LeaseMismatch:
                assert lease == "wrong"
            except OutcomeUnknown:
                assert failing
            except StoreUnavailable:
                assert failing
            else:
                accepted = True
                assert record
                assert owner == track
                assert ending.repeated == (record.status is not Status.ALLOCATED)
                assert ending.sandbox == self._sandboxes()[sandbox_id]
        if accepted:
            assert self._sandboxes()[sandbox_id].status is not Status.ALLOCATED
        self._forget_ended(
            lambda ended: ended.lease.track_id == track and ended.sandbox_id == sandbox_id and lease != "wrong"
        )

    @rule(
        index=processes,
        track=st.none() | tracks,
        sandbox_id=ids,
        lease=st.sampled_from(["none", "right", "wrong"]),
        seconds=st.sampled_from([-3600, 0, 60, 3600, 6 * 3600, 31 * 24 * 3600]),
        failing=faults,
    )
    def extend(
        self, *, index: int, track: str | None, sandbox_id: str, lease: str, seconds: int, failing: list[Fault | None]
    ) -> None:
        """Extend a lease as its track, or as an operator if `track` is None; `seconds` are beyond its end."""
        record = self._sandboxes().get(sandbox_id)
        held = record.lease if record else None
        right = record.latest_lease_id if record else None
        lease_id = {"none": None, "right": right, "wrong": "another-lease"}[lease]
        until = (held.expires_at if held else self.clock.now()) + seconds
        longest = POLICY.max_lab_duration_sec if track else OPERATOR_MAX_SEC
        named = {"sandbox_id": sandbox_id, "expires_at": until, "lease_id": lease_id}
        with self._process(index, failing) as world:
            try:
                if track is None:
                    extension = world.leases.extend_for_operator(**named, by=BY)  # type: ignore[arg-type] # as named
                else:
                    extension = world.leases.extend(**named, track_id=track, by=BY)  # type: ignore[arg-type] # as named
            except SandboxNotFound:
                assert record is None or (track is not None and record.status is Status.DELETED)
            except NotSandboxOwner:
                assert record
                assert record.latest_track_id != track is not None
            except LeaseMismatch:
                assert lease == "wrong"
            except AllocationEnded:
                assert held is None
            except DurationLimit:
                assert held
                assert until > max(held.allocated_at + longest, held.expires_at)
            except StoreUnavailable:
                assert failing
            else:
                assert held
                assert until <= extension.lease.expires_at == max(until, held.expires_at)
                assert extension.lease.expires_at <= max(held.allocated_at + longest, held.expires_at)
                assert extension.unchanged == (seconds <= 0)
        self._note_extension(sandbox_id, {until, held.expires_at if held else None})
        self._forget_ended(lambda _: False)

    def _note_extension(self, sandbox_id: str, possible: set[int | None]) -> None:
        """Expect the new end of a lease from now on. Whether one was written is only known afterwards."""
        for claim in self._claims().values():
            if claim.sandbox_id == sandbox_id:
                assert claim.lease.expires_at in possible
                self.answered[claim.lease.lease_id] = claim

    @rule(index=processes, sandbox_id=ids, right=st.booleans(), failing=faults)
    def release(self, index: int, sandbox_id: str, right: bool, failing: list[Fault | None]) -> None:
        record = self._sandboxes().get(sandbox_id)
        lease_id = (record and right and record.latest_lease_id) or "another-lease"
        with self._process(index, failing) as world:
            try:
                world.leases.release(by=BY, sandbox_id=sandbox_id, lease_id=lease_id)
            except (SandboxNotFound, LeaseMismatch):
                assert record is None or record.latest_lease_id != lease_id
            except StoreUnavailable:
                assert failing
        self._forget_ended(lambda ended: ended.lease.lease_id == lease_id)

    @rule(index=processes, failing=faults)
    def expire(self, index: int, failing: list[Fault | None]) -> None:
        now = self.clock.now()
        with self._process(index, failing) as world:
            world.expirer.run(by=BY)
        self._forget_ended(lambda ended: now >= ended.lease.expires_at + POLICY.expiry_buffer_sec)

    @rule(
        index=processes,
        missing=st.sets(st.sampled_from(IDS), max_size=3),
        born=st.booleans(),
        renamed=st.none() | st.sampled_from(IDS),
        skipped=st.sampled_from([(), (), (SkippedAccount("no name", "s1"),)]),
        off=st.sets(st.sampled_from(IDS), max_size=2),
        renumbered=some_id,
        renewed=some_id,
        twins=some_id,
        capitals=st.booleans(),
        doubt=st.sampled_from([None, None, None, "it shifted"]),
        broken=st.sampled_from([False, False, False, False, True]),
        force=st.booleans(),
        meanwhile=st.sampled_from(["nothing", "nothing", "delete", "allocate", "mark", "quarantine", "retry"]),
        failing=faults,
    )
    def sync(
        self,
        *,
        index: int,
        missing: set[str],
        born: bool,
        renamed: str | None,
        skipped: tuple[SkippedAccount, ...],
        off: set[str],
        renumbered: str | None,
        renewed: str | None,
        twins: str | None,
        capitals: bool,
        doubt: str | None,
        broken: bool,
        force: bool,
        meanwhile: str,
        failing: list[Fault | None],
    ) -> None:
        self._list(
            missing | {each.sandbox_id or "" for each in skipped},
            renamed=renamed,
            renewed=renewed,
            renumbered=renumbered,
            off=off,
            twins=twins,
            spell=str.upper if capitals else str,
        )
        if born:
            self.provider.accounts = [*self.provider.accounts, BORN]
        self.provider.skipped, self.provider.doubt = skipped, doubt
        self.provider.listing_error = ListingUnusable("empty") if broken or not self.provider.accounts else None
        before = self._sandboxes()
        ended_by: list[str] = []
        self.provider.during_list = lambda: self._meanwhile(meanwhile, 1 - index, ended_by)
        with self._process(index, failing) as world:
            try:
                world.syncer.run(by=BY, force=force)
            except ListingUnusable:
                assert self.provider.listing_error
                assert meanwhile != "nothing" or self._sandboxes() == before
            except SyncBraked:
                assert not force
            except ListNotWhole:
                assert doubt
            except StoreUnavailable:
                assert failing
            else:
                assert not doubt or failing
        if meanwhile == "nothing":
            self._check_synced(before)
        self.provider.during_list = lambda: None
        self._forget_ended(lambda ended: ended.lease.lease_id in ended_by)

    def _check_synced(self, before: dict[str, Sandbox]) -> None:
        """Hold what a sync alone has written to the list that it had."""
        doubt, listed = self.provider.doubt, self.provider.listing().account_keys
        for sandbox_id, record in before.items():
            after = self._sandboxes().get(sandbox_id)
            if record.status in {Status.ALLOCATED, Status.PENDING_DELETION}:
                assert after == record
            if doubt or record.account_key in listed:
                assert after or record.status is Status.STALE, "a sandbox was forgotten that is listed"
            if doubt and record.status is not Status.STALE:
                assert after
                assert after.status is not Status.STALE, "absence was inferred from a list that is not whole"

    def _list(
        self,
        left_out: set[str],
        *,
        renamed: str | None,
        renewed: str | None,
        renumbered: str | None,
        off: set[str],
        twins: str | None,
        spell: Callable[[str], str],
    ) -> None:
        """Have the provider list its accounts so."""
        listed = []
        for sandbox_id, account in ACCOUNTS.items():
            external_id = f"{account.external_id}-b" if sandbox_id == renewed else account.external_id
            entry = replace(
                account,
                sandbox_id="s9" if sandbox_id == renumbered else sandbox_id,
                external_id=spell(external_id),
                name=f"{account.name}x" if sandbox_id == renamed else account.name,
            )
            if sandbox_id not in left_out:
                listed.append(entry)
        twin = [each for each in listed if each.sandbox_id == twins]
        self.provider.accounts = [each for each in listed if each.sandbox_id not in {*off, twins}]
        self.provider.ambiguous = [*twin, *[replace(each, sandbox_id="s8") for each in twin]]
        self.provider.inactive = [
            InactiveAccount(each.sandbox_id, each.key) for each in listed if each.sandbox_id in off - {twins}
        ]

    def _meanwhile(self, what: str, index: int, ended_by: list[str]) -> None:
        """Let another process do something while a sync waits for the provider's list."""
        world = self.worlds[index]
        try:
            if what == "delete":
                for sandbox_id in list(world.cleaner.find_due()):
                    world.cleaner.delete_sandbox(sandbox_id, by=BY)
            elif what == "allocate":
                ended_by += [
                    claim.lease.lease_id
                    for claim in self.answered.values()
                    if claim.lease.track_id == "dan" and claim.lease.is_overdue(self.clock.now(), POLICY)
                ]
                claim = world.allocate("dan", "k1").claim
                self.answered[claim.lease.lease_id] = claim
            elif what == "mark":
                for lease, claim in list(self.answered.items()):
                    ended_by.append(lease)
                    world.mark(claim.sandbox_id, claim.lease.track_id)
            elif what == "quarantine":
                world.operations.quarantine("s0", by=BY, reason="odd")
            elif what == "retry":
                world.operations.bulk_retry(by=BY)
        except BrokerError:
            pass
        except Crashed:
            world.start()

    @rule(index=processes, answer=answers, failing=faults, overtaken=st.booleans())
    def cleanup(self, index: int, answer: Any, failing: list[Fault | None], overtaken: bool) -> None:
        """Delete what is due; `overtaken` lets each call hang until another process has tried as well."""
        self.answer = answer
        hanging = self.provider.during_delete

        def hang(external_id: str) -> None:
            self.provider.during_delete = hanging
            self.clock.advance(POLICY.attempt_window_sec + 1)
            with self._process(1 - index) as other:
                for sandbox_id in list(other.cleaner.find_due()):
                    other.cleaner.delete_sandbox(sandbox_id, by=BY)
            self.provider.answers.append(ProviderFailing("no answer", outcome_unknown=True))

        with self._process(index, failing) as world:
            for sandbox_id in list(world.cleaner.find_due()):
                self.provider.during_delete = hang if overtaken else hanging
                try:
                    world.cleaner.delete_sandbox(sandbox_id, by=BY)
                finally:
                    self.provider.during_delete = hanging
        self.answer = WipeAnswer.WIPED
        self.provider.answers.clear()
        self._forget_ended(lambda _: False)

    @rule(index=processes, refused=st.sampled_from([ProviderBusy("slots"), ProviderCircuitOpen("open")]))
    def cleanup_without_a_slot(self, index: int, refused: BrokerError) -> None:
        before = self._sandboxes()
        self.provider.admit_error = refused
        for sandbox_id in list(self.worlds[index].cleaner.find_due()):
            try:
                self.worlds[index].cleaner.delete_sandbox(sandbox_id, by=BY)
            except ProviderBusy as busy:
                assert busy is refused  # noqa: PT017 - any other would be a bug
        self.provider.admit_error = None
        # What has rested needs no call.
        is_paused = self.worlds[index].pauses.current().cleanup
        rested = {each for each, record in before.items() if not is_paused and record.is_rested(self.clock.now())}
        after = self._sandboxes()
        assert all(after[sandbox_id] == record for sandbox_id, record in before.items() if sandbox_id not in rested)
        assert not any(after[sandbox_id].is_cooling for sandbox_id in rested)

    @rule(index=processes, sandbox_id=ids, failing=faults, what=st.sampled_from(["quarantine", "lift", "retry"]))
    def operate(self, index: int, sandbox_id: str, failing: list[Fault | None], what: str) -> None:
        record = self._sandboxes().get(sandbox_id)
        held = {Status.ALLOCATED, Status.PENDING_DELETION}
        fits = {
            "quarantine": {Status.AVAILABLE, Status.STALE, *held},
            "lift": held,
            "retry": {Status.DELETION_FAILED},
        }[what]
        with self._process(index, failing) as world:
            try:
                if what == "quarantine":
                    world.operations.quarantine(sandbox_id, by=BY, reason="odd")
                elif what == "lift":
                    world.operations.lift_quarantine(sandbox_id, by=BY)
                else:
                    world.operations.retry_deletion(sandbox_id, by=BY)
            except SandboxNotFound:
                assert record is None
            except InvalidTransition:
                assert record
                assert record.status not in fits
            except StoreUnavailable:
                assert failing
        self._forget_ended(lambda _: False)

    @rule(
        index=processes,
        what=st.sampled_from(["retry", Status.STALE, Status.DELETION_FAILED, "purge"]),
        failing=faults,
    )
    def bulk(self, index: int, what: str, failing: list[Fault | None]) -> None:
        young = {
            sandbox_id: record
            for sandbox_id, record in self._sandboxes().items()
            if record.status is not Status.STALE
            or self.clock.now() - (record.stale_since or 0) < POLICY.stale_grace_sec
        }
        with self._process(index, failing) as world:
            try:
                if what == "retry":
                    world.operations.bulk_retry(by=BY)
                elif what == "purge":
                    world.purger.run(by=BY)
                else:
                    world.purger.bulk_delete(Status(what), by=BY)
            except StoreUnavailable:
                assert failing
        if what == "purge":
            assert self._sandboxes().items() >= young.items()
        self._forget_ended(lambda _: False)

    @rule(index=processes, what=st.sampled_from(["allocate", "cleanup"]), paused=st.booleans())
    def pause(self, index: int, what: str, paused: bool) -> None:
        self.worlds[index].pauses.set({what: paused}, by=BY)

    @rule(seconds=st.sampled_from([0.5, 1.5, 3, 4, 8, 61, 3600, OVERDUE, 25 * 3600]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(index=processes)
    def restart(self, index: int) -> None:
        self.worlds[index].start()

    @rule(index=processes, track=tracks)
    @precondition(lambda self: self.answered)
    def list_held(self, index: int, track: str) -> None:
        held = {flat(each).lease_id for each in self.worlds[index].leases.list_held(track_id=track)}
        assert held == {claim.lease.lease_id for claim in self._claims().values() if claim.lease.track_id == track}

    # -- promises

    @invariant()
    def each_change_has_its_fact_and_no_other_fact_is_told(self) -> None:
        facts = [fact for fact in self.memory.facts[self.checked :] if isinstance(fact, Fact)]
        by_name = {(fact.sandbox_id, fact.version): fact for fact in facts}
        assert len(by_name) == len(facts), "a change was told twice"
        for before, after in self.writes:
            one = after or before
            assert one
            if after:
                fact = by_name.pop((one.sandbox_id, after.version), None)
            else:
                fact = next(
                    (fact for fact in by_name.values() if (fact.sandbox_id, fact.status) == (one.sandbox_id, None)),
                    None,
                )
                assert fact, "a removal has no fact"
                del by_name[fact.sandbox_id, fact.version]
            check_change(before, after, fact)
        assert not by_name, "a fact was written without a change"
        if facts:
            check_histories(self.memory.facts, self._sandboxes())
            check_usage(self.memory.facts, self.memory.usage.values())
        self.checked = len(self.memory.facts)
        self.writes.clear()

    @invariant()
    def nobody_has_two_places_or_a_place_and_a_claim(self) -> None:
        places = {each.place_id: each for each in MemoryStore.read_line(self.memory)}
        owners = [(each.track_id, each.idempotency_key) for each in places.values()]
        assert len(set(owners)) == len(owners)
        assert not set(owners) & self._claims().keys()
        renewed = [each for each in self.places.values() if each.place_id in places and places[each.place_id] != each]
        if places.keys() != self.places.keys() or any(line_model.is_late(each, self.clock.now()) for each in renewed):
            self.moved_at = self.clock.monotonic()
        self.places = places

    @invariant()
    def a_claim_exists_exactly_while_its_sandbox_is_allocated_under_its_lease(self) -> None:
        sandboxes, claims = self.memory.dump()
        held = {
            (each.lease.track_id, each.lease.idempotency_key): (each.sandbox_id, each.lease)
            for each in sandboxes.values()
            if each.lease
        }
        assert held == {key: (claim.sandbox_id, claim.lease) for key, claim in claims.items()}

    @invariant()
    def every_sandbox_has_one_holder_and_every_answered_allocation_stands(self) -> None:
        claims = self._claims()
        assert len({claim.sandbox_id for claim in claims.values()}) == len(claims)
        for claim in self.answered.values():
            assert claims[claim.lease.track_id, claim.lease.idempotency_key] == claim

    @invariant()
    def one_account_has_one_record(self) -> None:
        accounts = [sandbox.account_key for sandbox in self._sandboxes().values()]
        assert len(set(accounts)) == len(accounts)

    @invariant()
    def no_used_sandbox_is_available_or_thought_clean(self) -> None:
        assert self.used <= {sandbox.account_key for sandbox in self._sandboxes().values()}
        for sandbox in self._sandboxes().values():
            if sandbox.account_key in self.used:
                assert sandbox.dirty
                assert sandbox.status is not Status.AVAILABLE

    @invariant()
    def all_that_waits_to_be_wiped_will_be_found(self) -> None:
        for sandbox in self._sandboxes().values():
            if sandbox.status is Status.PENDING_DELETION:
                due_at = flat(sandbox).ready_at or flat(sandbox).next_attempt_at
                assert sandbox.status_order == due_at
                assert due_at - self.clock.now() <= POLICY.deletion_backoff_max_sec

    @property
    def window(self) -> float:
        """For how many seconds a process may not know what has moved in the line, or in the index if that lags."""
        return 2 + (self.lag and self.lag + LONGEST_SPACING_SEC)

    def teardown(self) -> None:
        """Let the provider answer again: everything that was given back is wiped, and nothing waits for ever."""
        self.worlds[0].pauses.set({"cleanup": False, "allocate": False}, by=BY)
        self.answer = WipeAnswer.WIPED
        for _ in range(3 if self.cool_down_sec else 2):
            self.clock.advance(POLICY.deletion_backoff_max_sec + 5)
            for sandbox_id in list(self.worlds[0].cleaner.find_due()):
                self.worlds[0].cleaner.delete_sandbox(sandbox_id, by=BY)
        assert Status.PENDING_DELETION not in {each.status for each in self._sandboxes().values()}


class _Request:
    """What the line and the pool were when a request arrived, to judge its answer."""

    def __init__(self, machine: Promises, track: str, key: str, prefix: str) -> None:
        self._machine = machine
        self._now, self._arrived_at = machine.clock.now(), machine.clock.monotonic()
        self._wish = Wish(prefix=prefix)
        self._places = list(machine.places.values())
        self._own = machine.memory.read_place(track, key)
        self._told = machine.told.pop((track, key), None)
        settled = self._arrived_at - 1 - machine.lag
        self._sandboxes = machine.memory.dump()[0]
        self._free_since = dict(machine.free_since)
        self._free = [each for each, since in self._free_since.items() if since < settled and self._fits(each)]
        self._is_settled = machine.moved_at < self._arrived_at - machine.window

    def _fits(self, sandbox_id: str) -> bool:
        return self._sandboxes[sandbox_id].name.startswith(self._wish.prefix)

    def _open(self, now: int) -> set[str]:
        """Return the sandboxes that the request may try at a time."""
        own = self._own if self._own and self._own.wish == self._wish else None
        places = [each for each in self._places if own or each != self._own]
        free = [candidate_of(self._sandboxes[each]) for each in self._free_since]
        return line_model.may_have(self._wish, own, places, free, now)

    def _times(self) -> range:
        return range(int(self._now - self._machine.window) - 1, self._machine.clock.now() + 1)

    def check_refusal(self) -> None:
        """Check promise 3: nothing was free all the time, but what was due to places ahead."""
        if not self._places:
            assert self._free == [], "a track was refused though a sandbox was free"
        elif self._is_settled:
            free = set(self._free).intersection(*(self._open(now) for now in self._times()))
            assert not free, "a track was refused though a sandbox was free that was due to nobody ahead"

    def check_turn(self, sandbox_id: str) -> None:
        """Check promise 8: the sandbox was not all the time due to a place ahead."""
        if self._is_settled and sandbox_id in self._free_since:
            allowed = set[str]().union(*(self._open(now) for now in self._times()))
            assert sandbox_id in allowed, "a track took a sandbox that was due to a place ahead of it"

    def check_place(self, answer: Waiting) -> None:
        """Check promise 8: a track that comes back in time has its place still."""
        told, clock = self._told, self._machine.clock
        assert self._machine.memory.read_place(answer.place.track_id, answer.place.idempotency_key) == answer.place
        assert answer.place.back_by <= clock.now() + answer.retry_after
        if told is not None and told.place.wish == self._wish and clock.now() <= told.kept_until:
            assert answer.place.place_id == told.place.place_id, "a track that came back in time lost its place"


class Confirming(Promises):
    recycle = RecyclePolicy.CONFIRM


class Retiring(Promises):
    recycle = RecyclePolicy.RETIRE


class Cooling(Promises):
    cool_down_sec = 30


class Lagging(Promises):
    lag = 2.0


class LaggingConfirming(Lagging):
    recycle = RecyclePolicy.CONFIRM


class LaggingRetiring(Lagging):
    recycle = RecyclePolicy.RETIRE


def _case(machine: type[Promises]) -> Any:
    case = machine.TestCase
    case.settings = PROFILE
    return case


def _wait(machine: Promises, seconds: float) -> None:
    """Let ann wait in line for some time, at the first process, and then a sandbox come."""
    machine.fill(free=0)
    machine.allocate(index=0, track="ann", key="k1", prefix="", failing=[], waits=True)
    machine.nobody_has_two_places_or_a_place_and_a_claim()
    machine.wait(seconds=seconds)
    machine.fill(free=1)


def test_the_model_objects_to_a_process_that_ignores_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Promises()
    _wait(machine, 3)
    monkeypatch.setattr(WaitingLine, "is_clear_for", lambda *_: True)
    with pytest.raises(AssertionError, match="due to a place ahead"):
        machine.allocate(index=1, track="bob", key="k1", prefix="", failing=[])


def test_the_model_objects_to_a_dead_place_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Promises()
    _wait(machine, 61)
    monkeypatch.setattr(line, "LATE_SEC", POLICY.line_grace_sec)
    with pytest.raises(AssertionError, match="due to nobody ahead"):
        machine.allocate(index=1, track="bob", key="k1", prefix="", failing=[])


def test_the_model_objects_to_a_place_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Promises()
    machine.fill(free=0)
    machine.allocate(index=0, track="ann", key="k1", prefix="", failing=[], waits=True)
    machine.wait(seconds=4)
    monkeypatch.setattr(Place, "is_kept", lambda *_: False)
    with pytest.raises(AssertionError, match="lost its place"):
        machine.allocate(index=1, track="ann", key="k1", prefix="", failing=[], waits=True)


def test_the_model_objects_to_a_place_beside_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Promises()
    _use(machine)
    place = Place(
        place_id="1", track_id="ann", idempotency_key="k1", wish=Wish(), round=0, joined_at=START, back_by=START
    )
    machine.memory._line[place.place_id] = place
    with pytest.raises(AssertionError):
        machine.nobody_has_two_places_or_a_place_and_a_claim()


def _use(machine: Promises) -> None:
    """Let a track use the only sandbox."""
    machine.fill(free=1)
    machine.allocate(index=0, track="ann", key="k1", prefix="", failing=[])


def _use_and_lose(machine: Promises) -> None:
    """Let a track use a sandbox, give it back, and the provider say that it has no such account."""
    _use(machine)
    machine.mark(index=0, track="ann", sandbox_id="s0", lease="none", failing=[])
    machine.cleanup(index=0, answer=WipeAnswer.GONE, failing=[], overtaken=False)


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every change through that the table of states forbids: what the model itself watches has to find it."""
    monkeypatch.setattr("tests.world.check_change", lambda *_: None)


def without_tombstone(sandbox: Sandbox, **arguments: Any) -> Change:
    """Remove a record as `pool.remove` removes one that is clean."""
    return replace(remove(replace(sandbox, dirty=False), **arguments), before=sandbox)


@pytest.mark.usefixtures("unjudged")
def test_the_model_objects_to_a_restore_that_forgets_dirt(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(sandbox: Sandbox, account: Account, **arguments: Any) -> Change:
        change = restore(replace(sandbox, dirty=False), account, **arguments)
        return replace(change, before=sandbox)

    machine = Promises()
    _use_and_lose(machine)
    monkeypatch.setattr(sync, "restore", forgetful)
    monkeypatch.setattr(sync, "is_thought_gone", lambda _: False)
    machine.provider.accounts = list(ACCOUNTS.values())
    with pytest.raises(AssertionError, match="without a wipe"):
        machine.worlds[1].syncer.run(by=BY)


def test_the_model_objects_to_a_tombstone_that_is_forgotten_while_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Retiring()
    _use_and_lose(machine)
    machine.provider.accounts = [ACCOUNTS["s1"]]
    machine.provider.inactive = [InactiveAccount("s0", ACCOUNTS["s0"].key)]
    monkeypatch.setattr(comparison.Comparison, "is_listed", lambda *_: False)
    with pytest.raises(AssertionError, match="is listed"):
        machine.worlds[1].syncer.run(by=BY)


def test_the_model_objects_to_absence_that_is_inferred_from_a_list_that_is_not_whole() -> None:
    machine = Retiring()
    _use_and_lose(machine)
    machine.provider.accounts, machine.provider.doubt = [ACCOUNTS["s1"]], "it shifted"
    inner = machine.provider.list_accounts
    machine.provider.list_accounts = lambda: replace(inner(), doubt=None)  # type: ignore[method-assign] # a planted bug
    with pytest.raises(AssertionError, match="not whole"):
        machine.worlds[1].syncer.run(by=BY)


@pytest.mark.usefixtures("unjudged")
def test_the_model_objects_to_a_removal_that_leaves_no_tombstone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Promises()
    _use_and_lose(machine)
    monkeypatch.setattr(purge, "remove", without_tombstone)
    with pytest.raises(AssertionError, match="no tombstone"):
        machine.bulk(index=0, what=Status.STALE, failing=[])


def test_the_model_objects_to_an_allocation_that_somebody_else_ended() -> None:
    machine = Promises()
    _use(machine)
    machine.worlds[1].mark("s0", "ann")
    with pytest.raises(AssertionError, match="nobody who may"):
        machine.expire(index=0, failing=[])


def extend_by_an_hour(machine: Promises) -> None:
    machine.extend(index=0, track="ann", sandbox_id="s0", lease="right", seconds=3600, failing=[])


def test_the_model_objects_to_an_expiry_before_the_latest_end_that_was_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Promises()
    _use(machine)
    extend_by_an_hour(machine)
    machine.wait(seconds=OVERDUE)
    monkeypatch.setattr(MemoryStore, "read_due", lambda *_, **__: iter(["s0"]))  # as an index that lags
    machine.expire(index=1, failing=[])
    monkeypatch.setattr(Lease, "is_overdue", lambda lease, now, _: now >= lease.allocated_at + OVERDUE)
    with pytest.raises(AssertionError, match="nobody who may"):
        machine.expire(index=1, failing=[])


def test_the_model_objects_to_an_extension_that_leaves_the_claim_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = MemoryStore.commit

    def forgetful(memory: MemoryStore, *changes: Change) -> None:
        claims = dict(memory._claims)
        commit(memory, *changes)
        memory._claims.update(claims)

    machine = Promises()
    _use(machine)
    monkeypatch.setattr(MemoryStore, "commit", forgetful)
    extend_by_an_hour(machine)
    with pytest.raises(AssertionError):
        machine.a_claim_exists_exactly_while_its_sandbox_is_allocated_under_its_lease()


def test_the_model_objects_to_a_change_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = MemoryStore.commit

    def forgetful(memory: MemoryStore, *changes: Change) -> None:
        commit(memory, *(replace(each, fact=None) for each in changes))

    machine = Promises()
    _use(machine)
    machine.each_change_has_its_fact_and_no_other_fact_is_told()
    monkeypatch.setattr(MemoryStore, "_check_fact", lambda *_: None)
    monkeypatch.setattr(MemoryStore, "commit", forgetful)
    machine.mark(index=0, track="ann", sandbox_id="s0", lease="none", failing=[])
    with pytest.raises(Violation, match="each change of status has its fact"):
        machine.each_change_has_its_fact_and_no_other_fact_is_told()


def test_the_model_objects_to_a_fact_of_a_write_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = MemoryStore.commit

    def boastful(memory: MemoryStore, *changes: Change) -> None:
        try:
            commit(memory, *changes)
        except Conflict:
            memory.facts += [each.fact for each in changes if each.fact]
            raise

    machine = Promises()
    machine.fill(free=1)
    machine.provider.accounts = [replace(ACCOUNTS["s0"], name="renamed"), ACCOUNTS["s1"]]

    def be_first() -> None:
        machine.worlds[0].allocate("ann", "k1")
        machine.clock.advance(1)

    machine.provider.during_list = be_first
    monkeypatch.setattr(MemoryStore, "commit", boastful)
    machine.worlds[1].syncer.run(by=BY)
    with pytest.raises(AssertionError, match="without a change"):
        machine.each_change_has_its_fact_and_no_other_fact_is_told()


def test_the_model_objects_to_a_change_that_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    write = MemoryStore._write

    def talkative(memory: MemoryStore, change: Change) -> None:
        write(memory, change)
        memory.facts += [change.fact] if change.fact else []

    machine = Promises()
    machine.fill(free=1)
    monkeypatch.setattr(MemoryStore, "_write", talkative)
    machine.allocate(index=0, track="ann", key="k1", prefix="", failing=[])
    with pytest.raises(AssertionError, match="told twice"):
        machine.each_change_has_its_fact_and_no_other_fact_is_told()


TestPromises = _case(Promises)
TestPromisesWhileCooling = _case(Cooling)
TestPromisesUnderConfirm = _case(Confirming)
TestPromisesUnderRetire = _case(Retiring)
TestPromisesOnALaggingIndex = _case(Lagging)
TestPromisesOnALaggingIndexUnderConfirm = _case(LaggingConfirming)
TestPromisesOnALaggingIndexUnderRetire = _case(LaggingRetiring)
