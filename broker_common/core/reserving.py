"""Set sandboxes aside for reservations, return what is not needed, and begin and end reservations.

All steps are conditional on the records of the sandbox and of its reservation. So several runs at once do no harm.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.deadline import Backoff
from broker_common.core.errors import BrokerError, StoreUnavailable, UnsafeToAct
from broker_common.core.facts import PoolFactKind, of_reservation
from broker_common.core.ids import new_id
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.pool import give_up_reserved, set_aside
from broker_common.core.reservation import ReservationStage, served_first
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.core.store import Conflict, Position
from broker_common.core.telemetry import ItemFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from random import Random

    from broker_common.core.facts import PoolFact
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.reservation import Reservation
    from broker_common.core.sandbox import Candidate
    from broker_common.core.store import OpenReservations, SandboxStore

_PAGE = 1000
"""How many sandboxes each query reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveResult:
    """What one run did: sandboxes that it set aside, and returned; reservations that began, of them short; that ended.

    `failed`: sandboxes and reservations that the next run tries again.
    """

    set_aside: int
    returned: int
    opened: int
    short: int
    ended: int
    failed: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Set {self.set_aside} sandboxes aside for reservations, returned {self.returned}"


class Reserver:
    """Does what reservations need at their time."""

    def __init__(
        self, *, store: SandboxStore, guard: Guard, recorder: Recorder, clock: Clock, rng: Random, threads: int
    ) -> None:
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._threads = threads

    def run(self, *, by: Actor) -> ReserveResult:
        """End reservations, return what they no longer need, set aside what others lack, and begin these.

        Raises `UnsafeToAct`.
        """
        self._guard.check()
        counts: Counter[str] = Counter()
        for each in self._store.read_reservations().reservations:
            self._try(counts, partial(self._end_or_return, counts, each, by))
        filled = self._store.read_reservations().reservations
        self._fill(counts, filled, by)
        for each in self._store.read_reservations().reservations:
            self._try(counts, partial(self._begin, counts, each, by))
        return ReserveResult(
            set_aside=counts["set_aside"],
            returned=counts["returned"],
            opened=counts["opened"],
            short=counts["short"],
            ended=counts["ended"],
            failed=counts["failed"],
        )

    def give_back(self, reservation: Reservation, *, by: Actor, most: int | None = None) -> int:
        """Make sandboxes available that are set aside for a reservation: all, or up to `most`. Return how many.

        One that cannot be returned now is reported, and another is taken. Raises `UnsafeToAct` and `StoreUnavailable`.
        """
        found = self._read_ring(reservation_id=reservation.reservation_id)
        returned = 0
        while found and (most is None or returned < most):
            chosen, found = (found, []) if most is None else (found[: most - returned], found[most - returned :])
            returned += self._return(reservation, chosen, by).count(True)
        return returned

    def return_unneeded(self, reservation: Reservation, *, by: Actor) -> int:
        """Make available what a reservation does not need now: names that do not fit, or all unless it is being filled.

        Return how many. Raises `UnsafeToAct` and `StoreUnavailable`.
        """
        return self._return_unneeded(reservation, by).count(True)

    def _return_unneeded(self, reservation: Reservation, by: Actor) -> list[bool | None]:
        now = self._now()
        if not reservation.set_aside or (reservation.is_filled_at(now) and not reservation.prefix):
            return []
        found = self._read_ring(reservation_id=reservation.reservation_id)
        return self._return(reservation, [each for each in found if not reservation.needs_at(each.name, now)], by)

    def _return(self, reservation: Reservation, chosen: list[Candidate], by: Actor) -> list[bool | None]:
        return for_each(partial(self._give_back_one, reservation.reservation_id, by), chosen, threads=self._threads)

    def _try(self, counts: Counter[str], step: Callable[[], None]) -> None:
        """Do a step of one reservation. If it fails, the others go on."""
        try:
            step()
        except Conflict:
            return  # another process did it, or changed the reservation: the next run sees that
        except UnsafeToAct:
            raise
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.RESERVE, sandbox_id=None, error=error.message))
            counts["failed"] += 1

    def _end_or_return(self, counts: Counter[str], reservation: Reservation, by: Actor) -> None:
        if reservation.stage is ReservationStage.BOOKED and self._now() >= reservation.ends_at:
            reservation = self._end(reservation, by)
            counts["ended"] += 1
        outcomes = self._return_unneeded(reservation, by)
        counts["returned"] += outcomes.count(True)
        counts["failed"] += outcomes.count(None)
        if reservation.stage is not ReservationStage.BOOKED:
            current = self._store.read_reservation(reservation.reservation_id)
            if current is not None and not current.set_aside:
                self._store.archive_reservation(current)

    def _end(self, reservation: Reservation, by: Actor) -> Reservation:
        """End a reservation whose time is over. Raises `Conflict` if somebody else has, or has changed it."""
        backoff = Backoff(self._clock, self._rng)
        while True:
            known = self._store.read_reservations()
            current = _find(known, reservation.reservation_id)
            if (
                current is None
                or current.stage is not ReservationStage.BOOKED
                or current.version != reservation.version
            ):
                raise Conflict("the reservation was changed by another writer", current=None)
            ended = replace(current, stage=ReservationStage.ENDED, ended_at=self._now())
            fact = self._fact(PoolFactKind.RESERVATION_ENDED, ended, by)
            try:
                self._store.write_reservation(current, ended, version=known.version, fact=fact)
            except Conflict:  # perhaps another reservation was booked meanwhile; if not, the next look sees the end
                backoff.pause(StoreUnavailable("other reservations are changed all the time"))
                continue
            return ended

    def _begin(self, counts: Counter[str], reservation: Reservation, by: Actor) -> None:
        """Tell that a reservation begins, and whether it lacks sandboxes: once."""
        now = self._now()
        is_due = reservation.starts_at <= now < reservation.ends_at
        if not is_due or reservation.opened_at is not None or reservation.stage is not ReservationStage.BOOKED:
            return
        kind = PoolFactKind.RESERVATION_SHORT if reservation.short_by_at(now) else PoolFactKind.RESERVATION_OPEN
        self._store.mark_opened(replace(reservation, opened_at=now), self._fact(kind, reservation, by))
        counts["opened"] += 1
        counts["short"] += kind is PoolFactKind.RESERVATION_SHORT

    def _fact(self, kind: PoolFactKind, reservation: Reservation, by: Actor) -> PoolFact:
        return of_reservation(kind, reservation, fact_id=new_id(self._rng), at=self._now(), by=by)

    # -- fill

    def _fill(self, counts: Counter[str], reservations: Iterable[Reservation], by: Actor) -> None:
        """Set available sandboxes aside for the reservations that lack some."""
        now = self._now()
        filled = sorted((each for each in reservations if each.is_filled_at(now)), key=served_first)
        lacking = [each for each in filled if each.lacking > 0]
        if not lacking:
            return
        free = self._read_ring()
        for reservation in lacking:
            self._guard.check()
            fitting = [each for each in free if each.name.startswith(reservation.prefix)]
            # Those first that the fewest other reservations could have, too.
            prefixes = [each.prefix for each in lacking if each is not reservation]
            fitting.sort(key=lambda each: sum(map(each.name.startswith, prefixes)))
            chosen = fitting[: reservation.lacking]
            outcomes = for_each(partial(self._set_aside_one, reservation, by), chosen, threads=self._threads)
            counts["set_aside"] += outcomes.count(True)
            counts["failed"] += outcomes.count(None)
            taken = {each.sandbox_id for each in chosen}
            free = [each for each in free if each.sandbox_id not in taken]

    def _set_aside_one(self, reservation: Reservation, by: Actor, candidate: Candidate) -> bool | None:
        try:
            sandbox = self._store.get(candidate.sandbox_id)
            if sandbox is None or sandbox.status is not Status.AVAILABLE:
                return False
            if not sandbox.name.startswith(reservation.prefix):
                return False
            self._store.commit(
                set_aside(
                    sandbox,
                    reservation_id=reservation.reservation_id,
                    order=self._order(),
                    by=by,
                    now=self._now(),
                )
            )
        except Conflict:
            return False
        except BrokerError as error:
            self._report(candidate, error)
            return None
        return True

    def _give_back_one(self, reservation_id: str, by: Actor, candidate: Candidate) -> bool | None:
        self._guard.check()
        try:
            sandbox = self._store.get(candidate.sandbox_id)
            if sandbox is None or sandbox.reservation_id != reservation_id:
                return False
            self._store.commit(give_up_reserved(sandbox, order=self._order(), by=by, now=self._now()))
        except Conflict:
            return False
        except BrokerError as error:
            self._report(candidate, error)
            return None
        return True

    def _report(self, candidate: Candidate, error: BrokerError) -> None:
        self._recorder.record(ItemFailed(job=Job.RESERVE, sandbox_id=candidate.sandbox_id, error=error.message))

    def _read_ring(self, *, reservation_id: str | None = None) -> list[Candidate]:
        """Read all sandboxes that are available, or set aside for a reservation."""
        found: list[Candidate] = []
        position, travelled = Position(0), 0
        while travelled < self._store.positions:
            page = self._store.read_candidates(position, limit=_PAGE, prefix="", reservation_id=reservation_id)
            found += page.candidates
            position, travelled = page.next, travelled + page.distance
        return found

    def _now(self) -> int:
        """Return the store's time: all processes begin and end a reservation by the same clock."""
        return self._clock.now() - self._guard.clock_error()

    def _order(self) -> int:
        return self._rng.randrange(ORDER_LIMIT)


def _find(known: OpenReservations, reservation_id: str) -> Reservation | None:
    return next((each for each in known.reservations if each.reservation_id == reservation_id), None)
