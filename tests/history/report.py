"""A verdict in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.history.checker import Promise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.history.checker import Verdict

SHOWN = 5
"""Violations of a promise that are shown in full."""


def describe(verdict: Verdict) -> str:
    """Say for each promise what was looked at, whether it was kept, and how the first violations look."""
    return "\n".join(_lines(verdict))


def _lines(verdict: Verdict) -> Iterator[str]:
    for promise in Promise:
        broken = [violation for violation in verdict.violations if violation.promise is promise]
        yield f"{promise.value}. {promise.sentence}: {f'BROKEN {len(broken)} times' if broken else 'kept'}"
        looked_at = ", ".join(f"{number} {what}" for what, number in sorted(verdict.examined[promise].items()))
        yield f"     looked at {looked_at or 'nothing'}"
        for violation in broken[:SHOWN]:
            yield f"   - {violation.text}"
            for record in violation.evidence:
                yield f"       {record}"
