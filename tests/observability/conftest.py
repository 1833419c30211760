"""Prometheus and promtool of this machine, and what the tests read of `deploy/`."""

from __future__ import annotations

import os
import shutil

import pytest


def installed(program: str) -> str:
    """Return the path of a program of Debian's package prometheus; skip the test (in CI fail it) where it is missing."""
    path = shutil.which(program)
    if path is None:
        missing = f"{program} is missing (Debian: apt-get install prometheus)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    return installed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return installed("prometheus")
