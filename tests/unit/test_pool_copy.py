"""The copy of the pool: what is read again, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.pool_copy import AHEAD_SEC, MAX_AGE_SEC, WHOLE_SEC, PoolCopy
from deploy.dev.processes import wait_until
from tests.fakes import FakeClock, Fault, FlakyStore, at_once, make_sandbox, removal_of
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.sandbox import Sandbox


@pytest.fixture
def world() -> World:
    return World(clock=FakeClock())


def copy_of(world: World) -> PoolCopy:
    """Return a copy that is read again at once where it may be read again aside."""
    return PoolCopy(world.store, world.clock, aside=at_once)


def shown(copy: PoolCopy, **options: float) -> dict[str, Sandbox]:
    _, pool = copy.get(**options)
    return {each.sandbox_id: each for each in pool.sandboxes}


def renamed(sandbox: Sandbox, name: str) -> Sandbox:
    """Return the record as something other than the broker changes it: with the same version."""
    return replace(sandbox, name=name)


def test_a_sandbox_is_read_again_when_its_version_has_changed(world: World) -> None:
    world.memory.seed(make_sandbox("sbx"), make_sandbox("other"))
    copy = PoolCopy(world.store, world.clock)
    shown(copy)
    held = world.allocate("track")
    world.clock.advance(MAX_AGE_SEC + 1)
    lease = shown(copy)[held.claim.sandbox_id].lease
    assert lease is not None
    assert lease.track_id == "track"


def test_a_sandbox_of_the_same_version_is_not_read_again_for_a_minute(world: World) -> None:
    sandbox = make_sandbox("sbx", name="before")
    world.memory.seed(sandbox)
    copy = copy_of(world)
    shown(copy)
    world.memory.seed(renamed(sandbox, "after"))
    world.clock.advance(WHOLE_SEC - 1)
    assert shown(copy)["sbx"].name == "before"
    world.clock.advance(1)
    assert shown(copy)["sbx"].name == "before", "nobody waits for the whole pool to be read again"
    assert shown(copy)["sbx"].name == "after"


def test_who_looks_often_never_waits_for_a_read_and_sees_what_changed(world: World) -> None:
    world.memory.seed(make_sandbox("sbx"))
    waiting: list[Callable[[], None]] = []
    copy = PoolCopy(world.store, world.clock, aside=waiting.append)
    shown(copy)
    for number in range(200):
        world.memory.seed(make_sandbox(f"new-{number}"))
        world.clock.advance(AHEAD_SEC)
        before = world.memory.calls["read_all"]
        shown(copy)
        assert world.memory.calls["read_all"] == before
        (work,) = waiting
        waiting.clear()
        work()
        assert f"new-{number}" in shown(copy)


def test_one_read_at_a_time_is_made_aside(world: World) -> None:
    waiting: list[Callable[[], None]] = []
    copy = PoolCopy(world.store, world.clock, aside=waiting.append)
    shown(copy)
    world.clock.advance(AHEAD_SEC)
    for _ in range(5):
        shown(copy)
    assert len(waiting) == 1


def test_a_read_aside_that_is_late_or_fails_keeps_nobody_from_reading(world: World) -> None:
    store = FlakyStore(world.memory)
    waiting: list[Callable[[], None]] = []
    copy = PoolCopy(store, world.clock, aside=waiting.append)
    shown(copy)
    world.clock.advance(AHEAD_SEC)
    shown(copy)
    world.memory.seed(make_sandbox("new"))
    world.clock.advance(MAX_AGE_SEC)
    assert shown(copy).keys() == {"new"}
    world.clock.advance(WHOLE_SEC)
    store.fail("read_all", Fault.REFUSED)
    waiting.pop()()
    assert shown(copy).keys() == {"new"}
    assert len(waiting) == 1, "the next one is asked for"


def test_without_a_thread_to_spare_the_copy_is_read_when_it_is_too_old(world: World) -> None:
    def none_left(_: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    copy = PoolCopy(world.store, world.clock, aside=none_left)
    shown(copy)
    world.memory.seed(make_sandbox("new"))
    world.clock.advance(AHEAD_SEC)
    assert shown(copy) == {}
    world.clock.advance(MAX_AGE_SEC)
    assert shown(copy).keys() == {"new"}


def test_a_read_aside_runs_in_a_thread_of_its_own(world: World) -> None:
    copy = PoolCopy(world.store, world.clock)
    shown(copy)
    world.memory.seed(make_sandbox("new"))
    world.clock.advance(AHEAD_SEC)
    shown(copy)
    assert wait_until(lambda: shown(copy).keys() == {"new"}, 20)


def test_a_sandbox_that_is_gone_is_not_kept(world: World) -> None:
    world.memory.seed(make_sandbox("sbx"), make_sandbox("gone"))
    copy = PoolCopy(world.store, world.clock)
    shown(copy)
    world.memory.commit(removal_of(make_sandbox("gone")))
    assert shown(copy, max_age=-1).keys() == {"sbx"}


def test_a_younger_copy_can_be_asked_for(world: World) -> None:
    copy = PoolCopy(world.store, world.clock)
    shown(copy)
    world.memory.seed(make_sandbox("new"))
    world.clock.advance(1)
    assert shown(copy) == {}
    assert shown(copy, max_age=0).keys() == {"new"}
