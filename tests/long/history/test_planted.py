"""The checker finds each planted bug by the promise that it breaks, and nothing in the same run without it."""

from __future__ import annotations

import pytest

from tests.long.history.checker import Promise, check
from tests.long.history.planted import Bug
from tests.long.history.report import describe
from tests.long.history.simulation import POOL, simulate

CALLS = 600
SEEDS = (1, 2, 3, 4, 5)
SMALL_POOL = 3
"""So few sandboxes that the line is long."""


@pytest.mark.parametrize(
    ("bug", "promises", "pool"),
    [
        (Bug.SYNC, {Promise.ONE_HOLDER, Promise.CLAIMS_AGREE, Promise.NO_DELETE_IN_USE}, POOL),
        (Bug.CLAIM, {Promise.ONE_SANDBOX, Promise.CLAIMS_AGREE}, POOL),
        (Bug.EXPIRY, {Promise.ONE_HOLDER, Promise.CLAIMS_AGREE, Promise.NO_DELETE_IN_USE}, POOL),
        (Bug.CLEANUP, {Promise.NO_DELETE_IN_USE}, POOL),
        (Bug.EXTENSION, {Promise.CLAIMS_AGREE, Promise.FACTS, Promise.LATEST_END}, POOL),
        (Bug.LATE_FACT, {Promise.FACTS}, POOL),
        (Bug.FALSE_FACT, {Promise.FACTS}, POOL),
        (Bug.IGNORED_LINE, {Promise.TURN}, SMALL_POOL),
        (Bug.UNCHECKED_DRAW, {Promise.SET_ASIDE}, POOL),
        (Bug.DEAD_HEAD, {Promise.TURN, Promise.HONEST_REFUSAL}, SMALL_POOL),
    ],
)
def test_a_planted_bug_is_found_by_the_promises_that_it_breaks(bug: Bug, promises: set[Promise], pool: int) -> None:
    verdicts = []
    broken = set[Promise]()
    for seed in SEEDS:
        verdicts.append(check(simulate(seed, calls=CALLS, bug=bug, pool=pool)))
        broken |= verdicts[-1].broken
        if promises <= broken:
            return
    pytest.fail("\n".join(map(describe, verdicts)))


@pytest.mark.parametrize("pool", [POOL, SMALL_POOL])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_run_without_a_bug_breaks_nothing(seed: int, pool: int) -> None:
    verdict = check(simulate(seed, calls=CALLS, pool=pool))
    assert not verdict.violations, describe(verdict)
    idle = {promise for promise, examined in verdict.examined.items() if not sum(examined.values())}
    assert not idle, "every promise was looked at"


def test_a_run_is_the_same_each_time() -> None:
    assert simulate(4, calls=100) == simulate(4, calls=100)
