"""A console for each test, with an admin signed in."""

from __future__ import annotations

import pytest

from tests.console.harness import Console, make_console


@pytest.fixture
def stranger() -> Console:
    """Return a console in which nobody is signed in."""
    return make_console()


@pytest.fixture
def console(stranger: Console) -> Console:
    """Return a console in which an admin is signed in."""
    assert stranger.sign_in().status_code == 303
    return stranger
