"""Promise 10 on real processes; `tests.long.webhooks` is the long form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.long.webhooks.run import HANGS, Order, describe, find_faults, repeated, run

if TYPE_CHECKING:
    from pathlib import Path

ORDER = Order(changes=300, faults=5)


@pytest.mark.timeout(600)
def test_each_fact_is_told_in_order_while_processes_are_killed_and_receivers_fail(tmp_path: Path) -> None:
    log: list[str] = []
    story = run(ORDER, tmp_path, log.append)
    told = "\n".join([*log, describe(story)])
    assert not find_faults(story), told
    assert len(story.expected("healthy")) >= ORDER.changes / 4, told
    assert len(story.faults) == ORDER.faults, told
    failing = story.receivers["fails half of the time"]
    assert len(failing.received) > 1.3 * len(failing.accepted), told
    assert story.receivers[HANGS].accepted == [], told
    for name, receiver in story.receivers.items():
        # Only what was under way in a process that was killed: eight connections to each endpoint.
        assert repeated(receiver) <= 8 * ORDER.faults, f"{name}\n{told}"
