"""Allocate: give a sandbox to a track. A track that repeats its request gets the same sandbox.

One transaction writes the claim and the lease. A track is answered "no sandbox is available", or waits in line, only
after a read of the whole index, and never while it holds a sandbox. It takes no sandbox that is due to a track ahead of
it in the line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never

from broker_common.core.deadline import Backoff, deadline_in
from broker_common.core.errors import (
    BrokerError,
    ClockWrong,
    DeadlineExceeded,
    NoSandboxesAvailable,
    OutcomeUnknown,
    Paused,
    ReservationNotFound,
    ReservationNotOpen,
    StoreMisconfigured,
    StoreUnavailable,
    UnreadableRecord,
    UpgradeUnfinished,
)
from broker_common.core.ids import new_id
from broker_common.core.lease import candidate_of, claim_on
from broker_common.core.leases import expire
from broker_common.core.line import Wish
from broker_common.core.reservation import not_open
from broker_common.core.sandbox import Candidate, Claim, Lease
from broker_common.core.schema import Upgrade
from broker_common.core.store import Allocated, CandidateGone, ClaimHeld, Contended, PlaceHeld, ReservationShut
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome
from broker_common.core.waiting import VISIBLE_SEC, WALK_SPACING_SEC, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from broker_common.core.candidate_cache import CandidateCache, CandidateChoice, CandidateSearch
    from broker_common.core.guard import Guard
    from broker_common.core.known_reservations import KnownReservations
    from broker_common.core.line import Place
    from broker_common.core.pauses import PauseCache
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.sandbox import Sandbox
    from broker_common.core.store import Commits
    from broker_common.core.waiting import WaitingLine

RETRY_AFTER_EMPTY_SEC = 30
RETRY_AFTER_PAUSE_SEC = 30
MOST_RESERVATIONS = 20
"""From so many reservations of its lab a track may draw: a place in the line stores them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateRequest:
    """A track's request for a sandbox whose name starts with `prefix`; an empty `prefix` allows every name.

    `duration_sec` is how long the lease lasts; None for the usual time. The caller has checked its bounds.

    `wait_sec`: the track waits in line if no sandbox is free for it, and this request may be held for so long. None:
    it does not wait. `reservation_id`: the reservation that it names, to draw from.
    """

    track_id: str
    idempotency_key: str
    prefix: str = ""
    track_name: str | None = None
    duration_sec: int | None = None
    customer: str | None = None
    wait_sec: float | None = None
    reservation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A track's claim. `replayed`: the track held the sandbox before this request."""

    claim: Claim
    replayed: bool


@dataclass(slots=True)
class _Progress:
    """How far one request has come.

    `began_at`: when it came. `arrived_at`: the same, or, after it was held, from when on its next try counts as come.
    `conflicts`: how many candidates others had taken. `place_id`: its place in the line, once it is known. `waits_at`:
    the place at which it was held. `wish`: what the track may be given now.
    """

    began_at: float
    arrived_at: float
    wish: Wish = field(default_factory=Wish)
    conflicts: int = 0
    place_id: str | None = None
    held_sec: float = 0.0
    waits_at: Place | None = None

    def shut(self, reservation_id: str | None) -> None:
        """Draw no more from a reservation."""
        others = tuple(each for each in self.wish.reservations if each != reservation_id)
        self.wish = replace(self.wish, reservations=others)


class Allocator:
    """Allocates sandboxes to tracks. A process has one; it is safe to use from many threads."""

    def __init__(
        self,
        *,
        store: Commits,
        guard: Guard,
        candidate_cache: CandidateCache,
        line: WaitingLine,
        pauses: PauseCache,
        reservations: KnownReservations,
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
        work_sec: float,
    ) -> None:
        """`work_sec`: how long a request may work, without the time for which it is held."""
        self._store = store
        self._guard = guard
        self._candidates = candidate_cache
        self._line = line
        self._pauses = pauses
        self._reservations = reservations
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._work_sec = work_sec

    def allocate(
        self, request: AllocateRequest, *, by: Actor, may_hold: Callable[[], bool] = lambda: False
    ) -> Allocation | Waiting:
        """Allocate a sandbox, or return the one that the (track, key) holds already, or its place in the line.

        The request is held while `may_hold` says so, for at most its `wait_sec`: its client is there, and its thread is
        not needed.

        Raises `NoSandboxesAvailable`, `TableChanged`, `UnreadableRecord`, `Paused`, `UpgradeUnfinished`, `ClockWrong`,
        `ReservationNotFound` and `ReservationNotOpen` (the last five only if the (track, key) holds no sandbox), and
        `StoreUnavailable` if the store gives no certain answer before the deadline. After an error or a crash the
        caller may send the same request again: it returns the sandbox that an earlier one got.
        """
        now = self._clock.monotonic()
        progress = _Progress(began_at=now, arrived_at=now)
        try:
            result = self._allocate_in_time(request, by, progress, may_hold)
        except (ReservationNotFound, ReservationNotOpen):
            raise  # A fault of the request, as one that cannot be read: it says nothing of the pool.
        except BrokerError as failed:
            is_empty = isinstance(failed, NoSandboxesAvailable)
            outcome = AllocateOutcome.NO_SANDBOXES if is_empty else AllocateOutcome.ERROR
            self._record_end(request, progress, outcome, code=failed.code, error=failed.message)
            raise
        except BaseException:
            self._record_end(request, progress, AllocateOutcome.ERROR, error="the request was abandoned")
            raise
        claim = result.claim if isinstance(result, Allocation) else None
        self._record_end(request, progress, _outcome_of(result), claim=claim)
        return result

    def _record_end(
        self,
        request: AllocateRequest,
        progress: _Progress,
        outcome: AllocateOutcome,
        *,
        claim: Claim | None = None,
        code: str | None = None,
        error: str | None = None,
    ) -> None:
        self._recorder.record(
            AllocateEnded(
                outcome=outcome,
                seconds=self._clock.monotonic() - progress.began_at - progress.held_sec,
                conflicts=progress.conflicts,
                track_id=request.track_id,
                sandbox_id=claim.sandbox_id if claim else None,
                lease_id=claim.lease.lease_id if claim else None,
                code=code,
                error=error,
            )
        )

    def _allocate_in_time(
        self, request: AllocateRequest, by: Actor, progress: _Progress, may_hold: Callable[[], bool]
    ) -> Allocation | Waiting:
        """Allocate, and hold the request while it waits."""
        hold_until = progress.arrived_at + (request.wait_sec or 0)
        while True:
            with deadline_in(self._work_sec, self._clock):
                result = self._allocate(request, by, progress)
            if not isinstance(result, Waiting):
                return result
            began = self._clock.monotonic()
            answer = self._line.hold(result, until=hold_until, may_hold=may_hold, is_paused=self._is_paused)
            now = self._clock.monotonic()
            progress.held_sec += now - began
            if answer is not None:
                return answer
            progress.waits_at = result.place
            # The look at the free sandboxes that made `hold` return is new enough for the next try.
            progress.arrived_at = max(progress.arrived_at, now + VISIBLE_SEC - WALK_SPACING_SEC)

    def _allocate(self, request: AllocateRequest, by: Actor, progress: _Progress) -> Allocation | Waiting:
        held = self._held_if_stopped(request, by)
        if held is not None:
            return Allocation(held, replayed=True)
        try:
            progress.wish = self._wish(request)
        except (ReservationNotFound, ReservationNotOpen):
            held = self._held(request, by)
            if held is None:
                raise
            return Allocation(held, replayed=True)
        place, allocation = self._search(request, by, progress)
        if allocation is not None:
            return allocation
        if place is not None and request.wait_sec is not None:
            waiting = self._line.renew(replace(place, wish=progress.wish))
            if waiting is not None:
                return waiting
        held = self._held(request, by)
        if held is not None:
            return Allocation(held, replayed=True)
        if progress.waits_at is not None:
            # A held request does not undo what its track, or an operator, has done meanwhile.
            raise self._refusal("the place in the line was given up or removed")
        return self._wait_or_refuse(request, progress.wish)

    def _wish(self, request: AllocateRequest) -> Wish:
        """Return what a track may be given now. Raises `ReservationNotFound` or `ReservationNotOpen`."""
        drawn = self._reservations.drawn_by(track_name=request.track_name, customer=request.customer)
        ids = [each.reservation_id for each in drawn]
        if request.reservation_id is not None:
            self._check_open(request.reservation_id, request.customer)
            # When its share is used up, the track goes on as any other of its lab.
            ids = list(dict.fromkeys([request.reservation_id, *ids]))
        return Wish(prefix=request.prefix, reservations=tuple(ids[:MOST_RESERVATIONS]))

    def _check_open(self, reservation_id: str, customer: str | None) -> None:
        """Raise `ReservationNotFound` or `ReservationNotOpen` unless it may be drawn from now."""
        named = self._reservations.find(reservation_id)
        if named is None or not named.is_for_customer(customer):
            raise ReservationNotFound(f"there is no reservation {reservation_id!r}")
        now = self._clock.now()
        if not named.is_open_at(now):
            raise not_open(named, now=now)

    def _held_if_stopped(self, request: AllocateRequest, by: Actor) -> Claim | None:
        """Return the claim of the (track, key) if nothing may be allocated now; None if all is well.

        Raises `ClockWrong`, `TableChanged` or `Paused` if there is no claim.
        """
        try:
            self._guard.check()
        except ClockWrong:
            # By a wrong clock nobody can say whether the lease is overdue. It is the track's until it is ended.
            claim = self._store.get_claim(request.track_id, request.idempotency_key)
            if claim is None:
                raise
            return claim
        if not self._is_paused():
            return None
        held = self._held(request, by)
        if held is None:
            self._line.keep(request.track_id, request.idempotency_key, seconds=RETRY_AFTER_PAUSE_SEC)
            raise Paused("allocation is paused by an operator", retry_after=RETRY_AFTER_PAUSE_SEC)
        return held

    def _is_paused(self) -> bool:
        return bool(self._pauses.current().allocate)

    def _wait_or_refuse(self, request: AllocateRequest, wish: Wish) -> Allocation | Waiting:
        """Give the (track, key) a place in the line, if it wants to wait. Raises `NoSandboxesAvailable` if not."""
        if request.wait_sec is None:
            described = f"whose name starts with {request.prefix!r} " if request.prefix else ""
            raise self._refusal(f"no sandbox {described}is available")
        if not self._guard.is_upgraded(Upgrade.LINE):
            raise UpgradeUnfinished("wait in line")
        joined = self._line.join(
            request.track_id,
            request.idempotency_key,
            wish,
            customer=request.customer,
            track_name=request.track_name,
        )
        return joined if isinstance(joined, Waiting) else Allocation(joined, replayed=True)

    def _refusal(self, message: str) -> NoSandboxesAvailable:
        return NoSandboxesAvailable(message, retry_after=RETRY_AFTER_EMPTY_SEC, details=self._line.outlook())

    def _search(
        self, request: AllocateRequest, by: Actor, progress: _Progress
    ) -> tuple[Place | None, Allocation | None]:
        """Try the sandboxes that are due to nobody ahead. Return the request's place, and the allocation, if any."""
        if progress.waits_at is not None and not self._line.waits_at(progress.waits_at):
            return None, None
        is_empty = True
        for reservation_id in (*progress.wish.reservations, None):
            allocation, nothing_left = self._search_ring(request, by, reservation_id, progress)
            if allocation is not None:
                return None, allocation
            is_empty = is_empty and nothing_left
        if is_empty:
            return None, None
        known = self._line.place_of(request.track_id, request.idempotency_key)
        # A place for other names gives no turn, and its own track is not behind it.
        place, other = (known, None) if known and known.wish.prefix == request.prefix else (None, known)
        progress.place_id = place.place_id if place else None
        while not self._line.is_clear_for(progress.wish):
            turns = self._line.turns(arrived_at=progress.arrived_at, without=other)
            in_turn = self._candidates.choose(turns.open_to(progress.wish, progress.place_id), request.prefix)
            candidate = in_turn.next()
            if candidate is None:
                return place, None
            allocation = self._try(request, by, in_turn, candidate, progress)
            if allocation is not None:
                return place, allocation
            # Without a lost sandbox, the others may be due to other places.
        return self._search(request, by, progress)

    def _search_ring(
        self, request: AllocateRequest, by: Actor, reservation_id: str | None, progress: _Progress
    ) -> tuple[Allocation | None, bool]:
        """Try the sandboxes that are set aside for a reservation, or the available ones if that is None.

        Only while nobody waits for them. Return the allocation, if any, and whether there is surely no other sandbox.
        """
        wish = progress.wish
        if not self._line.is_clear_for(wish, reservation_id):
            return None, False
        search = self._candidates.search(request.prefix, reservation_id)
        while (candidate := search.next()) is not None:
            if not self._line.is_clear_for(wish, reservation_id):  # the look at the line may be too old by now
                search.give_back(candidate)
                return None, False
            allocation = self._try(request, by, search, candidate, progress)
            if allocation is not None:
                return allocation, False
            if progress.wish != wish:
                break  # the reservation is shut
        return None, True

    def _try(
        self,
        request: AllocateRequest,
        by: Actor,
        search: CandidateSearch | CandidateChoice,
        candidate: Candidate,
        progress: _Progress,
    ) -> Allocation | None:
        """Try one candidate until the outcome is certain. Returns None if the caller must try the next candidate."""
        while True:
            claim = self._new_claim(request, candidate)
            try:
                answer = self._write(candidate, claim, by, progress.place_id)
            except UnreadableRecord:
                # The record that this track holds cannot be read. The candidate is free for another track.
                search.give_back(candidate)
                raise
            except BaseException:
                search.discard(candidate)
                raise
            match answer:
                case Allocated():
                    return self._won(search, candidate, claim, progress)
                case ClaimHeld(held):
                    if held.lease.lease_id == claim.lease.lease_id:
                        # An earlier try of this request was applied; only its answer was lost.
                        return self._won(search, candidate, claim, progress)
                    search.give_back(candidate)
                    return self._replay_unless_overdue(held, by)
                case PlaceHeld(place_id):
                    progress.place_id = place_id  # a place that this process did not know of
                case CandidateGone() | ReservationShut():
                    renamed = self._after_loss(answer, search, candidate, progress)
                    if renamed is None:
                        return None
                    candidate = renamed
                case _:
                    assert_never(answer)

    def _after_loss(
        self,
        answer: CandidateGone | ReservationShut,
        search: CandidateSearch | CandidateChoice,
        candidate: Candidate,
        progress: _Progress,
    ) -> Candidate | None:
        """Note that a candidate was not to be had. Return it if only its description has changed."""
        if isinstance(answer, ReservationShut):
            # This process knew an earlier state of the reservation. Its sandboxes are as they were.
            search.discard(candidate)
            progress.shut(candidate.reservation_id)
            return None
        current = answer.current
        if current and _is_still_free(current, candidate) and progress.wish.fits(candidate_of(current)):
            return candidate_of(current)  # a sync has updated its description
        progress.conflicts += 1
        search.mark_lost(candidate)
        self._line.mark_taken(candidate)
        return None

    def _replay_unless_overdue(self, held: Claim, by: Actor) -> Allocation | None:
        """Return what the (track, key) holds; if that lease is overdue, end it, and return None."""
        if not held.lease.is_overdue(self._clock.now(), self._policy):
            return Allocation(held, replayed=True)
        self._expire(held, by)
        return None

    def _won(
        self, search: CandidateSearch | CandidateChoice, candidate: Candidate, claim: Claim, progress: _Progress
    ) -> Allocation:
        search.mark_used(candidate)
        self._line.mark_taken(candidate)
        if progress.place_id is not None:
            self._line.mark_served(progress.place_id)
        return Allocation(claim, replayed=False)

    def _write(
        self, candidate: Candidate, claim: Claim, by: Actor, place_id: str | None
    ) -> Allocated | ClaimHeld | CandidateGone | PlaceHeld | ReservationShut:
        """Send the same write until its answer is certain.

        While an outcome is unknown, the token stays the same, so that the store recognizes the repetition. If a write
        with an earlier token was applied all the same, the answer is `ClaimHeld` with the lease of this request.
        """
        contention = Backoff(self._clock, self._rng)
        trouble = Backoff(self._clock, self._rng, base=0.025, limit=1.0, tries=6)
        token = new_id(self._rng)
        while True:
            try:
                answer = self._store.allocate(candidate, claim, by=by, token=token, place_id=place_id)
            except (DeadlineExceeded, StoreMisconfigured):
                raise
            except OutcomeUnknown as unknown:
                trouble.pause(unknown)
                continue
            except StoreUnavailable as refused:
                trouble.pause(refused)
            else:
                if not isinstance(answer, Contended):
                    return answer
                contention.pause(StoreUnavailable("the records of this request are in use by other requests"))
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
            customer=request.customer,
            reservation_id=candidate.reservation_id,
        )
        return claim_on(candidate, lease)


def _is_still_free(current: Sandbox, candidate: Candidate) -> bool:
    """Tell whether a candidate is free at another version, for the same tracks."""
    is_newer = current.version != candidate.version
    return is_newer and current.is_free and current.reservation_id == candidate.reservation_id


def _outcome_of(result: Allocation | Waiting) -> AllocateOutcome:
    if isinstance(result, Waiting):
        return AllocateOutcome.WAITING
    return AllocateOutcome.IDEMPOTENT if result.replayed else AllocateOutcome.SUCCESS
