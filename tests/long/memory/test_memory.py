"""The memory of API and worker under 20,000 requests and 1,000 tasks: the short form of `python -m tests.long.memory`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.long.memory.run import POOL, REQUESTS_OF_A_LIFE, measure

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of processes in /proc: run it on Linux")
@pytest.mark.timeout(600)
def test_no_process_grows_under_requests_and_tasks(tmp_path: Path) -> None:
    assert (ROUNDS * POOL * REQUESTS_OF_A_LIFE, ROUNDS * POOL) == (20_000, 1000)
    log: list[str] = []
    growths = measure(ROUNDS, tmp_path, log.append)
    told = "\n".join(log)
    assert len(growths) == 7, f"API and jobs have a parent and two children each, deletions one process\n{told}"
    assert [growth.process for growth in growths if not growth.is_flat] == [], told
