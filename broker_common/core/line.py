"""The line of tracks that wait for a sandbox: its order, and whose turn it is. Pure functions over a snapshot.

Nobody is given a sandbox. A track whose turn it is takes one by the same transaction as always, which also deletes its
place. So a track that is gone holds nothing, and a crash leaves nothing to repair.

Customers take turns. A place gets its round when it joins: one more than its customer's highest round that waits, but
at least the lowest round that waits. This is fair queuing with packets of one size: Demers, Keshav and Shenker,
"Analysis and Simulation of a Fair Queueing Algorithm" (1989).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from broker_common.core.sandbox import Candidate

LATE_SEC = 5
"""How late after its `back_by` a track may be, before it is passed over."""
FRONT_MIN, FRONT_PERCENT = 20, 10
"""The front of the line: so many places, or so many percent of the pool if that is more."""
NEXT_RETRY_SEC, FRONT_RETRY_SEC, MAX_RETRY_SEC = 1, 3, 20
"""`Retry-After` for the places whose turn is next, in the rest of the front, and at the end of a long line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a track may be given: any sandbox whose name starts with `prefix`.

    `reservations`: the ids of the reservations whose sandboxes it may have, too.
    """

    prefix: str = ""
    reservations: tuple[str, ...] = ()

    def fits(self, candidate: Candidate) -> bool:
        """Tell whether the track may be given this sandbox."""
        is_for_it = candidate.reservation_id is None or candidate.reservation_id in self.reservations
        return is_for_it and candidate.name.startswith(self.prefix)

    def overlaps(self, other: Wish) -> bool:
        """Tell whether a sandbox can fit both wishes."""
        return self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the line. Times are Unix seconds.

    `place_id` begins with `round` and `joined_at`, so places sort by it. `back_by`: when its track should be back, as
    the last `Retry-After` told it.
    """

    place_id: str
    track_id: str
    idempotency_key: str
    wish: Wish
    round: int
    joined_at: int
    back_by: int
    customer: str | None = None
    track_name: str | None = None

    def is_kept(self, now: int, grace_sec: int) -> bool:
        """Tell whether its track may still come back to it."""
        return now <= self.back_by + grace_sec

    def is_live(self, now: int) -> bool:
        """Tell whether a sandbox may be due to it: its track is back, or is not late yet."""
        return now <= self.back_by + LATE_SEC


def new_place_id(round_: int, joined_at: int, unique: str) -> str:
    """Return the id of a new place. Ids sort as the places are served: by round, then by time."""
    return f"{round_:08d}-{joined_at:012d}-{unique}"


def in_order(places: Iterable[Place]) -> list[Place]:
    """Return the places in the order in which they are served."""
    return sorted(places, key=lambda each: each.place_id)


def next_round(places: Iterable[Place], customer: str | None) -> int:
    """Return the round of a new place of `customer` behind these places. Tracks without a customer count as one."""
    rounds: dict[str | None, int] = {}
    lowest = math.inf
    for each in places:
        rounds[each.customer] = max(each.round, rounds.get(each.customer, 0))
        lowest = min(lowest, each.round)
    own = rounds.get(customer, -1) + 1
    return own if lowest == math.inf else max(own, int(lowest))


def front_of(pool: int) -> int:
    """Return how many places are the front of the line of a pool of so many sandboxes."""
    return max(FRONT_MIN, pool * FRONT_PERCENT // 100)


def retry_after(position: int, front: int) -> int:
    """Return after how many seconds the track at a position (from 1 on) should come back.

    It is back before its turn, even if a tenth of the pool comes back in a second, or 20 sandboxes of a small pool.
    """
    near = min(FRONT_RETRY_SEC, position // FRONT_MIN)
    return min(MAX_RETRY_SEC, max(NEXT_RETRY_SEC, near, position // front))


class Turns:
    """Whose turn it is, by one snapshot of the line and of the free sandboxes.

    In the order of the line, each live place is assigned a free sandbox that it may be given: the one that the fewest
    of the waiting wishes fit, so that as few as possible of the others need it. A request may try every sandbox that
    is not assigned to a place ahead of it, and that no place ahead of it lacks.
    """

    def __init__(self, places: Iterable[Place], free: Collection[Candidate], *, now: int) -> None:
        """Assign `free` to the live ones of `places`."""
        self._ranks: dict[str, int] = {}
        self._free = list(free)
        self._owner: dict[str, int] = {}
        """The rank of the place that a free sandbox is assigned to, by sandbox id."""
        self._own: dict[str, Candidate] = {}
        """The sandbox that is assigned to a place, by place id."""
        self._lacking: dict[Wish, int] = {}
        """The rank of the first live place with this wish that got no sandbox."""
        ordered = in_order(places)
        live = [each for each in ordered if each.is_live(now)]
        by_wish = _sort_by_need(self._free, {each.wish for each in live})
        for rank, place in enumerate(ordered):
            self._ranks[place.place_id] = rank
            if not place.is_live(now):
                continue
            fitting = by_wish[place.wish]
            while fitting and fitting[0].sandbox_id in self._owner:
                fitting.popleft()
            if fitting:
                candidate = fitting.popleft()
                self._owner[candidate.sandbox_id] = rank
                self._own[place.place_id] = candidate
            else:
                self._lacking.setdefault(place.wish, rank)

    def __len__(self) -> int:
        """Return how many places the line has."""
        return len(self._ranks)

    def position(self, place_id: str) -> int | None:
        """Return the position of a place, from 1 on; None if it is not in the snapshot."""
        rank = self._ranks.get(place_id)
        return None if rank is None else rank + 1

    def is_next(self, place_id: str) -> bool:
        """Tell whether a free sandbox is assigned to this place."""
        return place_id in self._own

    def may_take(self, candidate: Candidate, place_id: str | None) -> bool:
        """Tell whether a request may take a sandbox that is not due to anybody ahead of it.

        `place_id`: the request's place; None if it has no place, so that all places are ahead.
        """
        rank = math.inf if place_id is None else self._ranks.get(place_id, math.inf)
        if self._owner.get(candidate.sandbox_id, math.inf) < rank:
            return False
        return all(first >= rank or not wish.fits(candidate) for wish, first in self._lacking.items())

    def open_to(self, wish: Wish, place_id: str | None) -> list[Candidate]:
        """Return the free sandboxes that a request may try, the one that is assigned to its place first.

        All fit `wish`, which may be another one than its place has: a reservation may have been shut since.
        """
        own = self._own.get(place_id) if place_id is not None else None
        fitting = [each for each in self._free if wish.fits(each) and (each is own or self.may_take(each, place_id))]
        return sorted(fitting, key=lambda each: each is not own)


def _sort_by_need(free: Sequence[Candidate], wishes: Collection[Wish]) -> Mapping[Wish, deque[Candidate]]:
    """Return, for each wish, the sandboxes that fit it, those first that the fewest wishes fit.

    Of those, first the ones that are set aside for a reservation, then the one that has been free for the longest time:
    versions follow the time. Then the ids decide, so that all processes assign the same sandbox to the same place.
    """
    fitting: dict[Wish, list[tuple[tuple[int, bool, int, str], Candidate]]] = {wish: [] for wish in wishes}
    for candidate in free:
        takers = [wish for wish in wishes if wish.fits(candidate)]
        order = (len(takers), candidate.reservation_id is None, candidate.version, candidate.sandbox_id)
        for wish in takers:
            fitting[wish].append((order, candidate))
    return {wish: deque(each for _, each in sorted(found, key=lambda one: one[0])) for wish, found in fitting.items()}
