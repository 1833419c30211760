"""Add, update, set aside and remove sandboxes of the pool: pure functions on the record of a sandbox."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidTransition
from broker_common.core.facts import Change, Detail, FactKind, change
from broker_common.core.policy import RecyclePolicy
from broker_common.core.sandbox import (
    Account,
    DeletionReason,
    Sandbox,
    Status,
    Wipe,
    freed,
    moved,
    not_allowed,
    touched,
)
from broker_common.core.wipe import sent_to_wipe

if TYPE_CHECKING:
    from broker_common.core.policy import Policy
    from broker_common.core.principals import Actor

_REMOVABLE = frozenset({Status.STALE, Status.DELETION_FAILED})


def add(
    account: Account, *, order: int, by: Actor, now: int, version: int, reservation_id: str | None = None
) -> Change:
    """Add a sandbox for an account that has no record: clean, and available or set aside for a reservation.

    `version` must be greater than any version of an earlier record of the same id. Else a writer that read the earlier
    record could write over this one.
    """
    sandbox = Sandbox(
        sandbox_id=account.sandbox_id,
        name=account.name,
        external_id=account.external_id,
        sfdc_account_id=account.sfdc_account_id,
        status=Status.AVAILABLE if reservation_id is None else Status.RESERVED,
        reservation_id=reservation_id,
        status_order=order,
        version=version,
        created_at=now,
        updated_at=now,
        last_synced=now,
    )
    return change(None, sandbox, FactKind.ADDED, by=by, now=now)


def mark_stale(sandbox: Sandbox, *, by: Actor, now: int, last_seen: int | None) -> Change:
    """Take a free sandbox out of service: it is not listed as active, or another record has its account."""
    if not sandbox.is_free:
        raise not_allowed(sandbox, Status.STALE)
    after = replace(
        moved(sandbox, Status.STALE, now=now, order=now),
        stale_since=now,
        last_synced=max(filter(None, (sandbox.last_synced, last_seen)), default=None),
    )
    return change(sandbox, after, FactKind.STALE, by=by, now=now)


def restore(
    sandbox: Sandbox, account: Account, *, order: int, by: Actor, now: int, reservation_id: str | None = None
) -> Change:
    """Bring back a stale sandbox that the provider lists again: free if clean, waiting to be wiped if dirty.

    A clean one is set aside for `reservation_id`, or available to every track.
    A dirty one is restored with another account, because its own is gone. If its own is listed, see `wipe.contradict`.
    """
    if sandbox.status is not Status.STALE:
        raise not_allowed(sandbox, Status.AVAILABLE)
    seen = replace(
        _with_account(sandbox, account),
        last_synced=now,
        stale_since=None,
        wipe=replace(sandbox.wipe, gone_at=None) if sandbox.wipe else None,
    )
    details = _account_before(sandbox, account)
    if sandbox.dirty:
        return change(sandbox, sent_to_wipe(seen, now=now), FactKind.RESTORED, by=by, now=now, details=details)
    seen = replace(seen, wipe=replace(seen.wipe, outcome_unknown=False) if seen.wipe else None)
    after = freed(seen, now=now, order=order, reservation_id=reservation_id)
    return change(sandbox, after, FactKind.RESTORED, by=by, now=now, details=details)


def differs(sandbox: Sandbox, account: Account) -> bool:
    """Tell whether the record of a sandbox lacks the provider's current name or ids."""
    return _with_account(sandbox, account) != sandbox


def update_account(sandbox: Sandbox, account: Account, *, by: Actor, now: int) -> Change:
    """Write the provider's current name and ids to the record of a sandbox."""
    after = replace(touched(_with_account(sandbox, account), now=now), last_synced=now)
    return change(sandbox, after, FactKind.UPDATED, by=by, now=now, details=_account_before(sandbox, account))


def quarantine(sandbox: Sandbox, *, reason: str, by: Actor, now: int) -> Change:
    """Set a sandbox aside for an operator: at once, or after the wipe if it is held or waits to be wiped."""
    if sandbox.status in {Status.ALLOCATED, Status.PENDING_DELETION}:
        after = replace(touched(sandbox, now=now), quarantine=reason)
    elif sandbox.is_free or sandbox.status is Status.STALE:
        wipe = replace(sandbox.wipe or Wipe(), reason=DeletionReason.QUARANTINED, last_error=reason, gone_at=None)
        after = replace(moved(sandbox, Status.DELETION_FAILED, now=now, order=now), wipe=wipe, stale_since=None)
    else:
        raise not_allowed(sandbox, Status.DELETION_FAILED)
    return change(sandbox, after, FactKind.QUARANTINED, by=by, now=now, details={"reason": reason})


def set_aside(sandbox: Sandbox, *, reservation_id: str, order: int, by: Actor, now: int) -> Change:
    """Set an available sandbox aside for a reservation."""
    if sandbox.status is not Status.AVAILABLE:
        raise not_allowed(sandbox, Status.RESERVED)
    after = freed(sandbox, now=now, order=order, reservation_id=reservation_id)
    return change(sandbox, after, FactKind.RESERVED, by=by, now=now)


def give_up_reserved(sandbox: Sandbox, *, order: int, by: Actor, now: int) -> Change:
    """Make a sandbox available to every track that was set aside for a reservation."""
    if sandbox.status is not Status.RESERVED:
        raise not_allowed(sandbox, Status.AVAILABLE)
    after = freed(sandbox, now=now, order=order, reservation_id=None)
    return change(sandbox, after, FactKind.UNRESERVED, by=by, now=now)


def lift_quarantine(sandbox: Sandbox, *, by: Actor, now: int) -> Change | None:
    """Cancel a quarantine that waits for the wipe. Return None if there is no quarantine."""
    if sandbox.status not in {Status.ALLOCATED, Status.PENDING_DELETION}:
        raise InvalidTransition(
            f"sandbox {sandbox.sandbox_id} is {sandbox.status}: quarantine can be lifted only while a sandbox is held"
            " or waits to be wiped. If it is set aside already, use retry-deletion"
        )
    if sandbox.quarantine is None:
        return None
    after = replace(touched(sandbox, now=now), quarantine=None)
    return change(sandbox, after, FactKind.UPDATED, by=by, now=now, details={"quarantine": "lifted"})


def remove(sandbox: Sandbox, *, by: Actor, now: int, policy: Policy) -> Change:
    """Remove a stale or failed sandbox. A dirty one, or any under `retire`, becomes a tombstone.

    A sync may still see the account. The tombstone keeps it from adding the sandbox again as new and clean. Removing a
    tombstone leaves no record.
    """
    if sandbox.status is Status.DELETED:
        return change(sandbox, None, FactKind.REMOVED, by=by, now=now, details={"tombstone": True})
    if sandbox.status not in _REMOVABLE:
        raise not_allowed(sandbox, Status.DELETED)
    if not sandbox.dirty and policy.recycle is not RecyclePolicy.RETIRE:
        return change(sandbox, None, FactKind.REMOVED, by=by, now=now)
    after = replace(
        moved(sandbox, Status.DELETED, now=now, order=now),
        stale_since=None,
        quarantine=None,
        wipe=replace(sandbox.wipe, gone_at=None) if sandbox.wipe else None,
    )
    return change(sandbox, after, FactKind.REMOVED, by=by, now=now)


def _with_account(sandbox: Sandbox, account: Account) -> Sandbox:
    return replace(sandbox, name=account.name, external_id=account.external_id, sfdc_account_id=account.sfdc_account_id)


def _account_before(sandbox: Sandbox, account: Account) -> dict[str, Detail | None]:
    """Return the name and ids of the record that differ from the provider's current ones."""
    seen = _with_account(sandbox, account)
    names = ("name", "external_id", "sfdc_account_id")
    return {f"{name}_before": getattr(sandbox, name) for name in names if getattr(sandbox, name) != getattr(seen, name)}
