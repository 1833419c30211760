"""Fixtures for every test: the real servers (see `backends`), started only when a test asks for one.

And what the summary says beside pytest's own: it is written by the process that runs no test when others run them.
And that coverage reaches the processes of the tests.
"""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from coverage import Coverage

from tests.backends import aws_environment, dynamodb_local_url, ministack_url, redis_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

__all__ = ["aws_environment", "dynamodb_local_url", "ministack_url", "redis_url"]

_MEASURED = "COVERAGE_PROCESS_CONFIG"
"""By this variable coverage.py has a process measured."""


def pytest_configure() -> None:
    """Where coverage is measured, have every process that a test starts measured too: they are told no variable of ours."""
    if _MEASURED not in os.environ:
        return
    start: Any = subprocess.Popen.__init__

    def start_measured(*args: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
        start(*args, env=env if env is None else {**env, _MEASURED: os.environ[_MEASURED]}, **options)

    subprocess.Popen.__init__ = start_measured  # type: ignore[assignment, method-assign] # in this session only


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
