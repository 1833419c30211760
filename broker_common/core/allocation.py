"""Allocate: give a sandbox to a track. A track that repeats its request gets the same sandbox.

One transaction writes the claim and the lease. A track is answered "no sandbox is available" only after a read of the
whole index, and never while it holds a sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from broker_common.core.deadline import Backoff
from broker_common.core.errors import (
    BrokerError,
    ClockWrong,
    DeadlineExceeded,
    NoSandboxesAvailable,
    OutcomeUnknown,
    Paused,
    StoreMisconfigured,
    StoreUnavailable,
    UnreadableRecord,
)
from broker_common.core.ids import new_id
from broker_common.core.lease import candidate_of, claim_on
from broker_common.core.leases import expire
from broker_common.core.sandbox import Candidate, Claim, Lease, Status
from broker_common.core.store import Allocated, CandidateGone, ClaimHeld, Contended
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome

if TYPE_CHECKING:
    from random import Random

    from broker_common.core.candidate_cache import CandidateCache, CandidateSearch
    from broker_common.core.guard import Guard
    from broker_common.core.pauses import PauseCache
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Sandbox
    from broker_common.core.store import Commits

RETRY_AFTER_EMPTY_SEC = 30
RETRY_AFTER_PAUSE_SEC = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateRequest:
    """A track's request for a sandbox whose name starts with `prefix`; an empty `prefix` allows every name.

    `duration_sec` is how long the lease lasts; None for the usual time. The caller has checked its bounds.
    """

    track_id: str
    idempotency_key: str
    prefix: str = ""
    track_name: str | None = None
    duration_sec: int | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A track's claim. `replayed`: the track held the sandbox before this request."""

    claim: Claim
    replayed: bool


@dataclass(slots=True)
class _Tally:
    """How many candidates of one request had been taken by others."""

    conflicts: int = 0


class Allocator:
    """Allocates sandboxes to tracks. A process has one; it is safe to use from many threads."""

    def __init__(
        self,
        *,
        store: Commits,
        guard: Guard,
        candidate_cache: CandidateCache,
        pauses: PauseCache,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
    ) -> None:
        self._store = store
        self._guard = guard
        self._candidates = candidate_cache
        self._pauses = pauses
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy

    def allocate(self, request: AllocateRequest, *, by: Actor) -> Allocation:
        """Allocate a sandbox, or return the one that the (track, key) holds already.

        Raises `NoSandboxesAvailable`, `TableChanged`, `UnreadableRecord`, `Paused` and `ClockWrong` (the last two only
        if the (track, key) holds no sandbox), and `StoreUnavailable` if the store gives no certain answer before the
        deadline. After an error or a crash the caller may send the same request again: it returns the sandbox that an
        earlier one got.
        """
        started = self._clock.monotonic()
        tally = _Tally()
        outcome = AllocateOutcome.ERROR
        allocation: Allocation | None = None
        code: str | None = None
        error: str | None = "the request was abandoned"
        try:
            allocation = self._allocate(request, by, tally)
            outcome = AllocateOutcome.IDEMPOTENT if allocation.replayed else AllocateOutcome.SUCCESS
            error = None
        except BrokerError as failed:
            if isinstance(failed, NoSandboxesAvailable):
                outcome = AllocateOutcome.NO_SANDBOXES
            code, error = failed.code, failed.message
            raise
        finally:
            self._recorder.record(
                AllocateEnded(
                    outcome=outcome,
                    seconds=self._clock.monotonic() - started,
                    conflicts=tally.conflicts,
                    track_id=request.track_id,
                    sandbox_id=allocation.claim.sandbox_id if allocation else None,
                    lease_id=allocation.claim.lease.lease_id if allocation else None,
                    code=code,
                    error=error,
                )
            )
        return allocation

    def _allocate(self, request: AllocateRequest, by: Actor, tally: _Tally) -> Allocation:
        try:
            self._guard.check()
        except ClockWrong:
            # By a wrong clock nobody can say whether the lease is overdue. It is the track's until it is ended.
            claim = self._store.get_claim(request.track_id, request.idempotency_key)
            if claim is None:
                raise
            return Allocation(claim, replayed=True)
        if self._pauses.current().allocate:
            held = self._held(request, by)
            if held is None:
                raise Paused("allocation is paused by an operator", retry_after=RETRY_AFTER_PAUSE_SEC)
            return Allocation(held, replayed=True)
        search = self._candidates.search(request.prefix)
        while (candidate := search.next()) is not None:
            allocation = self._try(request, by, search, candidate, tally)
            if allocation is not None:
                return allocation
        held = self._held(request, by)
        if held is not None:
            return Allocation(held, replayed=True)
        described = f"whose name starts with {request.prefix!r} " if request.prefix else ""
        raise NoSandboxesAvailable(f"no sandbox {described}is available", retry_after=RETRY_AFTER_EMPTY_SEC)

    def _try(
        self, request: AllocateRequest, by: Actor, search: CandidateSearch, candidate: Candidate, tally: _Tally
    ) -> Allocation | None:
        """Try one candidate until the outcome is certain. Returns None if the caller must try the next candidate."""
        while True:
            claim = self._new_claim(request, candidate)
            try:
                answer = self._write(candidate, claim, by)
            except UnreadableRecord:
                # The record that this track holds cannot be read. The candidate is free for another track.
                search.give_back(candidate)
                raise
            except BaseException:
                search.discard(candidate)
                raise
            match answer:
                case Allocated():
                    search.mark_used(candidate)
                    return Allocation(claim, replayed=False)
                case ClaimHeld(held) if held.lease.lease_id == claim.lease.lease_id:
                    # An earlier try of this request was applied; only its answer was lost.
                    search.mark_used(candidate)
                    return Allocation(claim, replayed=False)
                case ClaimHeld(held):
                    search.give_back(candidate)
                    if not held.lease.is_overdue(self._clock.now(), self._policy):
                        return Allocation(held, replayed=True)
                    self._expire(held, by)
                    return None
                case CandidateGone(current):
                    if current and current.version != candidate.version and _matches(current, request.prefix):
                        # A sync has updated its description: it is still available.
                        candidate = candidate_of(current)
                        continue
                    tally.conflicts += 1
                    search.mark_lost(candidate)
                    return None
                case _:
                    assert_never(answer)

    def _write(self, candidate: Candidate, claim: Claim, by: Actor) -> Allocated | ClaimHeld | CandidateGone:
        """Send the same write until its answer is certain.

        While an outcome is unknown, the token stays the same, so that the store recognizes the repetition. If a write
        with an earlier token was applied all the same, the answer is `ClaimHeld` with the lease of this request.
        """
        backoff = Backoff(self._clock, self._rng)
        token = new_id(self._rng)
        while True:
            try:
                answer = self._store.allocate(candidate, claim, by=by, token=token)
            except (DeadlineExceeded, StoreMisconfigured):
                raise
            except OutcomeUnknown as unknown:
                backoff.pause(unknown)
                continue
            except StoreUnavailable as refused:
                backoff.pause(refused)
            else:
                if not isinstance(answer, Contended):
                    return answer
                backoff.pause(StoreUnavailable("the records of this request are in use by other requests"))
            token = new_id(self._rng)

    def _held(self, request: AllocateRequest, by: Actor) -> Claim | None:
        """Return the claim of the (track, key). If its lease is overdue, end that first.

        Then read again: a copy of this request may have ended the lease first, and may hold a new one now.
        """
        claim = self._store.get_claim(request.track_id, request.idempotency_key)
        if claim is None or not claim.lease.is_overdue(self._clock.now(), self._policy):
            return claim
        self._expire(claim, by)
        return self._store.get_claim(request.track_id, request.idempotency_key)

    def _expire(self, claim: Claim, by: Actor) -> None:
        expire(
            claim.sandbox_id,
            by=by,
            store=self._store,
            guard=self._guard,
            recorder=self._recorder,
            clock=self._clock,
            policy=self._policy,
        )

    def _new_claim(self, request: AllocateRequest, candidate: Candidate) -> Claim:
        now = self._clock.now()
        lease = Lease(
            lease_id=new_id(self._rng),
            track_id=request.track_id,
            idempotency_key=request.idempotency_key,
            allocated_at=now,
            expires_at=now + (request.duration_sec or self._policy.lab_duration_sec),
            track_name=request.track_name,
        )
        return claim_on(candidate, lease)


def _matches(sandbox: Sandbox, prefix: str) -> bool:
    return sandbox.status is Status.AVAILABLE and sandbox.name.startswith(prefix)
