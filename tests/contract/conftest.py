"""Which of the contract's tests are slow."""

from __future__ import annotations

import pytest

SLOW_ENGINE = "TestOnMoto"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow on moto, where each call takes milliseconds of processor time, what a quick run does in memory alone.

    These are the tests of many examples or calls, and of each other test all parameters but the first. `make test` runs
    everything on every engine.
    """
    seen = set()
    for item in items:
        if not isinstance(item, pytest.Function) or item.cls is None or item.cls.__name__ != SLOW_ENGINE:
            continue
        has_many = getattr(item.obj, "is_hypothesis_test", False) or item.get_closest_marker("many_calls")
        if has_many or item.originalname in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(item.originalname)
