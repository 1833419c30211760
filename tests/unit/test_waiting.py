"""Waiting in line: joining, coming back, being passed over, giving up, and being held, by one process or several."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from broker_common.core.allocation import AllocateRequest, Allocation
from broker_common.core.deadline import time_left
from broker_common.core.errors import (
    BrokerError,
    ClockWrong,
    DeadlineExceeded,
    NoSandboxesAvailable,
    OutcomeUnknown,
    Paused,
    StoreUnavailable,
    UpgradeUnfinished,
)
from broker_common.core.line import LATE_SEC, Place, Wish, new_place_id
from broker_common.core.policy import Policy
from broker_common.core.sandbox import Status
from broker_common.core.schema import Upgrade
from broker_common.core.store import RETURN_RANKS, PoolCount
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome, WaitEnded, WaitOutcome
from broker_common.core.waiting import BUSY_AGE_SEC, TAKEN_KEPT, WALK_SPACING_SEC, ListedPlace, Waiting
from tests.fakes import BY, START, FakeClock, Fault, FlakyStore, LaggingStore, MemoryStore, StoreWrapper, make_sandbox
from tests.world import WORK_SEC, World, flaky_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Candidate, Claim
    from broker_common.core.store import AllocateAnswer, SandboxStore

Answer = TypeVar("Answer")

GRACE = Policy().line_grace_sec
HOUR = 3600


def another_process(world: World, *, wrap: Callable[[MemoryStore], SandboxStore] = lambda memory: memory) -> World:
    """Start a second process over the same store and clock."""
    return World(clock=world.clock, memory=world.memory, policy=world.policy, seed=world.rng.getrandbits(32), wrap=wrap)


def waiting(answer: Allocation | Waiting) -> Waiting:
    assert isinstance(answer, Waiting), answer
    return answer


def got(answer: Allocation | Waiting) -> str:
    """Return the sandbox that was allocated."""
    assert isinstance(answer, Allocation), answer
    return answer.claim.sandbox_id


def free_one(world: World, sandbox_id: str = "sbx-0", **changes: Any) -> None:
    """Make a sandbox available, as its wipe does."""
    version = world.memory.dump()[0][sandbox_id].version + 1 if sandbox_id in world.memory.dump()[0] else 1
    world.memory.seed(make_sandbox(sandbox_id, version=version, **changes))


def line_of(world: World) -> list[str]:
    """Return the tracks that have a place in the store, in order."""
    return [each.track_id for each in MemoryStore.read_line(world.memory)]


def place_in(world: World, track_id: str = "track-1") -> Place:
    place = world.memory.read_place(track_id, track_id)
    assert place is not None
    return place


def check_store(world: World) -> None:
    """Make sure that no (track, key) has a claim and a place, or two places, and each claim its sandbox."""
    sandboxes, claims = world.memory.dump()
    places = [(each.track_id, each.idempotency_key) for each in MemoryStore.read_line(world.memory)]
    assert len(set(places)) == len(places)
    assert not set(places) & claims.keys()
    held = [each.lease.lease_id for each in sandboxes.values() if each.lease and each.status is Status.ALLOCATED]
    assert sorted(held) == sorted(claim.lease.lease_id for claim in claims.values())


def fill(world: World, count: int, *, prefix: str = "", back: int = 3, customer: str | None = None) -> list[Place]:
    """Write the places of other tracks, whose tracks should be back `back` seconds from now."""
    now = world.clock.now()
    places = [
        Place(
            place_id=new_place_id(number, now - count + number, f"{number:05}"),
            track_id=f"other-{number}",
            idempotency_key=f"other-{number}",
            wish=Wish(prefix=prefix),
            round=number,
            joined_at=now - count + number,
            back_by=now + back,
            customer=customer,
        )
        for number in range(count)
    ]
    for each in places:
        world.memory._line[each.place_id] = each
    return places


@pytest.fixture
def world() -> World:
    return World()


# -- the life of a place


def test_a_track_that_finds_no_sandbox_and_wants_to_wait_gets_a_place(world: World) -> None:
    answer = waiting(world.wait("a"))
    assert (answer.position, answer.waiting, answer.retry_after) == (1, 1, 1)
    assert answer.place.joined_at == START
    assert answer.kept_until == START + 1 + GRACE
    assert answer.expected_by is None
    assert line_of(world) == ["a"]


def test_a_track_that_wants_to_wait_gets_a_sandbox_at_once_while_one_is_free(world: World) -> None:
    world.pool(1)
    assert got(world.wait("a")) == "sbx-0"
    assert line_of(world) == []


def test_a_track_that_holds_a_sandbox_gets_that_and_no_place(world: World) -> None:
    world.pool(1)
    held = world.allocate("a")
    again = world.wait("a")
    assert isinstance(again, Allocation)
    assert (again.claim, again.replayed) == (held.claim, True)
    assert line_of(world) == []


def test_freed_sandboxes_go_to_the_waiting_tracks_in_their_order(world: World) -> None:
    for track in "abc":
        waiting(world.wait(track))
        world.clock.advance(1)
    for track in "abc":
        free_one(world, f"sbx-{track}")
        world.clock.advance(2)
        for behind in "cba":
            if behind > track:
                waiting(world.wait(behind))
        assert got(world.wait(track)) == f"sbx-{track}"
        check_store(world)
    assert line_of(world) == []


def test_customers_take_turns(world: World) -> None:
    for track, customer in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")):
        waiting(world.wait(track, customer=customer))
        world.clock.advance(1)
    assert line_of(world) == ["a1", "b1", "a2", "a3"]
    assert waiting(world.wait("b1", customer="b")).position == 2


def test_a_place_at_the_front_of_a_long_line_tells_its_track_to_be_back_soon(world: World) -> None:
    fill(world, 400, customer="many", back=20)
    first = waiting(world.wait("few", customer="few"))
    assert first.position == 2
    assert first.retry_after == 1
    assert waiting(world.wait("last", customer="many")).retry_after == 20


def test_coming_back_renews_the_place_and_keeps_its_position(world: World) -> None:
    first = waiting(world.wait("a"))
    world.wait("b")
    for _ in range(300):
        world.clock.advance(1)
        again = waiting(world.wait("a"))
        assert (again.place.place_id, again.position) == (first.place.place_id, 1)
        assert again.place.back_by == world.clock.now() + 1
        assert place_in(world, "a").back_by == world.clock.now() + 1


def test_a_late_track_is_passed_over_and_gets_the_next_one_when_it_is_back(world: World) -> None:
    world.wait("a")
    world.clock.advance(4)
    world.wait("b")
    world.clock.advance(1)
    free_one(world)
    world.clock.advance(1)
    waiting(world.wait("b"))  # a is not five seconds late yet
    world.clock.advance(1)
    assert got(world.wait("b")) == "sbx-0"
    again = waiting(world.wait("a"))
    assert again.place.joined_at == START
    free_one(world, "sbx-1")
    world.clock.advance(2)
    assert got(world.wait("a")) == "sbx-1"


@pytest.mark.parametrize("prefix", ["", "lab-"])
def test_a_dead_track_holds_a_newcomer_up_for_five_seconds_and_no_longer(world: World, prefix: str) -> None:
    world.wait("dead")
    free_one(world)
    world.clock.advance(1 + 5)
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("new", prefix=prefix)
    world.clock.advance(1)
    assert world.allocate("new", prefix=prefix).claim.sandbox_id == "sbx-0"


def test_a_track_that_is_back_within_the_grace_has_its_place_still(world: World) -> None:
    first = waiting(world.wait("a"))
    world.clock.advance(1 + GRACE)
    world.wait("b")
    assert waiting(world.wait("a")).place.place_id == first.place.place_id
    assert line_of(world) == ["a", "b"]


def test_a_track_that_is_back_after_the_grace_has_a_new_place_at_the_end(world: World) -> None:
    first = waiting(world.wait("a"))
    world.clock.advance(1 + GRACE + 1)
    world.wait("b")
    again = waiting(world.wait("a"))
    assert again.place.place_id != first.place.place_id
    assert (again.position, again.waiting) == (2, 2)
    assert line_of(world) == ["b", "a"]
    check_store(world)


def test_a_place_that_an_operator_has_removed_is_not_renewed(world: World) -> None:
    first = waiting(world.wait("a"))
    world.wait("b")
    world.memory.leave(first.place)
    again = waiting(world.wait("a"))
    assert again.place.place_id != first.place.place_id
    assert line_of(world) == ["b", "a"]


def test_a_place_that_was_removed_does_not_make_its_track_wait_while_it_holds_a_sandbox(world: World) -> None:
    """The renewal of a place is what proves that its track holds nothing: so it must notice that the place is gone."""
    other = another_process(world)
    waiting(world.wait("a"))
    free_one(world)
    other.clock.advance(0.5)
    held = got(other.wait("a"))
    answer = world.wait("a")
    assert isinstance(answer, Allocation)
    assert (answer.claim.sandbox_id, answer.replayed) == (held, True)
    check_store(world)


def test_a_track_that_wants_other_names_gives_its_place_up_for_a_new_one(world: World) -> None:
    first = waiting(world.wait("a", prefix="gpu-"))
    world.wait("b")
    again = waiting(world.wait("a", prefix="lab-"))
    assert again.place.place_id != first.place.place_id
    assert again.place.wish == Wish(prefix="lab-")
    assert line_of(world) == ["b", "a"]
    check_store(world)


@pytest.mark.parametrize("wants_to_wait", [True, False])
def test_a_track_is_not_behind_its_own_place_for_other_names(world: World, wants_to_wait: bool) -> None:
    world.wait("a", prefix="lab-")
    free_one(world)
    world.clock.advance(2)
    assert got(world.wait("a") if wants_to_wait else world.allocate("a")) == "sbx-0"
    assert line_of(world) == []


def test_a_track_that_now_wants_other_names_is_behind_all_who_wait_for_these(world: World) -> None:
    world.wait("a", prefix="lab-")
    world.wait("b", prefix="gpu-")
    free_one(world, name="gpu-1")
    world.clock.advance(2)
    waiting(world.wait("a", prefix="gpu-"))
    assert got(world.wait("b", prefix="gpu-")) == "sbx-0"


def test_the_line_of_one_name_keeps_nobody_waiting_who_wants_another(world: World) -> None:
    world.wait("a", prefix="gpu-")
    free_one(world)
    world.clock.advance(2)
    waiting(world.wait("a", prefix="gpu-"))
    assert world.allocate("new").claim.sandbox_id == "sbx-0"


def test_a_line_for_one_name_costs_a_track_that_wants_another_no_look_at_the_free_sandboxes() -> None:
    looks = []
    for waits in (0, 50):
        world = World()
        world.pool(20)
        fill(world, waits, prefix="a-", back=60)
        for number in range(20):
            world.allocate(f"b-{number}", prefix="lab-")
            world.clock.advance(0.5)
        looks.append(world.memory.calls["read_candidates"])
    assert looks[0] == looks[1]


def test_a_request_without_a_wish_to_wait_takes_nothing_that_is_due_to_a_place(world: World) -> None:
    world.wait("a")
    free_one(world)
    world.clock.advance(2)
    with pytest.raises(NoSandboxesAvailable) as refused:
        world.allocate("new")
    assert refused.value.details
    assert refused.value.details["waiting"] == 1
    assert got(world.wait("a")) == "sbx-0"


def test_a_track_with_a_place_may_ask_without_waiting_and_keeps_its_turn(world: World) -> None:
    world.wait("a")
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("a")
    free_one(world)
    world.clock.advance(2)
    assert world.allocate("a").claim.sandbox_id == "sbx-0"
    assert line_of(world) == []


def test_who_gives_up_is_out_of_the_line_and_the_next_one_is_served(world: World) -> None:
    first = waiting(world.wait("a"))
    world.wait("b")
    assert world.line.leave(first.place)
    assert not world.line.leave(first.place)
    free_one(world)
    world.clock.advance(2)
    assert got(world.wait("b")) == "sbx-0"
    assert [each.outcome for each in world.recorder.of(WaitEnded)] == [WaitOutcome.GAVE_UP, WaitOutcome.SERVED]


def test_a_place_given_up_in_one_process_is_soon_gone_in_the_others(world: World) -> None:
    other = another_process(world)
    first = waiting(world.wait("a"))
    waiting(other.wait("b"))
    other.clock.advance(1.1)
    world.line.leave(first.place)
    free_one(world)
    world.clock.advance(2)
    assert got(other.wait("b")) == "sbx-0"


def test_a_track_is_told_its_own_places_that_are_kept_in_their_order(world: World) -> None:
    waiting(world.wait("a", "over"))
    world.clock.advance(1 + GRACE + 1)
    second = waiting(world.wait("b"))
    third = waiting(world.wait("a", "later"))
    world.clock.advance(1)
    fourth = waiting(world.wait("a", "last"))
    told = world.line.places_of("a")
    assert [each.place for each in told] == [third.place, fourth.place]
    assert [each.position for each in told] == [2, 3]
    assert [each.place for each in world.line.places_of("b")] == [second.place]
    assert world.line.places_of("nobody") == []


def test_the_list_of_the_line_has_each_kept_place_with_its_position_also_those_of_other_processes(world: World) -> None:
    waiting(world.wait("over"))
    world.clock.advance(1 + GRACE + 1)
    first = waiting(world.wait("a")).place
    world.clock.advance(1)
    second = waiting(another_process(world).wait("b")).place
    assert world.line.list_all() == [
        ListedPlace(place=first, position=1, kept_until=first.back_by + GRACE, is_late=False),
        ListedPlace(place=second, position=2, kept_until=second.back_by + GRACE, is_late=False),
    ]
    world.clock.advance(first.back_by + LATE_SEC + 1 - world.clock.now())
    assert [each.is_late for each in world.line.list_all()] == [True, False]


def test_who_gives_up_has_no_place_although_only_another_process_knew_of_it(world: World) -> None:
    other = another_process(world)
    world.line.places()
    waiting(other.wait("a"))
    world.line.give_up("a", "a")
    assert line_of(world) == []
    assert [each.outcome for each in world.recorder.of(WaitEnded)] == [WaitOutcome.GAVE_UP]


def test_giving_up_what_is_not_there_is_no_error_and_ends_no_wait(world: World) -> None:
    world.line.give_up("a", "a")
    assert world.recorder.of(WaitEnded) == []


def test_a_new_place_that_a_track_got_while_it_gave_its_old_one_up_is_given_up_too() -> None:
    world, flaky = flaky_world()
    first = waiting(world.wait("a")).place

    def join_again() -> None:
        world.memory.leave(first)
        waiting(another_process(world).wait("a"))

    flaky.just_before("leave", join_again)
    world.line.give_up("a", "a")
    assert line_of(world) == []


def test_an_operator_removes_a_place_by_its_id(world: World) -> None:
    first = waiting(world.wait("a")).place
    waiting(world.wait("b"))
    world.line.remove(first.place_id)
    assert line_of(world) == ["b"]
    world.line.remove(first.place_id)
    assert line_of(world) == ["b"]
    assert [each.outcome for each in world.recorder.of(WaitEnded)] == [WaitOutcome.GAVE_UP]


def test_who_joins_again_has_a_new_place_if_the_known_one_was_removed_meanwhile(world: World) -> None:
    first = waiting(world.wait("a")).place
    world.wait("b")
    world.memory.leave(first)
    again = world.line.join("a", "a", Wish(), customer=None, track_name=None)
    assert isinstance(again, Waiting)
    assert again.place.place_id != first.place_id
    assert line_of(world) == ["b", "a"]


# -- limits and refusals


def test_a_full_line_refuses_and_says_so_but_keeps_its_places(world: World) -> None:
    world.set_policy(line_max=2)
    world.wait("a")
    world.wait("b")
    with pytest.raises(NoSandboxesAvailable) as refused:
        world.wait("c")
    assert refused.value.details
    assert refused.value.details["line"] == "full"
    assert refused.value.retry_after == 1
    assert waiting(world.wait("a")).position == 1
    assert line_of(world) == ["a", "b"]
    assert [each.outcome for each in world.recorder.of(AllocateEnded)][2] is AllocateOutcome.NO_SANDBOXES


@pytest.mark.parametrize("upgraded", [0, Upgrade.FACTS])
def test_nobody_joins_before_the_upgrade_is_finished(world: World, upgraded: int) -> None:
    world.memory.upgraded = upgraded
    with pytest.raises(UpgradeUnfinished):
        world.wait("a")
    assert line_of(world) == []


def test_tracks_wait_while_only_a_later_upgrade_is_unfinished(world: World) -> None:
    world.memory.upgraded = Upgrade.LINE
    assert waiting(world.wait("a")).position == 1


def test_a_pause_answers_503_and_keeps_the_place_of_the_track(world: World) -> None:
    first = waiting(world.wait("a"))
    world.pauses.set({"allocate": True}, by=BY)
    world.clock.advance(3)
    with pytest.raises(Paused) as paused:
        world.wait("a")
    assert place_in(world, "a").back_by == world.clock.now() + (paused.value.retry_after or 0)
    world.clock.advance(30)
    world.pauses.set({"allocate": False}, by=BY)
    free_one(world)
    world.clock.advance(4)  # within five seconds of the time that it was told
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("new")
    assert place_in(world, "a").place_id == first.place.place_id
    assert got(world.wait("a")) == "sbx-0"


def test_a_pause_gives_nobody_a_place(world: World) -> None:
    world.pauses.set({"allocate": True}, by=BY)
    with pytest.raises(Paused):
        world.wait("a")
    assert line_of(world) == []


def test_a_clock_that_is_far_off_answers_503_and_gives_nothing_and_keeps_the_place() -> None:
    clock, right = FakeClock(), FakeClock()
    world = World(clock=clock, memory=MemoryStore(right))
    world.wait("a")
    free_one(world)
    for each in (clock, right):
        each.advance(5)
    clock._start += 120
    with pytest.raises(ClockWrong):
        world.wait("a")
    assert line_of(world) == ["a"]
    clock._start -= 120
    for each in (clock, right):
        each.advance(3)
    assert got(world.wait("a")) == "sbx-0"


@pytest.mark.parametrize("ahead", [-50, 50])
def test_the_times_of_the_line_are_the_stores_where_the_clock_is_a_bit_off(ahead: int) -> None:
    right = FakeClock()
    memory = MemoryStore(right)
    off = World(clock=FakeClock(START + ahead), memory=memory)
    off.guard.check()
    place = waiting(off.wait("a")).place
    assert abs(place.joined_at - START) <= 1
    assert abs(place.back_by - (START + 1)) <= 1
    exact = World(clock=right, memory=memory, seed=2)
    free_one(exact)
    with pytest.raises(NoSandboxesAvailable):
        exact.allocate("new")


# -- what is told


def test_a_place_says_when_its_turn_is_expected_as_far_as_the_count_supports_it(world: World) -> None:
    numbers = dict.fromkeys(Status, 0) | {Status.PENDING_DELETION: 3}
    returns = tuple(START + 60 * rank for rank in RETURN_RANKS[:3])
    world.pool_count = PoolCount(
        by_status=numbers, oldest_pending_deletion=None, began_at=START, counted_by="x", returns=returns
    )
    expected = [waiting(world.wait(f"t{number}")).expected_by for number in range(6)]
    assert expected == [START + 60, START + 120, START + 300, START + 300, START + 300, None]
    with pytest.raises(NoSandboxesAvailable) as refused:
        world.allocate("new")
    assert refused.value.details == {
        "available": 0,
        "reserved": 0,
        "waiting": 6,
        "pending_deletion": 3,
        "next_due_at": START + 60,
    }


def test_a_turn_is_never_expected_in_the_past(world: World) -> None:
    world.pool_count = PoolCount(
        by_status={}, oldest_pending_deletion=None, began_at=START, counted_by="x", returns=(START - 9,)
    )
    assert waiting(world.wait("a")).expected_by == START


def test_the_wait_is_counted_from_joining_until_the_sandbox(world: World) -> None:
    world.wait("a")
    for _ in range(4):
        world.clock.advance(3)
        world.wait("a")
    free_one(world)
    world.clock.advance(2)
    world.wait("a")
    (ended,) = world.recorder.of(WaitEnded)
    assert (ended.outcome, ended.seconds, ended.track_id) == (WaitOutcome.SERVED, 14, "a")


def test_the_outcome_of_a_request_that_waits_is_told_as_waiting(world: World) -> None:
    world.wait("a")
    assert [each.outcome for each in world.recorder.of(AllocateEnded)] == [AllocateOutcome.WAITING]


# -- held requests


class Client:
    """Someone whose connection ends, or whose process drains, after so many looks. `at` acts before a look."""

    def __init__(self, looks: int = 10**6, at: dict[int, Callable[[], object]] | None = None) -> None:
        self._looks, self._at, self.looked = looks, at or {}, 0

    def __call__(self) -> bool:
        self.looked += 1
        self._at.get(self.looked, lambda: None)()
        return self.looked <= self._looks


def hold(world: World, track: str = "a", *, seconds: float = 30, client: Client | None = None) -> Allocation | Waiting:
    request = AllocateRequest(track_id=track, idempotency_key=track, wait_sec=seconds)
    return world.allocator.allocate(request, by=BY, may_hold=client or Client())


class HurriedStore(StoreWrapper):
    """Refuses a call for which less than a second is left, as the store on DynamoDB does."""

    def __init__(self, inner: SandboxStore, clock: FakeClock) -> None:
        super().__init__(inner)
        self._clock = clock

    def _call(self, method: str, call: Callable[[], Answer]) -> Answer:
        if time_left(self._clock) <= 1:  # no time passes here between a deadline and its first call
            raise DeadlineExceeded("the deadline is too near for another call")
        return call()


def test_a_request_is_held_by_a_store_that_refuses_calls_near_a_deadline() -> None:
    clock = FakeClock()
    world = World(clock=clock, wrap=lambda memory: HurriedStore(memory, clock))
    waiting(hold(world, seconds=8))
    assert clock.monotonic() >= 8
    client = Client(at={20: lambda: free_one(world)})
    assert got(hold(world, client=client)) == "sbx-0"


def test_a_held_request_gets_the_sandbox_that_is_freed_meanwhile(world: World) -> None:
    client = Client(at={20: lambda: free_one(world)})
    assert got(hold(world, client=client)) == "sbx-0"
    assert 4 < world.clock.monotonic() < 9
    assert line_of(world) == []


def test_a_held_request_is_answered_with_its_place_when_its_time_is_over(world: World) -> None:
    answer = waiting(hold(world, seconds=10))
    assert 10 <= world.clock.monotonic() < 10.3
    assert answer.position == 1
    assert line_of(world) == ["a"]


def test_a_request_that_is_not_to_be_held_is_answered_at_once(world: World) -> None:
    waiting(hold(world, seconds=0))
    waiting(hold(world, client=Client(looks=0)))
    assert world.clock.monotonic() == 0


def test_a_held_request_keeps_its_place_as_if_its_track_came_back_every_few_seconds(world: World) -> None:
    late: list[int] = []
    client = Client(at={number: lambda: late.append(world.clock.now() - place_in(world, "a").back_by) for number in range(2, 100)})  # fmt: skip
    hold(world, seconds=20, client=client)
    assert max(late) <= 1
    assert world.memory.calls["renew"] <= 20 / 3 + 2


def test_the_answer_of_a_held_request_names_the_time_that_its_place_has(world: World) -> None:
    """Who is told to come back later than its place says would be passed over."""
    fill(world, 400, back=300)
    for seconds in (7, 11.5, 16):
        answer = waiting(hold(world, f"held-{seconds}", seconds=seconds))
        told = world.clock.now() + answer.retry_after
        assert told <= place_in(world, f"held-{seconds}").back_by


def test_a_held_request_whose_client_is_gone_takes_nothing(world: World) -> None:
    client = Client(looks=8, at={8: lambda: free_one(world)})
    waiting(hold(world, client=client))
    assert world.record("sbx-0").status is Status.AVAILABLE
    assert line_of(world) == ["a"]


def test_the_client_is_looked_at_after_the_turn_has_come_and_before_the_sandbox_is_taken(world: World) -> None:
    """The last look is the one just before the try."""
    client = Client()
    order: list[tuple[str, float]] = []
    allocate = world.memory.allocate

    def look() -> bool:
        order.append(("look", world.clock.monotonic()))
        if len(order) == 3:
            free_one(world)
        return client()

    def take(*given: Any, **named: Any) -> AllocateAnswer:
        order.append(("take", world.clock.monotonic()))
        return allocate(*given, **named)

    world.memory.allocate = take  # type: ignore[method-assign] # watched
    request = AllocateRequest(track_id="a", idempotency_key="a", wait_sec=30)
    answer = world.allocator.allocate(request, by=BY, may_hold=look)
    got(answer)
    assert [what for what, _ in order[-3:]] == ["look", "look", "take"]
    assert order[-1][1] - order[-2][1] < 0.1


def test_a_held_request_is_answered_when_allocating_is_paused_meanwhile(world: World) -> None:
    other = another_process(world)
    client = Client(at={4: lambda: other.pauses.set({"allocate": True}, by=BY)})
    with pytest.raises(Paused):
        hold(world, client=client)
    assert world.clock.monotonic() < 10
    assert place_in(world, "a").back_by >= world.clock.now() + 25


def test_a_held_request_is_answered_with_its_place_when_the_store_does_not_answer() -> None:
    world, flaky = flaky_world()
    client = Client(at={5: lambda: flaky.fail("read_line", *[Fault.REFUSED] * 50)})
    assert waiting(hold(world, client=client)).position == 1
    assert world.clock.monotonic() < 5


def test_a_held_request_tells_when_its_track_must_be_back_also_if_the_line_cannot_be_read_any_more() -> None:
    world, flaky = flaky_world()

    def lose_the_line() -> None:
        flaky.fail("read_line", *[Fault.REFUSED] * 50)
        world.clock.advance(BUSY_AGE_SEC + 0.1)

    answer = waiting(hold(world, client=Client(at={7: lose_the_line})))
    assert (answer.position, answer.place) == (1, place_in(world, "a"))
    assert answer.retry_after == max(1, answer.place.back_by - world.clock.now())


@pytest.mark.parametrize("is_known", [True, False])
def test_a_held_request_whose_place_was_removed_is_refused_and_joins_no_more(is_known: bool) -> None:
    """Its track, or an operator, has taken it out of the line: in this process, or in another one."""
    world, flaky = flaky_world()

    def remove() -> None:
        (world if is_known else another_process(world)).line.give_up("a", "a")

    if is_known:
        client = Client(at={4: remove})
    else:
        client = Client()
        flaky.just_before("renew", remove)
    with pytest.raises(NoSandboxesAvailable, match="given up or removed"):
        hold(world, client=client)
    assert world.clock.monotonic() < 3
    assert line_of(world) == []


def test_time_for_which_a_request_is_held_does_not_count_as_work(world: World) -> None:
    hold(world, seconds=12)
    (ended,) = world.recorder.of(AllocateEnded)
    assert ended.seconds == pytest.approx(0, abs=0.01)


def test_a_held_request_does_not_try_again_and_again_for_a_sandbox_that_is_gone() -> None:
    """The index still shows it for two seconds. Each try renews the place, and each renewal is a write."""
    clock = FakeClock()
    world = World(clock=clock, memory=LaggingStore(clock, Random(3), lag=2.0))
    other = another_process(world)
    waiting(world.wait("a"))
    free_one(world)
    clock.advance(1)
    other.memory.seed(make_sandbox("sbx-0", version=2))
    record = world.record("sbx-0")
    world.memory._put("sbx-0", replace(record, status=Status.STALE, status_order=START, version=3))
    before = world.memory.calls["renew"]
    waiting(hold(world, seconds=6))
    assert world.memory.calls["renew"] - before <= 6


# -- several processes


def test_a_place_that_only_another_process_knows_is_the_tracks_place_here_too(world: World) -> None:
    other = another_process(world)
    world.line.places()  # this process has just read an empty line
    first = waiting(other.wait("a"))
    again = waiting(world.wait("a"))
    assert again.place.place_id == first.place.place_id
    assert line_of(world) == ["a"]


def test_a_track_whose_place_only_another_process_knows_takes_a_sandbox_with_it(world: World) -> None:
    other = another_process(world)
    world.line.places()
    waiting(other.wait("a"))
    free_one(world)
    world.start()
    assert got(world.wait("a")) == "sbx-0"
    assert line_of(world) == []
    check_store(world)


def test_no_process_gives_away_what_is_due_to_a_place_of_another_for_longer_than_two_seconds(world: World) -> None:
    other = another_process(world)
    other.line.places()
    waiting(world.wait("a"))
    world.clock.advance(1.1)
    free_one(world)
    with pytest.raises(NoSandboxesAvailable):
        other.allocate("new")
    assert got(world.wait("a")) == "sbx-0"


def test_a_process_with_sandboxes_in_its_cache_notices_a_line_within_a_second(world: World) -> None:
    world.pool(3)
    other = another_process(world)
    assert other.allocate("first")  # the cache of the other process has the rest
    for sandbox_id, record in world.memory.dump()[0].items():
        if record.status is Status.AVAILABLE:
            world.memory._records[sandbox_id] = replace(record, name=f"gpu-{sandbox_id}")
    waiting(world.wait("a", prefix="tpu-"))
    fill(world, 2, prefix="")
    world.clock.advance(1.01)
    with pytest.raises(NoSandboxesAvailable):
        other.allocate("new")


def test_a_line_that_is_noticed_in_the_middle_of_a_search_is_obeyed() -> None:
    world, flaky = flaky_world()
    world.pool(1)

    def meanwhile(method: str) -> None:
        if method == "read_candidates" and not MemoryStore.read_line(world.memory):
            fill(world, 1)
            world.clock.advance(1.5)

    flaky.before_call = meanwhile
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("new")
    assert world.record("sbx-0").status is Status.AVAILABLE


class SlowRival(StoreWrapper):
    """Takes the first candidate of an allocate just before it, and lets `meanwhile` act."""

    meanwhile: Callable[[], object] | None = None

    def allocate(self, candidate: Candidate, claim: Claim, **given: Any) -> AllocateAnswer:
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            memory = self.inner
            assert isinstance(memory, MemoryStore)
            memory.seed(make_sandbox(candidate.sandbox_id, status=Status.STALE, version=candidate.version + 1))
            act()
        return super().allocate(candidate, claim, **given)


def test_a_turn_is_looked_at_again_when_a_try_took_long() -> None:
    """Tries that go wrong take their time, in which others may have come ahead."""
    world = World(wrap=SlowRival)
    world.pool(2)
    fill(world, 1, prefix="tpu-")

    def meanwhile() -> None:
        fill(world, 2)
        world.clock.advance(BUSY_AGE_SEC + 0.1)

    assert isinstance(world.store, SlowRival)
    world.store.meanwhile = meanwhile
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("new")


def test_a_request_looks_for_any_sandbox_again_when_the_line_is_empty_after_a_try_that_went_wrong() -> None:
    world = World(wrap=SlowRival)
    world.pool(2)
    (ahead,) = fill(world, 1)

    def meanwhile() -> None:
        world.memory.leave(ahead)
        world.clock.advance(BUSY_AGE_SEC + 0.1)

    assert isinstance(world.store, SlowRival)
    world.store.meanwhile = meanwhile
    answer = world.allocate("new")
    assert world.record(answer.claim.sandbox_id).status is Status.ALLOCATED
    assert world.recorder.of(AllocateEnded)[0].conflicts == 1


def test_what_is_known_to_be_taken_is_due_to_nobody_and_is_forgotten_after_thousands_more(world: World) -> None:
    place = waiting(world.wait("a")).place
    free_one(world)
    world.clock.advance(2)
    (candidate,) = world.line.turns(arrived_at=world.clock.monotonic()).open_to(place.wish, place.place_id)
    world.line.mark_taken(candidate)
    assert not world.line.turns(arrived_at=world.clock.monotonic()).is_next(place.place_id)
    for number in range(TAKEN_KEPT):
        world.line.mark_taken(replace(candidate, sandbox_id=f"another-{number}"))
    assert world.line.turns(arrived_at=world.clock.monotonic()).is_next(place.place_id)


def test_a_place_that_was_just_served_elsewhere_does_not_move_the_sandbox_of_the_next_one_to_the_one_behind(
    world: World,
) -> None:
    """Two are free, for a and b. The look that c's process has is of before a took its own."""
    other = another_process(world, wrap=FlakyStore)
    assert isinstance(other.store, FlakyStore)
    calls = other.store.calls
    for track in "abc":
        waiting(world.wait(track))
        world.clock.advance(1)
    freed_after: list[int] = []

    def look() -> bool:
        if other.clock.monotonic() > 4 and not freed_after:
            free_one(world, "sbx-0")
            free_one(world, "sbx-1")
            freed_after.append(calls["read_candidates"])
        if freed_after and calls["read_candidates"] > freed_after[0] and "a" in line_of(world):
            assert got(world.wait("a")) == "sbx-0"
        return True

    request = AllocateRequest(track_id="c", idempotency_key="c", wait_sec=4.5)
    waiting(other.allocator.allocate(request, by=BY, may_hold=look))
    assert "a" not in line_of(world)
    assert got(world.wait("b")) == "sbx-1"


def test_many_processes_serve_a_line_in_its_order(world: World) -> None:
    processes = [world, *(another_process(world) for _ in range(4))]
    tracks = [f"t{number:02}" for number in range(12)]
    for number, track in enumerate(tracks):
        waiting(processes[number % 5].wait(track))
        for earlier in tracks[:number]:
            waiting(processes[number % 5].wait(earlier))
        world.clock.advance(1)
    served: list[str] = []
    for number in range(len(tracks)):
        free_one(world, f"sbx-{number}")
        for _ in range(3):
            world.clock.advance(1)
            for at, track in enumerate(reversed(tracks)):
                if track not in served and isinstance(processes[(at + number) % 5].wait(track), Allocation):
                    served.append(track)
        check_store(world)
    assert served == tracks


@pytest.mark.parametrize("method", ["join", "get_claim", "read_line"])
def test_copies_of_a_request_in_two_processes_have_one_place(method: str) -> None:
    world, flaky = flaky_world()
    other = another_process(world)
    other.guard.check()
    flaky.just_before(method, lambda: waiting(other.wait("a")))
    mine = waiting(world.wait("a"))
    assert line_of(world) == ["a"]
    assert mine.place.place_id == place_in(world, "a").place_id


@pytest.mark.parametrize("method", ["join", "renew"])
def test_a_copy_that_is_served_meanwhile_answers_this_request_too(method: str) -> None:
    world, flaky = flaky_world()
    other = another_process(world)
    if method == "renew":
        waiting(world.wait("a"))

    def be_served() -> None:
        free_one(world)
        other.start()
        got(other.wait("a"))

    flaky.just_before(method, be_served)
    answer = world.wait("a")
    assert isinstance(answer, Allocation)
    assert answer.replayed
    assert line_of(world) == []
    check_store(world)


def test_a_place_given_up_while_it_is_renewed_is_joined_again_at_the_end() -> None:
    world, flaky = flaky_world()
    first = waiting(world.wait("a"))
    world.wait("b")
    flaky.just_before("renew", lambda: world.memory.leave(first.place))
    again = waiting(world.wait("a"))
    assert again.place.place_id != first.place.place_id
    assert line_of(world) == ["b", "a"]


def test_a_place_at_the_end_of_its_grace_that_another_process_has_just_renewed_is_not_lost() -> None:
    world, flaky = flaky_world()
    first = waiting(world.wait("a")).place
    world.clock.advance(1 + GRACE + 1)
    flaky.just_before("leave", lambda: world.memory.renew(replace(first, back_by=world.clock.now() + 3)))
    assert waiting(world.wait("a")).place.place_id == first.place_id


# -- dead places


def test_places_whose_time_is_long_over_are_deleted_a_few_at_a_time(world: World) -> None:
    fill(world, 5, back=-(GRACE + 61))
    lengths = []
    for number in range(4):
        waiting(world.wait("a"))
        lengths.append(len(line_of(world)) - 1)
        world.clock.advance(1.1 if number else 1.5)
    assert lengths[0] == 3
    assert lengths[-1] == 0
    assert [each.outcome for each in world.recorder.of(WaitEnded)] == [WaitOutcome.GAVE_UP] * 5


def test_a_place_whose_time_has_just_ended_is_not_deleted_yet_because_a_clock_may_be_ahead(world: World) -> None:
    fill(world, 1, back=-(GRACE + 59))
    assert waiting(world.wait("a")).position == 1
    assert line_of(world) == ["other-0", "a"]


def test_a_dead_place_that_is_renewed_before_it_is_deleted_stays() -> None:
    world, flaky = flaky_world()
    (dead,) = fill(world, 1, back=-(GRACE + 61))
    flaky.just_before("leave", lambda: world.memory.renew(replace(dead, back_by=world.clock.now() + 3)))
    world.wait("a")
    assert "other-0" in line_of(world)


def test_a_dead_place_that_cannot_be_deleted_disturbs_nobody() -> None:
    world, flaky = flaky_world()
    fill(world, 2, back=-(GRACE + 61))
    flaky.fail("leave", Fault.REFUSED, Fault.LOST_AFTER)
    assert waiting(world.wait("a")).position == 1


# -- cost


def test_an_allocate_reads_the_line_at_most_once_a_second_while_nobody_waits(world: World) -> None:
    world.pool(100)
    for number in range(60):
        world.allocate(f"t{number}")
        world.clock.advance(0.1)
    assert world.memory.calls["read_line"] <= 7
    assert world.memory.calls["allocate"] == 60


def test_a_process_with_a_thousand_waiting_tracks_reads_less_than_four_times_a_second_and_writes_once_a_track(
    world: World,
) -> None:
    fill(world, 1000, back=20)
    world.line.places()
    before = world.memory.calls.copy()
    for _ in range(200):
        for number in range(10):
            waiting(world.wait(f"other-{number}"))
            world.clock.advance(0.01)
    seconds = world.clock.monotonic()
    calls = world.memory.calls - before
    reads = sum(count for method, count in calls.items() if method.startswith(("read_", "get")))
    assert (calls["read_line"] + calls["read_candidates"]) / seconds < 4
    assert reads / seconds < 5  # the pauses, too
    assert calls["renew"] == 2000


def test_a_held_request_costs_no_reads_beyond_those_of_its_process(world: World) -> None:
    fill(world, 50, back=60)
    hold(world, seconds=20)
    calls = world.memory.calls
    assert calls["read_line"] <= 20 * 1.25 + 2
    assert calls["read_candidates"] <= 4 * (20 / 1.6 + 2)


def test_a_track_that_renews_its_place_needs_no_read_of_its_claim(world: World) -> None:
    world.wait("a")
    world.clock.advance(3)
    before = world.memory.calls.copy()
    world.wait("a")
    assert (world.memory.calls - before)["get_claim"] == 0
    assert (world.memory.calls - before)["renew"] == 1


def test_who_gets_a_sandbox_in_turn_reads_nothing_more_after_the_write() -> None:
    world, flaky = flaky_world()
    world.wait("a")
    free_one(world)
    world.clock.advance(2)

    def late(method: str) -> None:
        if method == "allocate":
            world.clock.advance(1.5)
            flaky.fail("read_line", *[Fault.REFUSED] * 5)

    flaky.before_call = late
    assert got(world.wait("a")) == "sbx-0"


def test_of_a_long_line_the_first_places_are_read_each_second_and_the_rest_less_often(world: World) -> None:
    fill(world, 2500, back=60)
    limits: list[int | None] = []
    read_line = world.memory.read_line

    def read(*, limit: int | None = None) -> list[Place]:
        limits.append(limit)
        return read_line(limit=limit)

    world.memory.read_line = read  # type: ignore[method-assign] # watched
    last = waiting(world.wait("a"))
    assert (last.position, last.waiting, last.retry_after) == (2501, 2501, 20)
    for _ in range(10):
        world.clock.advance(1.01)
        assert waiting(world.wait("a")).position == 2501
    seconds = world.clock.monotonic()
    assert limits.count(2000) <= seconds * 1.25 + 3
    assert limits.count(None) <= seconds / 5 + 2


def test_of_a_long_line_each_place_is_there_once_also_if_the_line_moves_between_the_two_reads(world: World) -> None:
    places = fill(world, 2500, back=60)
    world.line.places()
    for each in places[:300]:
        world.memory.leave(each)
    world.clock.advance(BUSY_AGE_SEC + 0.01)
    known = world.line.places()
    assert [each.place_id for each in known] == [each.place_id for each in places[300:]]


# -- promise 3 with a line


def test_who_waits_is_told_so_only_by_a_look_that_began_at_most_a_second_before_its_request(world: World) -> None:
    fill(world, 1, prefix="tpu-", back=60)
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("early")
    free_one(world)
    world.clock.advance(1.01)
    assert world.allocate("new").claim.sandbox_id == "sbx-0"


@pytest.mark.parametrize("seed", range(20))
def test_on_an_index_that_lags_the_line_is_served_in_order_and_nobody_is_refused_wrongly(seed: int) -> None:
    clock = FakeClock()
    rng = Random(seed)
    lag = 2.0
    first = World(clock=clock, memory=LaggingStore(clock, rng, lag=lag), seed=seed)
    processes = [first, another_process(first), another_process(first)]
    tracks = [f"t{number}" for number in range(6)]
    for number in range(len(tracks)):
        for each in tracks[: number + 1]:
            waiting(rng.choice(processes).wait(each))
        clock.advance(1)
    served: list[str] = []

    def all_come() -> None:
        for track in rng.sample(tracks, len(tracks)):
            if track not in served and isinstance(rng.choice(processes).wait(track), Allocation):
                served.append(track)
        clock.advance(0.5)

    for number in range(6):
        free_one(first, f"sbx-{number}")
        first.memory._past[f"sbx-{number}"].append((clock.monotonic(), None))  # type: ignore[attr-defined] # it lags
        freed_at = clock.monotonic()
        while len(served) <= number:
            assert clock.monotonic() - freed_at < lag + 3, "it was visible, and nobody took it"
            all_come()
        taken_at = clock.monotonic()
        while clock.monotonic() < taken_at + lag + WALK_SPACING_SEC:  # until no look has what was taken
            all_come()
        check_store(first)
    assert served == tracks


# -- what goes wrong on the way

LOST = [Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER]


def ask_until_answered(world: World, track: str = "a", **options: Any) -> Allocation | Waiting:
    """Repeat a request while its answer is a 503, as a client does."""
    for _ in range(60):
        with suppress(StoreUnavailable):
            return world.wait(track, **options)
        world.clock.advance(0.2)
    raise AssertionError("no answer")


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("times", [1, 2, 40])
@pytest.mark.parametrize("method", ["join", "renew", "allocate", "read_line", "read_candidates", "get_claim"])
def test_a_call_that_fails_never_gives_a_track_a_claim_and_a_place_or_two_sandboxes(
    method: str, times: int, fault: Fault
) -> None:
    world, flaky = flaky_world()
    other = another_process(world)
    if method != "join":
        ask_until_answered(world)
        world.clock.advance(2)
    if method == "allocate":
        free_one(world)
        free_one(world, "sbx-1")
    if fault is Fault.REFUSED or method in {"join", "renew", "allocate"}:
        flaky.fail(method, *[fault] * times)
    with suppress(BrokerError):
        world.wait("a")
    check_store(world)
    free_one(world) if "sbx-0" not in world.memory.dump()[0] else None
    world.clock.advance(2)
    other.clock.advance(0)
    held = {got(ask_until_answered(other)), got(ask_until_answered(world))}
    assert len(held) == 1
    check_store(world)


@pytest.mark.parametrize("method", ["join", "renew"])
def test_a_lost_answer_is_no_error_and_the_place_is_the_one_that_was_written(method: str) -> None:
    world, flaky = flaky_world()
    if method == "renew":
        world.wait("a")
        world.clock.advance(3)
    flaky.fail(method, Fault.LOST_AFTER, Fault.LOST_BEFORE)
    answer = waiting(world.wait("a"))
    assert line_of(world) == ["a"]
    assert answer.place == place_in(world, "a")


def test_a_lost_answer_to_who_gives_up_is_no_error() -> None:
    world, flaky = flaky_world()
    place = waiting(world.wait("a")).place
    flaky.fail("leave", Fault.LOST_AFTER)
    world.line.leave(place)
    assert line_of(world) == []


def test_a_join_whose_outcome_stays_unknown_is_a_503_and_the_next_try_finds_the_place() -> None:
    world, flaky = flaky_world()
    flaky.fail("join", *[Fault.LOST_AFTER] * 25)
    with pytest.raises(OutcomeUnknown):
        world.wait("a")
    flaky._script.clear()
    place = place_in(world, "a")
    assert waiting(world.wait("a")).place.place_id == place.place_id


def test_a_track_is_never_told_to_wait_while_an_allocate_with_a_lost_answer_gave_it_a_sandbox() -> None:
    world, flaky = flaky_world()
    world.wait("a")
    free_one(world)
    world.clock.advance(2)
    flaky.fail("allocate", *[Fault.LOST_AFTER] * 30)
    with pytest.raises(OutcomeUnknown):
        world.wait("a")
    flaky._script.clear()
    answer = world.wait("a")
    assert isinstance(answer, Allocation)
    assert answer.replayed
    assert line_of(world) == []


def test_a_store_that_sees_the_deadline_first_is_not_asked_to_join_again() -> None:
    world, flaky = flaky_world()
    flaky.fail("join", DeadlineExceeded("the deadline is too near for another call"))
    with pytest.raises(DeadlineExceeded):
        world.wait("a")
    assert flaky.calls["join"] == 1


def test_a_look_at_the_free_sandboxes_ends_at_the_deadline() -> None:
    world, flaky = flaky_world()
    fill(world, 1, back=60)
    flaky.before_call = lambda method: world.clock.advance(1) if method == "read_candidates" else None
    with pytest.raises(StoreUnavailable, match="too long"):
        world.wait("a")
    assert world.clock.monotonic() == flaky.calls["read_candidates"] == WORK_SEC


@pytest.mark.parametrize("seed", range(30))
def test_through_all_failures_the_store_never_holds_a_claim_and_a_place_and_all_are_served_in_the_end(
    seed: int,
) -> None:
    rng = Random(seed)
    clock = FakeClock()
    memory = MemoryStore(clock)

    def flaky(inner: MemoryStore) -> FlakyStore:
        return FlakyStore(inner, rng=rng, rate=0.15)

    processes = [World(clock=clock, memory=memory, wrap=flaky, seed=seed + number) for number in range(3)]
    tracks = [f"t{number}" for number in range(5)]
    served: set[str] = set()
    for step in range(150):
        if step % 7 == 0:
            free_one(processes[0], f"sbx-{step // 7 % 6}") if len(served) < 5 and step // 7 < 6 else None
        track = rng.choice(tracks)
        with suppress(StoreUnavailable, UpgradeUnfinished):
            if isinstance(rng.choice(processes).wait(track), Allocation):
                served.add(track)
        check_store(processes[0])
        clock.advance(rng.uniform(0, 0.6))
    assert served == set(tracks)
