"""Wipe a sandbox: attempts, their outcomes, and the status that follows. Pure functions on the record of a sandbox.

An attempt is recorded before the provider is called. Its outcome is written only while the record has that attempt.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidTransition
from broker_common.core.facts import Change, Detail, FactKind, change
from broker_common.core.policy import RecyclePolicy
from broker_common.core.sandbox import DeletionReason, Sandbox, Status, Wipe, freed, moved, not_allowed, touched

if TYPE_CHECKING:
    from broker_common.core.policy import Policy
    from broker_common.core.principals import Actor


def begin_attempt(sandbox: Sandbox, *, attempt_id: str, by: Actor, now: int, policy: Policy) -> Change:
    """Begin an attempt to wipe a sandbox. No other attempt may begin before its window is over.

    An earlier attempt that never wrote its outcome, because its worker died, counts as failed with an unknown outcome.
    If that was the last attempt allowed, the sandbox becomes `deletion_failed` instead.
    """
    if not sandbox.is_due_for_deletion(now):
        raise not_allowed(sandbox, Status.PENDING_DELETION)
    wipe = sandbox.wipe or Wipe()
    if wipe.attempt_id is not None:
        wipe = replace(wipe, tries=wipe.tries + 1, outcome_unknown=True)
        if wipe.tries >= policy.deletion_max_attempts:
            return _give_up(sandbox, wipe, "the last attempt never reported its outcome", by=by, now=now)
    until = now + policy.attempt_window_sec
    taken = replace(touched(sandbox, now=now), status_order=until)
    return Change(sandbox, replace(taken, wipe=replace(wipe, next_attempt_at=until, attempt_id=attempt_id)), None)


def cancel_attempt(sandbox: Sandbox, *, error: str, now: int, outcome_unknown: bool = False) -> Change:
    """Cancel an attempt that failed for a reason outside of the sandbox. It does not count; the wipe is due again."""
    wipe = replace(
        _open_attempt(sandbox, outcome_unknown=outcome_unknown), next_attempt_at=now, attempt_id=None, last_error=error
    )
    return Change(sandbox, replace(touched(sandbox, now=now), status_order=now, wipe=wipe), None)


def fail_attempt(
    sandbox: Sandbox, *, error: str, outcome_unknown: bool, retry_at: int, by: Actor, now: int, policy: Policy
) -> Change:
    """Count a failed attempt. The next is due at `retry_at`; after the last one, the sandbox is `deletion_failed`."""
    wipe = _open_attempt(sandbox, outcome_unknown=outcome_unknown)
    wipe = replace(wipe, tries=wipe.tries + 1)
    if wipe.tries >= policy.deletion_max_attempts:
        return _give_up(sandbox, wipe, error, by=by, now=now)
    wipe = replace(wipe, next_attempt_at=retry_at, attempt_id=None, last_error=error)
    failed = replace(touched(sandbox, now=now), status_order=retry_at, wipe=wipe)
    return change(sandbox, failed, FactKind.WIPE_FAILED, by=by, now=now, details={"tries": wipe.tries, "error": error})


def backoff_seconds(sandbox: Sandbox, *, jitter: float, policy: Policy) -> int:
    """Return the seconds until the next attempt: the base, doubled for each failed attempt, times `jitter`."""
    tries = sandbox.wipe.tries if sandbox.wipe else 0
    doubled = policy.deletion_backoff_base_sec * float(2 ** min(tries, 30))
    return round(min(policy.deletion_backoff_max_sec, doubled * jitter))


def reject_deletion(sandbox: Sandbox, *, error: str, by: Actor, now: int) -> Change:
    """Move a sandbox to `deletion_failed`, because the provider refuses to wipe it."""
    return _give_up(sandbox, _open_attempt(sandbox), error, by=by, now=now)


def confirm_wipe(
    sandbox: Sandbox,
    *,
    accepted_only: bool,
    order: int,
    by: Actor,
    now: int,
    policy: Policy,
    reservation_id: str | None = None,
) -> Change:
    """Follow the recycle policy after the provider confirmed the wipe. A quarantined sandbox is set aside instead.

    `accepted_only`: the provider said that it will wipe (202), not that it did. Then the wipe is in doubt, and also if
    an earlier attempt since the last lease may still be under way. After a wipe in doubt, only a later sync makes the
    sandbox available. A sandbox that would be available is set aside for `reservation_id` instead, if there is one.
    """
    wipe = _open_attempt(sandbox)
    is_doubtful = accepted_only or wipe.outcome_unknown
    wipe = replace(
        wipe, next_attempt_at=None, attempt_id=None, last_error=None, gone_at=None, outcome_unknown=is_doubtful
    )
    wiped = replace(sandbox, dirty=False, wipe=wipe)
    if sandbox.quarantine is not None:
        after = _quarantined(wiped, wipe, sandbox.quarantine, now=now)
    elif policy.recycle is RecyclePolicy.RETIRE:
        wiped = replace(wiped, wipe=replace(wipe, outcome_unknown=False))
        after = moved(wiped, Status.DELETED, now=now, order=now)
    elif policy.recycle is RecyclePolicy.CONFIRM or is_doubtful:
        after = replace(moved(wiped, Status.STALE, now=now, order=now), stale_since=now)
    elif policy.cool_down_sec:
        ready_at = now + policy.cool_down_sec
        after = replace(touched(wiped, now=now), status_order=ready_at, wipe=replace(wipe, ready_at=ready_at))
    else:
        after = freed(wiped, now=now, order=order, reservation_id=reservation_id)
    return change(sandbox, after, FactKind.WIPED, by=by, now=now, details={"accepted_only": accepted_only or None})


def finish_cooling(sandbox: Sandbox, *, order: int, by: Actor, now: int, reservation_id: str | None = None) -> Change:
    """Make a wiped sandbox available after its rest, or set it aside for `reservation_id`.

    A quarantined one is set aside for an operator instead.
    """
    if not sandbox.is_rested(now) or sandbox.wipe is None:
        raise not_allowed(sandbox, Status.AVAILABLE)
    rested = replace(sandbox, wipe=replace(sandbox.wipe, ready_at=None))
    if sandbox.quarantine is not None:
        after = _quarantined(rested, rested.wipe, sandbox.quarantine, now=now)
        return change(sandbox, after, FactKind.NEEDS_ATTENTION, by=by, now=now, details={"error": sandbox.quarantine})
    after = freed(rested, now=now, order=order, reservation_id=reservation_id)
    return change(sandbox, after, FactKind.AVAILABLE, by=by, now=now)


def account_gone(sandbox: Sandbox, *, by: Actor, now: int, policy: Policy) -> Change:
    """Take a sandbox out of service that the provider does not know (404). It was not wiped, so it stays dirty."""
    error = "the provider answered 404: it does not know the account, so nobody has wiped it"
    wipe = replace(_open_attempt(sandbox), next_attempt_at=None, attempt_id=None, last_error=error, gone_at=now)
    gone = replace(sandbox, wipe=wipe)
    if sandbox.quarantine is not None:
        after, kind = _quarantined(gone, wipe, sandbox.quarantine, now=now), FactKind.NEEDS_ATTENTION
    elif policy.recycle is RecyclePolicy.RETIRE:
        after, kind = moved(gone, Status.DELETED, now=now, order=now), FactKind.REMOVED
    else:
        after = replace(moved(gone, Status.STALE, now=now, order=now), stale_since=now)
        kind = FactKind.STALE
    return change(sandbox, after, kind, by=by, now=now, details={"error": error})


def is_thought_gone(sandbox: Sandbox) -> bool:
    """Tell whether a sandbox is out of service because the provider answered its delete call with 404.

    This is so for every sandbox that is stale and dirty. A tombstone that an operator or a purge made is another case.
    """
    if sandbox.status is Status.DELETED:
        return sandbox.dirty and sandbox.wipe is not None and sandbox.wipe.gone_at is not None
    return sandbox.dirty and sandbox.status is Status.STALE


def contradict(sandbox: Sandbox, *, retry_at: int, by: Actor, now: int, policy: Policy) -> Change:
    """Count a delete call that was answered with 404 as failed, because the provider still lists the account as active.

    The next attempt is due at `retry_at`; after the last one allowed, the sandbox becomes `deletion_failed`. A
    tombstone that was made by the 404 becomes a sandbox again.
    """
    if not is_thought_gone(sandbox):
        raise not_allowed(sandbox, Status.PENDING_DELETION)
    error = "the provider answered 404 to the last delete, but still lists the account as active"
    wipe = sandbox.wipe or Wipe()
    wipe = replace(wipe, tries=wipe.tries + 1, gone_at=None)
    seen = replace(sandbox, stale_since=None, last_synced=now)
    if wipe.tries >= policy.deletion_max_attempts:
        return _give_up(sandbox, wipe, f"{error}; attempts: {wipe.tries}", seen=seen, by=by, now=now)
    wipe = replace(_requested(wipe, now), next_attempt_at=retry_at, last_error=error)
    after = replace(moved(seen, Status.PENDING_DELETION, now=now, order=retry_at), wipe=wipe)
    return change(sandbox, after, FactKind.WIPE_FAILED, by=by, now=now, details={"tries": wipe.tries, "error": error})


def sent_to_wipe(sandbox: Sandbox, *, now: int) -> Sandbox:
    """Return a sandbox that now waits to be wiped, with a new count of attempts."""
    wipe = replace(_requested(sandbox.wipe or Wipe(), now), next_attempt_at=now, tries=0)
    return replace(moved(sandbox, Status.PENDING_DELETION, now=now, order=now), wipe=wipe)


def retry_deletion(sandbox: Sandbox, *, by: Actor, now: int) -> Change:
    """Send a sandbox to be wiped after an operator has looked at it, with a new count of attempts."""
    if sandbox.status is not Status.DELETION_FAILED:
        raise not_allowed(sandbox, Status.PENDING_DELETION)
    wipe = replace(sandbox.wipe or Wipe(), reason=DeletionReason.RETRIED)
    after = sent_to_wipe(replace(sandbox, wipe=wipe, quarantine=None), now=now)
    return change(sandbox, after, FactKind.RETRIED, by=by, now=now)


def _open_attempt(sandbox: Sandbox, *, outcome_unknown: bool = False) -> Wipe:
    """Return the wipe whose attempt is open. Raises `InvalidTransition` if no attempt is open."""
    wipe = sandbox.wipe
    if sandbox.status is not Status.PENDING_DELETION or wipe is None or wipe.attempt_id is None:
        raise InvalidTransition(f"sandbox {sandbox.sandbox_id} is {sandbox.status}, and no attempt to wipe it is open")
    return replace(wipe, outcome_unknown=wipe.outcome_unknown or outcome_unknown)


def _requested(wipe: Wipe, now: int) -> Wipe:
    """Return a requested wipe. If the time and the reason of the request are known, they are kept."""
    return replace(wipe, requested_at=wipe.requested_at or now, reason=wipe.reason or DeletionReason.FOUND_DIRTY)


def _give_up(sandbox: Sandbox, wipe: Wipe, error: str, *, by: Actor, now: int, seen: Sandbox | None = None) -> Change:
    wipe = replace(wipe, next_attempt_at=None, attempt_id=None, last_error=error)
    after = replace(moved(seen or sandbox, Status.DELETION_FAILED, now=now, order=now), wipe=wipe)
    details: dict[str, Detail | None] = {"tries": wipe.tries, "error": error}
    return change(sandbox, after, FactKind.NEEDS_ATTENTION, by=by, now=now, details=details)


def _quarantined(sandbox: Sandbox, wipe: Wipe | None, reason: str, *, now: int) -> Sandbox:
    """Set a sandbox aside, as an operator ordered while it was held or waited to be wiped."""
    wipe = replace(wipe or Wipe(), reason=DeletionReason.QUARANTINED, last_error=reason)
    return replace(moved(sandbox, Status.DELETION_FAILED, now=now, order=now), wipe=wipe, quarantine=None)
