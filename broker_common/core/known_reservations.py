"""The reservations as one process knows them: which to draw from, and which lacks a sandbox that becomes free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.core.errors import StoreUnavailable
from broker_common.core.reservation import drawn_by, place_for, served_first
from broker_common.core.shared_read import KeptRead
from broker_common.core.store import ReservationFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.ports import Clock
    from broker_common.core.reservation import Reservation
    from broker_common.core.store import Commits, ReservationRecords

MAX_AGE_SEC = 3.0


class KnownReservations:
    """The reservations that were not archived, read at most every few seconds; safe to use from many threads.

    What is done by them is decided by the store: each write is conditional on the reservation's own record.
    """

    def __init__(self, store: ReservationRecords, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._kept = KeptRead(store.read_booked, clock, max_age=MAX_AGE_SEC, what="the reservations")

    def current(self) -> tuple[Reservation, ...]:
        """Return the reservations, at most a few seconds old. If they cannot be read now, return the last known ones.

        Raises `StoreUnavailable` if none are known yet.
        """
        return self._kept.current()

    def find(self, reservation_id: str) -> Reservation | None:
        """Return a reservation; one that this process does not know yet is read from the store."""
        known = next((each for each in self.current() if each.reservation_id == reservation_id), None)
        return known or self._store.read_reservation(reservation_id)

    def drawn_by(self, *, track_name: str | None, customer: str | None) -> list[Reservation]:
        """Return the open reservations from which a track of this lab and customer draws, in the order of their end."""
        return drawn_by(self.current(), track_name=track_name, customer=customer, now=self._clock.now())

    def open_ids(self) -> set[str]:
        """Return the ids of the reservations that are open now."""
        now = self._clock.now()
        return {each.reservation_id for each in self.current() if each.is_open_at(now)}

    def place_for(self, name: str, *, without: set[str] | None = None) -> str | None:
        """Return the id of the reservation that lacks a sandbox of this name now, or None.

        It is none of those in `without`. None also if no reservations are known, because they cannot be read: then the
        sandbox is available, and is set aside later.
        """
        try:
            known = self.current()
        except StoreUnavailable:
            return None
        found = place_for(name, known, now=self._clock.now(), without=without or ())
        return found.reservation_id if found else None

    def lacking(self) -> dict[Reservation, int]:
        """Return the reservations that lack sandboxes now and how many, in the order in which they are served."""
        now = self._clock.now()
        filled = [each for each in self.current() if each.is_filled_at(now) and each.lacking > 0]
        return {each: each.lacking for each in sorted(filled, key=served_first)}

    def commit_freed(self, name: str, make: Callable[[str | None], Change], *, store: Commits) -> Change:
        """Commit a change by which a sandbox of this name becomes free, and return it.

        `make` takes the id of the reservation that lacks it, or None if it is available to every track. Raises the
        errors of `commit`.
        """
        full: set[str] = set()
        while (reservation_id := self.place_for(name, without=full)) is not None:
            change = make(reservation_id)
            try:
                store.commit(change)
            except ReservationFull:
                full.add(reservation_id)
            else:
                return change
        change = make(None)
        store.commit(change)
        return change
