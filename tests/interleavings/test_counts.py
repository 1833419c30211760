"""Processes that count the pool at the same time, one of which may be slow or die: one counts, and no count goes back."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from broker_common.core.counts import Counts
from broker_common.core.errors import StoreUnavailable
from tests.fakes import Crashed, Fault, MemoryStore, make_sandbox
from tests.interleavings.stage import Stage
from tests.lifecycle import Violation
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.store import CountRecord, PoolCount
    from tests.interleavings.conftest import Search
    from tests.scheduler.schedule import Schedule

RIGHT_SEC = 7


def counting(schedule: Schedule, *, dies: bool = False, gives_back: bool = False) -> tuple[Stage, dict[str, Counts]]:
    """Let two processes ask for the latest count. No stored count may be replaced by one that began earlier."""
    stage = Stage(schedule)
    stage.memory.seed(make_sandbox("sbx-0"))
    counts = {}
    for name, world in zip(("ann", "bob"), stage.worlds, strict=True):
        counts[name] = Counts(world.store, stage.clock, Random(name), max_age=2, policy=world.policy)
        stage.play(name, latest(counts[name], gives_back=gives_back and name == "ann"))
    if dies:
        stage.may_fail(stage.worlds[0], Fault.CRASH_BEFORE)
    began: list[int] = []
    watch = schedule.after_step

    def check() -> None:
        watch()
        stored = stage.memory.read_counts().count
        if stored is not None:
            began.append(stored.began_at)
        if began != sorted(began):
            raise Violation("an older count replaced a newer one")

    schedule.after_step = check
    return stage, counts


def latest(counts: Counts, *, gives_back: bool) -> Callable[[], PoolCount | None]:
    """Make a question for the latest count; the answer is None if the process dies."""

    def ask() -> PoolCount | None:
        try:
            count = counts.latest()[1]
        except Crashed:
            return None
        if gives_back:
            counts.give_back()
        return count

    return ask


def test_of_two_processes_at_once_one_counts_and_both_know_its_count(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage, _ = counting(schedule)
        results = stage.run()
        stored = stage.memory.read_counts().count
        assert stage.memory.calls["count"] == 1
        # One that waited for three seconds gives up. Here time passes only while it waits.
        assert all(each == stored or isinstance(each, StoreUnavailable) for each in results.values())
        assert stored in results.values()

    every_order(case, once=True)


def slow(schedule: Schedule) -> None:
    stage, _ = counting(schedule)
    stage.time_passes(RIGHT_SEC)
    stage.run()
    assert stage.memory.calls["count"] <= 2
    assert stage.memory.read_counts().count is not None


def test_a_count_that_took_longer_than_the_right_to_it_never_replaces_a_newer_one(every_order: Search) -> None:
    every_order(slow, once=True)


def test_a_store_that_writes_without_its_condition_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(store: MemoryStore, record: CountRecord, *, instead_of: str | None) -> None:
        store._counts = record

    monkeypatch.setattr(MemoryStore, "write_counts", write)
    with pytest.raises(Violation, match="an older count"):
        explore(slow)


def test_a_process_that_gives_its_right_back_leaves_the_newest_count_in_place(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage, counts = counting(schedule, gives_back=True)
        stage.run()
        stored = stage.memory.read_counts()
        assert stored.count is not None
        before = stage.memory.calls["count"]
        counts["bob"].latest()
        assert stage.memory.calls["count"] == before + 1, "at once"

    every_order(case, once=True)


def test_a_process_that_dies_at_any_moment_is_replaced(every_order: Search) -> None:
    def case(schedule: Schedule) -> None:
        stage, counts = counting(schedule, dies=True)
        stage.run()
        stage.clock.advance(RIGHT_SEC)
        stage.memory.seed(make_sandbox("sbx-1"))
        _, count = counts["bob"].latest()
        assert sum(count.by_status.values()) == 2

    every_order(case, once=True)
