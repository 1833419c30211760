"""Begin, extend and end leases: pure functions on the record of a sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.facts import Change, FactKind, allocated, change
from broker_common.core.flat import flatten, of_allocation, sandbox_of
from broker_common.core.sandbox import (
    Candidate,
    Claim,
    DeletionReason,
    EndedLease,
    Lease,
    Sandbox,
    Status,
    Wipe,
    moved,
    next_version,
    not_allowed,
    touched,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.policy import Policy
    from broker_common.core.principals import Actor

_KINDS: Mapping[DeletionReason, FactKind] = {
    DeletionReason.MARKED: FactKind.MARKED,
    DeletionReason.RELEASED: FactKind.RELEASED,
    DeletionReason.EXPIRED: FactKind.EXPIRED,
}


def candidate_of(sandbox: Sandbox) -> Candidate:
    """Return the fields of a free sandbox that an allocation needs."""
    return Candidate(
        sandbox_id=sandbox.sandbox_id,
        version=sandbox.version,
        name=sandbox.name,
        external_id=sandbox.external_id,
        sfdc_account_id=sandbox.sfdc_account_id,
        reservation_id=sandbox.reservation_id,
    )


def claim_on(candidate: Candidate | Sandbox, lease: Lease) -> Claim:
    """Return the claim that says that the track of `lease` holds a sandbox."""
    return Claim(
        sandbox_id=candidate.sandbox_id,
        name=candidate.name,
        external_id=candidate.external_id,
        sfdc_account_id=candidate.sfdc_account_id,
        lease=lease,
    )


def begin(sandbox: Sandbox, lease: Lease, *, by: Actor) -> Change:
    """Allocate a free sandbox under `lease`.

    Raises `InvalidTransition` unless it is available, or is set aside for the reservation that the lease names.
    """
    if not sandbox.is_free or sandbox.reservation_id != lease.reservation_id:
        raise not_allowed(sandbox, Status.ALLOCATED)
    version = next_version(sandbox.version, lease.allocated_at)
    held = sandbox_of({**flatten(sandbox), **of_allocation(lease, version=version)})
    candidate = candidate_of(sandbox)
    return Change(sandbox, held, allocated(candidate, claim_on(candidate, lease), by=by))


def extend(sandbox: Sandbox, *, expires_at: int, by: Actor, now: int) -> Change:
    """Move the end of an allocated sandbox's lease to a later `expires_at`. The lease stays the same one.

    Raises `InvalidTransition` if there is no lease, and `ValueError` if `expires_at` is not later than its end.
    """
    lease = sandbox.lease
    if lease is None:
        raise not_allowed(sandbox, Status.ALLOCATED)
    if expires_at <= lease.expires_at:
        raise ValueError(f"sandbox {sandbox.sandbox_id}: a lease that ends at {lease.expires_at} is never shortened")
    longer = replace(touched(sandbox, now=now), lease=replace(lease, expires_at=expires_at), status_order=expires_at)
    details = {"expires_at": expires_at, "expires_at_before": lease.expires_at}
    return change(sandbox, longer, FactKind.EXTENDED, by=by, now=now, details=details)


def warn(sandbox: Sandbox, *, by: Actor, now: int, policy: Policy) -> Change:
    """Tell that an allocated sandbox's lease ends soon. The record remembers for which `expires_at` this was told.

    The fact says how far the track may extend the lease. Raises `InvalidTransition` if there is no lease.
    """
    lease = sandbox.lease
    if lease is None:
        raise not_allowed(sandbox, Status.ALLOCATED)
    told = replace(touched(sandbox, now=now), lease=replace(lease, warned_for=lease.expires_at))
    details = {
        "expires_at": lease.expires_at,
        "latest_expires_at": max(lease.allocated_at + policy.max_lab_duration_sec, lease.expires_at),
        "track_name": lease.track_name,
    }
    return change(sandbox, told, FactKind.EXPIRING, by=by, now=now, details=details)


def end(sandbox: Sandbox, *, reason: DeletionReason, by: Actor, now: int) -> Change:
    """End the lease of an allocated sandbox, which then waits to be wiped. `reason` says why it ends."""
    lease = sandbox.lease
    if lease is None:
        raise not_allowed(sandbox, Status.PENDING_DELETION)
    last = EndedLease(
        lease_id=lease.lease_id,
        track_id=lease.track_id,
        allocated_at=lease.allocated_at,
        expires_at=lease.expires_at,
        track_name=lease.track_name,
        customer=lease.customer,
    )
    ended = replace(moved(sandbox, Status.PENDING_DELETION, now=now, order=now), last_lease=last)
    ended = replace(ended, wipe=Wipe(requested_at=now, reason=reason, next_attempt_at=now))
    return change(sandbox, ended, _KINDS[reason], by=by, now=now)
