"""Read the sandboxes of a track, extend leases, and end them in three ways: marked for deletion, released, expired.

A lease is extended or ended in one transaction, which changes only the lease that was read first. So it never changes
the next lease.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from broker_common.core.errors import (
    AllocationEnded,
    BrokerError,
    DurationLimit,
    LeaseMismatch,
    NotSandboxOwner,
    SandboxNotFound,
    UnreadableRecord,
)
from broker_common.core.lease import end, extend
from broker_common.core.policy import OPERATOR_MAX_SEC
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.store import Conflict, Unreadable
from broker_common.core.telemetry import (
    AllocationExpired,
    AllocationReleased,
    ExtendOutcome,
    ExtensionEnded,
    MarkEnded,
    MarkOutcome,
)
from broker_common.core.utc import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Claim, Lease
    from broker_common.core.store import Commits

_REFUSED = {NotSandboxOwner: MarkOutcome.NOT_OWNER, SandboxNotFound: MarkOutcome.NOT_FOUND}
_NOT_EXTENDED = {
    NotSandboxOwner: ExtendOutcome.NOT_OWNER,
    SandboxNotFound: ExtendOutcome.NOT_FOUND,
    AllocationEnded: ExtendOutcome.ENDED,
    LeaseMismatch: ExtendOutcome.ENDED,
    DurationLimit: ExtendOutcome.LIMIT,
}


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The sandbox after its lease ended. `repeated`: the lease had ended before this call."""

    sandbox: Sandbox
    repeated: bool


@dataclass(frozen=True, slots=True)
class Extension:
    """A lease after a call to extend it. `unchanged`: it lasted long enough before this call."""

    sandbox_id: str
    lease: Lease
    unchanged: bool


class Leases:
    """Reads, extends and ends the leases of tracks."""

    def __init__(self, *, store: Commits, guard: Guard, recorder: Recorder, clock: Clock, policy: Policy) -> None:
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._policy = policy

    def read(self, *, track_id: str, sandbox_id: str) -> Sandbox:
        """Return a sandbox to the track that holds it, or held it last, until it is leased again.

        Raises `NotSandboxOwner`, `SandboxNotFound` or `UnreadableRecord`.
        """
        sandbox = self._store.get(sandbox_id)
        if sandbox is None or sandbox.status is Status.DELETED:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        if sandbox.latest_track_id != track_id:
            raise NotSandboxOwner(f"sandbox {sandbox_id!r} is not held by this track")
        return sandbox

    def list_held(self, *, track_id: str) -> list[Sandbox]:
        """Return the sandboxes that a track holds. Raises `UnreadableRecord` if a record cannot be read."""
        found = [(claim, self._store.get(claim.sandbox_id)) for claim in self._store.read_claims(track_id)]
        return [sandbox for claim, sandbox in found if sandbox and _is_held_by(sandbox, claim)]

    def find_held(self, *, track_id: str) -> list[Sandbox | Unreadable]:
        """Return the sandboxes that a track holds. One whose record cannot be read is an `Unreadable`."""
        return [each for claim in self._store.read_claims(track_id) if (each := self._find(claim))]

    def _find(self, claim: Claim) -> Sandbox | Unreadable | None:
        try:
            sandbox = self._store.get(claim.sandbox_id)
        except UnreadableRecord as error:
            return Unreadable(claim.sandbox_id, error.reason)
        return sandbox if sandbox and _is_held_by(sandbox, claim) else None

    def extend(
        self, *, track_id: str, sandbox_id: str, expires_at: int, by: Actor, lease_id: str | None = None
    ) -> Extension:
        """Have a lease last until `expires_at` (Unix seconds) at least. It is never shortened. May be repeated.

        Extends the lease `lease_id`; without it, the lease that is read first. A lease can be extended until something
        has ended it, also after its `expires_at`. Raises `NotSandboxOwner`, `SandboxNotFound`, `LeaseMismatch`,
        `AllocationEnded`, `DurationLimit`, `UnreadableRecord`, `UnsafeToAct`.
        """
        return self._record_extension(
            sandbox_id,
            lease_id,
            track_id,
            lambda: self._extend(
                self.read(track_id=track_id, sandbox_id=sandbox_id),
                lease_id,
                expires_at,
                self._policy.max_lab_duration_sec,
                by,
            ),
        )

    def extend_for_operator(
        self, *, sandbox_id: str, expires_at: int, by: Actor, lease_id: str | None = None
    ) -> Extension:
        """Have a lease last until `expires_at` at least, for up to 30 days from its begin. See `extend`."""
        longest = max(self._policy.max_lab_duration_sec, OPERATOR_MAX_SEC)
        return self._record_extension(
            sandbox_id,
            lease_id,
            None,
            lambda: self._extend(self._get(sandbox_id), lease_id, expires_at, longest, by),
        )

    def mark_for_deletion(self, *, track_id: str, sandbox_id: str, by: Actor, lease_id: str | None = None) -> LeaseEnd:
        """Give a sandbox back. It is wiped before another track can lease it.

        Ends the lease `lease_id`; without it, the lease that is read first. The track may repeat the call until the
        sandbox is leased again. Raises `NotSandboxOwner`, `SandboxNotFound`, `LeaseMismatch`, `UnreadableRecord`.
        """
        outcome, ending = MarkOutcome.ERROR, None
        code: str | None = None
        error: str | None = "the request was abandoned"
        try:
            ending = self._mark(track_id, sandbox_id, lease_id, by)
            outcome = MarkOutcome.REPEATED if ending.repeated else MarkOutcome.SUCCESS
            error = None
        except BrokerError as failed:
            outcome = _REFUSED.get(type(failed), MarkOutcome.ERROR)
            code, error = failed.code, failed.message
            raise
        finally:
            self._recorder.record(
                MarkEnded(
                    outcome=outcome,
                    track_id=track_id,
                    sandbox_id=sandbox_id,
                    lease_id=ending.sandbox.latest_lease_id if ending else lease_id,
                    code=code,
                    error=error,
                )
            )
        return ending

    def release(self, *, sandbox_id: str, lease_id: str, by: Actor) -> LeaseEnd:
        """End a lease for an operator. May be repeated.

        Raises `SandboxNotFound`, and `LeaseMismatch` if the sandbox is not held under `lease_id`.
        """
        ending = self._end(self._get(sandbox_id), lease_id, DeletionReason.RELEASED, by)
        if not ending.repeated:
            self._recorder.record(
                AllocationReleased(sandbox_id=sandbox_id, lease_id=lease_id, track_id=ending.sandbox.latest_track_id)
            )
        return ending

    def _get(self, sandbox_id: str) -> Sandbox:
        sandbox = self._store.get(sandbox_id)
        if sandbox is None:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        return sandbox

    def _record_extension(
        self, sandbox_id: str, lease_id: str | None, track_id: str | None, act: Callable[[], Extension]
    ) -> Extension:
        outcome, extension = ExtendOutcome.ERROR, None
        code: str | None = None
        error: str | None = "the request was abandoned"
        try:
            extension = act()
            outcome = ExtendOutcome.UNCHANGED if extension.unchanged else ExtendOutcome.SUCCESS
            error = None
        except BrokerError as failed:
            outcome = _NOT_EXTENDED.get(type(failed), ExtendOutcome.ERROR)
            code, error = failed.code, failed.message
            raise
        finally:
            self._recorder.record(
                ExtensionEnded(
                    outcome=outcome,
                    sandbox_id=sandbox_id,
                    track_id=extension.lease.track_id if extension else track_id,
                    lease_id=extension.lease.lease_id if extension else lease_id,
                    code=code,
                    error=error,
                )
            )
        return extension

    def _extend(
        self, sandbox: Sandbox, lease_id: str | None, expires_at: int, longest_sec: int, by: Actor
    ) -> Extension:
        lease_id = lease_id or sandbox.latest_lease_id
        while True:
            self._guard.check()
            if sandbox.latest_lease_id != lease_id:
                raise LeaseMismatch(f"sandbox {sandbox.sandbox_id!r} is not held under this lease_id")
            lease = sandbox.lease
            if lease is None:
                raise AllocationEnded(f"no track holds sandbox {sandbox.sandbox_id!r}: its lease has ended")
            if expires_at <= lease.expires_at:
                return Extension(sandbox.sandbox_id, lease, unchanged=True)
            latest = max(lease.allocated_at + longest_sec, lease.expires_at)
            if expires_at > latest:
                raise DurationLimit(
                    f"the lease on sandbox {sandbox.sandbox_id!r} can last until {shown(latest)} at most",
                    details={"latest_expires_at": latest},
                )
            longer = extend(sandbox, expires_at=expires_at, by=by, now=self._clock.now())
            try:
                self._store.commit(longer)
            except Conflict as conflict:
                if conflict.current is None:
                    raise SandboxNotFound(f"there is no sandbox {sandbox.sandbox_id!r}") from conflict
                sandbox = conflict.current
            else:
                return Extension(sandbox.sandbox_id, replace(lease, expires_at=expires_at), unchanged=False)

    def _mark(self, track_id: str, sandbox_id: str, lease_id: str | None, by: Actor) -> LeaseEnd:
        sandbox = self._store.get(sandbox_id)
        if sandbox is None or (sandbox.status is Status.DELETED and sandbox.latest_track_id != track_id):
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        if sandbox.latest_track_id != track_id:
            raise NotSandboxOwner(f"sandbox {sandbox_id!r} is not held by this track")
        return self._end(sandbox, lease_id or sandbox.latest_lease_id, DeletionReason.MARKED, by)

    def _end(self, sandbox: Sandbox, lease_id: str | None, reason: DeletionReason, by: Actor) -> LeaseEnd:
        while True:
            if lease_id is None or sandbox.latest_lease_id != lease_id:
                raise LeaseMismatch(f"sandbox {sandbox.sandbox_id!r} is not held under this lease_id")
            if sandbox.status is not Status.ALLOCATED:
                return LeaseEnd(sandbox, repeated=True)
            change = end(sandbox, reason=reason, by=by, now=self._clock.now())
            try:
                self._store.commit(change)
            except Conflict as conflict:
                if conflict.current is None:
                    raise SandboxNotFound(f"there is no sandbox {sandbox.sandbox_id!r}") from conflict
                sandbox = conflict.current
            else:
                return LeaseEnd(change.result, repeated=False)


def expire(
    sandbox_id: str, *, by: Actor, store: Commits, guard: Guard, recorder: Recorder, clock: Clock, policy: Policy
) -> bool:
    """End the lease of a sandbox if its expiry and buffer are over. Return whether a lease was ended.

    The expiry job calls this, and so does allocate for a claim of its own track. Raises `UnsafeToAct`.
    """
    sandbox = store.get(sandbox_id)
    while sandbox is not None and (lease := sandbox.lease) is not None and lease.is_overdue(clock.now(), policy):
        guard.check()
        try:
            store.commit(end(sandbox, reason=DeletionReason.EXPIRED, by=by, now=clock.now()))
        except Conflict as conflict:
            sandbox = conflict.current
        else:
            recorder.record(AllocationExpired(sandbox_id=sandbox_id, lease_id=lease.lease_id, track_id=lease.track_id))
            return True
    return False


def _is_held_by(sandbox: Sandbox, claim: Claim) -> bool:
    return sandbox.lease is not None and sandbox.lease.lease_id == claim.lease.lease_id
