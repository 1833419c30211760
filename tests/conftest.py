"""Fixtures for every test: the real servers (see `backends`). Each starts when the first test asks for it.

Also here: `--quick`, the pytest summary's extra lines, and coverage of the processes that tests start.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from coverage import Coverage

from tests.backends import aws_environment, dynamodb_local_url, ministack_url, redis_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["aws_environment", "dynamodb_local_url", "ministack_url", "redis_url"]

_MEASURED = "COVERAGE_PROCESS_CONFIG"
"""The variable by which coverage.py measures a process."""
_SERVERS = frozenset({"redis_url", "dynamodb_local_url", "ministack_url"})
"""A test that uses one of these fixtures is `slow`, without a mark of its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what is marked slow, as `make check` does")


def pytest_configure() -> None:
    """Measure the processes that tests start, if coverage is measured. Their environments lack the variable for it."""
    if _MEASURED not in os.environ:
        return
    start: Any = subprocess.Popen.__init__

    def start_measured(*args: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
        start(*args, env=env if env is None else {**env, _MEASURED: os.environ[_MEASURED]}, **options)

    subprocess.Popen.__init__ = start_measured  # type: ignore[assignment, method-assign] # in this session only


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as `slow` each test that needs a server. With `--quick`, leave out all slow tests."""
    for item in items:
        if _SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("slow")])
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(autouse=True)
def _no_process_in_a_quick_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a quick test that starts a process, so that `make check` stays quick and needs nothing else."""
    if not request.config.getoption("quick"):
        return

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a test that starts a process needs the mark `slow`")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


def pytest_sessionfinish() -> None:
    """Write down what this process measured: xdist may kill it before its own end does."""
    if measured := Coverage.current():
        measured.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many orders were run, with `-v` of each case."""
    counts = {
        report.nodeid: count
        for report in terminalreporter.getreports("passed")
        for name, count in report.user_properties
        if name == "orders"
    }
    if not counts:
        return
    terminalreporter.section("orders run")
    if terminalreporter.verbosity > 0:
        for nodeid, count in counts.items():
            terminalreporter.line(f"{count:8,}  {nodeid.split('::')[-1]}")
    terminalreporter.line(f"{sum(counts.values()):8,}  in {len(counts)} cases")
