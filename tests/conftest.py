"""Fixtures for every test: the real servers (see `backends`), started only when a test asks for one.

And what the summary says beside pytest's own: it is written by the process that runs no test when others run them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.backends import aws_environment, dynamodb_local_url, ministack_url, redis_url

if TYPE_CHECKING:
    import pytest

__all__ = ["aws_environment", "dynamodb_local_url", "ministack_url", "redis_url"]


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
