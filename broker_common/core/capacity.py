"""How many sandboxes can be reserved for a time: pure functions over the pool and the reservations.

Names of sandboxes form a tree of prefixes. A reservation fits if it fits at each prefix that its own begins with, and
that some reservation has: there, all reservations below it share the same sandboxes. This is Hall's theorem for sets
that contain each other or have nothing in common: Hall, "On Representatives of Subsets" (1935).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.core.sandbox import Sandbox, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from broker_common.core.policy import Policy
    from broker_common.core.reservation import Reservation

_STEP_SEC = 300
"""The curve shows that leases end only at the end of each such step."""
_USABLE = frozenset({Status.AVAILABLE, Status.RESERVED, Status.PENDING_DELETION, Status.ALLOCATED})


@dataclass(frozen=True, slots=True)
class Room:
    """How many more sandboxes could be reserved. Negative if too many are reserved already.

    `in_service`: of those that can be in service then. `reservable`: of those that may be reserved at all.
    """

    in_service: int
    reservable: int


@dataclass(frozen=True, slots=True)
class CapacityPoint:
    """From `at` until the next point, `reserved` of `reservable` sandboxes are booked."""

    at: int
    reservable: int
    reserved: int


class Capacity:
    """The sandboxes that can be reserved, as of one moment."""

    def __init__(self, sandboxes: Iterable[Sandbox], reservations: Iterable[Reservation], policy: Policy) -> None:
        """Take the reservations that are booked."""
        self._policy = policy
        self._reservations = list(reservations)
        self._usable = [each for each in sandboxes if each.status in _USABLE]
        self._by_prefix: dict[str, tuple[int, list[int]]] = {}

    def room(self, prefix: str, *, since: int, until: int) -> Room:
        """Return how many sandboxes could be reserved besides the reservations, from `since` to `until`."""
        overlapping = [each for each in self._reservations if each.overlaps(since, until)]
        shared = {prefix} | {each.prefix for each in overlapping if prefix.startswith(each.prefix)}
        rooms = [self._room_at(each, overlapping, since, until) for each in shared]
        return Room(min(each.in_service for each in rooms), min(each.reservable for each in rooms))

    def curve(self, prefix: str, *, since: int, until: int) -> list[CapacityPoint]:
        """Return how many sandboxes of a prefix can be reserved, and how many of them are, from `since` to `until`."""
        times = {since}
        for each in self._reservations:
            times |= {each.starts_at, each.ends_at}
        times |= {-(-free_at // _STEP_SEC) * _STEP_SEC for free_at in self._sandboxes(prefix)[1]}
        points: list[CapacityPoint] = []
        for at in sorted(each for each in times if since <= each < until):
            reservable = min(self._in_service(prefix, at), self._limit(prefix))
            room = self.room(prefix, since=at, until=at + 1)
            reserved = reservable - min(room.in_service, room.reservable)
            if not points or (points[-1].reservable, points[-1].reserved) != (reservable, reserved):
                points.append(CapacityPoint(at, reservable, reserved))
        return points

    def _room_at(self, prefix: str, overlapping: Sequence[Reservation], since: int, until: int) -> Room:
        """Return the room at one prefix: what all reservations below it leave, at the moment when they need most."""
        below = [each for each in overlapping if each.prefix.startswith(prefix)]
        moments = {since} | {each.starts_at for each in below if since < each.starts_at < until}
        needed = booked = 0
        for at in moments:
            active = [each for each in below if each.overlaps(at, at + 1)]
            # What was drawn is no longer needed.
            needed = max(needed, sum(each.count - each.drawn for each in active))
            booked = max(booked, sum(each.count for each in active))
        return Room(self._in_service(prefix, since) - needed, self._limit(prefix) - booked)

    def _in_service(self, prefix: str, at: int) -> int:
        """Return how many sandboxes of a prefix can be in service at a time."""
        free, leased_until = self._sandboxes(prefix)
        return free + bisect_left(leased_until, at)

    def _limit(self, prefix: str) -> int:
        free, leased_until = self._sandboxes(prefix)
        return (free + len(leased_until)) * self._policy.reservable_percent // 100

    def _sandboxes(self, prefix: str) -> tuple[int, list[int]]:
        """Return how many sandboxes of a prefix have no lease, and until when the others have theirs, in order."""
        known = self._by_prefix.get(prefix)
        if known is None:
            fitting = [each for each in self._usable if each.name.startswith(prefix)]
            ends = sorted(each.lease.expires_at + self._policy.expiry_buffer_sec for each in fitting if each.lease)
            self._by_prefix[prefix] = known = (len(fitting) - len(ends), ends)
        return known
