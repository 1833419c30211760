"""One broker of real processes a test module, with the settings that the module names in `SETTINGS`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a broker whose pool is filled: one sync has run."""
    settings: dict[str, str] = getattr(request.module, "SETTINGS", {})
    with Stack(tmp_path_factory.mktemp("stack"), settings) as running:
        # Where syncs are sent every few seconds, one of them may be running, and ours be skipped.
        assert wait_until(lambda: running.run_job("sync")["state"] == "succeeded", 30)
        yield running
