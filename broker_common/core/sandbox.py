"""The record of one sandbox: its status, its lease, its wipe, and the allowed changes of status.

Only types are here. The functions that change a record are in `lease`, `wipe` and `pool`. Times are Unix seconds.
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
"""`status_order` and `version` are below this, so that they are exact as JSON and as DynamoDB numbers."""


class Status(StrEnum):
    """The stages of a sandbox's life."""

    AVAILABLE = "available"
    RESERVED = "reserved"
    ALLOCATED = "allocated"
    PENDING_DELETION = "pending_deletion"
    STALE = "stale"
    DELETION_FAILED = "deletion_failed"
    DELETED = "deleted"


TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.AVAILABLE: frozenset({Status.ALLOCATED, Status.RESERVED, Status.STALE, Status.DELETION_FAILED}),
    Status.RESERVED: frozenset({Status.ALLOCATED, Status.AVAILABLE, Status.STALE, Status.DELETION_FAILED}),
    Status.ALLOCATED: frozenset({Status.PENDING_DELETION}),
    Status.PENDING_DELETION: frozenset(
        {Status.AVAILABLE, Status.RESERVED, Status.STALE, Status.DELETED, Status.DELETION_FAILED}
    ),
    Status.STALE: frozenset(
        {Status.AVAILABLE, Status.RESERVED, Status.PENDING_DELETION, Status.DELETION_FAILED, Status.DELETED}
    ),
    Status.DELETION_FAILED: frozenset({Status.PENDING_DELETION, Status.DELETED}),
    Status.DELETED: frozenset({Status.PENDING_DELETION, Status.DELETION_FAILED}),
}
"""All allowed changes of status. The only other way out of a status is to remove the record."""
FREE = frozenset({Status.AVAILABLE, Status.RESERVED})
"""A sandbox in one of these is clean, in service, and held by no track."""


class DeletionReason(StrEnum):
    """Why a sandbox was sent to be wiped, or set aside for an operator."""

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
        """The value that identifies this account."""
        return account_key(self.external_id)


def account_key(external_id: str) -> str:
    """Return the value that identifies an account: its id in lower case, because UUIDs ignore case."""
    return external_id.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A free sandbox as the index shows it, with all that an allocation needs. It may be out of date.

    `reservation_id`: the reservation that it is set aside for; None if it is available to every track.
    """

    sandbox_id: str
    version: int
    name: str
    external_id: str
    sfdc_account_id: str | None = None
    reservation_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right of one track to one sandbox, from `allocated_at` to `expires_at`.

    `reservation_id`: the reservation that it was drawn from, if any. `customer`: that of the principal who allocated.
    `warned_for`: the `expires_at` for which a fact has told that the lease ends soon; None if no fact has.
    """

    lease_id: str
    track_id: str
    idempotency_key: str
    allocated_at: int
    expires_at: int
    track_name: str | None = None
    customer: str | None = None
    reservation_id: str | None = None
    warned_for: int | None = None

    def is_overdue(self, now: int, policy: Policy) -> bool:
        """Tell whether its expiry and buffer are over, so that the broker may end the lease."""
        return now >= self.expires_at + policy.expiry_buffer_sec

    def ends_soon(self, now: int, policy: Policy) -> bool:
        """Tell whether it ends so soon that a fact must tell it."""
        return self.expires_at <= now + policy.expiry_warning_sec


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedLease:
    """The last lease of a sandbox that has ended. Its times are kept until the next lease begins."""

    lease_id: str
    track_id: str
    allocated_at: int | None = None
    expires_at: int | None = None
    track_name: str | None = None
    customer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The sandbox that a (track, idempotency key) holds, and all that a repeated allocate returns."""

    sandbox_id: str
    name: str
    external_id: str
    sfdc_account_id: str | None = None
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipe:
    """The latest wipe of a sandbox. It is kept until the next lease begins.

    `attempt_id` is set while a delete call may be under way. `outcome_unknown`: a delete call since the last lease was
    never answered, or only accepted, so it may still be under way. `gone_at`: when the provider answered the last
    delete call with 404; cleared when that proves wrong. `ready_at`: until when the wiped sandbox rests.
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
    """The record of one sandbox.

    `lease` is the current lease; only an allocated sandbox has one. `last_lease` is the last one that ended.
    `quarantine`: why an operator wants it set aside after the wipe. `reservation_id`: the reservation that a reserved
    sandbox is set aside for; only a reserved one has it.
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
    reservation_id: str | None = None

    def __post_init__(self) -> None:
        if self.dirty and self.is_free:
            raise InvalidTransition(f"sandbox {self.sandbox_id} is dirty and must not be {self.status}")
        if (self.reservation_id is not None) != (self.status is Status.RESERVED):
            raise InvalidTransition(
                f"sandbox {self.sandbox_id} must have a reservation if it is reserved, and only then"
            )
        if (self.lease is not None) != (self.status is Status.ALLOCATED):
            raise InvalidTransition(f"sandbox {self.sandbox_id} must have a lease if it is allocated, and only then")
        if self.lease is not None and self.wipe is not None:
            raise InvalidTransition(f"sandbox {self.sandbox_id} is allocated, so it must not have a wipe")

    @property
    def is_free(self) -> bool:
        """Whether it may be allocated: to every track, or to those that its reservation is for."""
        return self.status in FREE

    @property
    def account_key(self) -> str:
        """The value that identifies its account."""
        return account_key(self.external_id)

    @property
    def latest_track_id(self) -> str | None:
        """The track that holds it, or held it last, until it is leased again. This track may read it."""
        lease = self.latest_lease
        return lease.track_id if lease else None

    @property
    def latest_lease(self) -> Lease | EndedLease | None:
        """The current lease, or the last one until the sandbox is leased again."""
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
    """Return the error for a sandbox that cannot become `to` from its current status."""
    return InvalidTransition(f"sandbox {sandbox.sandbox_id} is {sandbox.status} and cannot become {to}")


def next_version(version: int, now: int) -> int:
    """Return the version after `version`. It is greater, and is about the time in milliseconds.

    Facts are named by versions. So they can be read in the order of time, and the facts of one sandbox are always read
    in the order in which they happened. Source: Kulkarni et al., "Logical Physical Clocks" (2014).
    """
    return max(version + 1, now * 1000)


def moved(sandbox: Sandbox, to: Status, *, now: int, order: int, reservation_id: str | None = None) -> Sandbox:
    """Return a sandbox in another status, without a lease. Raises `InvalidTransition` if that is not allowed."""
    if to not in TRANSITIONS[sandbox.status]:
        raise not_allowed(sandbox, to)
    return replace(
        sandbox,
        status=to,
        status_order=order,
        version=next_version(sandbox.version, now),
        updated_at=now,
        lease=None,
        reservation_id=reservation_id,
    )


def freed(sandbox: Sandbox, *, now: int, order: int, reservation_id: str | None) -> Sandbox:
    """Return a sandbox that is free now: set aside for a reservation, or available to every track."""
    to = Status.AVAILABLE if reservation_id is None else Status.RESERVED
    return moved(sandbox, to, now=now, order=order, reservation_id=reservation_id)


def touched(sandbox: Sandbox, *, now: int) -> Sandbox:
    """Return a sandbox with its next version, in the same status."""
    return replace(sandbox, version=next_version(sandbox.version, now), updated_at=now)
