"""Prometheus and promtool of this machine, and what the tests read of `deploy/`."""

from __future__ import annotations

import pytest

from tests.backends import installed


@pytest.fixture(scope="session")
def promtool() -> str:
    return installed("promtool", package="prometheus")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return installed("prometheus", package="prometheus")
