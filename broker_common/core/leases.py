"""Read the sandboxes of a track, and end leases in three ways: marked for deletion, released, expired.

A lease ends in one transaction, which ends only the lease that was read first. So it never ends the next lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError, LeaseMismatch, NotSandboxOwner, SandboxNotFound, UnreadableRecord
from broker_common.core.lease import end
from broker_common.core.sandbox import DeletionReason, Sandbox, Status
from broker_common.core.store import Conflict, Unreadable
from broker_common.core.telemetry import AllocationExpired, AllocationReleased, MarkEnded, MarkOutcome

if TYPE_CHECKING:
    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Claim
    from broker_common.core.store import Commits

_REFUSED = {NotSandboxOwner: MarkOutcome.NOT_OWNER, SandboxNotFound: MarkOutcome.NOT_FOUND}


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """The sandbox after its lease ended. `repeated`: the lease had ended before this call."""

    sandbox: Sandbox
    repeated: bool


class Leases:
    """Reads and ends the leases of tracks."""

    def __init__(self, *, store: Commits, recorder: Recorder, clock: Clock) -> None:
        self._store = store
        self._recorder = recorder
        self._clock = clock

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
        sandbox = self._store.get(sandbox_id)
        if sandbox is None:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        ending = self._end(sandbox, lease_id, DeletionReason.RELEASED, by)
        if not ending.repeated:
            self._recorder.record(
                AllocationReleased(sandbox_id=sandbox_id, lease_id=lease_id, track_id=ending.sandbox.latest_track_id)
            )
        return ending

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
