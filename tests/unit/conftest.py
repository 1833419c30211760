"""Worlds to run the same use cases in: a store that behaves, one that loses races, one whose index lags."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from tests.fakes import FakeClock, LaggingStore, LosingStore, Rival
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable


def lagging() -> World:
    clock = FakeClock()
    return World(clock=clock, memory=LaggingStore(clock, Random(5)))


WORLDS: dict[str, Callable[[], World]] = {
    "plain": World,
    "losing": lambda: World(wrap=LosingStore),
    "losing to renames": lambda: World(wrap=lambda memory: LosingStore(memory, rival=Rival.RENAMES)),
    "lagging": lagging,
}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    """Give each kind of world in turn."""
    return WORLDS[request.param]()


@pytest.fixture
def plain() -> World:
    """Give the world in which nothing goes wrong by itself."""
    return World()
