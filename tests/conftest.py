"""Fixtures for every test: the real servers (see `backends`). Each starts when the first test asks for it.

Also here: `--quick`, the number of orders run in pytest's summary, and coverage of the processes that tests start.
"""

from __future__ import annotations

import os
import subprocess
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import pytest
from coverage import Coverage
from hypothesis import settings

from tests.backends import aws_environment, dynamodb_local_url, ministack_url, redis_url
from tests.examples import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["aws_environment", "dynamodb_local_url", "ministack_url", "redis_url"]

_MEASURED = "COVERAGE_PROCESS_CONFIG"
"""The variable by which coverage.py measures a process."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="skip tests that start a process or are `slow`")


def pytest_configure(config: pytest.Config) -> None:
    """Have a quick run make up fewer examples. Measure the processes that tests start, if coverage is measured."""
    if config.getoption("quick"):
        settings.load_profile(QUICK)
    if _MEASURED not in os.environ:
        return
    # Their environments lack the variable for it.
    start: Any = subprocess.Popen.__init__

    def start_measured(*args: Any, env: Mapping[str, str] | None = None, **options: Any) -> None:
        start(*args, env=env if env is None else {**env, _MEASURED: os.environ[_MEASURED]}, **options)

    subprocess.Popen.__init__ = start_measured  # type: ignore[assignment, method-assign] # in this session only


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests in a quick run."""
    for item in items:
        if config.getoption("quick") and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip("slow, so `make check` leaves it out: `make test` runs it"))


@pytest.fixture(scope="session", autouse=True)
def _no_process_in_a_quick_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Skip each test that starts a process in a quick run, when it, or a fixture of it, does so."""

    def skip(*_: object, **__: object) -> None:
        pytest.skip("starts a process, so `make check` leaves it out: `make test` runs it")

    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("quick"):
            patch.setattr(subprocess.Popen, "__init__", skip)
            patch.setattr(BaseProcess, "start", skip)
        yield


def pytest_sessionfinish() -> None:
    """Save the coverage of this process now: xdist may kill it before it does so itself."""
    if measured := Coverage.current():
        measured.save()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Add the number of orders run, with `-v` of each case. Under xdist its main process, which runs no test, does so."""
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
