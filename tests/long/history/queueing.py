"""Checks a history against promise 8 and the rest of what the contract says about the line.

As in `checker`, what is not certain counts for the broker: a scan shows each place at one moment, and between two scans
a track may have come back, or a place may have come and gone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from tests.long.history.record import Kind

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tests.long.history.certainty import Certainties
    from tests.long.history.record import Call, PlaceRow, Scan

LATE_SEC = 5
ROUNDING_SEC = 2
"""Times in the line are whole seconds of several processes."""
WINDOW_SEC = 2.0
"""For so long a sandbox may go to somebody behind."""
INDEX_SEC = 1.0


def find_overtaken(
    known: Certainties, examined: Counter[str]
) -> Iterator[tuple[str, Call, tuple[PlaceRow, ...], tuple[str, ...]]]:
    """Find a new lease of a sandbox that was due to a place ahead, for longer than the window.

    If at least as many places ahead could have it as there were such sandboxes at all, it was due to one of these.
    """
    drawn = {fact.lease_id for fact in known.history.feed if fact.details.get("reservation_id")}
    drawn |= {row.lease_id for scan in known.history.scans for row in scan.rows if row.reservation_id}
    for call in known.history.calls:
        # What is drawn from a reservation is due to nobody whom it is not for.
        if call.kind is not Kind.ALLOCATE or call.status != 201 or call.body["lease_id"] in drawn:
            continue
        since, until = call.began - WINDOW_SEC - INDEX_SEC, call.ended
        scans = known.scans_around(since, until)
        ahead = _surely_ahead(scans, call, until)
        if not ahead:
            continue
        examined["allocations while somebody waits"] += 1
        name = call.body["name"]
        ahead = [each for each in ahead if name.startswith(each.prefix)]
        # Each of these prefixes is a prefix of the other, so the shortest one names every sandbox that they could have.
        shortest = min((each.prefix for each in ahead), key=len, default="")
        free = known.maybe_free(since, until, shortest)
        if len(ahead) >= len(free):
            text = f"track {call.track_id} took {call.body['sandbox_id']}, which was due to a place ahead"
            yield text, call, tuple(ahead), tuple(sorted(free))


def find_held_up(known: Certainties, examined: Counter[str]) -> Iterator[tuple[str, Call, tuple[PlaceRow, ...]]]:
    """Find a request that got nothing, although more was free than may have been due to tracks that were not gone."""
    for call in known.history.calls:
        if call.kind is not Kind.ALLOCATE or call.status not in {202, 409} or is_shut_out(call):
            continue
        gone = _surely_gone(known.scans_around(call.began - INDEX_SEC, call.ended), call)
        if not gone:
            continue
        examined["refusals behind a track that is gone"] += 1
        free = known.free_throughout(call.began - INDEX_SEC, call.ended, call.prefix)
        held_up = [each for each in gone if any(row.name.startswith(each.prefix) for row in free)]
        if held_up and len(free) > len(might_be_ahead(known, call)):
            yield f"track {call.track_id} was held up by a track that is gone", call, tuple(held_up)


def find_lost_places(known: Certainties, examined: Counter[str]) -> Iterator[tuple[str, Call, Call]]:
    """Find a track that came back in time, and was told another place."""
    by_owner: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in known.history.calls:
        if call.kind in {Kind.ALLOCATE, Kind.GIVE_UP}:
            by_owner[call.track_id, call.key].append(call)
    for calls in by_owner.values():
        calls.sort(key=lambda each: each.began)
        ended = -math.inf
        for at, (one, other) in enumerate(pairwise(calls)):
            are_alone = ended < one.began and one.ended < other.began
            are_alone = are_alone and all(other.ended < each.began for each in calls[at + 2 : at + 3])
            ended = max(ended, one.ended)
            if not are_alone or not one.status == other.status == 202 or one.prefix != other.prefix:
                continue
            if other.ended < one.body["place_kept_until"] - ROUNDING_SEC:
                examined["returns in time"] += 1
                if one.body["joined_at"] != other.body["joined_at"]:
                    yield f"track {one.track_id} lost its place although it came back in time", one, other


def find_double_places(known: Certainties, examined: Counter[str]) -> Iterator[tuple[str, PlaceRow]]:
    """Find a (track, key) with two places, or with a place while it surely has a claim."""
    for number, scan in enumerate(known.history.scans):
        owners = set()
        for place in scan.places:
            examined["places in scans"] += 1
            owner = (place.track_id, place.key)
            if owner in owners:
                yield f"track {place.track_id} had two places", place
            owners.add(owner)
            around = known.claims[number - 1 : number + 2] if number else []
            held = {claims[owner].lease_id if owner in claims else None for claims in around}
            if len(around) == 3 and len(held) == 1 and held != {None}:
                yield f"track {place.track_id} had a place while it held a sandbox", place


def is_shut_out(call: Call) -> bool:
    """Tell whether an allocate was refused because the reservation that it named is not open."""
    return call.status == 409 and call.body.get("error", {}).get("code") == "RESERVATION_NOT_OPEN"


def might_be_ahead(known: Certainties, call: Call) -> set[tuple[str, str]]:
    """Return the other (track, key) pairs that may have had a place, and not been late, in the second before a call.

    A place that no scan shows is known by the request that joined it.
    """
    began, ended = call.began - INDEX_SEC, call.ended
    waiting = known.waiting_within(began - ROUNDING_SEC, ended)
    seen = {
        (place.track_id, place.key)
        for scan in known.scans_around(began, ended)
        for place in scan.places
        if place.back_by + LATE_SEC + ROUNDING_SEC >= began
    }
    return (seen | waiting) - {(call.track_id, call.key)}


def _surely_ahead(scans: list[Scan], call: Call, until: float) -> list[PlaceRow]:
    """Return the places that were there in all scans, with tracks that were not late, and before the caller's own."""
    if not scans:
        return []
    rows = [{place.place_id: place for place in scan.places} for scan in scans]
    own = [place for scan in scans for place in scan.places if (place.track_id, place.key) == (call.track_id, call.key)]
    # A place that no scan shows is a new one, and so at the end.
    limit = min((each.place_id for each in own), default=None)
    return [
        place
        for place_id, place in rows[0].items()
        if all(place_id in each for each in rows)
        and min(each[place_id].back_by for each in rows) + LATE_SEC >= until
        and (limit is None or place_id < limit)
        and (place.track_id, place.key) != (call.track_id, call.key)
    ]


def _surely_gone(scans: list[Scan], call: Call) -> list[PlaceRow]:
    """Return the other places that are in all scans, with tracks that were late all the time."""
    if not scans:
        return []
    rows = [{place.place_id: place for place in scan.places} for scan in scans]
    return [
        place
        for place_id, place in rows[-1].items()
        if all(place_id in each for each in rows)
        and place.back_by + LATE_SEC + ROUNDING_SEC < scans[0].began
        and (place.track_id, place.key) != (call.track_id, call.key)
    ]
