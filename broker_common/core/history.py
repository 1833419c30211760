"""What happened, as operators read it: the facts of one sandbox, and the feed of all facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker_common.core.clock_check import MAX_DIFFERENCE_SEC
from broker_common.core.errors import ClockWrong, InvalidInput, SandboxNotFound, UpgradeUnfinished
from broker_common.core.facts import Fact, FactKind, PoolFact, PoolFactKind

if TYPE_CHECKING:
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock
    from broker_common.core.store import Commits, FactPage, Reports

READ_AGAIN_SEC = 120 + MAX_DIFFERENCE_SEC
"""How far back a feed that has reached its end reads again.

Readers rely on 120 seconds. The reader's clock may be ahead of the store's, and the writer's behind it, each by as much
as is borne; beyond both, the index lags.
"""
_FROM, _ON = "f", "c"


@dataclass(frozen=True, slots=True)
class Feed:
    """A page of the feed; `cursor` reads on. `is_last`: nothing came after it when it was read."""

    facts: tuple[Fact | PoolFact, ...]
    cursor: str
    is_last: bool


class History:
    """Facts as operators read them."""

    def __init__(self, *, records: Commits, reports: Reports, guard: Guard, clock: Clock) -> None:
        self._records = records
        self._reports = reports
        self._guard = guard
        self._clock = clock

    def of_sandbox(self, sandbox_id: str, *, limit: int, cursor: str | None) -> FactPage:
        """Return a sandbox's facts, newest first; also those of one that was removed, as long as they are kept.

        Raises `SandboxNotFound`, `UpgradeUnfinished`, and `InvalidInput` for a cursor that was not given by it.
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
        """Return the next facts in the order of time, those of each sandbox in the order in which they happened.

        Reads on after the cursor `after`, or from `since` (Unix seconds) on, or from the oldest that is kept. It is at
        least once: the cursor of a feed's end reads the last `READ_AGAIN_SEC` again, and a reader drops what it knows.
        `kind` and `track_id` leave out other facts, so that an empty page is not the end. Raises `UpgradeUnfinished`,
        `ClockWrong`, and `InvalidInput` for a cursor that was not given by a feed.
        """
        self._check()
        now = self._clock.now()
        place = self._place(after, since, now)
        page = self._reports.read_feed(since=place.floor, cursor=place.cursor, limit=limit)
        facts = tuple(fact for fact in page.facts if _is_wanted(fact, kind, track_id))
        if page.is_last:
            # What shows up late is not before what this round could have met at its start.
            read_on = f"{_FROM}{max(min(place.floor, place.began), place.began - READ_AGAIN_SEC, 0)}"
        else:
            read_on = f"{_ON}{place.began}.{place.floor}.{page.cursor}"
        return Feed(facts, read_on, page.is_last)

    @staticmethod
    def _place(after: str | None, since: int | None, now: int) -> _Place:
        """Return where to read on; raises `InvalidInput`."""
        if after is None:
            return _Place(now, since or 0)
        if found := re.fullmatch(rf"{_FROM}(\d{{1,15}})", after, re.ASCII):
            return _Place(now, int(found[1]))
        if found := re.fullmatch(rf"{_ON}(\d{{1,15}})\.(\d{{1,15}})\.(.+)", after, re.ASCII | re.DOTALL):
            return _Place(min(now, int(found[1])), int(found[2]), found[3])
        raise InvalidInput("after: was not given by this feed")

    def _check(self) -> None:
        if not self._guard.is_upgraded():
            raise UpgradeUnfinished("to read facts, which are not complete yet,")
        if problem := self._guard.clock_problem():
            raise ClockWrong(problem)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a feed is read on: when the round began, the earliest fact that is wanted, and the store's cursor in it."""

    began: int
    floor: int
    cursor: str | None = None


def _is_wanted(fact: Fact | PoolFact, kind: FactKind | PoolFactKind | None, track_id: str | None) -> bool:
    if kind is not None and fact.kind != kind:
        return False
    return track_id is None or (isinstance(fact, Fact) and fact.track_id == track_id)
