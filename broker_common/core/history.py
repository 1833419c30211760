"""The facts as operators read them: those of one sandbox, and the feed of all facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import ClockWrong, InvalidInput, SandboxNotFound, UpgradeUnfinished
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind
from broker_common.core.schema import Upgrade

if TYPE_CHECKING:
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock
    from broker_common.core.store import Commits, FactPage, Reports

READ_AGAIN_SEC = 120 + MAX_DIFFERENCE_SEC
"""How many seconds of facts a feed reads again after it has reached its end.

Readers rely on 120 seconds. A fact may show up late because the index lags and because clocks differ: the reader's may
be ahead of the store's and the writer's behind it, each by `MAX_DIFFERENCE_SEC`.
"""
_FROM_TIME, _IN_ROUND, _BACKWARDS = "f", "c", "b"
"""How a cursor begins: read from a time on, read on within a round, or read older facts.

A round is the pages from one start to the feed's end.
"""


@dataclass(frozen=True, slots=True)
class Feed:
    """A page of the feed; `cursor` reads the next one. `is_last`: no further fact was there when it was read."""

    facts: tuple[Fact | PoolFact, ...]
    cursor: str
    is_last: bool


class History:
    """Reads the facts of one sandbox, or of all of them, for operators."""

    def __init__(self, *, records: Commits, reports: Reports, guard: Guard, clock: Clock) -> None:
        self._records = records
        self._reports = reports
        self._guard = guard
        self._clock = clock

    def of_sandbox(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        """Return a sandbox's facts, newest first. Those of a removed sandbox are returned as long as they are kept.

        Raises `SandboxNotFound`, `UpgradeUnfinished`, `ClockWrong`, and `InvalidInput` if `cursor` is not one that this
        method returned for the same sandbox.
        """
        self._check()
        page = self._reports.read_history(sandbox_id, limit=limit, cursor=cursor)
        if not page.facts and page.cursor is None and cursor is None and self._records.get(sandbox_id) is None:
            raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
        return page

    def feed(
        self,
        *,
        limit: int,
        after: str | None = None,
        since: int | None = None,
        kind: FactKind | PoolFactKind | None = None,
        track_id: str | None = None,
    ) -> Feed:
        """Return the next facts in about the order of time; those of one sandbox in the order in which they happened.

        Begins after the cursor `after`, or at `since` (Unix seconds), or at the oldest fact that is kept. Each fact is
        returned at least once: the cursor at the feed's end reads the last `READ_AGAIN_SEC` again, and a reader drops
        the facts that it knows. `kind` and `track_id` leave out other facts, so a page may be empty before the end.
        Raises `UpgradeUnfinished`, `ClockWrong`, and `InvalidInput` if `after` is not a cursor of this feed.
        """
        self._check()
        now = self._clock.now()
        place = self._place(after, since, now)
        page = self._reports.read_feed(since=place.floor, cursor=place.cursor, limit=limit)
        facts = tuple(fact for fact in page.facts if _is_wanted(fact, kind, track_id))
        if page.is_last:
            # A fact that this round missed shows up after its start, so it is at most `READ_AGAIN_SEC` older than that.
            read_on = f"{_FROM_TIME}{max(min(place.floor, place.began), place.began - READ_AGAIN_SEC, 0)}"
        else:
            read_on = f"{_IN_ROUND}{place.began}.{place.floor}.{page.cursor}"
        return Feed(facts, read_on, page.is_last)

    def newest(
        self,
        *,
        limit: int,
        after: str | None = None,
        since: int | None = None,
        kind: FactKind | PoolFactKind | None = None,
        track_id: str | None = None,
    ) -> Feed:
        """Return the newest facts first, or those that come after the cursor `after`, which are older.

        Goes back to `since` (Unix seconds), or to the oldest fact that is kept. A page is a look at the end of the
        feed: it may lack a fact that shows up late, and no cursor returns what happened after the first page was read.
        Filters and errors are those of `feed`.
        """
        self._check()
        if after is not None and not after.startswith(_BACKWARDS):
            raise InvalidInput("after: is not a cursor of this feed with the newest facts first")
        cursor = None if after is None else after.removeprefix(_BACKWARDS)
        page = self._reports.read_feed(since=since or 0, cursor=cursor, limit=limit, newest_first=True)
        facts = tuple(fact for fact in page.facts if _is_wanted(fact, kind, track_id))
        return Feed(facts, f"{_BACKWARDS}{page.cursor}", page.is_last)

    @staticmethod
    def _place(after: str | None, since: int | None, now: int) -> _Place:
        """Return the place from which to read on; raises `InvalidInput`."""
        if after is None:
            return _Place(now, since or 0)
        if found := re.fullmatch(rf"{_FROM_TIME}(\d{{1,15}})", after, re.ASCII):
            return _Place(now, int(found[1]))
        if found := re.fullmatch(rf"{_IN_ROUND}(\d{{1,15}})\.(\d{{1,15}})\.(.+)", after, re.ASCII | re.DOTALL):
            return _Place(min(now, int(found[1])), int(found[2]), found[3])
        raise InvalidInput("after: is not a cursor of this feed; use one that the feed returned, or leave `after` out")

    def _check(self) -> None:
        if not self._guard.is_upgraded(Upgrade.FACTS):
            raise UpgradeUnfinished("read facts, which are not complete yet")
        if problem := self._guard.clock_problem():
            raise ClockWrong(problem)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a feed reads on.

    `began` is when the round began, `floor` the earliest time of its facts; `cursor` is the store's.
    """

    began: int
    floor: int
    cursor: str | None = None


def _is_wanted(fact: Fact | PoolFact, kind: FactKind | PoolFactKind | None, track_id: str | None) -> bool:
    if kind is not None and fact.kind != kind:
        return False
    return track_id is None or (isinstance(fact, Fact) and fact.track_id == track_id)
