"""The order of the line in the words of docs/contract.md 3a: simple, slow, and on its own, to judge the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from broker_common.core.line import Place, Wish
    from broker_common.core.sandbox import Candidate

LATE_SEC = 5


def in_order(places: Iterable[Place]) -> list[Place]:
    """Return the places by round, then by time, then by id."""
    return sorted(places, key=lambda each: (each.round, each.joined_at, each.place_id))


def is_late(place: Place, now: int) -> bool:
    """Tell whether a track is not back within five seconds of the time that its last `Retry-After` named."""
    return now > place.back_by + LATE_SEC


def fits(wish: Wish, candidate: Candidate) -> bool:
    """Tell whether a wish may be given a sandbox."""
    if candidate.reservation_id is not None and candidate.reservation_id not in wish.reservations:
        return False
    return candidate.name[: len(wish.prefix)] == wish.prefix


def find_due(places: Iterable[Place], free: Collection[Candidate], now: int) -> dict[str, Place]:
    """Return to whom each free sandbox is due, by sandbox id.

    In the order of the line each place whose track is not late is assigned a free sandbox that it could have: the one
    that the fewest waiting wishes fit. Of those, first one that is set aside for a reservation, then the one that has
    been free for the longest time, as its version tells, then the one with the first id.
    """
    waiting = [each for each in in_order(places) if not is_late(each, now)]
    wishes = {each.wish for each in waiting}
    due: dict[str, Place] = {}
    for place in waiting:
        possible = [each for each in free if each.sandbox_id not in due and fits(place.wish, each)]
        if possible:
            fewest = min(sum(fits(wish, each) for wish in wishes) for each in possible)
            least_needed = [each for each in possible if sum(fits(wish, each) for wish in wishes) == fewest]
            set_aside = [each for each in least_needed if each.reservation_id is not None]
            chosen = min(set_aside or least_needed, key=lambda each: (each.version, each.sandbox_id))
            due[chosen.sandbox_id] = place
    return due


def may_have(wish: Wish, own: Place | None, places: Iterable[Place], free: Collection[Candidate], now: int) -> set[str]:
    """Return the ids of the free sandboxes that a request may try: those that are due to no place ahead of it.

    `own`: its place. Without one, all places are ahead.
    """
    places = list(places)
    order = in_order(places)
    ahead = {each.place_id for each in (order[: order.index(own)] if own is not None else order)}
    due = find_due(places, free, now)
    return {
        each.sandbox_id
        for each in free
        if fits(wish, each) and not (each.sandbox_id in due and due[each.sandbox_id].place_id in ahead)
    }


def round_of_next(places: Iterable[Place], customer: str | None) -> int:
    """Return the round of a customer's next place: one more than its highest that waits, at least the lowest of all."""
    places = list(places)
    own = [each.round for each in places if each.customer == customer]
    return max([own_round + 1 for own_round in own] + [min((each.round for each in places), default=0)])
