"""Fixtures: the scheduler's locks in place of a process' own, and the search over all orders."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from broker_common.core import candidate_cache, sending, shared_read, waiting
from tests.interleavings.calls import commute
from tests.scheduler.locks import Lock
from tests.scheduler.strategies import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.scheduler.schedule import Schedule

    Search = Callable[..., None]
    """What `every_order` is."""


@pytest.fixture(autouse=True)
def _known_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guard the memory of a process by the scheduler's locks."""
    known = SimpleNamespace(Lock=Lock, TIMEOUT_MAX=threading.TIMEOUT_MAX)
    for module in (candidate_cache, sending, shared_read, waiting):
        monkeypatch.setattr(module, "threading", known)


@pytest.fixture
def every_order(record_property: Callable[[str, object], None]) -> Search:
    """Return the search: it plays a case in every order, and the test's result shows their number.

    With `once`, orders that differ only by steps that commute are played once.
    """

    def play(case: Callable[[Schedule], object], *, at_locks: bool = False, once: bool = False) -> None:
        record_property("orders", explore(case, at_locks=at_locks, commute=commute if once else None))

    return play
