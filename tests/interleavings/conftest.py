"""Locks that the scheduler knows in place of those of a process, and a count of all orders that were run."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from broker_common.core import pauses, reservoir
from tests.interleavings.scheduler import Lock, explore
from tests.interleavings.stage import commute

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.interleavings.scheduler import Schedule

ORDERS = "orders"


@pytest.fixture(autouse=True)
def _known_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what a process keeps in memory guarded by locks that the scheduler knows."""
    known = SimpleNamespace(Lock=Lock, TIMEOUT_MAX=threading.TIMEOUT_MAX)
    monkeypatch.setattr(reservoir, "threading", known)
    monkeypatch.setattr(pauses, "threading", known)


@pytest.fixture
def every_order(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Give the search, which plays a case in every order and has their number shown with the test's result.

    With `once` orders that differ only by steps that commute are played once.
    """

    def play(case: Callable[[Schedule], object], *, at_locks: bool = False, once: bool = False) -> None:
        record_property(ORDERS, explore(case, at_locks=at_locks, commute=commute if once else None))

    return play


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many orders were run, with `-v` of each case."""
    counts = {
        report.nodeid: count
        for report in terminalreporter.getreports("passed")
        for name, count in report.user_properties
        if name == ORDERS
    }
    if not counts:
        return
    terminalreporter.section("orders run")
    if terminalreporter.verbosity > 0:
        for nodeid, count in counts.items():
            terminalreporter.line(f"{count:8,}  {nodeid.split('::')[-1]}")
    terminalreporter.line(f"{sum(counts.values()):8,}  in {len(counts)} cases")
