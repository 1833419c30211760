"""Candidates for allocation: which available sandbox a request tries next, and when no sandbox is left.

The index holds all available sandboxes in random order, as a ring. Each process reads along the ring from a random
place and keeps a few candidates, so that processes try different sandboxes. It gives a candidate to one request at a
time. A candidate is only a hint: the transaction that allocates it decides.

A process that reads along the ring leaves an empty stretch behind it. A second process that meets this stretch would
next try the candidates that the first one keeps. So a process goes to a new place when it finds fewer candidates than
before, or loses one to another process.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable
from broker_common.core.store import Position

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from broker_common.core.ports import Clock
    from broker_common.core.sandbox import Candidate
    from broker_common.core.store import CandidatePage, Candidates

EMPTY_MEMORY_SEC = 1.0
"""How long the result that no sandbox is available may be used."""
CANDIDATE_AGE_SEC = 5.0
"""An unused candidate is dropped at this age, because another process may well have taken it.

Simulated for 20 processes with a request every two seconds each and 500 free sandboxes: 0.03 conflicts an allocation,
and 0.43 with 30 seconds. With more requests no candidate gets this old.
"""
LOOK_AHEAD = 4
"""At a new place the cache reads so many times its size and keeps only the end. Others may hold the start."""
MAX_NEW_PLACES = 3
"""After so many new places in a row, the cache takes the candidates that it finds, even if they are few."""
LONG_PAGE = 1000
"""How many sandboxes each query reads after a first, short one has found no candidate."""
RINGS = 64
"""The cache keeps candidates for so many rings. It drops the least recently used one."""
USED_KEPT = 8192
"""The cache remembers so many used candidates, because the index lags and may still show them."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The free sandboxes whose names start with `prefix`: available ones, or those set aside for `reservation_id`."""

    prefix: str
    reservation_id: str | None = None


@dataclass(slots=True)
class _RingCandidates:
    """The candidates of one ring."""

    reading: threading.Lock
    """Held by the thread that reads along the ring."""
    cursor: Position | None = None
    """Where to read on; None to begin at a new place."""
    density: float = 0.0
    """Candidates per unit of the ring, in the last pages."""
    ready: deque[tuple[float, Candidate]] = field(default_factory=deque)
    """Candidates to try, with the time at which each was found."""
    empty_at: float = float("-inf")
    """When the last read of the whole ring that found nothing began."""

    def is_thin(self, page: CandidatePage) -> bool:
        """Tell whether a page has fewer candidates than chance explains, and update the density by this page.

        The places are random, so the counts follow a Poisson distribution, whose standard deviation is √n.
        """
        found = len(page.candidates)
        expected = self.density * page.distance
        self.density = (self.density + found / max(1, page.distance)) / 2
        return expected > found + 3 * math.sqrt(found) + 1


class CandidateCache:
    """The candidates that this process keeps ready; safe to use from many threads."""

    def __init__(self, store: Candidates, clock: Clock, rng: Random, *, size: int) -> None:
        """Keep about `size` candidates per ring."""
        self._store = store
        self._clock = clock
        self._rng = rng
        self._size = size
        self._lock = threading.Lock()
        self._by_ring: OrderedDict[Ring, _RingCandidates] = OrderedDict()
        self._held: dict[str, int] = {}
        self._used: OrderedDict[str, int] = OrderedDict()

    def search(self, prefix: str, reservation_id: str | None = None) -> CandidateSearch:
        """Begin one request's search for a sandbox whose name starts with `prefix`.

        It is available, or set aside for `reservation_id`.
        """
        return CandidateSearch(self, Ring(prefix, reservation_id), arrived_at=self._clock.monotonic())

    def take(self, ring: Ring, *, arrived_at: float) -> tuple[Candidate | None, list[Candidate]]:
        """Return a candidate for one request alone, or else those that other requests of this process try now.

        If there is neither, the index showed no matching sandbox as available from a second before `arrived_at` until
        now. To try a candidate of another request, call `share` first.
        """
        known = self._of_ring(ring)
        while True:
            candidate = self._pop(known)
            if candidate:
                return candidate, []
            if not known.reading.acquire(timeout=max(0, min(time_left(self._clock), threading.TIMEOUT_MAX))):
                raise StoreUnavailable("looking for a free sandbox took too long")
            try:
                if known.ready:
                    continue
                if known.empty_at >= arrived_at - EMPTY_MEMORY_SEC:
                    return None, []
                found, in_use = self._read_on(known, ring)
            finally:
                known.reading.release()
            if not found:
                return None, in_use

    def choose(self, candidates: Iterable[Candidate], prefix: str) -> CandidateChoice:
        """Begin a search among just these candidates, in their order."""
        return CandidateChoice(self, candidates, Ring(prefix))

    def hold(self, candidate: Candidate) -> bool:
        """Let one request alone try a candidate; False if it is known to be used, or another request tries it."""
        with self._lock:
            if not self._is_fresh(candidate):
                return False
            self._hold(candidate)
            return True

    def share(self, candidate: Candidate) -> bool:
        """Let a request try a candidate that another request may be trying; False if it is known to be used."""
        with self._lock:
            if self._is_used(candidate):
                return False
            self._hold(candidate)
            return True

    def discard(self, candidate: Candidate) -> None:
        """Stop holding a candidate about which nothing is certain."""
        with self._lock:
            self._let_go(candidate)

    def give_back(self, ring: Ring, candidate: Candidate) -> None:
        """Keep a candidate for the next request, because this one did not use it."""
        known = self._of_ring(ring)
        with self._lock:
            self._let_go(candidate)
            known.ready.appendleft((self._clock.monotonic(), candidate))
            for each in self._by_ring.values():
                each.empty_at = float("-inf")

    def mark_used(self, candidate: Candidate, *, lost: bool, ring: Ring) -> None:
        """Remember that a candidate is no longer available at its version.

        `lost`: another process was faster. That process probably reads near our cursor, so we read on elsewhere.
        """
        with self._lock:
            self._let_go(candidate)
            self._used[candidate.sandbox_id] = max(
                candidate.version, self._used.pop(candidate.sandbox_id, candidate.version)
            )
            if len(self._used) > USED_KEPT:
                self._used.popitem(last=False)
            if lost and ring in self._by_ring:
                self._by_ring[ring].cursor = None

    def _of_ring(self, ring: Ring) -> _RingCandidates:
        with self._lock:
            known = self._by_ring.pop(ring, None) or _RingCandidates(threading.Lock())
            self._by_ring[ring] = known
            if len(self._by_ring) > RINGS:
                self._by_ring.popitem(last=False)
            return known

    def _pop(self, known: _RingCandidates) -> Candidate | None:
        oldest = self._clock.monotonic() - CANDIDATE_AGE_SEC
        with self._lock:
            while known.ready:
                found_at, candidate = known.ready.popleft()
                if found_at >= oldest and self._is_fresh(candidate):
                    self._hold(candidate)
                    return candidate
        return None

    def _read_on(self, known: _RingCandidates, ring: Ring) -> tuple[bool, list[Candidate]]:
        """Read along the ring until a page has fresh candidates, or until the whole ring was read.

        Returns whether it found fresh candidates, and if not, those that other requests of this process hold. It goes
        to a new place only at first and only a few times. A read of the whole ring finds what it left out.
        """
        began_at = self._clock.monotonic()
        in_use: dict[str, Candidate] = {}
        position, travelled, limit, new_places_left = known.cursor, 0, self._size, MAX_NEW_PLACES
        while travelled < self._store.positions:
            if time_left(self._clock) <= 0:
                raise StoreUnavailable("looking for a free sandbox took too long")
            is_new_place = position is None
            if position is None:
                position, limit = self._random_position(), self._size * LOOK_AHEAD
            known.cursor = position
            page = self._store.read_candidates(
                position, limit=limit, prefix=ring.prefix, reservation_id=ring.reservation_id
            )
            with self._lock:
                in_use |= {
                    each.sandbox_id: each
                    for each in page.candidates
                    if each.sandbox_id in self._held and not self._is_used(each)
                }
                # `mark_used` clears the cursor if a request loses a candidate during the read.
                if new_places_left and (known.is_thin(page) or known.cursor is None):
                    position, new_places_left = None, new_places_left - 1
                    continue
                fresh = [each for each in page.candidates if self._is_fresh(each)]
                if is_new_place and len(page.candidates) == limit:
                    fresh = fresh[-self._size :]
                self._rng.shuffle(fresh)
                # Leave the rest of a long page to others: two processes with the same candidates would collide.
                known.ready.extend((began_at, each) for each in fresh[: self._size])
                known.cursor = position = page.next
            if fresh:
                return True, []
            travelled, limit, new_places_left = travelled + page.distance, LONG_PAGE, 0
        known.empty_at = began_at if not in_use else float("-inf")
        return False, list(in_use.values())

    def _is_fresh(self, candidate: Candidate) -> bool:
        return candidate.sandbox_id not in self._held and not self._is_used(candidate)

    def _is_used(self, candidate: Candidate) -> bool:
        return candidate.version <= self._used.get(candidate.sandbox_id, -1)

    def _hold(self, candidate: Candidate) -> None:
        self._held[candidate.sandbox_id] = self._held.get(candidate.sandbox_id, 0) + 1

    def _let_go(self, candidate: Candidate) -> None:
        holders = self._held.get(candidate.sandbox_id, 0)
        if holders > 1:
            self._held[candidate.sandbox_id] = holders - 1
        else:
            self._held.pop(candidate.sandbox_id, None)

    def _random_position(self) -> Position:
        return Position(self._rng.randrange(self._store.positions))


class CandidateSearch:
    """One request's search among the candidates of a ring."""

    def __init__(self, candidate_cache: CandidateCache, ring: Ring, *, arrived_at: float) -> None:
        self._candidates = candidate_cache
        self._ring = ring
        self._arrived_at = arrived_at
        self._in_use: list[Candidate] = []
        self._shared: set[tuple[str, int]] = set()

    def next(self) -> Candidate | None:
        """Return the next candidate to try, or None if no matching sandbox is available.

        For each candidate, the caller must call exactly one of `give_back`, `mark_used`, `mark_lost` and `discard`.
        Raises `StoreUnavailable`, also if the deadline passes first.
        """
        while True:
            while self._in_use:
                candidate = self._in_use.pop()
                self._shared.add((candidate.sandbox_id, candidate.version))
                if self._candidates.share(candidate):
                    return candidate
            taken, in_use = self._candidates.take(self._ring, arrived_at=self._arrived_at)
            if taken:
                return taken
            self._in_use = [each for each in in_use if (each.sandbox_id, each.version) not in self._shared]
            if not self._in_use:
                return None

    def give_back(self, candidate: Candidate) -> None:
        """Report that the candidate was not used. The next request may try it, or this one again."""
        self._shared.discard((candidate.sandbox_id, candidate.version))
        self._candidates.give_back(self._ring, candidate)

    def mark_used(self, candidate: Candidate) -> None:
        """Report that this request got the candidate."""
        self._candidates.mark_used(candidate, ring=self._ring, lost=False)

    def mark_lost(self, candidate: Candidate) -> None:
        """Report that the candidate was no longer available."""
        self._candidates.mark_used(candidate, ring=self._ring, lost=True)

    def discard(self, candidate: Candidate) -> None:
        """Report that nothing certain is known about the candidate. Only the index can bring it back."""
        self._candidates.discard(candidate)


class CandidateChoice:
    """One request's search among candidates that were chosen for it. Those that other requests hold come last."""

    def __init__(self, candidate_cache: CandidateCache, candidates: Iterable[Candidate], ring: Ring) -> None:
        self._candidates = candidate_cache
        self._ring = ring
        self._untried = deque(candidates)
        self._in_use: list[Candidate] = []

    def next(self) -> Candidate | None:
        """Return the next candidate to try, or None if there is none. See `CandidateSearch.next`."""
        while self._untried:
            candidate = self._untried.popleft()
            if self._candidates.hold(candidate):
                return candidate
            self._in_use.append(candidate)
        while self._in_use:
            candidate = self._in_use.pop()
            if self._candidates.share(candidate):
                return candidate
        return None

    def give_back(self, candidate: Candidate) -> None:
        """Report that the candidate was not used. This request may try it again."""
        self._candidates.discard(candidate)
        self._untried.appendleft(candidate)

    def mark_used(self, candidate: Candidate) -> None:
        """Report that this request got the candidate."""
        self._candidates.mark_used(candidate, ring=self._ring, lost=False)

    def mark_lost(self, candidate: Candidate) -> None:
        """Report that the candidate was no longer free."""
        self._candidates.mark_used(candidate, ring=self._ring, lost=True)

    def discard(self, candidate: Candidate) -> None:
        """Report that nothing certain is known about the candidate."""
        self._candidates.discard(candidate)
