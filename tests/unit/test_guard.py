"""When a process must not act: its clock is wrong, or the table is another one than was known."""

from __future__ import annotations

import threading
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC, ClockCheck
from broker_common.core.errors import (
    BrokerError,
    ClockWrong,
    LayoutMismatch,
    NoSandboxesAvailable,
    NotSandboxOwner,
    QueueUnavailable,
    StoreUnavailable,
    TableChanged,
    UnsafeToAct,
)
from broker_common.core.guard import MAX_AGE_SEC, Guard
from broker_common.core.ports import KnownTable
from broker_common.core.sandbox import Status
from broker_common.core.store import COMMIT_AT_ONCE, Conflict, TableState, Watermark
from broker_common.core.table_identity import INDEX_LAG_SEC, accept_table
from broker_common.core.telemetry import ActionsStopped, DeleteOutcome, StopReason
from tests.fakes import (
    BY,
    START,
    FakeClock,
    FakeTableMemory,
    Fault,
    FlakyStore,
    LaggingStore,
    MemoryStore,
    RecordingRecorder,
    make_sandbox,
)
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3600
OFF = [MAX_DIFFERENCE_SEC + 1, -MAX_DIFFERENCE_SEC - 1, 6 * HOUR, -6 * HOUR]


class WrongClock(FakeClock):
    """A clock that somebody sets: `off` seconds from the time that passes."""

    off = 0

    def be(self, off: int) -> None:
        """Set the clock."""
        self.off = off

    def now(self) -> int:
        return super().now() + self.off


def world_of(off: int = 0, **options: object) -> tuple[World, WrongClock]:
    """Make a process whose clock is `off` seconds from the store's, which may be set while it runs."""
    clock = WrongClock()
    clock.off = off

    class Truth(FakeClock):
        def now(self) -> int:
            return clock.now() - clock.off

    return World(clock=clock, memory=MemoryStore(Truth()), **options), clock  # type: ignore[arg-type] # World checks them


def replace_table(world: World) -> None:
    """Put another, empty table in the place of the one that a world uses."""
    world.memory.__init__(world.clock)  # type: ignore[misc] # every holder of the store has the new one
    world.memory.identity = "another"


class TestClock:
    @pytest.mark.parametrize("off", [0, MAX_DIFFERENCE_SEC, -MAX_DIFFERENCE_SEC])
    def test_a_clock_within_the_limit_is_right(self, off: int) -> None:
        world_of(off)[0].guard.check()

    @pytest.mark.parametrize("off", OFF)
    def test_a_clock_beyond_the_limit_is_wrong_and_the_message_says_by_how_much(self, off: int) -> None:
        with pytest.raises(ClockWrong, match=f"{off:+d}".replace("+", r"\+")):
            world_of(off)[0].guard.check()

    def test_a_store_that_tells_no_time_leaves_a_clock_right(self) -> None:
        world = World(memory=MemoryStore())
        world.guard.check()
        assert not world.guard.has_clock_reading

    @pytest.mark.parametrize("seconds", [5, 500])
    def test_an_answer_that_comes_late_makes_no_right_clock_wrong(self, seconds: int) -> None:
        for told_after in (0, seconds):
            clock = FakeClock()
            check, asked_at = ClockCheck(clock), clock.now()
            clock.advance(told_after)
            told = clock.now()
            clock.advance(seconds - told_after)
            check.note(asked_at=asked_at, told=told)
            assert check.difference() == 0

    @pytest.mark.parametrize("off", OFF)
    def test_a_clock_that_is_set_between_two_looks_is_wrong_at_once_and_right_as_soon_as_it_is_set_right(
        self, off: int
    ) -> None:
        world, clock = world_of()
        world.guard.check()
        clock.off = off
        with pytest.raises(ClockWrong):
            world.guard.check()
        clock.off = 0
        world.guard.check()

    def test_a_machine_that_slept_is_asked_for_its_clock_again_before_it_is_called_wrong(self) -> None:
        clock = WrongClock()
        world = World(clock=clock, memory=MemoryStore(clock))
        world.guard.check()
        clock.off = 6 * HOUR  # which has passed at the store, too, and not on the monotonic clock
        world.guard.check()
        assert world.memory.calls["ping"] == 2

    def test_a_clock_that_was_wrong_stays_so_while_the_store_is_away(self) -> None:
        world, clock = world_of(6 * HOUR, wrap=FlakyStore)
        with pytest.raises(ClockWrong):
            world.guard.check()
        assert isinstance(world.store, FlakyStore)
        world.store.fail("ping", *[Fault.REFUSED] * 9)
        clock.advance(HOUR)
        with pytest.raises(ClockWrong):
            world.guard.check()

    def test_a_clock_that_is_not_known_yet_counts_as_right(self) -> None:
        world, _ = world_of(6 * HOUR, wrap=FlakyStore)
        assert isinstance(world.store, FlakyStore)
        world.store.fail("ping", Fault.REFUSED)
        world.guard.check()

    def test_a_wrong_clock_is_reported_by_each_look(self) -> None:
        world, clock = world_of(7200)
        for _ in range(3):
            for _ in range(5):
                with pytest.raises(ClockWrong):
                    world.guard.check()
            clock.advance(MAX_AGE_SEC)
        told = world.recorder.of(ActionsStopped)
        assert [each.reason for each in told] == [StopReason.CLOCK] * 3
        assert "+7200 s" in told[0].error


@pytest.mark.parametrize("off", OFF)
class TestWhatAWrongClockDoesNot:
    """Each of these began, ended or destroyed something before the clock was compared."""

    def test_allocate_begins_nothing_and_answers_what_is_held(self, off: int) -> None:
        world, clock = world_of()
        world.pool(3)
        held = world.allocate("holder").claim
        clock.off = off
        with pytest.raises(ClockWrong):
            world.allocate("another")
        replay = world.allocate("holder")
        assert (replay.claim, replay.replayed) == (held, True)
        assert world.record(held.sandbox_id).status is Status.ALLOCATED

    def test_extend_changes_nothing_and_still_refuses_other_tracks_first(self, off: int) -> None:
        world, clock = world_of()
        world.pool(1)
        lease = world.allocate().claim.lease
        clock.off = off
        for until in (lease.expires_at, lease.expires_at + 60):
            with pytest.raises(ClockWrong):
                world.extend(until)
            with pytest.raises(ClockWrong):
                world.leases.extend_for_operator(sandbox_id="sbx-0", expires_at=until, by=BY)
            with pytest.raises(NotSandboxOwner):
                world.extend(until, track_id="another")
        assert world.record("sbx-0").lease == lease

    def test_expiry_ends_nothing(self, off: int) -> None:
        world, clock = world_of()
        world.pool(1)
        world.allocate()
        clock.off = off
        with pytest.raises(ClockWrong):
            world.expirer.run(by=BY)
        assert world.record("sbx-0").status is Status.ALLOCATED

    def test_expiry_that_has_begun_ends_nothing_more_when_the_clock_is_set(self, off: int) -> None:
        world, clock = world_of()
        world.pool(2)
        world.allocate("one")
        world.allocate("two")
        clock.advance(5 * HOUR)

        world.memory.on_write = lambda *_: clock.be(off)
        with suppress(ClockWrong):  # by one that is behind, the other is not even due
            world.expirer.run(by=BY)
        ended = [world.record(f"sbx-{number}").status for number in range(2)]
        assert sorted(ended) == [Status.ALLOCATED, Status.PENDING_DELETION]

    def test_purge_removes_nothing(self, off: int) -> None:
        world, clock = world_of()
        world.memory.seed(make_sandbox(status=Status.STALE, dirty=True, stale_since=START))
        clock.off = off * 25
        purges: list[Callable[[], object]] = [
            lambda: world.purger.run(by=BY),
            lambda: world.purger.bulk_delete(Status.STALE, by=BY),
        ]
        for purge in purges:
            with pytest.raises(ClockWrong):
                purge()
        assert world.record("2009521").status is Status.STALE

    def test_sync_writes_nothing_when_the_clock_is_set_while_it_lists(self, off: int) -> None:
        world, clock = world_of()
        world.pool(3)
        world.provider.accounts = world.accounts(5)

        world.provider.during_list = lambda: clock.be(off)
        before = world.memory.dump()
        with pytest.raises(ClockWrong):
            world.sync()
        assert world.memory.dump() == before

    def test_no_second_delete_goes_out_while_the_first_is_under_way(self, off: int) -> None:
        world, _clock = world_of()
        world.pending()
        worlds: list[World] = []

        def deliver_again(_external_id: str) -> None:
            wrong, _ = world_of(off, provider=world.provider)
            wrong.memory, wrong.store = world.memory, world.memory
            wrong.start()
            worlds.append(wrong)
            ended = wrong.cleaner.delete_sandbox("sbx-0", by=BY)
            assert ended.outcome is DeleteOutcome.POSTPONED
            assert ended.error
            assert "clock" in ended.error

        world.provider.during_delete = deliver_again
        assert world.cleaner.delete_sandbox("sbx-0", by=BY).outcome is DeleteOutcome.DELETED
        assert (len(world.provider.deletes), len(worlds)) == (1, 1)

    def test_no_delete_goes_out_when_the_clock_is_set_while_it_waits_for_a_slot(self, off: int) -> None:
        world, clock = world_of()
        world.pending()
        admit = world.provider.admit

        def set_clock() -> object:
            clock.off = off
            return admit()

        world.provider.admit = set_clock  # type: ignore[method-assign, assignment] # this one takes its time
        before = world.memory.dump()
        assert world.cleaner.delete_sandbox("sbx-0", by=BY).outcome is DeleteOutcome.POSTPONED
        assert world.provider.deletes == []
        assert world.memory.dump() == before


def restore(world: World) -> None:
    world.memory.is_restored = True


def lose_layout(world: World) -> None:
    def ping() -> TableState:
        raise LayoutMismatch("the table has no layout record")

    world.memory.ping = ping  # type: ignore[method-assign] # in place of the record


def empty(world: World) -> None:
    world.memory._records.clear()
    world.memory._claims.clear()


def empty_with_watermark(world: World) -> None:
    empty(world)
    world.memory._watermark = None


CHANGES = [replace_table, restore, lose_layout, empty, empty_with_watermark]


@pytest.fixture
def used() -> World:
    """Give a process that has synced and serves tracks."""
    world = World()
    world.sync(world.accounts(4))
    world.clock.advance(INDEX_LAG_SEC + 1)
    world.allocate("holder")
    world.pending()
    world.clock.advance(MAX_AGE_SEC)
    world.guard.check()
    return world


def is_stopped(act: Callable[[], object]) -> bool:
    try:
        act()
    except TableChanged:
        return True
    except BrokerError:
        return False
    return False


def look_again(world: World) -> None:
    """Let a process look at the table again, because what it knows is too old."""
    world.clock.advance(MAX_AGE_SEC)
    world.guard.check()


def stops(world: World) -> bool:
    """Tell whether a process stops once it has looked at the table again."""
    return is_stopped(lambda: look_again(world))


@pytest.mark.parametrize("change", CHANGES)
class TestChangedTable:
    def test_stops_allocates_jobs_and_deletes_within_five_seconds(
        self, used: World, change: Callable[[World], None]
    ) -> None:
        change(used)
        used.clock.advance(MAX_AGE_SEC)
        before = used.memory.dump()
        for act in (
            used.allocate,
            lambda: used.allocate("holder"),
            used.sync,
            lambda: used.expirer.run(by=BY),
            lambda: used.purger.run(by=BY),
            lambda: used.purger.bulk_delete(Status.STALE, by=BY),
        ):
            assert is_stopped(act)
        used.cleaner.delete_sandbox("sbx-0", by=BY)
        assert used.provider.deletes == []
        assert used.memory.dump() == before

    def test_is_noticed_by_a_sync_that_lists_when_it_happens(
        self, used: World, change: Callable[[World], None]
    ) -> None:
        used.provider.during_list = lambda: change(used)
        assert is_stopped(used.sync)

    def test_is_noticed_by_a_process_that_starts_after_it(self, used: World, change: Callable[[World], None]) -> None:
        change(used)
        used.start()
        assert is_stopped(used.guard.check)

    def test_stays_changed_while_the_store_is_away(self, used: World, change: Callable[[World], None]) -> None:
        change(used)
        assert stops(used)

        def ping() -> TableState:
            raise StoreUnavailable("it is away")

        used.memory.ping = ping  # type: ignore[method-assign] # from now on
        used.clock.advance(HOUR)
        assert is_stopped(used.guard.check)

    def test_is_reported_and_says_what_to_do(self, used: World, change: Callable[[World], None]) -> None:
        change(used)
        assert stops(used)
        (told,) = used.recorder.of(ActionsStopped)
        assert told.reason is StopReason.TABLE
        assert change is lose_layout or "broker table accept" in told.error


@pytest.mark.parametrize("change", [replace_table, restore, empty, empty_with_watermark])
class TestAcceptedTable:
    def test_is_used_by_all_within_five_seconds(self, used: World, change: Callable[[World], None]) -> None:
        change(used)
        assert stops(used)
        accept_table(used.memory, used.table_memory, identity="accepted")
        look_again(used)
        used.start()
        used.guard.check()
        used.sync()

    def test_keeps_its_identity_when_it_is_accepted_again(self, used: World, change: Callable[[World], None]) -> None:
        change(used)
        for identity in ("accepted", "again"):
            accept_table(used.memory, used.table_memory, identity=identity)
        assert used.memory.identity == "accepted"

    def test_stops_those_that_use_the_table_before_it(self, used: World, change: Callable[[World], None]) -> None:
        before = used.memory.identity
        change(used)
        accept_table(used.memory, used.table_memory, identity="accepted")
        used.memory.identity = before
        assert stops(used)

    def test_can_be_accepted_again_after_a_failure_in_between(
        self, used: World, change: Callable[[World], None]
    ) -> None:
        change(used)
        store = FlakyStore(used.memory)
        store.fail("identify", Fault.LOST_AFTER)
        with pytest.raises(StoreUnavailable):
            accept_table(store, used.table_memory, identity="first")
        assert stops(used)
        accept_table(store, used.table_memory, identity="second")
        look_again(used)


@pytest.mark.parametrize("off", [-MAX_DIFFERENCE_SEC, 0, MAX_DIFFERENCE_SEC])
def test_a_sync_right_after_the_table_was_accepted_counts_by_any_clock_that_is_right(off: int) -> None:
    world, clock = world_of(off)
    world.sync(world.accounts(4))
    clock.advance(INDEX_LAG_SEC + MAX_DIFFERENCE_SEC + 1)
    empty(world)
    assert stops(world)
    accept_table(world.memory, world.table_memory, identity="accepted")
    look_again(world)
    world.sync()
    clock.advance(INDEX_LAG_SEC + MAX_DIFFERENCE_SEC + 1)
    world.guard.check()
    empty(world)
    assert stops(world)


class TestIdentity:
    def test_a_first_process_takes_the_table_that_it_finds(self) -> None:
        world = World()
        world.guard.check()
        assert world.table_memory.known == KnownTable(identity="the-table")

    def test_a_new_deployment_works_before_its_first_sync(self) -> None:
        world = World()
        world.guard.check()
        world.clock.advance(HOUR)
        with pytest.raises(NoSandboxesAvailable):
            world.allocate()

    def test_a_table_of_an_older_release_gets_an_identity_once(self) -> None:
        world = World()
        world.memory.identity = None
        world.guard.check()
        given = world.memory.identity
        assert given is not None
        world.start()
        world.clock.advance(HOUR)
        world.guard.check()
        assert world.memory.identity == given

    def test_a_table_that_another_process_identifies_at_the_same_moment_is_taken_by_the_next_look(self) -> None:
        world, store = flaky_world()
        world.memory.identity = None
        store.just_before("identify", lambda: world.memory.identify("theirs", instead_of=None))
        world.guard.check()
        assert world.table_memory.known is None
        look_again(world)
        assert world.table_memory.known == KnownTable(identity="theirs")

    def test_a_table_without_identity_in_the_place_of_a_known_one_gets_none(self) -> None:
        world = World()
        world.guard.check()
        world.memory.identity = None
        assert stops(world)
        assert world.memory.identity is None

    def test_a_process_that_knows_the_table_reminds_a_memory_that_lost_it(self) -> None:
        world = World()
        world.guard.check()
        world.table_memory.known = None
        look_again(world)
        assert world.table_memory.known == KnownTable(identity="the-table")

    def test_a_process_does_not_follow_one_that_started_on_a_new_table_with_an_empty_memory(self) -> None:
        world = World()
        world.guard.check()
        replace_table(world)
        world.table_memory.known = KnownTable(identity="another")
        assert stops(world)
        accept_table(world.memory, world.table_memory, identity="accepted")
        look_again(world)

    def test_a_process_that_took_a_new_table_without_the_memory_stops_when_that_is_back(self) -> None:
        world = World()
        world.table_memory.known, world.table_memory.is_away = KnownTable(identity="before"), True
        world.guard.check()
        world.table_memory.is_away = False
        assert stops(world)

    def test_a_process_that_has_seen_the_memory_s_table_knows_it_when_the_memory_is_lost(self) -> None:
        world = World()
        world.table_memory.known = KnownTable(identity="before")
        assert is_stopped(world.guard.check)
        world.table_memory.known = None
        assert stops(world)

    def test_a_memory_that_goes_away_between_question_and_note_stops_nothing(self) -> None:
        class Leaving(FakeTableMemory):
            def remember(self, table: KnownTable) -> None:
                raise QueueUnavailable("it is away")

        guard = Guard(
            store=MemoryStore(), memory=Leaving(), recorder=RecordingRecorder(), clock=FakeClock(), rng=Random(1)
        )
        guard.check()

    def test_a_lagging_index_after_a_first_sync_stops_nothing(self) -> None:
        clock = FakeClock()
        world = World(clock=clock, memory=LaggingStore(clock, Random(5)))
        world.sync(world.accounts(4))
        for _ in range(40):
            world.guard.check(look_now=True)
            clock.advance(0.25)

    def test_accepting_without_the_memory_changes_nothing(self) -> None:
        world = World()
        world.table_memory.is_away = True
        with pytest.raises(QueueUnavailable):
            accept_table(world.memory, world.table_memory, identity="accepted")
        assert world.memory.identity == "the-table"

    def test_of_two_operators_that_accept_at_once_one_is_told_so(self) -> None:
        world, store = flaky_world()
        store.just_before("identify", lambda: world.memory.identify("theirs", instead_of="the-table"))
        with pytest.raises(Conflict):
            accept_table(store, world.table_memory, identity="ours")

    def test_a_store_that_tells_no_time_can_be_accepted(self) -> None:
        memory, known = MemoryStore(), FakeTableMemory()
        memory.write_watermark(Watermark(START - 1, 5))
        accept_table(memory, known, identity="accepted")
        assert (memory.identity, memory.ping().synced_at) == ("accepted", None)


class TestCost:
    def test_however_many_ask_the_store_is_looked_at_once_in_some_seconds(self) -> None:
        world = World()
        world.pool(300)
        for number in range(200):
            world.allocate(f"track-{number}")
            world.clock.advance(0.05)
        assert world.memory.calls["ping"] <= 10 / MAX_AGE_SEC + 1

    def test_a_look_that_fails_is_not_repeated_by_each_request(self) -> None:
        world, store = flaky_world()
        store.fail("ping", *[Fault.REFUSED] * 9)
        for _ in range(9):
            world.guard.check()
        assert store.calls["ping"] == 1

    @pytest.mark.parametrize(("age", "waits"), [(MAX_AGE_SEC, False), (HOUR, True)])
    def test_while_one_thread_looks_others_go_on_with_what_is_young_and_wait_where_it_is_not(
        self, age: float, waits: bool
    ) -> None:
        world, store = flaky_world()
        world.guard.check()
        world.memory.identity = "another"
        world.clock.advance(age)
        come, let_through = store.hold_up()
        found: list[bool] = []
        first, second = (threading.Thread(target=lambda: found.append(is_stopped(world.guard.check))) for _ in range(2))
        first.start()
        assert come.wait(30)
        looks = world.clock.count_looks()
        second.start()
        if waits:
            for _ in range(3):  # whether it is due, whether what is known is young, how long to wait
                assert looks.acquire(timeout=30)
        else:
            second.join(30)
        let_through.set()
        first.join(30)
        second.join(30)
        assert found == ([True, True] if waits else [False, True])
        assert world.memory.calls["ping"] == 2

    def test_an_unexpected_error_of_a_look_is_not_hidden_and_blocks_nobody(self) -> None:
        world, store = flaky_world()
        store.fail("ping", RuntimeError("a bug"))
        with pytest.raises(RuntimeError):
            world.guard.check()
        look_again(world)


def test_a_sync_that_writes_when_the_table_changes_stops_between_two_writes() -> None:
    world = World()
    world.provider.accounts = world.accounts(3 * COMMIT_AT_ONCE)

    def change(_: object, after: object) -> None:
        if world.memory.dump()[0]:
            world.memory.identity = "another"
            world.clock.advance(MAX_AGE_SEC)

    world.memory.on_write = change
    with pytest.raises(TableChanged):
        world.sync()
    assert 0 < len(world.memory.dump()[0]) <= COMMIT_AT_ONCE
    assert world.memory.read_watermark() is None


def test_no_error_of_the_guard_is_taken_for_one_bad_item() -> None:
    world = World()
    world.memory.seed(make_sandbox(status=Status.STALE, dirty=True, stale_since=START, status_order=START))
    world.clock.advance(48 * HOUR)
    world.guard.check()
    reads = world.memory.read_due

    def change(status: Status, *, until: int) -> object:
        world.memory.identity = "another"
        world.clock.advance(MAX_AGE_SEC)
        return reads(status, until=until)

    world.memory.read_due = change  # type: ignore[method-assign, assignment] # as if it took its time
    with pytest.raises(UnsafeToAct):
        world.purger.run(by=BY)
    assert world.record("2009521").status is Status.STALE
