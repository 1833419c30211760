"""Book, change, cancel and list reservations, and tell how many sandboxes can be reserved when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.core.reservation import LEAD_SEC, Reservation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.principals import Actor
    from broker_common.core.reservation import ReservationState


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A reservation as it is asked for. The fields are those of `Reservation`."""

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


@dataclass(frozen=True, slots=True)
class Booked:
    """A booked reservation. `replayed`: an earlier request with the same key booked it."""

    reservation: Reservation
    replayed: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a reservation could be booked now, and how many sandboxes it could have."""

    fits: bool
    could_have: int


@dataclass(frozen=True, slots=True)
class CapacityPoint:
    """From `at` until the next point, `reserved` of `reservable` sandboxes are booked."""

    at: int
    reservable: int
    reserved: int


@dataclass(frozen=True, slots=True)
class ReservationPage:
    """A page of reservations. `cursor` reads the next page; it is None on the last one."""

    reservations: tuple[Reservation, ...]
    cursor: str | None


class Bookings:
    """Books reservations for operators."""

    def book(self, wanted: Wanted, *, by: Actor, idempotency_key: str | None = None) -> Booked:
        """Book a reservation. A repeated request with the same key gets the same one.

        Raises `CapacityNotAvailable` (its details have `could_have`), `IdempotencyMismatch`, `InvalidInput`,
        `UpgradeUnfinished` and `StoreUnavailable`.
        """
        raise NotImplementedError

    def check(self, wanted: Wanted) -> Fit:
        """Tell whether a reservation could be booked. Books nothing. Raises `InvalidInput`."""
        raise NotImplementedError

    def change(self, reservation_id: str, changes: Mapping[str, object], *, version: int, by: Actor) -> Reservation:
        """Change the named fields of a reservation that was read at `version`.

        Raises `ReservationNotFound`, `VersionMismatch`, `CapacityNotAvailable`, `InvalidInput`, and
        `ReservationNotOpen` if it has ended or was cancelled.
        """
        raise NotImplementedError

    def cancel(self, reservation_id: str, *, by: Actor) -> Reservation:
        """Cancel a reservation, and return what was set aside for it. May be repeated.

        Raises `ReservationNotFound`, and `ReservationNotOpen` if it has ended.
        """
        raise NotImplementedError

    def get(self, reservation_id: str) -> Reservation:
        """Return a reservation. Raises `ReservationNotFound`."""
        raise NotImplementedError

    def list(self, *, state: ReservationState | None, limit: int, cursor: str | None) -> ReservationPage:
        """List reservations of one state, or all: first those that have not ended, by their start.

        Raises `InvalidInput` for a cursor that was not given by a listing of the same state.
        """
        raise NotImplementedError

    def capacity(self, *, since: int, until: int, prefix: str = "") -> list[CapacityPoint]:
        """Return how many sandboxes of a name can be reserved from `since` to `until`, and how many are.

        Raises `InvalidInput`.
        """
        raise NotImplementedError
