"""One broker of real processes a test module, with the settings that the module names in `SETTINGS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a broker whose pool is filled: one sync has run."""
    settings: dict[str, str] = getattr(request.module, "SETTINGS", {})
    with Stack(tmp_path_factory.mktemp("stack"), settings) as running:
        run = running.run_job("sync")
        assert run["state"] == "succeeded", run
        yield running
