"""Bugs to plant: stores that break a promise, to see that the checker finds each.

Each is a mistake that a real broker could have. It waits a moment in its gap, so that a short run meets it.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from broker_common.adapters.dynamo_facts import encode_fact
from broker_common.adapters.dynamo_items import decode_sandbox, encode_claim, encode_sandbox, shard_of, status_key
from broker_common.adapters.dynamo_table import SHARDS
from broker_common.adapters.dynamo_transport import ConditionFailed
from broker_common.core.facts import Change, Fact, FactKind, allocated
from broker_common.core.lease import begin, end
from broker_common.core.policy import Policy
from broker_common.core.reservation import ReservationStage
from broker_common.core.sandbox import DeletionReason, Status, next_version
from broker_common.core.store import Allocated, CandidateGone, ClaimHeld, Conflict
from tests.fakes import BY, StoreWrapper

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.adapters.dynamo_fields import Item
    from broker_common.adapters.dynamo_store import DynamoStore
    from broker_common.adapters.dynamo_transport import DynamoTransport
    from broker_common.core.line import Place as WaitingPlace
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Candidate, Claim, Sandbox
    from broker_common.core.store import AllocateAnswer, SandboxStore
    from tests.fakes import MemoryStore


class Place(StrEnum):
    """The user of the broken store: the API's processes, or one use case of the worker, by its name there."""

    API = "api"
    SYNC = "syncer"
    EXPIRY = "expirer"
    CLEANUP = "cleaner"
    RESERVE = "reserver"


class Bug(StrEnum):
    """The kinds of bugs."""

    SYNC = "sync"
    """Sync writes without a condition."""
    CLAIM = "claim"
    """The claim is read before the transaction and is no part of it."""
    EXPIRY = "expiry"
    """Expiry ends the allocation that the sandbox has now, and not the lease that it read."""
    CLEANUP = "cleanup"
    """Cleanup calls the provider before it has begun an attempt."""
    LATE_FACT = "late-fact"
    """Cleanup writes the outcome of a wipe, and its fact later: a kill or a lost answer loses the fact."""
    EXTENSION = "extension"
    """An extension is written without a condition, over what ended the lease meanwhile."""
    FALSE_FACT = "false-fact"
    """An allocation is reported even if it failed."""
    IGNORED_LINE = "ignored-line"
    """A process does not look at the places ahead: who first sees a sandbox in the index gets it."""
    DEAD_HEAD = "dead-head"
    """A place whose track is gone blocks what is due to it, until its grace is over."""
    UNCHECKED_DRAW = "unchecked-draw"
    """A draw has no condition on its reservation: after the end, or after a cancel, it still draws."""

    @property
    def place(self) -> Place:
        """The place of the bug."""
        return _PLACES[self]


_PLACES = {
    Bug.SYNC: Place.SYNC,
    Bug.CLAIM: Place.API,
    Bug.EXPIRY: Place.EXPIRY,
    Bug.CLEANUP: Place.CLEANUP,
    Bug.LATE_FACT: Place.CLEANUP,
    Bug.EXTENSION: Place.API,
    Bug.FALSE_FACT: Place.API,
    Bug.IGNORED_LINE: Place.API,
    Bug.DEAD_HEAD: Place.API,
    Bug.UNCHECKED_DRAW: Place.API,
}


class Table(Protocol):
    """The table below a store, for writes that no store offers."""

    def put(self, sandbox: Sandbox) -> None:
        """Write a record without a condition."""

    def replace(self, before: Sandbox, after: Sandbox) -> None:
        """Write a record without a fact, if it is unchanged since its read; else raise `Conflict`."""

    def tell(self, fact: Fact) -> None:
        """Write a fact alone."""

    def take(self, candidate: Candidate, claim: Claim) -> bool:
        """Allocate a sandbox without a claim, if it is available at the candidate's version."""

    def put_claim(self, claim: Claim) -> None:
        """Write a claim without a condition."""

    def draw(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None
    ) -> AllocateAnswer:
        """Allocate a sandbox that is set aside, also if its reservation has ended or was cancelled."""


class MemoryTable:
    """`Table` in memory."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def put(self, sandbox: Sandbox) -> None:
        self._store._place(sandbox.sandbox_id, sandbox)

    def replace(self, before: Sandbox, after: Sandbox) -> None:
        current = self._store.get(before.sandbox_id)
        if current != before:
            raise Conflict(f"sandbox {before.sandbox_id} has changed", current=current)
        change = Change(before, after, None)
        self._store._check_reservation(change)
        self._store._follow_reservation(change)
        self.put(after)

    def tell(self, fact: Fact) -> None:
        others = [each for each in self._store.facts if not isinstance(each, Fact) or _name(each) != _name(fact)]
        self._store.facts[:] = [*others, fact]

    def take(self, candidate: Candidate, claim: Claim) -> bool:
        sandbox = self._store.get(candidate.sandbox_id)
        if sandbox is None or (sandbox.status, sandbox.version) != (Status.AVAILABLE, candidate.version):
            return False
        self.put(begin(sandbox, claim.lease, by=BY).result)
        return True

    def put_claim(self, claim: Claim) -> None:
        self._store._claims[claim.lease.track_id, claim.lease.idempotency_key] = claim

    def draw(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None
    ) -> AllocateAnswer:
        reservations, reservation_id = self._store.reservations, candidate.reservation_id or ""
        stored = reservations.get(reservation_id)
        if stored is None:
            return self._store.allocate(candidate, claim, by=by, token=token, place_id=place_id)
        ends_at = max(stored.ends_at, claim.lease.allocated_at + 1)
        reservations[reservation_id] = replace(stored, stage=ReservationStage.BOOKED, ends_at=ends_at)
        answer = self._store.allocate(candidate, claim, by=by, token=token, place_id=place_id)
        counted = reservations[reservation_id]
        reservations[reservation_id] = replace(stored, set_aside=counted.set_aside, drawn=counted.drawn)
        return answer


class DynamoTable:
    """`Table` on DynamoDB."""

    def __init__(self, store: DynamoStore) -> None:
        self._store = store

    def put(self, sandbox: Sandbox) -> None:
        self._put(encode_sandbox(sandbox, self._store._shards))

    def replace(self, before: Sandbox, after: Sandbox) -> None:
        self._store.commit(Change(before, after, None))

    def tell(self, fact: Fact) -> None:
        self._put(encode_fact(fact, shards=self._store._shards, days=self._store._history_days))

    def take(self, candidate: Candidate, claim: Claim) -> bool:
        version = next_version(candidate.version, claim.lease.allocated_at)
        changes = self._store._allocation(candidate, claim, version)
        place = status_key(Status.AVAILABLE, shard_of(candidate.sandbox_id, SHARDS))
        update = self._store._update(candidate.sandbox_id, place, candidate.version, changes)
        try:
            self._store._transport.write("update_item", **update)
        except ConditionFailed as failed:
            taken = failed.answer.get("Item")
            # An earlier try has written it.
            return bool(taken and decode_sandbox(taken, SHARDS).latest_lease_id == claim.lease.lease_id)
        return True

    def put_claim(self, claim: Claim) -> None:
        self._put(encode_claim(claim))

    def draw(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None
    ) -> AllocateAnswer:
        store: Any = copy(self._store)
        store._transport = _TransportOfDraws(self._store._transport)
        answer: AllocateAnswer = store.allocate(candidate, claim, by=by, token=token, place_id=place_id)
        return answer

    def _put(self, item: Item) -> None:
        self._store._transport.write("put_item", TableName=self._store._table, Item=item)


class _TransportOfDraws:
    """Sends transactions whose conditions on the end of a reservation always hold."""

    def __init__(self, inner: DynamoTransport) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def transact_once(self, **request: Any) -> Any:
        for action in request["TransactItems"]:
            for write in action.values():
                for term, reverse in (("stage = :booked", "stage <> :booked"), ("ends_at > :at", "ends_at <= :at")):
                    if term in write.get("ConditionExpression", ""):
                        either = f"({term} OR {reverse})"
                        write["ConditionExpression"] = write["ConditionExpression"].replace(term, either)
        return self._inner.transact_once(**request)


class Broken(StoreWrapper):
    """A store with a bug: around a correct one and its table. `stall` waits at the moment when the bug does harm."""

    def __init__(self, inner: SandboxStore, table: Table, stall: Callable[[], None]) -> None:
        super().__init__(inner)
        self._table = table
        self._stall = stall


class SyncWithoutCondition(Broken):
    """Writes back what sync read before it listed, over all changes since then."""

    def commit(self, *changes: Change) -> None:
        for change in changes:
            if change.before is None or change.after is None:
                super().commit(change)
            else:
                self._stall()
                self._table.put(change.after)


class ClaimLookedUp(Broken):
    """Uses the order of a textbook: read the claim; if the track has none, take a sandbox, then write the claim."""

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        held = self.inner.get_claim(claim.lease.track_id, claim.lease.idempotency_key)
        if held is not None:
            return ClaimHeld(held)
        self._stall()
        if not self._table.take(candidate, claim):
            return CandidateGone(self.inner.get(candidate.sandbox_id))
        self._table.put_claim(claim)
        return Allocated()


class ExpiryOfAnyLease(Broken):
    """Ends the allocation that the sandbox has at the write, and not the one of the read."""

    def commit(self, *changes: Change) -> None:
        (change,) = changes
        self._stall()
        current = self.inner.get(change.sandbox_id)
        if current is not None and current.status is Status.ALLOCATED:
            self.inner.commit(end(current, reason=DeletionReason.EXPIRED, by=BY, now=change.result.updated_at))


class CleanupWithoutTaking(Broken):
    """Does not write the begin of an attempt, so others try too; writes the outcome over the record of the read."""

    def __init__(self, inner: SandboxStore, table: Table, stall: Callable[[], None]) -> None:
        super().__init__(inner, table, stall)
        self._read: dict[str, Sandbox] = {}

    def commit(self, *changes: Change) -> None:
        (change,) = changes
        before, after = change.before, change.result
        if before is not None and after.wipe is not None and after.wipe.attempt_id is not None:
            self._read[before.sandbox_id] = before
            self._stall()
        else:
            super().commit(replace(change, before=self._read.pop(change.sandbox_id, before)))


class ExtensionOfAnyVersion(Broken):
    """Writes an extension over all changes since its read."""

    def commit(self, *changes: Change) -> None:
        (change,) = changes
        if change.fact is None or change.fact.kind is not FactKind.EXTENDED:
            super().commit(change)
        else:
            self._stall()
            self._table.put(change.result)
            self._table.tell(change.fact)


class ToldAfterwards(Broken):
    """Writes a change and then its fact, not both together."""

    def commit(self, *changes: Change) -> None:
        (change,) = changes
        if change.before is None or change.fact is None:
            super().commit(change)
        else:
            self._table.replace(change.before, change.result)
            self._stall()
            self._table.tell(change.fact)


class ToldAnyway(Broken):
    """Reports an allocation also if it did not succeed."""

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        answer = super().allocate(candidate, claim, by=by, token=token, place_id=place_id)
        if not isinstance(answer, Allocated):
            self._table.tell(allocated(candidate, claim, by=by))
        return answer


class LineIgnored(Broken):
    """Sees nobody in the line."""

    def read_line(self, *, limit: int | None = None) -> list[WaitingPlace]:
        return []


class DeadHead(Broken):
    """Counts a track as late only when its place would be given up."""

    def read_line(self, *, limit: int | None = None) -> list[WaitingPlace]:
        grace = Policy().line_grace_sec
        return [replace(each, back_by=each.back_by + grace) for each in super().read_line(limit=limit)]


class DrawUnchecked(Broken):
    """Draws a sandbox that is set aside, without a condition on its reservation."""

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        if candidate.reservation_id is None:
            return super().allocate(candidate, claim, by=by, token=token, place_id=place_id)
        self._stall()
        return self._table.draw(candidate, claim, by=by, token=token, place_id=place_id)


def _name(fact: Fact) -> object:
    return fact.sandbox_id, fact.version, fact.kind


_STORES: dict[Bug, Callable[[SandboxStore, Table, Callable[[], None]], SandboxStore]] = {
    Bug.SYNC: SyncWithoutCondition,
    Bug.CLAIM: ClaimLookedUp,
    Bug.EXPIRY: ExpiryOfAnyLease,
    Bug.CLEANUP: CleanupWithoutTaking,
    Bug.LATE_FACT: ToldAfterwards,
    Bug.EXTENSION: ExtensionOfAnyVersion,
    Bug.FALSE_FACT: ToldAnyway,
    Bug.IGNORED_LINE: LineIgnored,
    Bug.DEAD_HEAD: DeadHead,
    Bug.UNCHECKED_DRAW: DrawUnchecked,
}
_LONGEST_STALL = {
    Bug.SYNC: 0.3,
    Bug.CLAIM: 0.1,
    Bug.EXPIRY: 4.0,
    Bug.CLEANUP: 3.0,
    Bug.LATE_FACT: 1.0,
    Bug.EXTENSION: 2.0,
    Bug.FALSE_FACT: 0.0,
    Bug.IGNORED_LINE: 0.0,
    Bug.DEAD_HEAD: 0.0,
    Bug.UNCHECKED_DRAW: 0.1,
}


def break_store(
    bug: Bug,
    store: SandboxStore,
    table: Table,
    *,
    rng: Random | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> SandboxStore:
    """Return the broken store of a bug over a correct one. Give it only to the use case of the bug.

    `sleep` waits in the gap of the bug, for a time that `rng` draws.
    """
    draw, longest = rng or Random(), _LONGEST_STALL[bug]
    return _STORES[bug](store, table, lambda: sleep(draw.uniform(0, longest)))
