"""A stand-in for the bookings: it keeps reservations in memory, and books at most 80 % of the free sandboxes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from broker_common.core.bookings import Booked, Bookings, CapacityPoint, Fit, ReservationPage, Wanted
from broker_common.core.errors import (
    CapacityNotAvailable,
    IdempotencyMismatch,
    InvalidInput,
    ReservationNotFound,
    ReservationNotOpen,
    UpgradeUnfinished,
    VersionMismatch,
)
from broker_common.core.reservation import Reservation, ReservationStage, ReservationState
from broker_common.core.sandbox import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore


class FakeBookings(Bookings):
    def __init__(self, store: SandboxStore, guard: Guard, clock: Clock) -> None:
        self._store, self._guard, self._clock = store, guard, clock
        self._all: dict[str, Reservation] = {}
        self._keys: dict[str, tuple[Wanted, str]] = {}

    def book(self, wanted: Wanted, *, by: Actor, idempotency_key: str | None = None) -> Booked:
        if not self._guard.is_upgraded():
            raise UpgradeUnfinished("book")
        if idempotency_key in self._keys:
            before, reservation_id = self._keys[idempotency_key]
            if before != wanted:
                raise IdempotencyMismatch("another body")
            return Booked(self._all[reservation_id], replayed=True)
        self._must_fit(wanted)
        reservation_id = f"reservation-{len(self._all) + 1}"
        made = Reservation(
            reservation_id=reservation_id, created_at=self._clock.now(), created_by=by.principal, **asdict(wanted)
        )
        self._all[reservation_id] = made
        if idempotency_key is not None:
            self._keys[idempotency_key] = wanted, reservation_id
        return Booked(made, replayed=False)

    def check(self, wanted: Wanted) -> Fit:
        could_have = self._could_have(wanted.starts_at, wanted.ends_at)
        return Fit(wanted.count <= could_have, could_have)

    def change(self, reservation_id: str, changes: Mapping[str, object], *, version: int, by: Actor) -> Reservation:
        found = self._open(reservation_id)
        if version != found.version:
            raise VersionMismatch("another version")
        changed = replace(found, version=version + 1, **changes)  # type: ignore[arg-type]
        if changed.ends_at <= changed.starts_at:
            raise InvalidInput("ends_at must be later than starts_at")
        self._must_fit(changed)
        self._all[reservation_id] = changed
        return changed

    def cancel(self, reservation_id: str, *, by: Actor) -> Reservation:
        if self.get(reservation_id).stage is not ReservationStage.CANCELLED:
            found = self._open(reservation_id)
            self._all[reservation_id] = replace(
                found, stage=ReservationStage.CANCELLED, version=found.version + 1, ended_at=self._clock.now()
            )
        return self._all[reservation_id]

    def get(self, reservation_id: str) -> Reservation:
        if reservation_id not in self._all:
            raise ReservationNotFound(f"there is no reservation {reservation_id!r}")
        return self._all[reservation_id]

    def list(self, *, state: ReservationState | None, limit: int, cursor: str | None) -> ReservationPage:
        now, start = self._clock.now(), 0
        if cursor is not None:
            of, _, position = cursor.partition(":")
            if of != str(state) or not position.isdigit():
                raise InvalidInput("cursor")
            start = int(position)
        found = [each for each in self._all.values() if state is None or each.state_at(now) is state]
        end = start + limit
        return ReservationPage(tuple(found[start:end]), f"{state}:{end}" if end < len(found) else None)

    def capacity(self, *, since: int, until: int, prefix: str = "") -> list[CapacityPoint]:
        at = sorted({since, *(moment for each in self._all.values() for moment in (each.starts_at, each.ends_at))})
        return [
            CapacityPoint(moment, self._reservable(), self._booked(moment, moment + 1))
            for moment in at
            if since <= moment < until
        ]

    def _open(self, reservation_id: str) -> Reservation:
        found = self.get(reservation_id)
        if found.state_at(self._clock.now()) in {ReservationState.ENDED, ReservationState.CANCELLED}:
            raise ReservationNotOpen("it has ended", details={"opens_at": found.opens_at})
        return found

    def _must_fit(self, wanted: Wanted | Reservation) -> None:
        without = wanted.reservation_id if isinstance(wanted, Reservation) else None
        could_have = self._could_have(wanted.starts_at, wanted.ends_at, without)
        if wanted.count > could_have:
            raise CapacityNotAvailable(f"only {could_have} can be reserved", details={"could_have": could_have})

    def _could_have(self, since: int, until: int, without: str | None = None) -> int:
        return max(0, self._reservable() - self._booked(since, until, without))

    def _booked(self, since: int, until: int, without: str | None = None) -> int:
        return sum(
            each.count
            for each in self._all.values()
            if each.stage is ReservationStage.BOOKED and each.overlaps(since, until) and each.reservation_id != without
        )

    def _reservable(self) -> int:
        return self._store.count()[Status.AVAILABLE] * 80 // 100
