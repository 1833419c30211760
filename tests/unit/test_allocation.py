"""Allocate: one sandbox for each (track, key), although other processes are at work and answers get lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.allocation import AllocateRequest
from broker_common.core.deadline import deadline_in
from broker_common.core.errors import (
    DeadlineExceeded,
    NoSandboxesAvailable,
    OutcomeUnknown,
    Paused,
    StoreMisconfigured,
    StoreUnavailable,
)
from broker_common.core.sandbox import ORDER_LIMIT, Candidate, Claim, DeletionReason, Status
from broker_common.core.telemetry import AllocateEnded, AllocateOutcome, AllocationExpired
from tests.fakes import BY, FakeClock, Fault, FlakyStore, MemoryStore, flat, make_sandbox
from tests.world import World, flaky_world

if TYPE_CHECKING:
    from broker_common.core.principals import Actor
    from broker_common.core.store import AllocateAnswer

HOUR = 3600


class RecordingStore(FlakyStore):
    """Keeps what allocate was sent."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.sent: list[tuple[Candidate, Claim, str]] = []

    def allocate(
        self, candidate: Candidate, claim: Claim, *, by: Actor, token: str, place_id: str | None = None
    ) -> AllocateAnswer:
        self.sent.append((candidate, claim, token))
        return super().allocate(candidate, claim, by=by, token=token, place_id=place_id)


def recorded_world(free: int = 3) -> tuple[World, RecordingStore]:
    world = World(wrap=RecordingStore)
    world.pool(free)
    assert isinstance(world.store, RecordingStore)
    return world, world.store


def outcomes(world: World) -> list[AllocateOutcome]:
    return [event.outcome for event in world.recorder.of(AllocateEnded)]


# -- in every world


def test_a_track_gets_a_sandbox_and_holds_it_as_answered(world: World) -> None:
    world.pool(5)
    allocation = world.allocator.allocate(
        AllocateRequest(track_id="track-1", idempotency_key="key", track_name="intro"), by=BY
    )
    claim = allocation.claim
    assert not allocation.replayed
    assert (claim.lease.track_id, claim.lease.idempotency_key, claim.lease.track_name) == ("track-1", "key", "intro")
    assert claim.lease.allocated_at == world.clock.now()
    assert claim.lease.expires_at == claim.lease.allocated_at + 4 * HOUR
    record = world.record(claim.sandbox_id)
    assert (record.status, flat(record).lease_id, record.dirty) == (Status.ALLOCATED, claim.lease.lease_id, True)
    assert (record.name, record.external_id) == (claim.name, claim.external_id)
    assert world.memory.get_claim("track-1", "key") == claim


def test_the_same_request_gets_the_same_answer_and_takes_nothing_more(world: World) -> None:
    world.pool(5)
    first = world.allocate()
    world.clock.advance(60)
    for _ in range(3):
        again = world.allocate()
        assert again.claim == first.claim
        assert again.replayed
    assert [claim.sandbox_id for claim in world.memory.read_claims("track-1")] == [first.claim.sandbox_id]


def test_tracks_and_keys_each_get_a_sandbox_of_their_own(world: World) -> None:
    world.pool(20)
    claims = [world.allocate(track, key).claim for track in ("a", "b", "c") for key in ("x", "y")]
    assert len({claim.sandbox_id for claim in claims}) == 6
    assert len({claim.lease.lease_id for claim in claims}) == 6


def test_the_whole_pool_can_be_allocated_to_the_last_sandbox(plain: World) -> None:
    plain.pool(40)
    taken = {plain.allocate(f"track-{number}").claim.sandbox_id for number in range(40)}
    assert len(taken) == 40
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate("one-too-many")


def test_an_empty_pool_refuses_with_a_time_to_come_back(world: World) -> None:
    with pytest.raises(NoSandboxesAvailable) as refused:
        world.allocate()
    assert refused.value.retry_after
    assert refused.value.retry_after > 0
    assert outcomes(world) == [AllocateOutcome.NO_SANDBOXES]


def test_a_track_that_holds_one_is_answered_by_an_empty_pool(world: World) -> None:
    world.pool(2)
    claim = world.allocate().claim
    world.memory.seed(*[make_sandbox(f"sbx-{number}", status=Status.STALE) for number in range(2) if f"sbx-{number}" != claim.sandbox_id])  # fmt: skip
    world.start()
    world.clock.advance(3)
    assert world.allocate().claim == claim


def test_a_prefix_chooses_among_the_names(world: World) -> None:
    world.pool(20)
    world.memory.seed(*[make_sandbox(f"gpu-{number}", name=f"gpu-{number}") for number in range(4)])
    assert world.allocate("a", prefix="gpu-").claim.name.startswith("gpu-")
    assert world.allocate("b", prefix="lab-").claim.name.startswith("lab-")


def test_a_prefix_that_nothing_matches_is_refused_by_name(world: World) -> None:
    world.pool(5)
    with pytest.raises(NoSandboxesAvailable, match="'tpu-'"):
        world.allocate(prefix="tpu-")
    assert world.allocate("other").claim


def test_a_repeated_request_ignores_another_prefix(world: World) -> None:
    world.pool(5)
    claim = world.allocate(prefix="lab-").claim
    assert world.allocate(prefix="tpu-").claim == claim
    assert world.allocate(prefix="").claim == claim


# -- lost races


def test_a_candidate_that_another_took_is_a_conflict_and_the_next_is_tried(plain: World) -> None:
    rival = World(clock=plain.clock, memory=plain.memory, seed=2, k_candidates=10)
    plain.pool(8)
    plain.allocate("first")
    for number in range(3):
        rival.allocate(f"rival-{number}")
    claims = [plain.allocate(f"track-{number}").claim for number in range(4)]
    assert len({claim.sandbox_id for claim in claims}) == 4
    conflicts = sum(event.conflicts for event in plain.recorder.of(AllocateEnded))
    assert 0 < conflicts <= 3


def test_a_candidate_that_was_only_renamed_is_taken_under_its_new_name(plain: World) -> None:
    (free,) = plain.pool(1)
    plain.provider.accounts = [replace(each, name="lab-new") for each in plain.provider.accounts]
    late, store = flaky_world(clock=plain.clock, memory=plain.memory)
    store.just_before("allocate", plain.sync)
    claim = late.allocate().claim
    assert (claim.sandbox_id, claim.name) == (free.sandbox_id, "lab-new")
    assert late.recorder.of(AllocateEnded)[0].conflicts == 0


def test_a_candidate_that_was_renamed_away_from_the_prefix_is_left_to_others(plain: World) -> None:
    plain.pool(1)
    plain.provider.accounts = [replace(each, name="gpu-new") for each in plain.provider.accounts]
    late, store = flaky_world(clock=plain.clock, memory=plain.memory)
    store.just_before("allocate", plain.sync)
    with pytest.raises(NoSandboxesAvailable):
        late.allocate(prefix="lab-")
    assert plain.record("sbx-0").status is Status.AVAILABLE
    plain.clock.advance(2)
    assert late.allocate("other", prefix="gpu-").claim.name == "gpu-new"


@pytest.mark.parametrize("fault", [Fault.CONTENDED, Fault.REFUSED], ids=["contention", "a refusal"])
def test_what_was_not_applied_is_tried_again_with_a_new_token_and_the_same_claim(fault: Fault) -> None:
    world, store = recorded_world()
    store.fail("allocate", fault, fault)
    claim = world.allocate().claim
    assert [sent[1] for sent in store.sent] == [claim] * 3
    assert len({token for _, _, token in store.sent}) == 3
    assert world.recorder.of(AllocateEnded)[0].conflicts == 0


@pytest.mark.parametrize("fault", [Fault.LOST_BEFORE, Fault.LOST_AFTER])
def test_an_unknown_outcome_is_sent_again_under_the_same_token(fault: Fault) -> None:
    world, store = recorded_world()
    store.fail("allocate", fault, fault)
    allocation = world.allocate()
    assert not allocation.replayed
    assert len(store.sent) == 3
    assert len(set(store.sent)) == 1
    assert len(world.memory.read_claims("track-1")) == 1


def test_an_applied_write_that_is_sent_again_under_another_token_is_still_this_request() -> None:
    world, store = recorded_world()
    store.fail("allocate", Fault.LOST_AFTER, Fault.REFUSED)
    allocation = world.allocate()
    assert not allocation.replayed
    assert len({token for _, _, token in store.sent}) == 2
    assert flat(world.record(allocation.claim.sandbox_id)).lease_id == allocation.claim.lease.lease_id
    assert outcomes(world) == [AllocateOutcome.SUCCESS]


def test_an_outcome_that_stays_unknown_is_not_an_empty_pool_and_its_candidate_is_not_handed_back() -> None:
    world, store = recorded_world(free=1)
    store.fail("allocate", *[Fault.LOST_BEFORE] * 20)
    with pytest.raises(OutcomeUnknown):
        world.allocate()
    assert len(store.sent) == 20
    assert outcomes(world) == [AllocateOutcome.ERROR]
    reads = world.memory.calls["read_candidates"]
    assert world.allocate("another").claim.sandbox_id == "sbx-0"
    assert world.memory.calls["read_candidates"] > reads


def test_a_track_whose_answer_was_lost_gets_its_sandbox_by_asking_again() -> None:
    world, store = recorded_world(free=1)
    store.fail("allocate", Fault.LOST_AFTER, *[Fault.LOST_BEFORE] * 19)
    with pytest.raises(OutcomeUnknown):
        world.allocate()
    allocation = world.allocate()
    assert allocation.replayed
    assert allocation.claim.sandbox_id == "sbx-0"


def test_a_store_that_keeps_refusing_is_unavailable_and_not_empty() -> None:
    world, store = recorded_world()
    store.fail("allocate", *[Fault.REFUSED] * 20)
    with pytest.raises(StoreUnavailable) as refused:
        world.allocate()
    assert refused.value.retry_after
    assert {status for status, count in world.memory.count().items() if count} == {Status.AVAILABLE}


def test_lasting_contention_is_unavailable_and_not_empty() -> None:
    world, store = recorded_world(free=1)
    store.fail("allocate", *[Fault.CONTENDED] * 20)
    with pytest.raises(StoreUnavailable, match="in use"):
        world.allocate()


@pytest.mark.parametrize("method", ["read_candidates", "get_claim"])
def test_a_read_that_fails_is_unavailable_and_not_empty(method: str) -> None:
    world, store = recorded_world(free=0)
    store.fail(method, Fault.REFUSED)
    with pytest.raises(StoreUnavailable):
        world.allocate()


# -- the deadline


def test_the_deadline_makes_it_unavailable_and_not_empty() -> None:
    world, store = recorded_world(free=0)
    store.before_call = lambda _: world.clock.advance(1.1)
    with deadline_in(2, world.clock), pytest.raises(StoreUnavailable):
        world.allocate()


def test_no_further_try_is_made_past_the_deadline() -> None:
    world, store = recorded_world()
    store.before_call = lambda _: world.clock.advance(1.0)
    store.fail("allocate", *[Fault.LOST_BEFORE] * 20)
    with deadline_in(4.5, world.clock), pytest.raises(OutcomeUnknown):
        world.allocate()
    assert 1 <= len(store.sent) <= 3


def test_a_store_that_sees_the_deadline_first_is_not_asked_again() -> None:
    world, store = recorded_world()
    store.fail("allocate", DeadlineExceeded("too late"))
    with pytest.raises(DeadlineExceeded):
        world.allocate()
    assert len(store.sent) == 1


# -- what is held


def test_a_replay_gives_its_candidate_back_to_the_next_request() -> None:
    world, store = recorded_world(free=2)
    world.allocate()
    world.allocate()
    candidate = store.sent[-1][0]
    reads = world.memory.calls["read_candidates"]
    assert world.allocate("other").claim.sandbox_id == candidate.sandbox_id
    assert world.memory.calls["read_candidates"] == reads


def test_an_overdue_claim_is_expired_on_the_spot_and_a_new_sandbox_given(plain: World) -> None:
    plain.pool(3)
    old = plain.allocate().claim
    plain.clock.advance(4 * HOUR + HOUR // 2)
    fresh = plain.allocate()
    assert not fresh.replayed
    assert fresh.claim.sandbox_id != old.sandbox_id
    record = plain.record(old.sandbox_id)
    assert (record.status, flat(record).deletion_reason) == (Status.PENDING_DELETION, DeletionReason.EXPIRED)
    assert [event.lease_id for event in plain.recorder.of(AllocationExpired)] == [old.lease.lease_id]


def test_a_claim_within_its_buffer_is_still_answered(plain: World) -> None:
    plain.pool(3)
    claim = plain.allocate().claim
    plain.clock.advance(4 * HOUR + HOUR // 2 - 1)
    assert plain.allocate().claim == claim


def test_an_overdue_claim_in_an_empty_pool_is_expired_and_refused(plain: World) -> None:
    plain.pool(1)
    plain.allocate()
    plain.clock.advance(5 * HOUR)
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate()
    assert plain.record("sbx-0").status is Status.PENDING_DELETION
    assert plain.memory.read_claims("track-1") == []


def test_a_track_is_free_to_allocate_again_after_it_gave_back(world: World) -> None:
    world.pool(10)
    first = world.allocate().claim
    world.mark(first.sandbox_id)
    second = world.allocate()
    assert not second.replayed
    assert second.claim.sandbox_id != first.sandbox_id


# -- empty


def test_a_refusal_reads_the_claim_last_and_the_whole_ring_before(plain: World) -> None:
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate()
    assert plain.memory.calls["read_candidates"] >= 4
    assert plain.memory.calls["get_claim"] == 1


def test_emptiness_is_remembered_for_a_second_so_that_a_refusal_costs_one_read(plain: World) -> None:
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate("first")
    plain.memory.calls.clear()
    plain.pool(1)
    plain.clock.advance(0.9)
    for number in range(10):
        with pytest.raises(NoSandboxesAvailable):
            plain.allocate(f"track-{number}")
    assert plain.memory.calls == {"get_claim": 10}
    plain.clock.advance(0.2)
    assert plain.allocate().claim.sandbox_id == "sbx-0"


def test_the_memory_of_emptiness_counts_from_the_beginning_of_the_walk() -> None:
    world, store = recorded_world(free=0)
    store.before_call = lambda method: world.clock.advance(0.3) if method == "read_candidates" else None
    with pytest.raises(NoSandboxesAvailable):
        world.allocate("slow")
    store.before_call = lambda _: None
    world.pool(1)
    assert world.allocate("next").claim.sandbox_id == "sbx-0"


def test_another_prefix_has_a_memory_of_its_own(plain: World) -> None:
    plain.pool(1)
    with pytest.raises(NoSandboxesAvailable):
        plain.allocate(prefix="gpu-")
    assert plain.allocate(prefix="lab-").claim


# -- pauses


def test_a_paused_allocate_is_refused_with_a_time_to_come_back(plain: World) -> None:
    plain.pool(2)
    plain.pauses.set({"allocate": True}, by=BY)
    with pytest.raises(Paused) as paused:
        plain.allocate()
    assert paused.value.retry_after
    assert plain.memory.count()[Status.ALLOCATED] == 0
    assert outcomes(plain) == [AllocateOutcome.ERROR]


def test_a_paused_allocate_still_answers_what_is_held_until_that_is_overdue(plain: World) -> None:
    plain.pool(2)
    claim = plain.allocate().claim
    plain.pauses.set({"allocate": True}, by=BY)
    allocation = plain.allocate()
    assert (allocation.claim, allocation.replayed) == (claim, True)
    plain.clock.advance(5 * HOUR)
    with pytest.raises(Paused):
        plain.allocate()


# -- events


def test_each_allocate_is_recorded_once_with_its_outcome_and_time() -> None:
    world, store = recorded_world(free=1)
    store.before_call = lambda _: world.clock.advance(0.25)
    claim = world.allocate().claim
    world.allocate()
    first, second = world.recorder.of(AllocateEnded)
    assert (first.outcome, second.outcome) == (AllocateOutcome.SUCCESS, AllocateOutcome.IDEMPOTENT)
    assert (first.track_id, first.sandbox_id, first.lease_id) == ("track-1", claim.sandbox_id, claim.lease.lease_id)
    assert first.seconds > 0
    assert first.error is None


def test_an_allocate_that_is_broken_off_is_recorded_as_an_error() -> None:
    world, store = recorded_world()
    store.fail("allocate", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        world.allocate()
    assert outcomes(world) == [AllocateOutcome.ERROR]


# -- many requests of one process


def allocate_at_once(world: World, track_ids: list[str]) -> list[Claim]:
    barrier = threading.Barrier(len(track_ids))

    def ask(track_id: str) -> Claim:
        barrier.wait(30)
        return world.allocate(track_id).claim

    with ThreadPoolExecutor(len(track_ids)) as pool:
        return list(pool.map(ask, track_ids))


def test_copies_of_a_request_at_once_get_one_sandbox() -> None:
    world = World()
    world.pool(10)
    claims = allocate_at_once(world, ["track-1"] * 20)
    assert len(set(claims)) == 1
    assert world.memory.count()[Status.ALLOCATED] == 1


def test_as_many_tracks_as_sandboxes_at_once_all_get_one() -> None:
    world = World()
    world.pool(30)
    claims = allocate_at_once(world, [f"track-{number}" for number in range(30)])
    assert len({claim.sandbox_id for claim in claims}) == 30


def test_a_sandbox_that_another_request_is_trying_is_tried_too_before_a_track_is_refused() -> None:
    world, store = recorded_world(free=1)
    world.memory.seed(
        make_sandbox("elsewhere", status=Status.ALLOCATED, allocated_to_track="slow", idempotency_key="slow")
    )
    reached, gate = threading.Event(), threading.Event()

    def hold_up() -> None:
        reached.set()
        assert gate.wait(30)

    store.just_before("allocate", hold_up)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.allocate, "slow")
        assert reached.wait(30)
        # The slow request holds the only candidate, and will not need it: it holds a sandbox already.
        assert world.allocate("quick").claim.sandbox_id == "sbx-0"
        gate.set()
        assert slow.result(30).replayed


def test_a_copy_of_the_request_that_ended_the_overdue_claim_first_is_answered_alike() -> None:
    one, store = recorded_world(free=1)
    other = World(clock=one.clock, memory=one.memory, seed=2)
    one.allocate()
    one.clock.advance(5 * HOUR)
    copies: list[Claim] = []

    def let_the_copy_be_faster() -> None:
        one.memory.seed(make_sandbox("sbx-9"))
        copies.append(other.allocate().claim)

    store.just_before("get", let_the_copy_be_faster)
    answer = one.allocate()
    assert answer.replayed
    assert [answer.claim] == copies


def test_a_store_that_needs_a_person_is_asked_once() -> None:
    world, store = recorded_world()
    store.fail("allocate", StoreMisconfigured("there are no AWS credentials"))
    with pytest.raises(StoreMisconfigured):
        world.allocate()
    assert len(store.sent) == 1


def test_a_candidate_is_not_lost_to_an_unexpected_error() -> None:
    world, store = recorded_world(free=1)
    store.fail("allocate", RuntimeError("a defect"))
    with pytest.raises(RuntimeError):
        world.allocate("one")
    assert world.allocate("two").claim.sandbox_id


@pytest.mark.parametrize("prefix", ["", "lab-"])
def test_processes_seldom_try_the_same_sandbox_in_a_pool_of_a_thousand(prefix: str) -> None:
    clock = FakeClock()
    memory = MemoryStore(clock)
    rng = Random(7)
    memory.seed(
        *[make_sandbox(f"sbx-{n}", name=f"lab-{n}", status_order=rng.randrange(ORDER_LIMIT)) for n in range(2000)]
    )
    worlds = [World(clock=clock, memory=memory, seed=seed, k_candidates=15) for seed in range(4)]
    for number in range(600):
        worlds[number % 4].allocate(f"track-{number}", prefix=prefix)
    conflicts = sum(
        event.conflicts for world in worlds for event in world.recorder.events if isinstance(event, AllocateEnded)
    )
    assert conflicts <= 0.05 * 600
