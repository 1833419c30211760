"""Book, change, cancel and list reservations, and tell how many sandboxes can be reserved when.

Each write is conditional on the version of all bookings that the check read. If another booking came first, the check
is made again. So concurrent bookings never exceed what may be reserved.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from broker_common.core.capacity import Capacity, CapacityPoint
from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.deadline import Backoff
from broker_common.core.errors import (
    CapacityNotAvailable,
    IdempotencyMismatch,
    InvalidInput,
    ReservationNotFound,
    StoreUnavailable,
    UpgradeUnfinished,
    VersionMismatch,
)
from broker_common.core.facts import PoolFactKind, of_reservation
from broker_common.core.ids import new_id
from broker_common.core.pool_copy import MAX_AGE_SEC
from broker_common.core.reservation import (
    LEAD_SEC,
    MAX_TEXT,
    OPENS_BEFORE_SEC,
    Reservation,
    ReservationStage,
    ReservationState,
    not_open,
)
from broker_common.core.sandbox import ORDER_LIMIT
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict, ReservationPage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.pool_copy import PoolCopy
    from broker_common.core.ports import Clock
    from broker_common.core.principals import Actor
    from broker_common.core.reserving import Reserver
    from broker_common.core.sandbox import Sandbox
    from broker_common.core.store import OpenReservations, SandboxStore

MAX_RESERVATIONS = 1000
"""How many reservations there may be that have not ended: every process reads all of them every few seconds."""
MAX_COUNT = 100_000
MAX_LEAD_SEC = 24 * 3600
MAX_TRACK_NAMES = 20
MAX_NOTE = 1000
_MAX_TIME = ORDER_LIMIT // 1000
_KEYS = uuid.UUID("a0d4ed3b-8b0e-4c53-9f0c-6f2c2b1f7d0e")
"""The namespace of the ids of reservations that are booked with an idempotency key."""


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


class Bookings:
    """Books reservations for operators; safe to use from many threads."""

    def __init__(
        self,
        *,
        store: SandboxStore,
        copy: PoolCopy,
        guard: Guard,
        reserver: Reserver,
        clock: Clock,
        rng: Random,
        policy: Policy,
    ) -> None:
        self._store = store
        self._guard = guard
        self._reserver = reserver
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._pool = copy

    def now(self) -> int:
        """Return the time by which reservations go: the clock's, corrected by the store's."""
        return self._clock.now() - self._guard.clock_error()

    def book(self, wanted: Wanted, *, by: Actor, idempotency_key: str | None = None) -> Booked:
        """Book a reservation. A repeated request of the same principal with the same key gets the same one.

        Raises `CapacityNotAvailable` (its details have `could_have`), `IdempotencyMismatch`, `InvalidInput`,
        `UpgradeUnfinished`, `UnsafeToAct` and `StoreUnavailable`.
        """
        self._check_allowed("book a reservation")
        request_hash = None if idempotency_key is None else _hash_of(wanted)
        reservation_id = new_id(self._rng)
        if idempotency_key is not None:
            reservation_id = str(uuid.uuid5(_KEYS, json.dumps([by.principal, idempotency_key])))
        backoff = self._backoff()
        while True:
            known = self._store.read_reservations()
            if idempotency_key is not None:
                earlier = self._find(known, reservation_id)
                if earlier is not None:
                    if earlier.request_hash != request_hash:
                        raise IdempotencyMismatch(
                            "this idempotency key was used for another reservation; use a new one"
                        )
                    return Booked(earlier, replayed=True)
            now = self.now()
            reservation = Reservation(
                reservation_id=reservation_id,
                **_fields_of(wanted),
                created_at=now,
                created_by=by.principal,
                request_hash=request_hash,
            )
            _check(reservation, now)
            self._check_capacity(reservation, known)
            try:
                self._store.write_reservation(None, reservation, version=known.version)
            except Conflict:
                backoff.pause(_busy())
                continue
            return Booked(reservation, replayed=False)

    def check(self, wanted: Wanted, *, reservation_id: str | None = None) -> Fit:
        """Tell whether a reservation could be booked, or `reservation_id` be changed to it. Changes nothing.

        Raises `InvalidInput` and `StoreUnavailable`; with an id also `ReservationNotFound` and `ReservationNotOpen`.
        """
        now = self.now()
        known = self._store.read_reservations()
        if reservation_id is None:
            reservation = Reservation(reservation_id="", **_fields_of(wanted), created_at=now, created_by="")
            _check(reservation, now)
            fits_already = False
        else:
            current = self._current(known, reservation_id)
            reservation = replace(current, **_fields_of(wanted))
            _check_change(current, reservation, now)
            fits_already = not _needs_more(current, reservation)
        could_have = self._could_have(reservation, known, self._sandboxes())
        return Fit(fits_already or reservation.count <= could_have, could_have)

    def change(self, reservation_id: str, changes: Mapping[str, object], *, version: int, by: Actor) -> Reservation:
        """Change the named fields of a reservation that was read at `version`.

        A change to the same values changes nothing, not even the version. What is set aside and no longer needed is
        returned: what exceeds a smaller count before the change, the rest after it. If that fails, the job `reserve`
        goes on with it. Raises `ReservationNotFound`, `VersionMismatch`, `CapacityNotAvailable`, `InvalidInput`, and
        `ReservationNotOpen` if it has ended or was cancelled; also `UpgradeUnfinished`, `UnsafeToAct` and
        `StoreUnavailable`.
        """
        self._check_allowed("change a reservation")
        unknown = changes.keys() - {field.name for field in fields(Wanted)}
        if unknown:
            raise InvalidInput(f"{min(unknown)}: cannot be changed")
        backoff = self._backoff()
        while True:
            known = self._store.read_reservations()
            current = self._at_version(known, reservation_id, version)
            changed = replace(current, **cast("Mapping[str, Any]", changes))
            if changed == current:
                return current
            changed = replace(changed, version=version + 1)
            now = self.now()
            _check_change(current, changed, now)
            if _needs_more(current, changed):
                self._check_capacity(changed, known)
            surplus = current.set_aside + current.drawn - changed.count
            if surplus > 0:
                self._reserver.give_back(current, by=by, most=surplus)
                if self._left(reservation_id) >= current.set_aside:
                    backoff.pause(StoreUnavailable("what is set aside cannot be returned now; try again"))
                continue
            if changed.starts_at > max(now, current.starts_at):
                changed = replace(changed, opened_at=None)
            try:
                self._store.write_reservation(current, changed, version=known.version)
            except Conflict:
                backoff.pause(_busy())
                continue
            with suppress(StoreUnavailable):
                self._reserver.return_unneeded(self.get(reservation_id), by=by)
            return self.get(reservation_id)

    def cancel(self, reservation_id: str, *, by: Actor) -> Reservation:
        """Cancel a reservation, and return what was set aside for it. May be repeated.

        If the return fails, the job `reserve` goes on with it. Raises `ReservationNotFound`, and `ReservationNotOpen`
        if it has ended; also `UnsafeToAct` and `StoreUnavailable`.
        """
        self._guard.check()
        backoff = self._backoff()
        while True:
            known = self._store.read_reservations()
            current = self._find(known, reservation_id)
            if current is not None and current.stage is ReservationStage.CANCELLED:
                break
            current = self._current(known, reservation_id)
            now = self.now()
            cancelled = replace(current, stage=ReservationStage.CANCELLED, version=current.version + 1, ended_at=now)
            fact = of_reservation(
                PoolFactKind.RESERVATION_ENDED, current, fact_id=new_id(self._rng), at=now, by=by, cancelled=True
            )
            try:
                self._store.write_reservation(current, cancelled, version=known.version, fact=fact)
            except Conflict:
                backoff.pause(_busy())
                continue
            current = cancelled
            break
        with suppress(StoreUnavailable):
            self._reserver.give_back(current, by=by)
        return self.get(reservation_id)

    def get(self, reservation_id: str) -> Reservation:
        """Return a reservation. Raises `ReservationNotFound`."""
        found = self._store.read_reservation(reservation_id)
        if found is None:
            raise ReservationNotFound(f"there is no reservation {reservation_id!r}")
        return found

    def list(self, *, state: ReservationState | None, limit: int, cursor: str | None) -> ReservationPage:
        """List reservations of one state, or all: first those that were not archived, by their start.

        An archived one has ended, and nothing is set aside for it any more. Raises `InvalidInput` for a cursor that was
        not given by a listing of the same state.
        """
        after, archived = _read_cursor(state, cursor)
        now = self.now()
        found: list[Reservation] = []
        if archived is None:
            known = sorted(self._store.read_reservations().reservations, key=_by_start)
            rest = [each for each in known if _by_start(each) > after and state in {None, each.state_at(now)}]
            found = rest[:limit]
            if len(rest) > limit:
                return ReservationPage(tuple(found), _write_cursor(state, [*_by_start(found[-1])]))
        if state not in {None, ReservationState.ENDED, ReservationState.CANCELLED}:
            return ReservationPage(tuple(found), None)
        if len(found) == limit:
            return ReservationPage(tuple(found), _write_cursor(state, ""))
        page = self._store.list_archived(limit=limit - len(found), cursor=archived or None)
        found += [each for each in page.reservations if state in {None, each.state_at(now)}]
        return ReservationPage(tuple(found), _write_cursor(state, page.cursor) if page.cursor is not None else None)

    def capacity(self, *, since: int, until: int, prefix: str = "") -> Sequence[CapacityPoint]:
        """Return how many sandboxes of a prefix can be reserved from `since` to `until`, and how many of them are.

        Raises `InvalidInput` and `StoreUnavailable`.
        """
        if not 0 <= since < until < _MAX_TIME:
            raise InvalidInput("to: must be later than from")
        booked = _booked(self._store.read_reservations().reservations)
        pool = self._sandboxes()
        return Capacity(pool, booked, self._policy).curve(prefix, since=since, until=until)

    def _backoff(self) -> Backoff:
        return Backoff(self._clock, self._rng, base=0.02, limit=1.0)

    def _check_allowed(self, refused: str) -> None:
        self._guard.check()
        if not self._guard.is_upgraded(Upgrade.LINE):
            raise UpgradeUnfinished(refused)

    def _find(self, known: OpenReservations, reservation_id: str) -> Reservation | None:
        """Return a reservation, also an archived one."""
        found = next((each for each in known.reservations if each.reservation_id == reservation_id), None)
        return found or self._store.read_reservation(reservation_id)

    def _current(self, known: OpenReservations, reservation_id: str) -> Reservation:
        """Return a reservation that may be changed. Raises `ReservationNotFound` or `ReservationNotOpen`."""
        found = self._find(known, reservation_id)
        if found is None:
            raise ReservationNotFound(f"there is no reservation {reservation_id!r}")
        now = self.now()
        if found.state_at(now) in {ReservationState.ENDED, ReservationState.CANCELLED}:
            raise not_open(found, now=now)
        return found

    def _at_version(self, known: OpenReservations, reservation_id: str, version: int) -> Reservation:
        """Return what `_current` returns. Raises also `VersionMismatch` if it has another version."""
        found = self._current(known, reservation_id)
        if found.version != version:
            raise VersionMismatch(
                f"the reservation has version {found.version}: read it again, then repeat the change",
                details={"version": found.version},
            )
        return found

    def _left(self, reservation_id: str) -> int:
        """Return how many sandboxes are set aside for a reservation."""
        found = self._store.read_reservation(reservation_id)
        return found.set_aside if found else 0

    def _check_capacity(self, reservation: Reservation, known: OpenReservations) -> None:
        """Raise `CapacityNotAvailable` if a reservation does not fit.

        The pool is read after the reservations: a sandbox that is drawn between the two counts as needed, but not as in
        service.
        """
        others = [each for each in _booked(known.reservations) if each.reservation_id != reservation.reservation_id]
        if len(others) >= MAX_RESERVATIONS:
            raise CapacityNotAvailable(
                f"there are {len(others)} reservations already: cancel one first", details={"could_have": 0}
            )
        could_have = self._could_have(reservation, known, self._sandboxes(max_age=0))
        if reservation.count > could_have:
            raise CapacityNotAvailable(
                f"{reservation.count} sandboxes cannot be reserved for this time: {could_have} can",
                details={"could_have": could_have},
            )

    def _could_have(self, reservation: Reservation, known: OpenReservations, pool: Sequence[Sandbox]) -> int:
        others = [each for each in _booked(known.reservations) if each.reservation_id != reservation.reservation_id]
        room = Capacity(pool, others, self._policy).room(
            reservation.prefix, since=reservation.starts_at, until=reservation.ends_at
        )
        return max(0, min(room.in_service + reservation.drawn, room.reservable))

    def _sandboxes(self, *, max_age: float = MAX_AGE_SEC) -> Sequence[Sandbox]:
        _, pool = self._pool.get(max_age=max_age)
        return pool.sandboxes


def _busy() -> StoreUnavailable:
    return StoreUnavailable("others book and change reservations all the time; try again")


def _fields_of(wanted: Wanted) -> dict[str, Any]:
    return {field.name: getattr(wanted, field.name) for field in fields(wanted)}


def _hash_of(wanted: Wanted) -> str:
    return hashlib.sha256(json.dumps(asdict(wanted), sort_keys=True).encode()).hexdigest()


def _booked(reservations: Sequence[Reservation]) -> list[Reservation]:
    return [each for each in reservations if each.stage is ReservationStage.BOOKED]


def _needs_more(before: Reservation, after: Reservation) -> bool:
    """Tell whether a change may need sandboxes that the reservation did not need before."""
    is_within = before.starts_at <= after.starts_at and after.ends_at <= before.ends_at
    return not (is_within and after.count <= before.count and after.prefix == before.prefix)


def _check_change(before: Reservation, after: Reservation, now: int) -> None:
    """Raise `InvalidInput` unless a reservation may be changed at `now`."""
    _check(after, now, earliest=min(now, before.starts_at))
    if after.count < before.drawn:
        raise _fault("count", f"must be at least {before.drawn}, because so many sandboxes were drawn")


def _check(reservation: Reservation, now: int, *, earliest: int | None = None) -> None:
    """Raise `InvalidInput` unless a reservation makes sense that is booked or changed at `now`.

    It must not start before `earliest`, which is `now` if it is not given.
    """
    earliest = now if earliest is None else earliest
    texts = {"name": reservation.name, "prefix": reservation.prefix, "customer": reservation.customer or ""}
    problems = {
        "name": not reservation.name and "must not be empty",
        "count": not 1 <= reservation.count <= MAX_COUNT and f"must be from 1 to {MAX_COUNT}",
        "starts_at": not earliest - MAX_DIFFERENCE_SEC <= reservation.starts_at < _MAX_TIME
        and "must not be in the past",
        "ends_at": not max(reservation.starts_at, now) < reservation.ends_at < _MAX_TIME
        and "must be later than starts_at, and in the future",
        "lead_sec": not OPENS_BEFORE_SEC <= reservation.lead_sec <= MAX_LEAD_SEC
        and f"must be from {OPENS_BEFORE_SEC} to {MAX_LEAD_SEC}",
        "hold_sec": reservation.hold_sec is not None
        and not 0 <= reservation.hold_sec < _MAX_TIME
        and "must not be negative",
        "track_names": (len(reservation.track_names) > MAX_TRACK_NAMES or not all(reservation.track_names))
        and f"must be at most {MAX_TRACK_NAMES} names, none of them empty",
        "note": len(reservation.note or "") > MAX_NOTE and f"must have at most {MAX_NOTE} characters",
    }
    for field, problem in problems.items():
        if problem:
            raise _fault(field, problem)
    texts |= {"track_names": max(reservation.track_names, key=len, default="")}
    for field, text in texts.items():
        if len(text) > MAX_TEXT:
            raise _fault(field, f"must have at most {MAX_TEXT} characters")


def _fault(field: str, problem: str) -> InvalidInput:
    return InvalidInput(f"{field}: {problem}", details={field: [problem]})


def _by_start(reservation: Reservation) -> tuple[int, str]:
    return reservation.starts_at, reservation.reservation_id


def _write_cursor(state: ReservationState | None, at: Sequence[int | str]) -> str:
    """Return a cursor that continues after a start and id, or in the archive after its own cursor."""
    content = json.dumps(["reservations", state, at], separators=(",", ":"))
    return base64.urlsafe_b64encode(content.encode()).decode()


def _read_cursor(state: ReservationState | None, cursor: str | None) -> tuple[tuple[int, str], str | None]:
    """Return the position among those that were not archived, and the cursor in the archive if they are all read."""
    start = (-1, "")
    if cursor is None:
        return start, None
    try:
        match json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            case ["reservations", of, [int(starts_at), str(reservation_id)]] if of == state:
                return (starts_at, reservation_id), None
            case ["reservations", of, str(archived)] if of == state:
                return start, archived
    except (ValueError, RecursionError):
        pass
    raise InvalidInput("cursor: was not given by a listing of the same state")
