"""The record of one sandbox: its status, its lease, its wipe, and which changes of status exist.

Types alone. How a lease begins and ends stands in `lease`, how a sandbox is wiped in `wipe`, how it enters and leaves
the pool in `pool`. Times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.policy import Policy

ORDER_LIMIT = 2**53
"""`status_order` and `version` lie below this: exact as a JSON number and as a DynamoDB number."""


class Status(StrEnum):
    """Where a sandbox stands in its life."""

    AVAILABLE = "available"
    ALLOCATED = "allocated"
    PENDING_DELETION = "pending_deletion"
    STALE = "stale"
    DELETION_FAILED = "deletion_failed"
    DELETED = "deleted"


TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.AVAILABLE: frozenset({Status.ALLOCATED, Status.STALE, Status.DELETION_FAILED}),
    Status.ALLOCATED: frozenset({Status.PENDING_DELETION}),
    Status.PENDING_DELETION: frozenset({Status.AVAILABLE, Status.STALE, Status.DELETED, Status.DELETION_FAILED}),
    Status.STALE: frozenset({Status.AVAILABLE, Status.PENDING_DELETION, Status.DELETION_FAILED, Status.DELETED}),
    Status.DELETION_FAILED: frozenset({Status.PENDING_DELETION, Status.DELETED}),
    Status.DELETED: frozenset({Status.PENDING_DELETION, Status.DELETION_FAILED}),
}
"""Every change of status that exists. Removing a record is the only other way out of a status."""


class DeletionReason(StrEnum):
    """Why a sandbox was sent to be wiped, or set aside for a person."""

    MARKED = "marked_by_track"
    RELEASED = "released_by_operator"
    EXPIRED = "expired"
    FOUND_DIRTY = "seen_again_while_dirty"
    RETRIED = "retried_by_operator"
    QUARANTINED = "quarantined_by_operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A sandbox account as the provider lists it."""

    sandbox_id: str
    external_id: str
    name: str
    sfdc_account_id: str | None = None

    @property
    def key(self) -> str:
        """What tells this account from all others."""
        return account_key(self.external_id)


def account_key(external_id: str) -> str:
    """Return what tells an account from all others: a uuid reads the same in capitals and in small letters."""
    return external_id.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An available sandbox as the index shows it: enough to claim it, and possibly out of date."""

    sandbox_id: str
    version: int
    name: str
    external_id: str
    sfdc_account_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one track to one sandbox, from `allocated_at` to `expires_at`."""

    lease_id: str
    track_id: str
    idempotency_key: str
    allocated_at: int
    expires_at: int
    track_name: str | None = None

    def is_overdue(self, now: int, policy: Policy) -> bool:
        """Tell whether the lease is past its expiry and buffer, so that it may be ended."""
        return now >= self.expires_at + policy.expiry_buffer_sec


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLease:
    """The latest lease of a sandbox that has ended. Its times are kept until the next lease begins."""

    lease_id: str
    track_id: str
    allocated_at: int | None = None
    expires_at: int | None = None
    track_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Which sandbox a (track, idempotency key) holds, and all that a repeated allocate must answer."""

    sandbox_id: str
    name: str
    external_id: str
    sfdc_account_id: str | None = None
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipe:
    """How the latest wipe of a sandbox goes, or went. It is kept until the next lease begins.

    `attempt_id` is set while a delete call may be under way; `outcome_unknown` says that some delete call since the
    last lease may still be under way: never answered, or only accepted. `gone_at` says when the provider answered the
    last delete call with 404, while nothing has contradicted that. `ready_at` says until when the wiped sandbox rests.
    """

    requested_at: int | None = None
    reason: DeletionReason | None = None
    tries: int = 0
    last_error: str | None = None
    next_attempt_at: int | None = None
    attempt_id: str | None = None
    outcome_unknown: bool = False
    gone_at: int | None = None
    ready_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox.

    `lease` is that of its holder, and there exactly while it is allocated. `last_lease` is the latest that ended.
    `quarantine` is why it goes to a person once it is wiped, where an operator asked for that.
    """

    sandbox_id: str
    name: str
    external_id: str
    sfdc_account_id: str | None = None
    status: Status
    status_order: int
    version: int
    created_at: int
    updated_at: int
    dirty: bool = False
    lease: Lease | None = None
    last_lease: EndedLease | None = None
    wipe: Wipe | None = None
    quarantine: str | None = None
    stale_since: int | None = None
    last_synced: int | None = None

    def __post_init__(self) -> None:
        if self.dirty and self.status is Status.AVAILABLE:
            raise InvalidTransition(f"sandbox {self.sandbox_id} is dirty and must not be available")
        if (self.lease is not None) != (self.status is Status.ALLOCATED):
            raise InvalidTransition(f"sandbox {self.sandbox_id} has a lease exactly while it is allocated")
        if self.lease is not None and self.wipe is not None:
            raise InvalidTransition(f"sandbox {self.sandbox_id} is allocated and cannot be being wiped")

    @property
    def account_key(self) -> str:
        """What tells its account from all others."""
        return account_key(self.external_id)

    @property
    def answers_to(self) -> str | None:
        """The track that may read it: its holder, or its last one until it is allocated again."""
        lease = self.latest_lease
        return lease.track_id if lease else None

    @property
    def latest_lease(self) -> Lease | EndedLease | None:
        """The present lease, or the last one until it is allocated again."""
        return self.lease or self.last_lease

    @property
    def latest_lease_id(self) -> str | None:
        """The id of `latest_lease`."""
        lease = self.latest_lease
        return lease.lease_id if lease else None

    @property
    def is_cooling(self) -> bool:
        """Whether it is wiped and rests before it is available again."""
        return self.status is Status.PENDING_DELETION and self.wipe is not None and self.wipe.ready_at is not None

    def is_due_for_deletion(self, now: int) -> bool:
        """Tell whether a delete attempt may start now."""
        if self.status is not Status.PENDING_DELETION or self.is_cooling:
            return False
        return self.wipe is None or (self.wipe.next_attempt_at or 0) <= now

    def is_rested(self, now: int) -> bool:
        """Tell whether it has rested for long enough to be available again."""
        return self.wipe is not None and self.is_cooling and now >= (self.wipe.ready_at or 0)


def not_allowed(sandbox: Sandbox, to: Status) -> InvalidTransition:
    """Return the error that a sandbox cannot become `to` from where it stands."""
    return InvalidTransition(f"sandbox {sandbox.sandbox_id} is {sandbox.status} and cannot become {to}")


def next_version(version: int, now: int) -> int:
    """Return the version that follows `version`: later ones are greater, and it names about the time in milliseconds.

    So facts, which are named by versions, can be read in the order of time, and those of one sandbox never in another
    order than they happened. Source: Kulkarni et al., "Logical Physical Clocks" (2014).
    """
    return max(version + 1, now * 1000)


def moved(sandbox: Sandbox, to: Status, *, now: int, order: int) -> Sandbox:
    """Return a sandbox in another status, held by nobody; raises `InvalidTransition` if that cannot be."""
    if to not in TRANSITIONS[sandbox.status]:
        raise not_allowed(sandbox, to)
    return replace(
        sandbox,
        status=to,
        status_order=order,
        version=next_version(sandbox.version, now),
        updated_at=now,
        lease=None,
    )


def touched(sandbox: Sandbox, *, now: int) -> Sandbox:
    """Return a sandbox whose record has changed, without a change of status."""
    return replace(sandbox, version=next_version(sandbox.version, now), updated_at=now)
