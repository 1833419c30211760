"""The job `watch` against everything that changes a lease, against itself, and killed at any of its calls."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.counts import Counts
from broker_common.core.errors import AllocationEnded, StoreUnavailable
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.leases import Extension
from broker_common.core.sandbox import Status
from tests.fakes import BY, Fault, MemoryStore, flat
from tests.interleavings.stage import POLICY, Stage
from tests.interleavings.test_endings import ending, repeated_if_killed
from tests.interleavings.test_extension import extend
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.samples import PoolLevel
    from broker_common.core.watch import WatchResult
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule
    from tests.world import World

HOUR = 3600


def watch(world: World) -> WatchResult:
    return world.watcher.run(by=BY)


def make_stage(schedule: Schedule, *, processes: int = 2, has_level: bool = False) -> Stage:
    """Return a stage with processes that look at the level of the pool, or do not."""
    policy = replace(POLICY, pool_low_percent=10 if has_level else 0)
    return Stage(schedule, processes=processes, policy=policy)


def count(stage: Stage) -> None:
    """Have another process count the pool."""
    Counts(stage.memory, stage.clock, Random(9), max_age=2.0, policy=POLICY).latest()


def warnings(stage: Stage) -> list[Fact]:
    return [fact for fact in stage.memory.facts if isinstance(fact, Fact) and fact.kind is FactKind.EXPIRING]


def levels(stage: Stage) -> list[PoolFactKind]:
    return [fact.kind for fact in stage.memory.facts if isinstance(fact, PoolFact)]


def against_an_extension(schedule: Schedule) -> None:
    stage = make_stage(schedule)
    claim = stage.held(overdue=True)
    count(stage)
    job, api = stage.worlds
    stage.play("watch", partial(watch, job))
    stage.play("extend", partial(extend, api, claim))
    results = stage.run()
    assert isinstance(results["extend"], Extension)
    record = stage.records()["sbx-0"]
    assert flat(record).expires_at == claim.lease.expires_at + 3 * HOUR
    told = [fact.details["expires_at"] for fact in warnings(stage)]
    assert told == [claim.lease.expires_at] * results["watch"].expiring
    stage.clock.advance(3 * HOUR)
    watch(api)
    assert [fact.details["expires_at"] for fact in warnings(stage)] == [*told, claim.lease.expires_at + 3 * HOUR]


def test_an_extension_succeeds_during_a_warning_and_its_new_end_is_told_later(every_order: Search) -> None:
    every_order(against_an_extension, once=True)


def against_an_ending(schedule: Schedule, name: str) -> None:
    stage = make_stage(schedule)
    claim = stage.held(overdue=True)
    count(stage)
    job, api = stage.worlds
    stage.play("watch", partial(watch, job))
    stage.play(name, ending(name, api, claim))
    results = stage.run()
    assert results[name] is True
    assert stage.records()["sbx-0"].status is Status.PENDING_DELETION
    assert len(warnings(stage)) == results["watch"].expiring
    assert results["watch"].failed == 0


@pytest.mark.parametrize("name", ["mark", "release", "expire"])
def test_what_ends_a_lease_succeeds_during_a_warning(every_order: Search, name: str) -> None:
    every_order(lambda schedule: against_an_ending(schedule, name), once=True)


def test_a_read_of_the_holder_during_a_warning_shows_its_lease(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = make_stage(schedule)
        claim = stage.held(overdue=True)
        count(stage)
        job, api = stage.worlds
        stage.play("watch", partial(watch, job))
        stage.play("read", lambda: api.leases.read(track_id="ann", sandbox_id="sbx-0"))
        stage.play("list", lambda: api.leases.list_held(track_id="ann"))
        results = stage.run()
        for record in (results["read"], *results["list"]):
            assert replace(record.lease, warned_for=None) == claim.lease
        assert len(results["list"]) == 1

    every_order(case, once=True)


def two_runs(schedule: Schedule) -> None:
    stage = make_stage(schedule)
    stage.held(overdue=True)
    count(stage)
    for number, world in enumerate(stage.worlds):
        stage.play(f"run {number}", partial(watch, world))
    stage.run()
    assert len(warnings(stage)) == 1


def test_of_two_runs_at_once_one_tells_the_end_of_a_lease(every_order: Search) -> None:
    every_order(two_runs, once=True)


def killed_and_repeated(schedule: Schedule) -> None:
    stage = make_stage(schedule)
    claim = stage.held(overdue=True)
    count(stage)
    job, api = stage.worlds
    stage.may_fail(job, Fault.CRASH_BEFORE, Fault.CRASH_AFTER)
    stage.play("watch", repeated_if_killed(job, partial(watch, job)))
    stage.play("extend", partial(extend, api, claim))
    stage.run()
    assert len(warnings(stage)) <= 1
    stage.clock.advance(3 * HOUR)
    watch(api)
    ends = [fact.details["expires_at"] for fact in warnings(stage)]
    assert sorted(set(ends)) == ends
    assert ends[-1] == claim.lease.expires_at + 3 * HOUR


def test_a_run_that_is_killed_at_any_of_its_calls_and_repeated_tells_each_end_once(every_order: Search) -> None:
    every_order(killed_and_repeated, once=True)


def test_a_run_whose_answers_get_lost_and_the_next_one_tell_each_end_once(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = make_stage(schedule)
        stage.held(overdue=True)
        count(stage)
        job, other = stage.worlds
        stage.may_fail(job, Fault.REFUSED, Fault.LOST_BEFORE, Fault.LOST_AFTER)
        stage.play("first", partial(watch, job))
        stage.play("second", partial(watch, other))
        stage.run()
        watch(job)
        assert len(warnings(stage)) == 1

    every_order(case, once=True)


def two_runs_of_a_low_pool(schedule: Schedule) -> None:
    stage = make_stage(schedule, has_level=True)
    stage.held()
    count(stage)
    for number, world in enumerate(stage.worlds):
        stage.play(f"run {number}", partial(watch, world))
    stage.run()
    assert levels(stage) == [PoolFactKind.LOW]


def test_of_two_runs_at_once_one_tells_that_the_pool_is_low(every_order: Search) -> None:
    every_order(two_runs_of_a_low_pool, once=True)


def test_a_run_that_is_killed_or_loses_an_answer_tells_the_level_once(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = make_stage(schedule, processes=1, has_level=True)
        stage.held()
        count(stage)
        (job,) = stage.worlds
        stage.may_fail(job, Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.REFUSED)
        stage.play("watch", repeated_if_killed(job, partial(watch, job)))
        results = stage.run()
        if isinstance(results["watch"], StoreUnavailable):
            watch(job)
        assert levels(stage) == [PoolFactKind.LOW]

    every_order(case)


def test_the_holders_late_calls_after_a_warning_and_an_end_are_refused_as_always(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage = make_stage(schedule, processes=3)
        claim = stage.held(overdue=True)
        count(stage)
        job, api, other = stage.worlds
        stage.play("watch", partial(watch, job))
        stage.play("extend", partial(extend, api, claim))
        stage.play("mark", ending("mark", other, claim))
        results = stage.run()
        assert isinstance(results["extend"], (Extension, AllocationEnded))
        assert results["mark"] is True

    every_order(case, once=True)


# -- planted bugs

_sound_commit = MemoryStore.commit


def warn_any_version(memory: MemoryStore, *changes: Change) -> None:
    (change,) = changes
    if change.fact is None or change.fact.kind is not FactKind.EXPIRING:
        _sound_commit(memory, *changes)
        return
    memory._put(change.sandbox_id, change.after)
    memory.facts.append(change.fact)


@pytest.mark.parametrize("case", [against_an_extension, partial(against_an_ending, name="mark"), two_runs])
def test_the_search_finds_a_warning_that_does_not_look_at_the_version(
    monkeypatch: pytest.MonkeyPatch, case: Callable[[Schedule], None]
) -> None:
    monkeypatch.setattr(MemoryStore, "commit", warn_any_version)
    with pytest.raises(AssertionError):
        explore(case)


def test_the_search_finds_a_run_that_does_not_look_whether_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(memory: MemoryStore, sandbox_id: str) -> object:
        found = memory._records.get(sandbox_id)
        return replace(found, lease=replace(found.lease, warned_for=None)) if found and found.lease else found

    monkeypatch.setattr(MemoryStore, "get", forget)
    with pytest.raises(AssertionError):
        explore(killed_and_repeated)


def write_any_level(memory: MemoryStore, before: PoolLevel, after: PoolLevel, fact: PoolFact) -> None:
    memory._level = after
    memory.facts.append(fact)


def test_the_search_finds_a_level_that_is_written_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryStore, "write_level", write_any_level)
    with pytest.raises(AssertionError):
        explore(two_runs_of_a_low_pool)
