"""Random operations of two processes on reservations, one in the middle of the other, with faults.

After every step: no reservation has more than its count, its counters are true, a reserved sandbox was only allocated to
whom its reservation is for, and bookings do not exceed what may be reserved.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker_common.core import known_reservations
from broker_common.core.bookings import Wanted
from broker_common.core.errors import BrokerError
from broker_common.core.facts import Fact, FactKind, PoolFactKind
from broker_common.core.reservation import Reservation, ReservationStage
from broker_common.core.sandbox import Status
from tests.fakes import BY, FakeClock, Fault, FlakyStore, MemoryStore, make_sandbox
from tests.lifecycle import check_histories, check_usage
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

POOL = 6
PREFIXES = ("", "lab-a", "lab-b")
TRACKS = [f"track-{number}" for number in range(6)]
EXAMPLES = 60 if os.environ.get("CI") else 25
WRITES = ("write_reservation", "update", "allocate", "end_allocation", "mark_opened", "archive_reservation")
labs = st.sampled_from(["lab-1", "lab-2", None])
tracks = st.sampled_from(TRACKS)
processes = st.integers(0, 1)
faults = st.lists(st.sampled_from([None, Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER]), max_size=2)
meanwhiles = st.none() | st.tuples(
    st.sampled_from(WRITES), st.sampled_from(["book", "shrink", "cancel", "reserve", "draw", "wipe"])
)


class Reservations(RuleBasedStateMachine):
    """Two processes on one pool."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.worlds = [World(clock=self.clock, memory=self.memory, wrap=FlakyStore, seed=number) for number in range(2)]
        self.asked: dict[tuple[str, int], tuple[set[str | None], set[str | None]]] = {}
        """The labs and the reservations of a track's requests, by track and second."""
        self.ends: dict[str, int] = {}
        self.opens: dict[str, int] = {}
        """The latest end that each reservation had."""

    @initialize()
    def fill(self) -> None:
        self.memory.seed(
            *[make_sandbox(f"sbx-{number}", name=f"lab-{'ab'[number % 2]}-{number}") for number in range(POOL)]
        )

    @rule(
        index=processes,
        count=st.integers(1, 4),
        after=st.sampled_from([0, 300, 1000, 4000]),
        lasts=st.sampled_from([300, 1000, 5000]),
        prefix=st.sampled_from(PREFIXES),
        hold=st.sampled_from([None, 0, 500]),
        meanwhile=meanwhiles,
        failing=faults,
    )
    def book(self, index: int, count: int, after: int, lasts: int, prefix: str, hold: int | None, meanwhile: Any, failing: Any) -> None:  # noqa: PLR0917 # fmt: skip
        starts_at = self.clock.now() + after
        wanted = Wanted(
            name="Class",
            count=count,
            starts_at=starts_at,
            ends_at=starts_at + lasts,
            prefix=prefix,
            track_names=("lab-1",),
            hold_sec=hold,
        )
        self._do(index, lambda world: world.bookings.book(wanted, by=BY), meanwhile, failing)

    @rule(
        index=processes,
        which=st.integers(0, 9),
        count=st.integers(1, 5),
        later=st.sampled_from([0, 600, -600]),
        start=st.sampled_from([0, 600, 4000]),
        prefix=st.sampled_from((None, *PREFIXES)),
        meanwhile=meanwhiles,
        failing=faults,
    )
    def change(  # noqa: PLR0917 - hypothesis names them
        self,
        index: int,
        which: int,
        count: int,
        later: int,
        start: int,
        prefix: str | None,
        meanwhile: Any,
        failing: Any,
    ) -> None:
        known = self._nth(which)
        if known is not None:
            changes: dict[str, Any] = {"count": count, "ends_at": known.ends_at + later + start}
            changes["starts_at"] = known.starts_at + start
            if prefix is not None:
                changes["prefix"] = prefix
            self._do(
                index,
                lambda world: world.bookings.change(known.reservation_id, changes, version=known.version, by=BY),
                meanwhile,
                failing,
            )

    @rule(index=processes, which=st.integers(0, 9), meanwhile=meanwhiles, failing=faults)
    def cancel(self, index: int, which: int, meanwhile: Any, failing: Any) -> None:
        known = self._nth(which)
        if known is not None:
            self._do(index, lambda world: world.bookings.cancel(known.reservation_id, by=BY), meanwhile, failing)

    @rule(index=processes, meanwhile=meanwhiles, failing=faults)
    def reserve(self, index: int, meanwhile: Any, failing: Any) -> None:
        self._do(index, lambda world: world.reserver.run(by=BY), meanwhile, failing)

    @rule(index=processes, track=tracks, lab=labs, which=st.none() | st.integers(0, 9), meanwhile=meanwhiles, failing=faults)  # fmt: skip
    def draw(  # noqa: PLR0917 - the same
        self, index: int, track: str, lab: str | None, which: int | None, meanwhile: Any, failing: Any
    ) -> None:
        named = self._nth(which) if which is not None else None
        self._do(index, lambda world: self._allocate(world, track, lab, named), meanwhile, failing)

    @rule(index=processes, track=tracks, meanwhile=meanwhiles, failing=faults)
    def use_and_wipe(self, index: int, track: str, meanwhile: Any, failing: Any) -> None:
        self._do(index, lambda world: self._give_back(world, track), meanwhile, failing)

    @rule(seconds=st.sampled_from([1, 4, 60, 310, 1000, 5000]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(index=processes)
    def restart(self, index: int) -> None:
        self.worlds[index].start()

    @invariant()
    def no_reservation_has_more_than_its_count_and_its_counters_are_true(self) -> None:
        records = self.memory.dump()[0].values()
        reserved = Counter(each.reservation_id for each in records if each.reservation_id is not None)
        drawn = Counter(
            str(fact.details["reservation_id"])
            for fact in self.memory.facts
            if isinstance(fact, Fact) and fact.kind is FactKind.ALLOCATED and "reservation_id" in fact.details
        )
        for each in self._all():
            assert each.set_aside == reserved.pop(each.reservation_id, 0)
            assert each.drawn == drawn.pop(each.reservation_id, 0)
            assert each.set_aside + each.drawn <= each.count
        assert not reserved
        assert not drawn

    @invariant()
    def what_is_reserved_goes_only_to_whom_it_is_for(self) -> None:
        known = {each.reservation_id: each for each in self._all()}
        over = {
            str(fact.details["reservation_id"]): position
            for position, fact in enumerate(self.memory.facts)
            if fact.kind is PoolFactKind.RESERVATION_ENDED
        }
        for position, fact in enumerate(self.memory.facts):
            if not isinstance(fact, Fact) or fact.kind is not FactKind.ALLOCATED:
                continue
            assert (fact.status_before is Status.RESERVED) == ("reservation_id" in fact.details)
            if "reservation_id" in fact.details:
                reservation = known[str(fact.details["reservation_id"])]
                labs, named = self.asked[str(fact.track_id), fact.at]
                assert "lab-1" in labs or reservation.reservation_id in named
                assert position < over.get(reservation.reservation_id, position + 1)
                assert self.opens[reservation.reservation_id] <= fact.at < self.ends[reservation.reservation_id]

    @invariant()
    def bookings_do_not_exceed_what_may_be_reserved(self) -> None:
        booked = [each for each in self._all() if each.stage is ReservationStage.BOOKED]
        names = [each.name for each in self.memory.dump()[0].values()]
        for prefix in PREFIXES:
            limit = sum(name.startswith(prefix) for name in names) * 80 // 100
            below = [each for each in booked if each.prefix.startswith(prefix)]
            for at in {each.starts_at for each in below}:
                assert sum(each.count for each in below if each.overlaps(at, at + 1)) <= limit

    def teardown(self) -> None:
        check_histories(self.memory.facts, self.memory.dump()[0])
        check_usage(self.memory.facts, self.memory.usage.values())
        # While workers run, a run leaves nothing set aside that does not fit.
        self.worlds[0].start()
        self.worlds[0].reserver.run(by=BY)
        reserved = [each for each in self.memory.dump()[0].values() if each.reservation_id is not None]
        for each in reserved:
            assert self.memory.reservations[each.reservation_id or ""].needs_at(each.name, self.clock.now())
        # And none outlives its end by more than two runs of the job.
        self.clock.advance(30_000)
        self.worlds[0].start()
        for _ in range(2):
            self.worlds[0].reserver.run(by=BY)
        assert self.memory.reservations == {}
        assert not any(each.reservation_id for each in self.memory.dump()[0].values())

    def _all(self) -> list[Reservation]:
        found = [*self.memory.reservations.values(), *self.memory.list_archived(limit=10**6, cursor=None).reservations]
        for each in found:
            self.ends[each.reservation_id] = max(each.ends_at, self.ends.get(each.reservation_id, 0))
            self.opens[each.reservation_id] = min(each.opens_at, self.opens.get(each.reservation_id, each.opens_at))
        return found

    def _nth(self, which: int) -> Reservation | None:
        known = sorted(self.memory.reservations.values(), key=lambda each: each.reservation_id)
        return known[which % len(known)] if known else None

    def _do(self, index: int, act: Callable[[World], object], meanwhile: Any, failing: Any) -> None:
        """Do something, with the faults, and with what another process does just before one of its writes."""
        world = self.worlds[index]
        store: Any = world.store
        store.fail_writes(*failing)
        if meanwhile is not None:
            method, what = meanwhile
            store.just_before(method, lambda: self._meanwhile(1 - index, what))
        with suppress(BrokerError):
            act(world)
        store.before_call = lambda _: None
        store.fail_writes()

    def _meanwhile(self, index: int, what: str) -> None:
        world = self.worlds[index]
        known = self._nth(0)
        with suppress(BrokerError):
            if what == "book":
                now = self.clock.now()
                world.bookings.book(
                    Wanted(name="Rival", count=2, starts_at=now, ends_at=now + 500, track_names=("lab-1",)), by=BY
                )
            elif what == "shrink" and known is not None:
                world.bookings.change(known.reservation_id, {"count": 1}, version=known.version, by=BY)
            elif what == "cancel" and known is not None:
                world.bookings.cancel(known.reservation_id, by=BY)
            elif what == "reserve":
                world.reserver.run(by=BY)
            elif what == "draw":
                self._allocate(world, "rival", "lab-1", None)
            elif what == "wipe":
                self._give_back(world, TRACKS[0])

    def _allocate(self, world: World, track: str, lab: str | None, named: Reservation | None) -> None:
        # Pauses between tries let time pass, so that the lease may begin some seconds later.
        for at in range(self.clock.now(), self.clock.now() + 10):
            labs, names = self.asked.setdefault((track, at), (set(), set()))
            labs.add(lab)
            names.add(named.reservation_id if named else None)
        world.allocate(track, track_name=lab, reservation_id=named.reservation_id if named else None)

    def _give_back(self, world: World, track: str) -> None:
        claim = self.memory.dump()[1].get((track, track))
        if claim is not None:
            world.mark(claim.sandbox_id, track)
            world.cleaner.delete_sandbox(claim.sandbox_id, by=BY)


SETTINGS = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestReservations = Reservations.TestCase
TestReservations.settings = SETTINGS


def _booked(**changes: Any) -> Reservations:
    """Return a model with a class of two that is open, and known to both processes."""
    machine = Reservations()
    machine.fill()
    wanted: Any = {"count": 2, "after": 0, "lasts": 5000, "prefix": "", "hold": None, "meanwhile": None, "failing": []}
    machine.book(0, **{**wanted, **changes})
    machine.reserve(0, None, [])
    for world in machine.worlds:
        world.start()
        world.reservations.current()
    return machine


def _judge(machine: Reservations) -> None:
    machine.no_reservation_has_more_than_its_count_and_its_counters_are_true()
    machine.what_is_reserved_goes_only_to_whom_it_is_for()
    machine.bookings_do_not_exceed_what_may_be_reserved()


def test_the_model_objects_to_a_fill_beyond_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled() -> Reservations:
        machine = Reservations()
        machine.fill()
        machine.draw(0, TRACKS[0], None, None, None, [])
        machine.book(0, 2, 0, 5000, "", None, None, [])
        machine.wait(4)
        machine.reserve(0, ("update", "wipe"), [])
        return machine

    _judge(filled())
    monkeypatch.setattr(MemoryStore, "_check_reservation", lambda _self, _change: None)
    machine = filled()
    with pytest.raises(AssertionError):
        _judge(machine)


def test_the_model_objects_to_a_draw_that_does_not_check_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(memory: MemoryStore, candidate: Any, _at: int) -> bool:
        if candidate.reservation_id is not None:
            memory._count(memory.reservations[candidate.reservation_id], set_aside=-1, drawn=1)
        return True

    machine = _booked()
    machine.draw(0, "track-1", "lab-1", None, ("allocate", "cancel"), [])
    _judge(machine)
    monkeypatch.setattr(MemoryStore, "_draw", unchecked)
    machine = _booked()
    machine.cancel(1, 0, None, [None, *[Fault.REFUSED] * 9])  # what is set aside cannot be returned at once
    machine.draw(0, "track-1", "lab-1", None, None, [])
    with pytest.raises(AssertionError):
        _judge(machine)


def test_the_model_objects_to_a_booking_without_its_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    write = MemoryStore.write_reservation

    def unversioned(memory: MemoryStore, before: Any, after: Any, *, version: int, fact: Any = None) -> None:
        assert version <= memory.bookings_version
        write(memory, before, after, version=memory.bookings_version, fact=fact)

    machine = _booked(count=1)
    machine.book(0, 3, 0, 5000, "", None, ("write_reservation", "book"), [])
    _judge(machine)
    monkeypatch.setattr(MemoryStore, "write_reservation", unversioned)
    machine = _booked(count=1)
    machine.book(0, 3, 0, 5000, "", None, ("write_reservation", "book"), [])
    with pytest.raises(AssertionError):
        _judge(machine)


def test_the_model_objects_to_a_place_that_ignores_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def any_time(_name: str, reservations: Any, *, now: int, without: Any = ()) -> Reservation | None:
        found = [each for each in reservations if each.lacking > 0 and each.reservation_id not in without]
        return found[0] if found and now else None

    def wiped(machine: Reservations) -> None:
        machine.draw(0, "track-1", None, None, None, [])
        machine.book(0, 2, 4000, 5000, "", None, None, [])
        machine.wait(4)
        machine.use_and_wipe(0, "track-1", None, [])
        assert not any(each.reservation_id for each in machine.memory.dump()[0].values())

    def new() -> Reservations:
        machine = Reservations()
        machine.fill()
        return machine

    wiped(new())
    monkeypatch.setattr(known_reservations, "place_for", any_time)
    wiped(new())  # the store's condition stops it
    monkeypatch.setattr(MemoryStore, "_check_reservation", lambda _self, _change: None)
    with pytest.raises(AssertionError):
        wiped(new())
