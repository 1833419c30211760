"""What happened: facts about sandboxes and the pool, and the change that each is committed with.

A fact is stored in the transaction of its change, so that it exists exactly if the change does. What is only counted
or timed is telemetry, and stands in `telemetry`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_common.core.sandbox import Candidate, Claim, Sandbox, Status, next_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.principals import Actor

Detail = str | int | bool


class FactKind(StrEnum):
    """What can happen to a sandbox."""

    ADDED = "sandbox.added"
    UPDATED = "sandbox.updated"
    ALLOCATED = "sandbox.allocated"
    MARKED = "sandbox.marked"
    RELEASED = "sandbox.released"
    EXPIRED = "sandbox.expired"
    WIPED = "sandbox.wiped"
    WIPE_FAILED = "sandbox.wipe_failed"
    NEEDS_ATTENTION = "sandbox.needs_attention"
    AVAILABLE = "sandbox.available"
    RETRIED = "sandbox.retried"
    STALE = "sandbox.stale"
    RESTORED = "sandbox.restored"
    REMOVED = "sandbox.removed"
    QUARANTINED = "sandbox.quarantined"


class PoolFactKind(StrEnum):
    """What can happen to the pool as a whole."""

    PAUSED = "pool.paused"
    RESUMED = "pool.resumed"
    SYNC_BRAKED = "sync.braked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What happened to a sandbox: named by its id, its version after the change, and the kind.

    `status` is None where the record was removed, `status_before` where there was none.
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
    """What happened to the pool; `fact_id` tells it from others of the same moment."""

    kind: PoolFactKind
    fact_id: str
    at: int
    principal: str
    request_id: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A record as it was read, as it shall be, and the fact that says so.

    `before` is None where a record is added, `after` where it is removed. `fact` is None for a change that says nothing
    about the sandbox itself: an attempt is taken, or given back.
    """

    before: Sandbox | None
    after: Sandbox | None
    fact: Fact | None

    @property
    def sandbox_id(self) -> str:
        """The sandbox that changes."""
        return _either(self.after, self.before).sandbox_id

    @property
    def result(self) -> Sandbox:
        """The record after the change; raises `ValueError` where none is left."""
        if self.after is None:
            raise ValueError(f"sandbox {self.sandbox_id} is removed")
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
    """Return a change with its fact; what is None among `details` is left out."""
    shown = _either(after, before)
    lease = shown.latest_lease
    fact = Fact(
        kind=kind,
        sandbox_id=shown.sandbox_id,
        version=after.version if after else next_version(shown.version, now),
        at=now,
        principal=by.principal,
        request_id=by.request_id,
        track_id=lease.track_id if lease else None,
        lease_id=lease.lease_id if lease else None,
        status=after.status if after else None,
        status_before=before.status if before else None,
        details={name: value for name, value in (details or {}).items() if value is not None},
    )
    return Change(before, after, fact)


def allocated(candidate: Candidate, claim: Claim, *, by: Actor) -> Fact:
    """Return the fact that a candidate is allocated under a claim."""
    lease = claim.lease
    details = {"expires_at": lease.expires_at, "track_name": lease.track_name}
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
        status_before=Status.AVAILABLE,
        details={name: value for name, value in details.items() if value is not None},
    )


def _either(after: Sandbox | None, before: Sandbox | None) -> Sandbox:
    either = after or before
    if either is None:
        raise ValueError("a change has a record before it, or after it")
    return either
