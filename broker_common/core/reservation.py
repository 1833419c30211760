"""A reservation: sandboxes that are set aside for a class. Types and pure functions; times are Unix seconds.

How a reservation is booked is in `bookings`, how sandboxes are set aside for it and returned is in `reserving`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from broker_common.core.errors import ReservationNotOpen
from broker_common.core.utc import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

OPENS_BEFORE_SEC = 600
"""How long before its start tracks may draw from a reservation."""
MAX_TEXT = 128
"""How many characters its texts may have, its prefix among them."""
LEAD_SEC = 900
"""How long before its start sandboxes are set aside, unless the reservation says otherwise."""


class ReservationStage(StrEnum):
    """What is stored of a reservation's state. The rest follows from the time."""

    BOOKED = "booked"
    ENDED = "ended"
    CANCELLED = "cancelled"


class ReservationState(StrEnum):
    """The state of a reservation at a time."""

    SCHEDULED = "scheduled"
    FILLING = "filling"
    OPEN = "open"
    ENDED = "ended"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """`count` sandboxes, whose names start with `prefix`, for a class from `starts_at` to `ends_at`.

    `track_names`: the labs whose tracks draw from it without naming it. `customer`: whose tracks alone may draw from
    it. What is not drawn `hold_sec` after the start is returned; None: at the end. `set_aside` is how many sandboxes
    are set aside now, `drawn` how many leases ever began from it. `version` grows when somebody changes or cancels it.
    `opened_at`: when its start was told. `request_hash` identifies the request that booked it with a key.
    """

    reservation_id: str
    name: str
    count: int
    starts_at: int
    ends_at: int
    prefix: str = ""
    track_names: tuple[str, ...] = ()
    customer: str | None = None
    lead_sec: int = LEAD_SEC
    hold_sec: int | None = None
    note: str | None = None
    stage: ReservationStage = ReservationStage.BOOKED
    version: int = 1
    set_aside: int = 0
    drawn: int = 0
    created_at: int
    created_by: str
    opened_at: int | None = None
    ended_at: int | None = None
    request_hash: str | None = None

    @property
    def fills_at(self) -> int:
        """When sandboxes begin to be set aside."""
        return self.starts_at - self.lead_sec

    @property
    def opens_at(self) -> int:
        """From when on tracks may draw from it."""
        return self.starts_at - OPENS_BEFORE_SEC

    @property
    def held_until(self) -> int:
        """Until when sandboxes are set aside for it."""
        return self.ends_at if self.hold_sec is None else min(self.ends_at, self.starts_at + self.hold_sec)

    @property
    def lacking(self) -> int:
        """How many more sandboxes it may have."""
        return self.count - self.set_aside - self.drawn

    def short_by_at(self, now: int) -> int:
        """Return how many sandboxes it lacks at a time; 0 once sandboxes are no longer set aside for it."""
        is_over = self.stage is not ReservationStage.BOOKED or now >= self.held_until
        return 0 if is_over else max(0, self.lacking)

    def state_at(self, now: int) -> ReservationState:
        """Return its state at a time."""
        if self.stage is ReservationStage.CANCELLED:
            return ReservationState.CANCELLED
        if self.stage is ReservationStage.ENDED or now >= self.ends_at:
            return ReservationState.ENDED
        if now >= self.opens_at:
            return ReservationState.OPEN
        return ReservationState.FILLING if now >= self.fills_at else ReservationState.SCHEDULED

    def is_filled_at(self, now: int) -> bool:
        """Tell whether sandboxes are set aside for it at a time, as long as it lacks some."""
        return self.stage is ReservationStage.BOOKED and self.fills_at <= now < self.held_until

    def needs_at(self, name: str, now: int) -> bool:
        """Tell whether a sandbox of this name stays set aside for it at a time."""
        return self.is_filled_at(now) and name.startswith(self.prefix)

    def is_open_at(self, now: int) -> bool:
        """Tell whether tracks may draw from it at a time."""
        return self.state_at(now) is ReservationState.OPEN

    def overlaps(self, since: int, until: int) -> bool:
        """Tell whether some of its time is in [since, until)."""
        return self.starts_at < until and since < self.ends_at

    def is_for(self, track_name: str | None, customer: str | None) -> bool:
        """Tell whether a track of this lab and customer draws from it without naming it."""
        return track_name in self.track_names and self.is_for_customer(customer)

    def is_for_customer(self, customer: str | None) -> bool:
        """Tell whether a track of this customer may draw from it."""
        return self.customer is None or self.customer == customer


def place_for(
    name: str, reservations: Iterable[Reservation], *, now: int, without: Iterable[str] = ()
) -> Reservation | None:
    """Return the reservation for which a free sandbox of this name must be set aside; None if no reservation lacks it.

    It is the one that starts first of those that are being filled, except those whose id is in `without`. If two start
    together, it is the one that fewer names fit.
    """
    excluded = set(without)
    lacking = [
        each
        for each in reservations
        if each.is_filled_at(now)
        and each.lacking > 0
        and name.startswith(each.prefix)
        and each.reservation_id not in excluded
    ]
    return min(lacking, key=served_first, default=None)


def not_open(reservation: Reservation, *, now: int) -> ReservationNotOpen:
    """Return the error for a reservation that opens later, or is over."""
    state = reservation.state_at(now)
    is_over = state in {ReservationState.ENDED, ReservationState.CANCELLED}
    return ReservationNotOpen(
        f"reservation {reservation.reservation_id!r}"
        f" {f'is over: {state}' if is_over else f'opens at {shown(reservation.opens_at)}'}",
        details={"opens_at": reservation.opens_at, "state": state.value},
    )


def served_first(reservation: Reservation) -> tuple[int, int, str]:
    """Return the key by which reservations are served with free sandboxes."""
    return reservation.starts_at, -len(reservation.prefix), reservation.reservation_id


def drawn_by(
    reservations: Iterable[Reservation], *, track_name: str | None, customer: str | None, now: int
) -> list[Reservation]:
    """Return the open reservations from which a track of this lab and customer draws, the one that ends first first."""
    fitting = [each for each in reservations if each.is_open_at(now) and each.is_for(track_name, customer)]
    return sorted(fitting, key=lambda each: (each.ends_at, each.reservation_id))


def is_same(stored: Reservation, written: Reservation) -> bool:
    """Tell whether a stored reservation is as it was written, in all but what changes by itself: its counters."""
    counted = replace(stored, set_aside=written.set_aside, drawn=written.drawn, opened_at=written.opened_at)
    return counted == written
