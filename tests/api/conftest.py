"""An API for each test."""

from __future__ import annotations

import pytest

from tests.api.harness import Api, make_api


@pytest.fixture
def api() -> Api:
    return make_api()


@pytest.fixture(scope="session")
def shared_api() -> Api:
    """Return an API for tests whose calls change nothing: to make one takes longer than a call."""
    return make_api()
