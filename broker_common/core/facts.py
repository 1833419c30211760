"""Facts: what happened to a sandbox or to the pool, and the change that each fact is stored with.

A fact is stored in the same transaction as its change, so that one never exists without the other. What is only counted
or logged is telemetry: see `telemetry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_common.core.sandbox import Candidate, Claim, Sandbox, Status, next_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from broker_common.core.principals import Actor
    from broker_common.core.reservation import Reservation

Detail = str | int | bool


class FactKind(StrEnum):
    """What can happen to a sandbox."""

    ADDED = "sandbox.added"
    UPDATED = "sandbox.updated"
    ALLOCATED = "sandbox.allocated"
    EXTENDED = "sandbox.extended"
    EXPIRING = "sandbox.expiring"
    MARKED = "sandbox.marked"
    RELEASED = "sandbox.released"
    EXPIRED = "sandbox.expired"
    WIPED = "sandbox.wiped"
    WIPE_FAILED = "sandbox.wipe_failed"
    NEEDS_ATTENTION = "sandbox.needs_attention"
    AVAILABLE = "sandbox.available"
    RESERVED = "sandbox.reserved"
    UNRESERVED = "sandbox.unreserved"
    RETRIED = "sandbox.retried"
    STALE = "sandbox.stale"
    RESTORED = "sandbox.restored"
    REMOVED = "sandbox.removed"
    QUARANTINED = "sandbox.quarantined"


class PoolFactKind(StrEnum):
    """What can happen to the pool as a whole."""

    PAUSED = "pool.paused"
    RESUMED = "pool.resumed"
    LOW = "pool.low"
    RECOVERED = "pool.recovered"
    SYNC_BRAKED = "sync.braked"
    RESERVATION_OPEN = "reservation.open"
    RESERVATION_SHORT = "reservation.short"
    RESERVATION_ENDED = "reservation.ended"
    WEBHOOK_DISABLED = "webhook.disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What happened to a sandbox. `sandbox_id`, `version` and `kind` together name the fact.

    `version` is the sandbox's version after the change. `status` is None if the record was removed. `status_before` is
    None if there was no record before. `at` is in Unix seconds.
    """

    kind: FactKind
    sandbox_id: str
    version: int
    at: int
    principal: str
    request_id: str | None = None
    track_id: str | None = None
    lease_id: str | None = None
    status: Status | None = None
    status_before: Status | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFact:
    """What happened to the pool. `fact_id` distinguishes facts of the same second."""

    kind: PoolFactKind
    fact_id: str
    at: int
    principal: str
    request_id: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A sandbox's record before and after a change, and the fact about the change.

    `before` is None if the record is added, `after` is None if it is removed. `fact` is None if nothing happened to the
    sandbox itself: a wipe attempt begins, or is cancelled.
    """

    before: Sandbox | None
    after: Sandbox | None
    fact: Fact | None

    @property
    def sandbox_id(self) -> str:
        """The id of the sandbox that changes."""
        return _existing(self.after, self.before).sandbox_id

    @property
    def result(self) -> Sandbox:
        """The record after the change; raises `ValueError` if the change removes it."""
        if self.after is None:
            raise ValueError(f"sandbox {self.sandbox_id} has no record after this change: it is removed")
        return self.after


def change(
    before: Sandbox | None,
    after: Sandbox | None,
    kind: FactKind,
    *,
    by: Actor,
    now: int,
    details: Mapping[str, Detail | None] | None = None,
) -> Change:
    """Return a change with its fact. Leaves out the `details` that are None.

    The details name the reservation for which the sandbox is, or was until now, set aside.
    """
    record = _existing(after, before)
    lease = record.latest_lease
    reservation_id = record.reservation_id or (before.reservation_id if before else None)
    fact = Fact(
        kind=kind,
        sandbox_id=record.sandbox_id,
        version=after.version if after else next_version(record.version, now),
        at=now,
        principal=by.principal,
        request_id=by.request_id,
        track_id=lease.track_id if lease else None,
        lease_id=lease.lease_id if lease else None,
        status=after.status if after else None,
        status_before=before.status if before else None,
        details={
            name: value
            for name, value in {**(details or {}), "reservation_id": reservation_id}.items()
            if value is not None
        },
    )
    return Change(before, after, fact)


def with_details(change: Change, details: Mapping[str, Detail]) -> Change:
    """Return a change whose fact, if it has one, has these details, too."""
    fact = change.fact
    return change if fact is None else replace(change, fact=replace(fact, details={**fact.details, **details}))


def allocated(candidate: Candidate, claim: Claim, *, by: Actor) -> Fact:
    """Return the fact that `candidate` is allocated under `claim`."""
    lease = claim.lease
    details = {
        "expires_at": lease.expires_at,
        "track_name": lease.track_name,
        "customer": lease.customer,
        "reservation_id": lease.reservation_id,
    }
    return Fact(
        kind=FactKind.ALLOCATED,
        sandbox_id=candidate.sandbox_id,
        version=next_version(candidate.version, lease.allocated_at),
        at=lease.allocated_at,
        principal=by.principal,
        request_id=by.request_id,
        track_id=lease.track_id,
        lease_id=lease.lease_id,
        status=Status.ALLOCATED,
        status_before=Status.AVAILABLE if candidate.reservation_id is None else Status.RESERVED,
        details={name: value for name, value in details.items() if value is not None},
    )


def of_reservation(
    kind: PoolFactKind, reservation: Reservation, *, fact_id: str, at: int, by: Actor, cancelled: bool = False
) -> PoolFact:
    """Return a fact about a reservation, with its counts."""
    details: dict[str, str | int | bool] = {
        "reservation_id": reservation.reservation_id,
        "name": reservation.name,
        "count": reservation.count,
        "set_aside": reservation.set_aside,
        "drawn": reservation.drawn,
        # What is cancelled lacks nothing any more.
        "short_by": 0 if cancelled else max(0, reservation.lacking),
    }
    return PoolFact(
        kind=kind,
        fact_id=fact_id,
        at=at,
        principal=by.principal,
        request_id=by.request_id,
        details=details | ({"cancelled": True} if cancelled else {}),
    )


def by_sandbox(facts: Iterable[Fact | PoolFact]) -> dict[str, list[Fact | PoolFact]]:
    """Group facts of one sandbox, in their order, under a name. Each fact of the pool is a group of its own."""
    groups: dict[str, list[Fact | PoolFact]] = {}
    for fact in facts:
        name = f"sandbox {fact.sandbox_id}" if isinstance(fact, Fact) else f"pool {fact.fact_id}"
        groups.setdefault(name, []).append(fact)
    return groups


def _existing(after: Sandbox | None, before: Sandbox | None) -> Sandbox:
    record = after or before
    if record is None:
        raise ValueError("a change needs a record before it, or after it")
    return record
