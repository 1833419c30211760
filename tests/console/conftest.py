"""A console for each test, with an admin signed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from broker_common.adapters import oidc_keys
from tests.console.filled import make_filled_api
from tests.console.harness import Console, make_console

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the API wait for the issuer's keys: on a busy machine that may take longer than it waits in service."""
    monkeypatch.setattr(oidc_keys, "WAIT_SEC", 60)


@pytest.fixture
def stranger() -> Console:
    """Return a console in which nobody is signed in."""
    return make_console()


@pytest.fixture
def console(stranger: Console) -> Console:
    """Return a console in which an admin is signed in."""
    assert stranger.sign_in().status_code == 303
    return stranger


@pytest.fixture
def filled(tmp_path: Path) -> Console:
    """Return a console over a broker that has one of everything. Nobody is signed in."""
    return make_console(make_filled_api(tmp_path))
