"""One broker of real processes for each test module, with the settings in the module's `SETTINGS`.

A module that needs the worker for webhooks says so in `WITH_WEBHOOKS`.
A module that needs several workers for deletions names them in `WORKERS`, and in `THREADS` the number of threads of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.dev import programs
from deploy.dev.processes import wait_until
from tests.e2e.stack import Stack, with_deletion_workers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield a broker whose pool is filled: one sync has run."""
    module = request.module
    settings: dict[str, str] = getattr(module, "SETTINGS", {})
    workers: tuple[str, ...] = getattr(module, "WORKERS", ())
    services = with_deletion_workers(workers, threads=module.THREADS) if workers else programs.services
    with_webhooks: bool = getattr(module, "WITH_WEBHOOKS", False)
    scratch = tmp_path_factory.mktemp("stack")
    with Stack(scratch, settings, services=services, with_webhooks=with_webhooks) as running:
        # Where the schedule sends a sync every few seconds, one may be running, and this one is skipped.
        assert wait_until(lambda: running.run_job("sync")["state"] == "succeeded", 30)
        yield running
