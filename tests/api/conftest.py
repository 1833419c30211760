"""An API for each test."""

from __future__ import annotations

import pytest

from tests.api.harness import Api, make_api


@pytest.fixture
def api() -> Api:
    return make_api()
