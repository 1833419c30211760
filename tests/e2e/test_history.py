"""The promises on real processes, while these are killed, the store and the provider fail, and Redis goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.long.history.checker import check
from tests.long.history.report import describe, summarize
from tests.long.history.run import Order, Unfinished, run

if TYPE_CHECKING:
    from pathlib import Path

ORDER = Order(seed=1, calls=1700, faults=18, calls_a_second=40)


@pytest.mark.timeout(900)
def test_no_promise_is_broken_under_faults(dynamodb_local_url: str, tmp_path: Path) -> None:
    log: list[str] = []
    history = run(ORDER, tmp_path, dynamodb_local_url, log.append)
    verdict = check(history)
    told = "\n".join([*log, summarize(history), describe(verdict)])
    again = f"python -m tests.long.history --seed {ORDER.seed} --operations {ORDER.calls} --faults {ORDER.faults}"
    assert not verdict.violations, f"{told}\nto run this again: {again}"
    assert len(history.calls) >= ORDER.calls
    assert len({fault.name for fault in history.faults if fault.hits}) >= 12, f"the faults struck\n{told}"


def test_a_run_that_fails_on_its_way_hands_over_what_it_has_seen(dynamodb_local_url: str, tmp_path: Path) -> None:
    def fail_at_the_first_fault(line: str) -> None:
        raise OSError(line)

    with pytest.raises(Unfinished) as unfinished:
        run(Order(seed=1, calls=60, faults=1, calls_a_second=40), tmp_path, dynamodb_local_url, fail_at_the_first_fault)
    assert isinstance(unfinished.value.__cause__, OSError)
    history = unfinished.value.history
    verdict = check(history)
    assert history.calls
    assert history.scans
    assert not verdict.violations, describe(verdict)
