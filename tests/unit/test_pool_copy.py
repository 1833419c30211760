"""The copy of the pool: what is read again, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from broker_common.core.pool_copy import MAX_AGE_SEC, WHOLE_SEC, PoolCopy
from tests.fakes import FakeClock, make_sandbox, removal_of
from tests.world import World

if TYPE_CHECKING:
    from broker_common.core.sandbox import Sandbox


@pytest.fixture
def world() -> World:
    return World(clock=FakeClock())


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
    copy = PoolCopy(world.store, world.clock)
    shown(copy)
    world.memory.seed(renamed(sandbox, "after"))
    world.clock.advance(WHOLE_SEC - 1)
    assert shown(copy)["sbx"].name == "before"
    world.clock.advance(MAX_AGE_SEC + 1)
    assert shown(copy)["sbx"].name == "after"


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
