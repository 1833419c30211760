"""How many examples a hypothesis test makes up: a fifth of them in a quick run. `make test` makes up all."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

QUICK = "quick"
"""The profile of a quick run. conftest.py loads it before it imports a test."""

settings.register_profile(QUICK)


def examples(count: int, **more: Any) -> settings:
    """Return settings for `count` examples of any duration; `more` are further settings of hypothesis."""
    is_quick = settings.get_current_profile_name() == QUICK
    return settings(max_examples=count // 5 if is_quick else count, deadline=None, **more)
