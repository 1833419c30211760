"""What the console remembers for each token goes away by age, and by room."""

from __future__ import annotations

import gc
import weakref

from broker_api.console.memory import Memory
from tests.fakes import START, FakeClock


class Value:
    """Something that a test can see the end of."""


def test_a_value_is_given_until_it_is_too_old_and_never_to_another_token() -> None:
    clock = FakeClock()
    memory: Memory[str] = Memory(clock, longest_sec=60, most_size=10)
    memory.put("anna's", "page", "text", at=START)
    clock.advance(60)
    assert memory.get("anna's", "page") == (START, "text")
    assert memory.get("olga's", "page") is None
    clock.advance(1)
    assert memory.get("anna's", "page") is None


def test_what_is_too_old_leaves_memory_when_a_value_of_anybody_comes() -> None:
    clock = FakeClock()
    memory: Memory[Value] = Memory(clock, longest_sec=60, most_size=10)
    old, young = Value(), Value()
    seen, still = weakref.ref(old), weakref.ref(young)
    memory.put("anna's", "page", old, at=START)
    clock.advance(61)
    memory.put("olga's", "page", young, at=clock.now())
    del old, young
    gc.collect()
    assert seen() is None
    assert still() is not None


def test_the_oldest_values_make_room_for_a_large_one_and_one_that_is_put_again_counts_once() -> None:
    memory: Memory[str] = Memory(FakeClock(), longest_sec=60, most_size=10)
    for name, size in (("first", 4), ("second", 4), ("second", 5), ("third", 5)):
        memory.put("anna's", name, name, at=START, size=size)
    assert [memory.get("anna's", name) is not None for name in ("first", "second", "third")] == [False, True, True]
