"""The simulator itself: runs are repeatable, the store's promises hold, and DynamoDB's limits apply."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.core.facts import Change
from broker_common.core.known_reservations import KnownReservations
from broker_common.core.lease import candidate_of, end
from broker_common.core.line import Place, Turns
from broker_common.core.policy import Policy
from broker_common.core.reservation import Reservation
from broker_common.core.reserving import Reserver
from broker_common.core.sandbox import ORDER_LIMIT, DeletionReason, Sandbox, Status
from broker_common.core.store import AllocateAnswer, Allocated, CandidateGone, ClaimHeld, Contended
from broker_common.core.wipe import begin_attempt
from tests.contract.line import make_place
from tests.fakes import BY, flat, make_claim, make_sandbox, walk_ring
from tests.long.simulation.broker import Scenario, milliseconds, simulate
from tests.long.simulation.class_run import ClassResult, ClassScenario, simulate_class
from tests.long.simulation.classes import plot as plot_class
from tests.long.simulation.classes import run as run_class
from tests.long.simulation.flood import Flood, FloodedStore
from tests.long.simulation.line import LineScenario, simulate_line
from tests.long.simulation.scale import SWEEPS, plot, run
from tests.long.simulation.table import WRITE_UNITS, SimulatedStore, TableConditions
from tests.long.simulation.waiting import IDLE_MAX_SEC, IDLE_P50_SEC, IDLE_P95_SEC, MOST_READS, MOST_WRITES
from tests.long.simulation.waiting import plot as plot_line
from tests.long.simulation.waiting import run as run_line
from tests.scheduler.schedule import Schedule
from tests.scheduler.strategies import ByTime

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Candidate

FREE = make_sandbox("free")


def make_store(*sandboxes: Sandbox, **conditions: Any) -> tuple[Schedule, SimulatedStore]:
    schedule = Schedule(ByTime())
    store = SimulatedStore(schedule, Random(1), TableConditions(**conditions))
    store.seed(*sandboxes)
    return schedule, store


def answers_to(schedule: Schedule, *calls: Callable[[], Any]) -> list[Any]:
    """Make all calls at the same time; return their answers in order."""
    answers: dict[int, Any] = {}

    def ask(number: int, call: Callable[[], Any]) -> None:
        answers[number] = call()

    for number, call in enumerate(calls):
        schedule.start(lambda number=number, call=call: ask(number, call))  # type: ignore[misc] # bound in the loop
    schedule.run()
    return [answers[number] for number in range(len(calls))]


def allocate(store: SimulatedStore, sandbox: Sandbox | Candidate, track: str) -> Callable[[], AllocateAnswer]:
    candidate = candidate_of(sandbox) if isinstance(sandbox, Sandbox) else sandbox
    return lambda: store.allocate(
        candidate, make_claim(candidate, track), by=BY, token=f"{track}-{candidate.sandbox_id}"
    )


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    scenario = Scenario(requests=300, free=300, rate=500, returns=200)
    assert simulate(scenario) == simulate(scenario)
    assert simulate(scenario) != simulate(replace(scenario, seed=2))


def test_allocating_keeps_the_contract_of_the_store() -> None:
    schedule, store = make_store(FREE, make_sandbox("other"))
    assert answers_to(schedule, allocate(store, FREE, "a")) == [Allocated()]
    held, gone = answers_to(schedule, allocate(store, make_sandbox("other"), "a"), allocate(store, FREE, "b"))
    assert isinstance(held, ClaimHeld)
    assert held.claim.sandbox_id == "free"
    assert isinstance(gone, CandidateGone)
    assert gone.current
    assert flat(gone.current).allocated_to_track == "a"


def test_of_two_transactions_on_one_sandbox_at_once_one_learns_about_the_other() -> None:
    tracks = [f"track-{number}" for number in range(20)]
    schedule, store = make_store(FREE)
    answers = answers_to(schedule, *[allocate(store, FREE, track) for track in tracks])
    kinds = [type(answer) for answer in answers]
    assert kinds.count(Allocated) == 1
    assert Contended in kinds
    assert CandidateGone in kinds


def test_a_ring_is_walked_as_in_the_store_in_memory() -> None:
    rng = Random(3)
    free = [make_sandbox(f"sbx-{number}", status_order=rng.randrange(ORDER_LIMIT)) for number in range(200)]
    schedule, store = make_store(*free)
    ((found),) = answers_to(schedule, lambda: walk_ring(store, limit=7))
    assert sorted(each.sandbox_id for each in found) == sorted(each.sandbox_id for each in free)


def test_the_index_follows_a_write_after_its_lag() -> None:
    schedule, store = make_store(FREE, lag=(1.0, 1.0), long_lag_share=0)

    def look() -> tuple[int, int]:
        allocate(store, FREE, "a")()
        at_once = len(walk_ring(store, limit=100))
        schedule.time.sleep(1)
        return at_once, len(walk_ring(store, limit=100))

    assert answers_to(schedule, look) == [(1, 0)]


def test_a_partition_takes_its_units_a_second_and_throttles_the_rest() -> None:
    free = [make_sandbox(f"sbx-{number}") for number in range(2 * WRITE_UNITS)]
    schedule, store = make_store(*free, shards=1, partitions=100, saved_seconds=1.0)
    answers = answers_to(schedule, *[allocate(store, each, each.sandbox_id) for each in free])
    taken = answers.count(Allocated())
    assert WRITE_UNITS <= taken <= 1.05 * WRITE_UNITS
    assert answers.count(Contended()) == len(free) - taken
    assert store.throttled.keys() <= {"available#0", "allocated#0", "fact#0"}
    assert {record.status for record in store.dump()[0].values()} == {Status.AVAILABLE, Status.ALLOCATED}
    assert len(store.dump()[1]) == taken


@pytest.mark.parametrize(("splits", "hottest"), [(1, 40), (4, 20)])
def test_a_shard_that_was_split_spreads_its_heat(splits: int, hottest: int) -> None:
    free = [make_sandbox(f"sbx-{number}") for number in range(40)]
    schedule, store = make_store(*free, shards=1, available_splits=splits)
    answers_to(schedule, *[allocate(store, each, each.sandbox_id) for each in free])
    heat = store.heat()
    assert heat.pop("allocated#0") == heat.pop("fact#0") == 40
    assert sum(heat.values()) == 40
    assert max(heat.values()) <= hottest


def test_a_sandbox_that_comes_back_costs_the_index_a_deleted_and_a_new_entry_each_time_its_key_changes() -> None:
    schedule, store = make_store(FREE)

    def live() -> None:
        allocate(store, FREE, "a")()
        record = store.get("free")
        assert record
        store.commit(end(record, reason=DeletionReason.MARKED, by=BY, now=schedule.time.now()))

    answers_to(schedule, live)
    names = {name.partition("#")[0]: units for name, units in store.heat().items()}
    assert names == {"available": 1, "allocated": 2, "pending_deletion": 1, "fact": 2}


def test_a_change_that_the_index_throttles_is_sent_again_and_is_written_once_with_its_fact() -> None:
    schedule, store = make_store(shards=1, partitions=100)
    now = schedule.time.now()
    endings = [
        end(
            make_sandbox(name, status=Status.ALLOCATED, lease_id=name, allocated_to_track=name, idempotency_key=name),
            reason=DeletionReason.MARKED,
            by=BY,
            now=now,
        )
        for name in (f"sbx-{number}" for number in range(WRITE_UNITS // 2 + 100))
    ]
    ending, waiting = endings[:100], [each.result for each in endings[100:]]
    # Each takes two units of `pending_deletion#0`, and has no fact.
    taking = [begin_attempt(each, attempt_id="attempt", by=BY, now=now, policy=Policy()) for each in waiting]
    store.seed(*(each.before for each in ending if each.before), *waiting)
    answers_to(schedule, *[partial(store.commit, each) for each in (*taking, *ending)])
    assert set(store.throttled) == {"pending_deletion#0"}
    assert len(store.facts) == len(ending)
    assert store.heat() == {"allocated#0": 100, "pending_deletion#0": WRITE_UNITS + 100, "fact#0": 100}


def test_a_change_that_leaves_its_key_alone_costs_the_index_one_unit() -> None:
    schedule, store = make_store(FREE)
    answers_to(schedule, lambda: store.commit(Change(FREE, replace(FREE, name="renamed", version=2), None)))
    assert list(store.heat().values()) == [1]


def test_four_processes_drain_a_pool_to_a_tenth_with_few_conflicts_and_calls() -> None:
    runs = [
        simulate(Scenario(requests=900, free=1000, table=TableConditions(lag=(0, 0), long_lag_share=0), seed=seed))
        for seed in range(1, 5)
    ]
    assert sum(each.conflicts for each in runs) <= 0.05 * 3600
    assert sum(each.calls for each in runs) <= 1.15 * 3600


def test_a_pool_is_drained_to_the_last_sandbox_and_no_track_is_refused_before() -> None:
    result = simulate(Scenario(requests=330, free=300, rate=400))
    assert (len(result.allocated), len(result.refused), result.false_refusals) == (300, 30, 0)


@pytest.mark.parametrize(
    "scenario",
    [
        LineScenario(tracks=150, join_sec=10, returns=5, dead=0.2),
        LineScenario(tracks=200, join_sec=10, returns=10, dead=0.05, processes=20),
        LineScenario(tracks=100, join_sec=10, returns=2, customers=3, prefixes=("", "a-", "b-"), held=1.0),
    ],
    ids=["4-processes", "20-processes", "customers-and-wishes"],
)
def test_a_line_is_served_in_its_order_soon_and_at_a_bounded_cost(scenario: LineScenario) -> None:
    result = simulate_line(scenario)
    assert (result.violations, result.starved, result.lost_places, result.unavailable) == ([], 0, 0, 0)
    figures = result.summary()
    assert len(result.idle) >= 50
    assert float(figures["idle_p50_s"]) <= IDLE_P50_SEC
    assert milliseconds(result.idle, 95) / 1000 <= IDLE_P95_SEC
    assert max(result.idle) <= IDLE_MAX_SEC
    assert result.reads <= MOST_READS
    assert result.writes <= MOST_WRITES


def test_the_same_line_gives_the_same_run() -> None:
    scenario = LineScenario(tracks=40, join_sec=5)
    assert simulate_line(scenario) == simulate_line(scenario)


def test_who_goes_first_past_a_place_that_is_back_in_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "may_take", lambda *_: True)
    result = simulate_line(LineScenario(tracks=60, join_sec=5, returns=2))
    assert result.violations


def test_a_dead_place_that_blocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "is_live", lambda *_: True)
    result = simulate_line(LineScenario(tracks=60, pool=15, join_sec=5, returns=1, dead=0.4))
    assert result.starved


def test_two_transactions_on_one_place_at_once_conflict() -> None:
    place = make_place()
    schedule, store = make_store(FREE)
    answers_to(schedule, lambda: store.join(place))
    candidate = candidate_of(FREE)
    claim = make_claim(candidate, place.track_id)
    taken, _ = answers_to(
        schedule,
        lambda: store.allocate(candidate, claim, by=BY, token="token", place_id=place.place_id),
        lambda: store.leave(place),
    )
    assert isinstance(taken, Allocated | Contended)
    assert store.throttled["conflict"] == 1


SMALL_CLASS = ClassScenario(count=60, students=64, pool=90, tracks=10, within_sec=15, returns=0.5, lasts_sec=120)


@pytest.mark.parametrize(
    "scenario",
    [
        SMALL_CLASS,
        replace(SMALL_CLASS, within_sec=0, processes=20),
        replace(SMALL_CLASS, students=50, hold_sec=30, newcomers=0.2),
    ],
    ids=["more-than-booked", "at-once", "fewer-than-booked"],
)
def test_a_class_is_served_before_others_soon_and_at_a_bounded_cost(scenario: ClassScenario) -> None:
    result = simulate_class(scenario)
    assert result.faults == ClassResult().faults
    assert result.unavailable == 0
    assert len(result.at_once) >= min(scenario.students, round(0.95 * scenario.count))
    assert len(result.at_once) + len(result.waits) == scenario.students
    assert max(result.idle, default=0.0) <= IDLE_MAX_SEC
    assert result.reads <= MOST_READS


def test_the_same_class_gives_the_same_run() -> None:
    scenario = replace(SMALL_CLASS, count=20, students=20, pool=30, lasts_sec=30)
    assert simulate_class(scenario) == simulate_class(scenario)


def test_a_track_that_draws_from_a_reservation_of_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reservation, "is_for", lambda *_: True)
    assert simulate_class(SMALL_CLASS).misdrawn


def test_a_wiped_sandbox_that_passes_a_reservation_that_is_short_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownReservations, "place_for", lambda *_, **__: None)
    assert simulate_class(SMALL_CLASS).passed_over


def test_a_sandbox_that_stays_set_aside_after_the_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reserver, "_return_unneeded", lambda *_: [])
    assert simulate_class(replace(SMALL_CLASS, students=50)).kept


BUSY = Scenario(requests=1000, rate=200, returns=200, free=2000, table=TableConditions(saved_seconds=0.1))


def test_allocations_take_as_long_while_a_flood_of_facts_is_told_and_sent() -> None:
    alone, beside = simulate(BUSY), simulate(replace(BUSY, flood=Flood(facts=3000)))
    assert beside.told > 500
    assert beside.sent > 200
    assert not beside.unavailable
    for percent in (50, 99):
        assert milliseconds(beside.allocated, percent) == pytest.approx(milliseconds(alone.allocated, percent), rel=0.1)


def test_a_flood_whose_marks_are_all_at_one_place_of_the_index_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FloodedStore, "_mark_partition", lambda *_: "untold")
    busier = replace(BUSY, rate=500, returns=500)
    alone, beside = simulate(busier), simulate(replace(busier, flood=Flood(facts=3000)))
    assert milliseconds(beside.allocated, 99) > 2 * milliseconds(alone.allocated, 99)


def test_a_quick_class_can_be_plotted() -> None:
    assert len(plot_class(list(run_class(quick=True))).axes) == 2


def test_a_quick_line_can_be_plotted() -> None:
    assert len(plot_line(list(run_line(quick=True))).axes) == 2


def test_a_quick_sweep_of_each_kind_can_be_plotted() -> None:
    rows = {sweep.name: list(run(replace(sweep, scenarios=tiny(sweep.scenarios)), quick=True)) for sweep in SWEEPS}
    assert len(plot(rows).axes) == 4


def tiny(scenarios: Callable[[bool], Any]) -> Callable[[bool], Any]:
    return lambda quick: ((varied, replace(scenario, requests=20)) for varied, scenario in scenarios(quick))
