"""Which of the contract's tests are slow."""

from __future__ import annotations

import pytest

SLOW_ENGINE = "TestOnMoto"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of many examples as slow on moto, where each call takes milliseconds of processor time.

    In a quick run they go on in memory; `make test` runs them on every engine.
    """
    for item in items:
        is_on_moto = isinstance(item, pytest.Function) and item.cls is not None and item.cls.__name__ == SLOW_ENGINE
        if is_on_moto and getattr(item.obj, "is_hypothesis_test", False):
            item.add_marker(pytest.mark.slow)
