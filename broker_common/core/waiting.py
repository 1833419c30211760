"""What one process knows of the line, and its tracks' places in it: joining, coming back, and giving up.

A process reads the line once a second while its tracks allocate, and the free sandboxes less often, and only while
somebody waits. All requests of the process share these reads.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar, assert_never

from broker_common.core.deadline import Backoff, deadline_in, time_left
from broker_common.core.errors import NoSandboxesAvailable, OutcomeUnknown, StoreUnavailable
from broker_common.core.ids import new_id
from broker_common.core.line import (
    FRONT_RETRY_SEC,
    Place,
    Turns,
    front_of,
    in_order,
    new_place_id,
    next_round,
    retry_after,
)
from broker_common.core.sandbox import Status
from broker_common.core.shared_read import SharedRead
from broker_common.core.store import RETURN_RANKS, ClaimHeld, Joined, PlaceHeld, Position
from broker_common.core.telemetry import WaitEnded, WaitOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

    from broker_common.core.guard import Guard
    from broker_common.core.known_reservations import KnownReservations
    from broker_common.core.line import Wish
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.sandbox import Candidate, Claim
    from broker_common.core.store import PoolCount, SandboxStore

Answer = TypeVar("Answer")

LINE_AGE_SEC = 1.0
"""How old the knowledge that nobody waits may be when a track takes a sandbox."""
BUSY_AGE_SEC = 1.5
"""How old the line may be while somebody waits. It is seldom so old: each look at the free sandboxes reads it, too."""
WHOLE_AGE_SEC = 5.0
"""How old the rest of a long line may be."""
LONG_LINE = 2000
"""Only so many places, the first ones, are read every second."""
WALK_SPACING_SEC = 1.35
"""The time between two reads of a line that is not empty, and of all free sandboxes: with four shards, fewer than four
reads a second. It is longer if sandboxes are set aside for who waits, because each reservation is a read of its own."""
LONGEST_SPACING_SEC = 2.0
_READ_SPACING_SEC = 0.27
VISIBLE_SEC = 1.0
"""A sandbox that was visible in the index for so long before a request is found for it."""
LONG_PAGE = 1000
"""How many sandboxes each query reads."""
POLL_SEC = 0.25
"""How often a held request looks whether its turn has come."""
TAKEN_KEPT = 8192
"""How many sandboxes that are known to be taken are remembered."""
_LOOK_LIMIT_SEC = 3.0
"""How long a look at the store may take while a request is held. The store refuses calls near a deadline."""
SWEPT_AT_ONCE = 2
"""How many places whose time is over a process deletes after a read of the line."""
SWEEP_AFTER_SEC = 60
"""How long after its time a place is deleted, so that a clock that is a bit ahead deletes no place that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A track's place in the line, as its answer tells it.

    `expected_by`: an estimate of when its turn comes, in Unix seconds; None if nothing supports one. `details`: why
    there is no sandbox, as `WaitingLine.outlook` returns it.
    """

    place: Place
    position: int
    waiting: int
    retry_after: int
    kept_until: int
    expected_by: int | None
    details: Mapping[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPlace:
    """A place in the line, as operators see it. `is_late`: its track is passed over until it is back."""

    place: Place
    position: int
    kept_until: int
    is_late: bool


class _View:
    """The kept places in their order, as of one moment, and what they were made of."""

    def __init__(
        self, places: list[Place], *, first: list[Place], whole: list[Place] | None, now: int, writes: int
    ) -> None:
        self.places = places
        self.live_ids = [each.place_id for each in places if each.is_live(now)]
        """The ids of the places that a sandbox may be due to."""
        self.by_owner = {(each.track_id, each.idempotency_key): each for each in places}
        self.wishes = {each.wish for each in places if each.is_live(now)}
        """What the tracks want that a sandbox may be due to."""
        self._first, self._whole, self._now, self._writes = first, whole, now, writes

    def is_of(self, first: list[Place], whole: list[Place] | None, now: int, writes: int) -> bool:
        """Tell whether it was made of just these two reads, at this time, with these writes."""
        is_read = self._first is first and self._whole is whole
        return is_read and (self._now, self._writes) == (now, writes)


@dataclass(frozen=True, slots=True)
class _Walk:
    """The sandboxes that were free, and the places of the line just after they were read.

    In the other order, a track that got its sandbox between the two would be assigned another one, too. So one that is
    due to nobody ahead would be refused.
    """

    places: list[Place]
    free: list[Candidate]
    reads: int
    """How many reads it took, with those of the line until the next one."""

    @property
    def spacing(self) -> float:
        """The time to the next one."""
        return max(WALK_SPACING_SEC, min(LONGEST_SPACING_SEC, _READ_SPACING_SEC * self.reads))


class WaitingLine:
    """The line as this process knows it; safe to use from many threads."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        guard: Guard,
        reservations: KnownReservations,
        pool_count: Callable[[], PoolCount | None],
        recorder: Recorder,
        clock: Clock,
        rng: Random,
        policy: Policy,
    ) -> None:
        """`pool_count` returns the last count of the pool that is known; None if there is none."""
        self._store = store
        self._guard = guard
        self._reservations = reservations
        self._pool_count = pool_count
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._first = SharedRead(self._read_first, clock)
        self._whole = SharedRead(self._read_all, clock)
        self._free = SharedRead(self._walk, clock, spacing=attrgetter("spacing"))
        self._lock = threading.Lock()
        self._written: dict[str, tuple[float, Place | None]] = {}
        """What this process itself wrote to the line, and when: newer than an earlier read."""
        self._writes = 0
        """Grows with each change of `_written` that a view must not lack."""
        self._view = _EMPTY
        self._turns: tuple[_View, _Walk, tuple[int, int], Turns] | None = None
        self._taken: OrderedDict[str, int] = OrderedDict()
        """The last versions of sandboxes that are known to be taken. The index may still show them."""
        self._takings = 0
        """Grows with each change of `_taken`."""

    def now(self) -> int:
        """Return the time by which the line goes: the clock's, corrected by the store's."""
        return self._clock.now() - self._guard.clock_error()

    def is_clear_for(self, wish: Wish, reservation_id: str | None = None) -> bool:
        """Tell whether no track that may have to be served first waits for a sandbox that fits `wish`, too.

        `reservation_id`: for a sandbox that is set aside for this reservation; None: for any sandbox.
        """
        return not any(
            wish.overlaps(each) and (reservation_id is None or reservation_id in each.reservations)
            for each in self._current().wishes
        )

    def places(self) -> list[Place]:
        """Return the places that are kept, in their order."""
        return self._current().places

    def place_of(self, track_id: str, idempotency_key: str) -> Place | None:
        """Return the place of a (track, key), if this process knows of one."""
        return self._current().by_owner.get((track_id, idempotency_key))

    def turns(self, *, arrived_at: float, without: Place | None = None) -> Turns:
        """Return whose turn it is, for a request that arrived at `arrived_at` (monotonic).

        It has every sandbox that the index showed from a second before `arrived_at` on. `without`: a place that does
        not count.
        """
        _, walk = self._free.get(not_before=arrived_at - VISIBLE_SEC)
        if without is None:
            return self._turns_by(walk)
        places, free = self._count(walk, self._current())
        return Turns([each for each in places if each.place_id != without.place_id], free, now=self.now())

    def hold(
        self, waiting: Waiting, *, until: float, may_hold: Callable[[], bool], is_paused: Callable[[], bool]
    ) -> Waiting | None:
        """Wait until the allocator must act: the turn of a place has come, the place is gone, or a pause began: None.

        Otherwise return the track's answer: it is `until` (monotonic), or `may_hold` says so, or the store does not
        answer, or the turn cannot come soon. Threads that hold calls are for the places near the front. Meanwhile the
        place is renewed every few seconds. So it soon holds nobody up if this process dies.
        """
        place_id = waiting.place.place_id
        while True:
            left = until - self._clock.monotonic()
            if left <= 0 or not may_hold():
                return self._describe_again(waiting)
            try:
                with deadline_in(_LOOK_LIMIT_SEC, self._clock):
                    if self._retry_after(place_id) > FRONT_RETRY_SEC:
                        return self._describe_again(waiting)
                self._clock.sleep(min(POLL_SEC, left))
                with deadline_in(_LOOK_LIMIT_SEC, self._clock):
                    if is_paused() or not self.waits_at(waiting.place):
                        return None
                    if waiting.place.back_by <= self.now() and may_hold():
                        renewed = self._renew_until(waiting.place, self.now() + FRONT_RETRY_SEC)
                        if renewed is None:
                            self._note(place_id, None)
                            return None
                        waiting = renewed
                    _, walk = self._free.get(not_before=self._clock.monotonic() - WALK_SPACING_SEC)
                    if self._turns_by(walk).is_next(place_id):
                        return None if may_hold() else self._describe_again(waiting)
            except StoreUnavailable:
                return self._describe_again(waiting)

    def describe(self, place: Place) -> Waiting:
        """Return what a track is told about its place."""
        places = self.places()
        position = 1 + bisect_left(places, place.place_id, key=attrgetter("place_id"))
        return Waiting(
            place=place,
            position=position,
            waiting=max(len(places), position),
            retry_after=max(1, min(place.back_by - self.now(), self._retry_after(place.place_id))),
            kept_until=self._kept_until(place),
            expected_by=self._expected_by(1 + self._live_ahead(place.place_id)),
            details=self.outlook(),
        )

    def waits_at(self, place: Place) -> bool:
        """Tell whether a track still has this place, as far as this process knows."""
        known = self.place_of(place.track_id, place.idempotency_key)
        return known is not None and known.place_id == place.place_id

    def places_of(self, track_id: str) -> list[Waiting]:
        """Return the places of a track in their order, as the store has them now."""
        kept = [each for each in self._store.read_places(track_id) if self._is_kept(each)]
        return [self.describe(each) for each in in_order(kept)]

    def list_all(self) -> list[ListedPlace]:
        """Return the whole line in its order, as the store has it now."""
        kept = [each for each in self._read_all() if self._is_kept(each)]
        now = self.now()
        return [
            ListedPlace(
                place=place, position=position, kept_until=self._kept_until(place), is_late=not place.is_live(now)
            )
            for position, place in enumerate(in_order(kept), 1)
        ]

    def give_up(self, track_id: str, idempotency_key: str) -> None:
        """Give up the place of a (track, key), if it has one."""
        while (place := self._store.read_place(track_id, idempotency_key)) is not None:
            if self.leave(place):
                return

    def remove(self, place_id: str) -> None:
        """Remove a place from the line, if it is there: its track must ask again, and then waits at the end."""
        place = next((each for each in self._read_all() if each.place_id == place_id), None)
        if place is not None:
            self.leave(place)

    def join(
        self, track_id: str, idempotency_key: str, wish: Wish, *, customer: str | None, track_name: str | None
    ) -> Waiting | Claim:
        """Give a (track, key) a place, or renew the one that it has; or return the claim that it holds.

        A place whose track now wants other names is given up for a new one. Raises `NoSandboxesAvailable` if the line
        is full.
        """
        place = self.place_of(track_id, idempotency_key)
        while True:
            if place is not None:
                if self._is_kept(place) and place.wish.prefix == wish.prefix:
                    renewed = self.renew(replace(place, wish=wish))
                    if renewed is not None:
                        return renewed
                else:
                    self.leave(place, unless_renewed=place.wish.prefix == wish.prefix)
            places = self.places()
            if len(places) >= self._policy.line_max:
                raise NoSandboxesAvailable(
                    "no sandbox is available, and the line is full",
                    retry_after=self._retry_after(places[-1].place_id),
                    details={"line": "full", **self.outlook()},
                )
            now = self.now()
            round_ = next_round(places, customer)
            place_id = new_place_id(round_, now, new_id(self._rng))
            joining = Place(
                place_id=place_id,
                track_id=track_id,
                idempotency_key=idempotency_key,
                wish=wish,
                round=round_,
                joined_at=now,
                back_by=now + self._retry_after(place_id),
                customer=customer,
                track_name=track_name,
            )
            answer = self._insist(lambda joining=joining: self._store.join(joining))  # type: ignore[misc] # bound in the loop
            match answer:
                case Joined():
                    self._note(joining.place_id, joining)
                    return self.describe(joining)
                case ClaimHeld(claim):
                    return claim
                case PlaceHeld(held_id) if held_id == place_id:
                    self._note(joining.place_id, joining)
                    return self.describe(joining)
                case PlaceHeld():  # a copy of this request was faster, or this process does not know of it yet
                    place = self._store.read_place(track_id, idempotency_key)
                case _:
                    assert_never(answer)

    def renew(self, place: Place) -> Waiting | None:
        """Keep a place, because its track is back. Return None if the place is gone.

        A place that is renewed proves that its (track, key) has no claim.
        """
        renewed = self._renew_until(place, self.now() + self._retry_after(place.place_id))
        if renewed is None:
            self._note(place.place_id, None)
        return renewed

    def keep(self, track_id: str, idempotency_key: str, *, seconds: int) -> None:
        """Keep the place of a (track, key), if it has one, for a track that is told to come back in `seconds`."""
        place = self.place_of(track_id, idempotency_key)
        if place is not None:
            self._renew_until(place, self.now() + seconds)

    def leave(self, place: Place, *, unless_renewed: bool = False) -> bool:
        """Give a place up; `unless_renewed`: only if its track has not come back. Return whether it was given up."""
        was_there = self._insist(lambda: self._store.leave(place, unless_renewed=unless_renewed))
        self._note(place.place_id, None)
        if was_there:
            self._record_end(place, WaitOutcome.GAVE_UP)
        return was_there

    def mark_served(self, place_id: str) -> None:
        """Remember that the track of a place got a sandbox, so that the place is gone. Reads nothing."""
        place = next((each for each in self._view.places if each.place_id == place_id), None)
        self._note(place_id, None)
        if place is not None:
            self._record_end(place, WaitOutcome.SERVED)

    def mark_taken(self, candidate: Candidate) -> None:
        """Remember that a sandbox is not available any more, so that it is due to nobody."""
        with self._lock:
            self._taken[candidate.sandbox_id] = max(candidate.version, self._taken.pop(candidate.sandbox_id, -1))
            self._takings += 1
            if len(self._taken) > TAKEN_KEPT:
                self._taken.popitem(last=False)

    def outlook(self) -> Mapping[str, int | None]:
        """Return why there is no sandbox, as it is known: counts of the pool, and when the next one is expected."""
        count = self._pool_count()
        numbers = count.by_status if count else {}
        return {
            "available": numbers.get(Status.AVAILABLE),
            "reserved": numbers.get(Status.RESERVED),
            "waiting": len(self.places()),
            "pending_deletion": numbers.get(Status.PENDING_DELETION),
            "next_due_at": self._expected_by(1),
        }

    # -- the line

    def _current(self) -> _View:
        """Return the kept places, by a read that is not older than it may be."""
        now = self._clock.monotonic()
        began, first = self._first.get(not_before=now - BUSY_AGE_SEC)
        if not first and began < now - LINE_AGE_SEC:
            began, first = self._first.get(not_before=now - LINE_AGE_SEC)
        if not first and not self._written:
            return _EMPTY
        rest_began, whole = began, None
        if len(first) >= LONG_LINE:
            rest_began, whole = self._whole.get(not_before=now - WHOLE_AGE_SEC)
        made_at, writes, view = self.now(), self._writes, self._view
        if not view.is_of(first, whole, made_at, writes):
            with self._lock:
                self._written = {
                    place_id: (at, place)
                    for place_id, (at, place) in self._written.items()
                    if at > now - 2 * WHOLE_AGE_SEC
                }
                written = dict(self._written)
            end = first[-1].place_id if whole is not None else ""
            known = {each.place_id: each for each in first}
            known |= {each.place_id: each for each in whole or () if each.place_id > end}
            for place_id, (at, place) in written.items():
                if at >= (began if place_id <= end else rest_began):
                    known.pop(place_id, None)
                    if place is not None:
                        known[place_id] = place
            kept = [each for each in known.values() if each.is_kept(made_at, self._policy.line_grace_sec)]
            self._view = view = _View(in_order(kept), first=first, whole=whole, now=made_at, writes=writes)
        return view

    def _read_first(self) -> list[Place]:
        places = self._store.read_line(limit=LONG_LINE)
        over = self.now() - self._policy.line_grace_sec - SWEEP_AFTER_SEC
        dead = [each for each in places if each.back_by < over]
        for place in self._rng.sample(dead, min(len(dead), SWEPT_AT_ONCE)):
            with suppress(StoreUnavailable):
                if self._store.leave(place, unless_renewed=True):
                    self._record_end(place, WaitOutcome.GAVE_UP)
        return places

    def _is_kept(self, place: Place) -> bool:
        return place.is_kept(self.now(), self._policy.line_grace_sec)

    def _kept_until(self, place: Place) -> int:
        return place.back_by + self._policy.line_grace_sec

    def _read_all(self) -> list[Place]:
        return self._store.read_line()

    def _note(self, place_id: str, place: Place | None) -> None:
        """Remember what this process wrote: a place, or None if it is gone.

        A long line is renewed many times a second, and takes long to sort. A view that is made in the next second is
        soon enough for the renewal of a place that is live already.
        """
        now = self.now()
        with self._lock:
            self._written[place_id] = (self._clock.monotonic(), place)
            known = self._view.by_owner.get((place.track_id, place.idempotency_key)) if place else None
            if (
                place is None
                or known is None
                or not known.is_live(now)
                or place != replace(known, back_by=place.back_by)
            ):
                self._writes += 1

    def _insist(self, write: Callable[[], Answer]) -> Answer:
        """Send a write of the line again while its outcome is unknown. A repeated one has the same effect."""
        backoff = Backoff(self._clock, self._rng)
        while True:
            try:
                return write()
            except OutcomeUnknown as unknown:
                backoff.pause(unknown)

    def _renew_until(self, place: Place, back_by: int) -> Waiting | None:
        renewed = replace(place, back_by=back_by)
        if not self._insist(lambda: self._store.renew(renewed)):
            return None
        self._note(place.place_id, renewed)
        return self.describe(renewed)

    def _live_ahead(self, place_id: str) -> int:
        """Return how many places ahead of a place a sandbox may be due to."""
        return bisect_left(self._current().live_ids, place_id)

    def _describe_again(self, waiting: Waiting) -> Waiting:
        """Return what a held request is told at its end: its track comes back as it was promised, not later."""
        with suppress(StoreUnavailable), deadline_in(_LOOK_LIMIT_SEC, self._clock):
            return self.describe(waiting.place)
        return replace(waiting, retry_after=max(1, waiting.place.back_by - self.now()))

    def _record_end(self, place: Place, outcome: WaitOutcome) -> None:
        self._recorder.record(
            WaitEnded(outcome=outcome, seconds=max(0, self.now() - place.joined_at), track_id=place.track_id)
        )

    # -- the pool

    def _walk(self) -> _Walk:
        """Read all sandboxes that are free for somebody who waits, set aside or available, then the line."""
        found: list[Candidate] = []
        reads = 0
        wanted = self._wanted()
        reserved = sorted(wanted & self._reservations.open_ids()) if wanted else []
        for reservation_id in (*reserved, None):
            position, travelled = Position(0), 0
            while travelled < self._store.positions:
                if time_left(self._clock) <= 0:
                    raise StoreUnavailable("looking for a free sandbox took too long")
                page = self._store.read_candidates(position, limit=LONG_PAGE, prefix="", reservation_id=reservation_id)
                found += page.candidates
                reads += 1
                position, travelled = page.next, travelled + page.distance
        self._rng.shuffle(found)  # else the processes would try the same sandboxes first
        self._first.get(not_before=math.inf)
        # A line that is more than BUSY_AGE_SEC old is read once more before the next walk.
        reads += 1 if not reserved else 2
        return _Walk(self._current().places, found, reads)

    def _wanted(self) -> set[str]:
        """Return the ids of the reservations from which tracks that wait may draw."""
        return {reservation_id for wish in self._current().wishes for reservation_id in wish.reservations}

    def _turns_by(self, walk: _Walk) -> Turns:
        """Return whose turn it is, by the line and a walk."""
        view, now = self._current(), self.now()
        numbers, known = (now, self._takings), self._turns
        if known is None or known[0] is not view or known[1] is not walk or known[2] != numbers:
            places, free = self._count(walk, view)
            self._turns = known = (view, walk, numbers, Turns(places, free, now=now))
        return known[3]

    def _count(self, walk: _Walk, view: _View) -> tuple[list[Place], list[Candidate]]:
        """Return the places and sandboxes that count when the sandboxes of a walk are assigned.

        A place that is gone since the walk may have got one of its sandboxes, and nobody knows which. So it still
        counts, unless this process itself has deleted it.
        """
        with self._lock:
            known_ids = self._written.keys() | {each.place_id for each in view.places}
            gone = [each for each in walk.places if each.place_id not in known_ids]
            free = [each for each in walk.free if each.version > self._taken.get(each.sandbox_id, -1)]
        return [*view.places, *gone], free

    def _retry_after(self, place_id: str) -> int:
        """Return after how many seconds the track of a place should come back; tracks that are gone do not count."""
        count = self._pool_count()
        pool = sum(count.by_status.values()) - count.by_status.get(Status.DELETED, 0) if count else 0
        return retry_after(1 + self._live_ahead(place_id), front_of(pool))

    def _expected_by(self, sandboxes: int) -> int | None:
        """Return when so many sandboxes are expected to have come back; None if nothing supports an estimate."""
        count = self._pool_count()
        if count is None:
            return None
        for rank, at in zip(RETURN_RANKS, count.returns, strict=False):
            if rank >= sandboxes:
                return max(at, self.now())
        return None


_EMPTY = _View([], first=[], whole=None, now=0, writes=0)
