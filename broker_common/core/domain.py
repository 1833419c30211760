"""Sandboxes, claims, and every transition between a sandbox's states.

Pure functions on frozen records: nothing here reads a clock, draws a random number or touches a store. Each transition
takes the record as it was read and returns the record as it shall be; the store writes it only if the record is still
the one that was read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from broker_common.core.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Mapping

ORDER_LIMIT = 2**53
"""`status_order` lies below this: exact as a JSON number and as a DynamoDB number."""


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
    """Why a sandbox was sent to be wiped, or put aside for a person."""

    MARKED = "marked_by_track"
    RELEASED = "released_by_operator"
    EXPIRED = "expired"
    FOUND_DIRTY = "seen_again_while_dirty"
    RETRIED = "retried_by_operator"
    QUARANTINED = "quarantined_by_operator"


class RecyclePolicy(StrEnum):
    """What becomes of a sandbox that the provider has wiped."""

    REUSE = "reuse"
    CONFIRM = "confirm"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The numbers that the rules depend on; durations in seconds."""

    lab_duration_sec: int = 4 * 3600
    expiry_buffer_sec: int = 1800
    stale_grace_sec: int = 24 * 3600
    stale_brake_percent: int = 50
    stale_brake_min: int = 5
    recycle: RecyclePolicy = RecyclePolicy.REUSE
    deletion_max_attempts: int = 8
    deletion_backoff_base_sec: float = 60
    deletion_backoff_max_sec: float = 3600
    attempt_window_sec: int = 60
    """Longer than a delete call can last: until then no second attempt may start."""
    k_candidates: int = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Which sandbox a (track, idempotency key) holds, and all that a repeated allocate must answer."""

    track_id: str
    idempotency_key: str
    sandbox_id: str
    lease_id: str
    allocated_at: int
    expires_at: int
    name: str
    external_id: str
    track_name: str | None = None
    sfdc_account_id: str | None = None

    def is_overdue(self, now: int, policy: Policy) -> bool:
        """Tell whether the allocation is past its expiry and buffer, so that it may be ended."""
        return now >= self.expires_at + policy.expiry_buffer_sec


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An available sandbox as the index shows it: enough to claim it, and possibly out of date."""

    sandbox_id: str
    version: int
    name: str
    external_id: str
    sfdc_account_id: str | None = None


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
class Sandbox:
    """One sandbox's record. Times are Unix seconds.

    `lease_id`, `allocated_to_track` and `idempotency_key` belong to the present allocation; `allocated_at`,
    `expires_at`, `track_name` and the fields of its deletion are kept until the sandbox is allocated anew, so that
    its last holder can still be answered. `attempt_id` is set while a delete call may be under way;
    `outcome_unknown` says that some delete call of this lease may still be under way: never answered, or only accepted.
    `gone_at` says when the provider answered the last delete call with 404, while nothing has contradicted that.
    """

    sandbox_id: str
    name: str
    external_id: str
    status: Status
    status_order: int
    version: int
    created_at: int
    updated_at: int
    dirty: bool = False
    sfdc_account_id: str | None = None
    lease_id: str | None = None
    allocated_to_track: str | None = None
    idempotency_key: str | None = None
    track_name: str | None = None
    allocated_at: int | None = None
    expires_at: int | None = None
    last_track_id: str | None = None
    last_lease_id: str | None = None
    deletion_requested_at: int | None = None
    deletion_reason: DeletionReason | None = None
    deletion_retry_count: int = 0
    deletion_last_error: str | None = None
    next_attempt_at: int | None = None
    attempt_id: str | None = None
    outcome_unknown: bool = False
    gone_at: int | None = None
    stale_since: int | None = None
    last_synced: int | None = None

    def __post_init__(self) -> None:
        if self.dirty and self.status is Status.AVAILABLE:
            raise InvalidTransition(f"sandbox {self.sandbox_id} is dirty and must not be available")

    @property
    def account_key(self) -> str:
        """What tells its account from all others."""
        return account_key(self.external_id)

    @property
    def answers_to(self) -> str | None:
        """The track that may read it: its holder, or its last one until it is allocated anew."""
        return self.allocated_to_track if self.status is Status.ALLOCATED else self.last_track_id

    @property
    def lease_at_hand(self) -> str | None:
        """The present lease, or the last one until it is allocated anew."""
        return self.lease_id if self.status is Status.ALLOCATED else self.last_lease_id

    def is_overdue(self, now: int, policy: Policy) -> bool:
        """Tell whether it is allocated past its expiry and buffer."""
        return (
            self.status is Status.ALLOCATED
            and self.expires_at is not None
            and now >= self.expires_at + policy.expiry_buffer_sec
        )

    def is_due_for_deletion(self, now: int) -> bool:
        """Tell whether a delete attempt may start now."""
        return self.status is Status.PENDING_DELETION and (self.next_attempt_at or 0) <= now


def new_sandbox(account: Account, *, order: int, now: int, version: int) -> Sandbox:
    """Make the record of an account seen for the first time: available and clean.

    `version` must be greater than any that an earlier record of the same id had, or a writer who still holds that
    record could take this one for it.
    """
    return Sandbox(
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


def allocate(sandbox: Sandbox, claim: Claim) -> Sandbox:
    """Give an available sandbox to the claim's track, under the claim's lease."""
    if sandbox.status is not Status.AVAILABLE:
        raise _not_allowed(sandbox, Status.ALLOCATED)
    return replace(sandbox, **allocation_changes(claim, version=sandbox.version))


def allocation_changes(claim: Claim, *, version: int) -> dict[str, Any]:
    """Return every field that an allocation sets, given the version that it replaces.

    For a store that allocates without having read the whole record.
    """
    return {
        "status": Status.ALLOCATED,
        "status_order": claim.expires_at,
        "version": version + 1,
        "updated_at": claim.allocated_at,
        "dirty": True,
        "lease_id": claim.lease_id,
        "allocated_to_track": claim.track_id,
        "idempotency_key": claim.idempotency_key,
        "track_name": claim.track_name,
        "allocated_at": claim.allocated_at,
        "expires_at": claim.expires_at,
        "deletion_requested_at": None,
        "deletion_reason": None,
        "deletion_retry_count": 0,
        "deletion_last_error": None,
        "next_attempt_at": None,
        "attempt_id": None,
        "outcome_unknown": False,
        "stale_since": None,
    }


def end_allocation(sandbox: Sandbox, *, reason: DeletionReason, now: int) -> Sandbox:
    """Take an allocated sandbox back: it waits for the provider to wipe it."""
    if sandbox.status is not Status.ALLOCATED:
        raise _not_allowed(sandbox, Status.PENDING_DELETION)
    return _move(
        sandbox,
        Status.PENDING_DELETION,
        now=now,
        order=now,
        last_track_id=sandbox.allocated_to_track,
        last_lease_id=sandbox.lease_id,
        lease_id=None,
        allocated_to_track=None,
        idempotency_key=None,
        deletion_requested_at=now,
        deletion_reason=reason,
        deletion_retry_count=0,
        deletion_last_error=None,
        next_attempt_at=now,
    )


def begin_attempt(sandbox: Sandbox, *, attempt_id: str, now: int, policy: Policy) -> Sandbox:
    """Take a sandbox for one delete attempt; nobody else may try before the attempt's window has passed.

    An earlier attempt that never wrote its outcome (its worker died) counts as failed with an unknown outcome; if it
    was the last one allowed, the sandbox goes to `deletion_failed` instead.
    """
    if not sandbox.is_due_for_deletion(now):
        raise _not_allowed(sandbox, Status.PENDING_DELETION)
    lost = sandbox.attempt_id is not None
    count = sandbox.deletion_retry_count + (1 if lost else 0)
    if lost and count >= policy.deletion_max_attempts:
        return _move(
            sandbox,
            Status.DELETION_FAILED,
            now=now,
            order=now,
            deletion_retry_count=count,
            deletion_last_error="the last attempt never reported its outcome",
            next_attempt_at=None,
            attempt_id=None,
            outcome_unknown=True,
        )
    until = now + policy.attempt_window_sec
    return _change(
        sandbox,
        now=now,
        status_order=until,
        next_attempt_at=until,
        attempt_id=attempt_id,
        deletion_retry_count=count,
        outcome_unknown=sandbox.outcome_unknown or lost,
    )


def cancel_attempt(sandbox: Sandbox, *, error: str, now: int, outcome_unknown: bool = False) -> Sandbox:
    """Give up an attempt that failed through no fault of the sandbox's: it is not counted, and due again."""
    _check_attempt(sandbox)
    return _change(
        sandbox,
        now=now,
        status_order=now,
        next_attempt_at=now,
        attempt_id=None,
        deletion_last_error=error,
        outcome_unknown=sandbox.outcome_unknown or outcome_unknown,
    )


def fail_attempt(
    sandbox: Sandbox, *, error: str, outcome_unknown: bool, retry_at: int, now: int, policy: Policy
) -> Sandbox:
    """Count a failed attempt: tried again at `retry_at`, or put aside for a person when it was the last one."""
    _check_attempt(sandbox)
    count = sandbox.deletion_retry_count + 1
    if count >= policy.deletion_max_attempts:
        failed = replace(
            sandbox,
            deletion_retry_count=count,
            outcome_unknown=sandbox.outcome_unknown or outcome_unknown,
        )
        return reject_deletion(failed, error=error, now=now)
    return _change(
        sandbox,
        now=now,
        status_order=retry_at,
        next_attempt_at=retry_at,
        attempt_id=None,
        deletion_retry_count=count,
        deletion_last_error=error,
        outcome_unknown=sandbox.outcome_unknown or outcome_unknown,
    )


def backoff_seconds(sandbox: Sandbox, *, jitter: float, policy: Policy) -> int:
    """Return the pause before the next attempt: the base doubled for each one that failed, times `jitter`."""
    doubled = policy.deletion_backoff_base_sec * float(2 ** min(sandbox.deletion_retry_count, 30))
    return round(min(policy.deletion_backoff_max_sec, doubled * jitter))


def reject_deletion(sandbox: Sandbox, *, error: str, now: int) -> Sandbox:
    """Put a sandbox aside for a person: the provider will not delete it."""
    _check_attempt(sandbox)
    return _move(
        sandbox,
        Status.DELETION_FAILED,
        now=now,
        order=now,
        deletion_last_error=error,
        next_attempt_at=None,
        attempt_id=None,
    )


def confirm_wipe(sandbox: Sandbox, *, accepted_only: bool, order: int, now: int, policy: Policy) -> Sandbox:
    """Follow the recycle policy after the provider confirmed the wipe.

    `accepted_only`: the provider said that it will (202), not that it did. That, and an earlier attempt of the same
    lease that may still be under way, leave a doubt: then only a later sync makes the sandbox available.
    """
    _check_attempt(sandbox)
    doubtful = accepted_only or sandbox.outcome_unknown
    if policy.recycle is RecyclePolicy.RETIRE:
        status, status_order = Status.DELETED, now
    elif policy.recycle is RecyclePolicy.CONFIRM or doubtful:
        status, status_order = Status.STALE, now
    else:
        status, status_order = Status.AVAILABLE, order
    return _move(
        sandbox,
        status,
        now=now,
        order=status_order,
        dirty=False,
        next_attempt_at=None,
        attempt_id=None,
        outcome_unknown=doubtful and status is Status.STALE,
        deletion_last_error=None,
        gone_at=None,
        stale_since=now if status is Status.STALE else None,
    )


def account_gone(sandbox: Sandbox, *, now: int, policy: Policy) -> Sandbox:
    """Take out of service a sandbox that the provider no longer knows (404): nobody wiped it, so it stays dirty."""
    _check_attempt(sandbox)
    retired = policy.recycle is RecyclePolicy.RETIRE
    return _move(
        sandbox,
        Status.DELETED if retired else Status.STALE,
        now=now,
        order=now,
        next_attempt_at=None,
        attempt_id=None,
        deletion_last_error="the provider answered 404: it does not know the account, so nobody has wiped it",
        gone_at=now,
        stale_since=None if retired else now,
    )


def go_stale(sandbox: Sandbox, *, now: int, last_seen: int | None) -> Sandbox:
    """Take an available sandbox out of service: the provider does not list it as active, or its account is shared."""
    if sandbox.status is not Status.AVAILABLE:
        raise _not_allowed(sandbox, Status.STALE)
    return _move(
        sandbox,
        Status.STALE,
        now=now,
        order=now,
        stale_since=now,
        last_synced=max(filter(None, (sandbox.last_synced, last_seen)), default=None),
    )


def restore(sandbox: Sandbox, account: Account, *, order: int, now: int) -> Sandbox:
    """Bring a stale sandbox back that the provider lists again: to the pool, or to be wiped first if dirty.

    A dirty one is restored with another account, in place of its own that is gone; see `contradict` for its own.
    """
    if sandbox.status is not Status.STALE:
        raise _not_allowed(sandbox, Status.AVAILABLE)
    seen = replace(
        sandbox,
        name=account.name,
        external_id=account.external_id,
        sfdc_account_id=account.sfdc_account_id,
        last_synced=now,
        gone_at=None,
        stale_since=None,
    )
    if not sandbox.dirty:
        return _move(seen, Status.AVAILABLE, now=now, order=order, outcome_unknown=False)
    return _move(
        seen,
        Status.PENDING_DELETION,
        now=now,
        order=now,
        next_attempt_at=now,
        deletion_requested_at=sandbox.deletion_requested_at or now,
        deletion_reason=sandbox.deletion_reason or DeletionReason.FOUND_DIRTY,
        deletion_retry_count=0,
    )


def is_thought_gone(sandbox: Sandbox) -> bool:
    """Tell whether a sandbox is out of service because the provider answered its delete with 404.

    What is stale and dirty always is. A tombstone may be an operator's or a purge's, and stays then.
    """
    if sandbox.status is Status.DELETED:
        return sandbox.dirty and sandbox.gone_at is not None
    return sandbox.dirty and sandbox.status is Status.STALE


def contradict(sandbox: Sandbox, *, retry_at: int, now: int, policy: Policy) -> Sandbox:
    """Count a delete that was answered with 404 as failed: the provider still lists the account as active.

    Wiped again from `retry_at` on, or set aside for a person when that was the last attempt allowed. A tombstone comes
    back so, too, if that answer made it.
    """
    if not is_thought_gone(sandbox):
        raise _not_allowed(sandbox, Status.PENDING_DELETION)
    count = sandbox.deletion_retry_count + 1
    error = "the provider answered 404 to the last delete, but still lists the account as active"
    seen = replace(sandbox, deletion_retry_count=count, gone_at=None, stale_since=None, last_synced=now)
    if count >= policy.deletion_max_attempts:
        return _move(
            seen,
            Status.DELETION_FAILED,
            now=now,
            order=now,
            deletion_last_error=f"{error}; attempts: {count}",
        )
    return _move(
        seen,
        Status.PENDING_DELETION,
        now=now,
        order=retry_at,
        next_attempt_at=retry_at,
        deletion_requested_at=sandbox.deletion_requested_at or now,
        deletion_reason=sandbox.deletion_reason or DeletionReason.FOUND_DIRTY,
        deletion_last_error=error,
    )


def describe(sandbox: Sandbox, account: Account, *, now: int) -> Sandbox:
    """Take over the provider's present name and ids of a sandbox; the same object if nothing changed."""
    seen = replace(
        sandbox,
        name=account.name,
        external_id=account.external_id,
        sfdc_account_id=account.sfdc_account_id,
    )
    return sandbox if seen == sandbox else _change(seen, now=now, last_synced=now)


def quarantine(sandbox: Sandbox, *, reason: str, now: int) -> Sandbox:
    """Put an unused sandbox aside for a person."""
    if sandbox.status not in {Status.AVAILABLE, Status.STALE}:
        raise _not_allowed(sandbox, Status.DELETION_FAILED)
    return _move(
        sandbox,
        Status.DELETION_FAILED,
        now=now,
        order=now,
        deletion_reason=DeletionReason.QUARANTINED,
        deletion_last_error=reason,
        gone_at=None,
        stale_since=None,
    )


def retry_deletion(sandbox: Sandbox, *, now: int) -> Sandbox:
    """Send a sandbox that a person has looked at to be wiped, with a fresh count of attempts."""
    if sandbox.status is not Status.DELETION_FAILED:
        raise _not_allowed(sandbox, Status.PENDING_DELETION)
    return _move(
        sandbox,
        Status.PENDING_DELETION,
        now=now,
        order=now,
        next_attempt_at=now,
        deletion_requested_at=sandbox.deletion_requested_at or now,
        deletion_reason=DeletionReason.RETRIED,
        deletion_retry_count=0,
    )


def bury(sandbox: Sandbox, *, now: int, policy: Policy) -> Sandbox | None:
    """Remove a stale or failed sandbox: a tombstone if it is dirty or under `retire`, else None (delete the record).

    The tombstone keeps a sync that still sees the account from adding it again as new and clean.
    """
    if Status.DELETED not in TRANSITIONS[sandbox.status] or sandbox.status is Status.PENDING_DELETION:
        raise _not_allowed(sandbox, Status.DELETED)
    if not sandbox.dirty and policy.recycle is not RecyclePolicy.RETIRE:
        return None
    return _move(sandbox, Status.DELETED, now=now, order=now, gone_at=None, stale_since=None)


def _check_attempt(sandbox: Sandbox) -> None:
    if sandbox.status is not Status.PENDING_DELETION or sandbox.attempt_id is None:
        raise InvalidTransition(f"sandbox {sandbox.sandbox_id} is {sandbox.status} and no attempt to delete it is open")


def _move(sandbox: Sandbox, to: Status, *, now: int, order: int, **changes: Any) -> Sandbox:  # noqa: ANN401 - passed on to replace, which checks it
    if to not in TRANSITIONS[sandbox.status]:
        raise _not_allowed(sandbox, to)
    return _change(sandbox, now=now, status=to, status_order=order, **changes)


def _change(sandbox: Sandbox, *, now: int, **changes: Any) -> Sandbox:  # noqa: ANN401 - passed on to replace, which checks it
    return replace(sandbox, version=sandbox.version + 1, updated_at=now, **changes)


def _not_allowed(sandbox: Sandbox, to: Status) -> InvalidTransition:
    return InvalidTransition(f"sandbox {sandbox.sandbox_id} is {sandbox.status} and cannot become {to}")
