"""How a sandbox enters the pool, is out of service, is set aside, and leaves. Pure functions on its record."""

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
    moved,
    not_allowed,
    touched,
)
from broker_common.core.wipe import asked_again

if TYPE_CHECKING:
    from broker_common.core.policy import Policy
    from broker_common.core.principals import Actor

_REMOVABLE = frozenset({Status.STALE, Status.DELETION_FAILED})


def add(account: Account, *, order: int, by: Actor, now: int, version: int) -> Change:
    """Take in an account that is seen for the first time: available and clean.

    `version` must be greater than any that an earlier record of the same id had, or a writer who still holds that
    record could take this one for it.
    """
    sandbox = Sandbox(
        sandbox_id=account.sandbox_id,
        name=account.name,
        external_id=account.external_id,
        sfdc_account_id=account.sfdc_account_id,
        status=Status.AVAILABLE,
        status_order=order,
        version=version,
        created_at=now,
        updated_at=now,
        last_synced=now,
    )
    return change(None, sandbox, FactKind.ADDED, by=by, now=now)


def go_stale(sandbox: Sandbox, *, by: Actor, now: int, last_seen: int | None) -> Change:
    """Take an available sandbox out of service: the provider does not list it as active, or its account is shared."""
    if sandbox.status is not Status.AVAILABLE:
        raise not_allowed(sandbox, Status.STALE)
    after = replace(
        moved(sandbox, Status.STALE, now=now, order=now),
        stale_since=now,
        last_synced=max(filter(None, (sandbox.last_synced, last_seen)), default=None),
    )
    return change(sandbox, after, FactKind.STALE, by=by, now=now)


def restore(sandbox: Sandbox, account: Account, *, order: int, by: Actor, now: int) -> Change:
    """Bring a stale sandbox back that the provider lists again: to the pool, or to be wiped first if dirty.

    A dirty one is restored with another account, in place of its own that is gone; see `wipe.contradict` for its own.
    """
    if sandbox.status is not Status.STALE:
        raise not_allowed(sandbox, Status.AVAILABLE)
    seen = replace(
        _with_account(sandbox, account),
        last_synced=now,
        stale_since=None,
        wipe=replace(sandbox.wipe, gone_at=None) if sandbox.wipe else None,
    )
    details = _described_before(sandbox, account)
    if sandbox.dirty:
        return change(sandbox, asked_again(seen, now=now), FactKind.RESTORED, by=by, now=now, details=details)
    seen = replace(seen, wipe=replace(seen.wipe, outcome_unknown=False) if seen.wipe else None)
    after = moved(seen, Status.AVAILABLE, now=now, order=order)
    return change(sandbox, after, FactKind.RESTORED, by=by, now=now, details=details)


def differs(sandbox: Sandbox, account: Account) -> bool:
    """Tell whether the provider has another name or other ids for a sandbox than its record."""
    return _with_account(sandbox, account) != sandbox


def describe(sandbox: Sandbox, account: Account, *, by: Actor, now: int) -> Change:
    """Take over the provider's present name and ids of a sandbox."""
    after = replace(touched(_with_account(sandbox, account), now=now), last_synced=now)
    return change(sandbox, after, FactKind.UPDATED, by=by, now=now, details=_described_before(sandbox, account))


def quarantine(sandbox: Sandbox, *, reason: str, by: Actor, now: int) -> Change:
    """Set a sandbox aside for a person: at once if nobody uses it, else once it is wiped."""
    if sandbox.status in {Status.ALLOCATED, Status.PENDING_DELETION}:
        after = replace(touched(sandbox, now=now), quarantine=reason)
    elif sandbox.status in {Status.AVAILABLE, Status.STALE}:
        wipe = replace(sandbox.wipe or Wipe(), reason=DeletionReason.QUARANTINED, last_error=reason, gone_at=None)
        after = replace(moved(sandbox, Status.DELETION_FAILED, now=now, order=now), wipe=wipe, stale_since=None)
    else:
        raise not_allowed(sandbox, Status.DELETION_FAILED)
    return change(sandbox, after, FactKind.QUARANTINED, by=by, now=now, details={"reason": reason})


def lift_quarantine(sandbox: Sandbox, *, by: Actor, now: int) -> Change | None:
    """Let a sandbox go the usual way once it is wiped; None if nothing else was asked for."""
    if sandbox.status not in {Status.ALLOCATED, Status.PENDING_DELETION}:
        raise InvalidTransition(
            f"sandbox {sandbox.sandbox_id} is {sandbox.status}: quarantine can be lifted only while a sandbox is held"
            " or waits to be wiped; retry-deletion brings back one that is set aside"
        )
    if sandbox.quarantine is None:
        return None
    after = replace(touched(sandbox, now=now), quarantine=None)
    return change(sandbox, after, FactKind.UPDATED, by=by, now=now, details={"quarantine": "lifted"})


def remove(sandbox: Sandbox, *, by: Actor, now: int, policy: Policy) -> Change:
    """Remove a stale or failed sandbox: a tombstone if it is dirty or under `retire`, else nothing is left of it.

    The tombstone keeps a sync that still sees the account from adding it again as new and clean; a tombstone that is
    removed is gone for good.
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


def _described_before(sandbox: Sandbox, account: Account) -> dict[str, Detail | None]:
    """Return what the provider said of a sandbox before, as far as that is another name or id."""
    seen = _with_account(sandbox, account)
    names = ("name", "external_id", "sfdc_account_id")
    return {f"{name}_before": getattr(sandbox, name) for name in names if getattr(sandbox, name) != getattr(seen, name)}
