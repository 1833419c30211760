"""Candidates for allocation: which available sandbox a request tries next, and when the pool is empty.

All available sandboxes lie in a ring, in a random order. Each process walks it from a random place and keeps a few
candidates ahead, so that processes try different sandboxes; a candidate is handed to one request at a time. It is only
a hint: the transaction that claims it decides.

A walker leaves an empty stretch behind. Whoever comes upon one is about to try what its walker holds, right beyond it;
so a walker that finds the ring thinner than it was, or loses a candidate, goes on elsewhere.
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
    from random import Random

    from broker_common.core.ports import Clock
    from broker_common.core.sandbox import Candidate
    from broker_common.core.store import CandidatePage, Candidates

EMPTY_MEMORY_SEC = 1.0
"""How long a finding that nothing is available may be used."""
CANDIDATE_AGE_SEC = 5.0
"""After this long a candidate that nobody needed may well have been taken by another process.

Simulated for 20 processes with a request every two seconds each and 500 free sandboxes: 0.03 conflicts an allocation,
and 0.43 with 30 seconds. Where more is asked for, no candidate grows old.
"""
LOOK_AHEAD = 4
"""How many times its size the cache reads at a new place, to keep only the end: its start may be held by others."""
JUMPS = 3
"""New places tried in a row before what is there is taken, however thin the ring is."""
WALK_PAGE = 1000
"""Sandboxes looked at by one query once a first, small one has found none."""
PREFIXES = 64
"""Name prefixes with candidates of their own; the least recently used one is forgotten."""
USED_KEPT = 8192
"""Candidates remembered as used up, because a lagging index may go on showing them."""


@dataclass(slots=True)
class _PrefixCandidates:
    """The candidates of one name prefix."""

    walking: threading.Lock
    cursor: Position | None = None
    """Where to read on; None where that is known to be a bad place, or not known yet."""
    density: float = 0.0
    """Candidates per unit of the ring, in the pages read lately."""
    ready: deque[tuple[float, Candidate]] = field(default_factory=deque)
    empty_at: float = float("-inf")
    """When the last walk that found nothing began."""

    def is_thin(self, page: CandidatePage) -> bool:
        """Tell whether a page has fewer candidates than chance explains, and let it count for the next ones.

        Chance: the places are drawn at random, so counts follow Poisson's law, whose standard deviation is √n.
        """
        found = len(page.candidates)
        expected = self.density * page.distance
        self.density = (self.density + found / max(1, page.distance)) / 2
        return expected > found + 3 * math.sqrt(found) + 1


class CandidateCache:
    """The candidates that this process has at hand; safe to use from many threads."""

    def __init__(self, store: Candidates, clock: Clock, rng: Random, *, size: int) -> None:
        """Keep about `size` candidates per prefix."""
        self._store = store
        self._clock = clock
        self._rng = rng
        self._size = size
        self._lock = threading.Lock()
        self._pools: OrderedDict[str, _PrefixCandidates] = OrderedDict()
        self._held: dict[str, int] = {}
        self._used: OrderedDict[str, int] = OrderedDict()

    def search(self, prefix: str) -> CandidateSearch:
        """Begin to look for a sandbox whose name starts with `prefix`, for one request."""
        return CandidateSearch(self, prefix, arrived_at=self._clock.monotonic())

    def take(self, prefix: str, *, arrived_at: float) -> tuple[Candidate | None, list[Candidate]]:
        """Hand out a candidate, or else all that other requests of this process are trying at this moment.

        Neither means that no matching sandbox was available in the index throughout the second before `arrived_at` and
        since. What others are trying was found by a whole walk and is not handed out yet: `share` does that.
        """
        pool = self._pool(prefix)
        while True:
            candidate = self._pop(pool)
            if candidate:
                return candidate, []
            if not pool.walking.acquire(timeout=max(0, min(time_left(self._clock), threading.TIMEOUT_MAX))):
                raise StoreUnavailable("looking for a free sandbox took too long")
            try:
                if pool.ready:
                    continue
                if pool.empty_at >= arrived_at - EMPTY_MEMORY_SEC:
                    return None, []
                found, contested = self._walk(pool, prefix)
            finally:
                pool.walking.release()
            if not found:
                return None, contested

    def share(self, candidate: Candidate) -> bool:
        """Hand out a candidate that another request may be trying; False if it is known to be used up."""
        with self._lock:
            if self._is_used(candidate):
                return False
            self._hold(candidate)
            return True

    def release(self, candidate: Candidate) -> None:
        """Stop holding a candidate, without a word about what became of it."""
        with self._lock:
            self._let_go(candidate)

    def give_back(self, prefix: str, candidate: Candidate) -> None:
        """Return a candidate that was not used."""
        pool = self._pool(prefix)
        with self._lock:
            self._let_go(candidate)
            pool.ready.appendleft((self._clock.monotonic(), candidate))
            for each in self._pools.values():
                each.empty_at = float("-inf")

    def mark_used(self, candidate: Candidate, *, lost: bool, prefix: str) -> None:
        """Remember that a candidate is no longer available at its version.

        `lost`: another process was faster. Then its cursor is probably near ours, and we read on elsewhere.
        """
        with self._lock:
            self._let_go(candidate)
            self._used[candidate.sandbox_id] = max(
                candidate.version, self._used.pop(candidate.sandbox_id, candidate.version)
            )
            if len(self._used) > USED_KEPT:
                self._used.popitem(last=False)
            if lost and prefix in self._pools:
                self._pools[prefix].cursor = None

    def _pool(self, prefix: str) -> _PrefixCandidates:
        with self._lock:
            pool = self._pools.pop(prefix, None) or _PrefixCandidates(threading.Lock())
            self._pools[prefix] = pool
            if len(self._pools) > PREFIXES:
                self._pools.popitem(last=False)
            return pool

    def _pop(self, pool: _PrefixCandidates) -> Candidate | None:
        oldest = self._clock.monotonic() - CANDIDATE_AGE_SEC
        with self._lock:
            while pool.ready:
                found_at, candidate = pool.ready.popleft()
                if found_at >= oldest and self._is_fresh(candidate):
                    self._hold(candidate)
                    return candidate
        return None

    def _walk(self, pool: _PrefixCandidates, prefix: str) -> tuple[bool, list[Candidate]]:
        """Read on along the ring until something fresh is found or all of it was seen.

        Returns whether something was found, and otherwise what other requests hold. Only at first, and a few times,
        it turns away from where another process seems to be: what it left there a whole walk still finds.
        """
        began_at = self._clock.monotonic()
        contested: dict[str, Candidate] = {}
        position, travelled, limit, jumps_left = pool.cursor, 0, self._size, JUMPS
        while travelled < self._store.positions:
            if time_left(self._clock) <= 0:
                raise StoreUnavailable("looking for a free sandbox took too long")
            is_new_place = position is None
            if position is None:
                position, limit = self._anywhere(), self._size * LOOK_AHEAD
            pool.cursor = position
            page = self._store.read_candidates(position, limit=limit, prefix=prefix)
            with self._lock:
                contested |= {
                    each.sandbox_id: each
                    for each in page.candidates
                    if each.sandbox_id in self._held and not self._is_used(each)
                }
                # A loss that was told while we read took the cursor away.
                if jumps_left and (pool.is_thin(page) or pool.cursor is None):
                    position, jumps_left = None, jumps_left - 1
                    continue
                fresh = [each for each in page.candidates if self._is_fresh(each)]
                if is_new_place and len(page.candidates) == limit:
                    fresh = fresh[-self._size :]
                self._rng.shuffle(fresh)
                # What a long page has beyond our need is left to others: two processes with the same would collide.
                pool.ready.extend((began_at, each) for each in fresh[: self._size])
                pool.cursor = position = page.next
            if fresh:
                return True, []
            travelled, limit, jumps_left = travelled + page.distance, WALK_PAGE, 0
        pool.empty_at = began_at if not contested else float("-inf")
        return False, list(contested.values())

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

    def _anywhere(self) -> Position:
        return Position(self._rng.randrange(self._store.positions))


class CandidateSearch:
    """One request's way through the candidates of a prefix."""

    def __init__(self, candidate_cache: CandidateCache, prefix: str, *, arrived_at: float) -> None:
        self._candidates = candidate_cache
        self._prefix = prefix
        self._arrived_at = arrived_at
        self._contested: list[Candidate] = []
        self._shared: set[tuple[str, int]] = set()

    def next(self) -> Candidate | None:
        """Return the next candidate to try, or None when no matching sandbox is available.

        The caller ends with each candidate by exactly one of `give_back`, `mark_used`, `mark_lost` and `discard`.
        Raises `StoreUnavailable`, also when the deadline passes first.
        """
        while True:
            while self._contested:
                candidate = self._contested.pop()
                self._shared.add((candidate.sandbox_id, candidate.version))
                if self._candidates.share(candidate):
                    return candidate
            taken, contested = self._candidates.take(self._prefix, arrived_at=self._arrived_at)
            if taken:
                return taken
            self._contested = [each for each in contested if (each.sandbox_id, each.version) not in self._shared]
            if not self._contested:
                return None

    def give_back(self, candidate: Candidate) -> None:
        """Say that the candidate was not used, and may be tried by the next request, or by this one again."""
        self._shared.discard((candidate.sandbox_id, candidate.version))
        self._candidates.give_back(self._prefix, candidate)

    def mark_used(self, candidate: Candidate) -> None:
        """Say that this request got the candidate."""
        self._candidates.mark_used(candidate, prefix=self._prefix, lost=False)

    def mark_lost(self, candidate: Candidate) -> None:
        """Say that the candidate was no longer available."""
        self._candidates.mark_used(candidate, prefix=self._prefix, lost=True)

    def discard(self, candidate: Candidate) -> None:
        """Say that nothing certain is known about the candidate: it is not handed out again from memory."""
        self._candidates.release(candidate)
