"""Decide whether this process may act: its clock agrees with the store's, and the table is the one that it knew.

One look at the store every few seconds answers both. Allocate and the jobs ask here before they act.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.clock_check import ClockCheck
from broker_common.core.deadline import time_left
from broker_common.core.errors import BrokerError, ClockWrong, LayoutMismatch, QueueUnavailable, TableChanged
from broker_common.core.ids import new_id
from broker_common.core.ports import KnownTable
from broker_common.core.store import Conflict
from broker_common.core.table_identity import find_change
from broker_common.core.telemetry import ActionsStopped, StopReason

if TYPE_CHECKING:
    from random import Random

    from broker_common.core.ports import Clock, Recorder, TableMemory
    from broker_common.core.schema import Upgrade
    from broker_common.core.store import PoolState, TableState

MAX_AGE_SEC = 3.0
"""How old the last look may be before the next one. Callers rely on five seconds: the look itself takes the rest."""
_PROMISED_SEC = 5.0
_WAIT_SEC = 1.0
"""How long a thread waits for another thread's look, if the last answer is older than promised."""


class Guard:
    """Looks at the store every few seconds, by one thread at a time; safe to use from many threads.

    While the store does not answer, the last findings stay. Before its first answer everything counts as right: a store
    that does not answer refuses every write itself.
    """

    def __init__(self, *, store: PoolState, memory: TableMemory, recorder: Recorder, clock: Clock, rng: Random) -> None:
        self._store = store
        self._memory = memory
        self._recorder = recorder
        self._clock = clock
        self._rng = rng
        self._times = ClockCheck(clock)
        self._known: KnownTable | None = None
        self._change: str | None = None
        self._upgraded = 0
        self._looking = threading.Lock()
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self._was_off = False

    def check(self, *, look_now: bool = False) -> None:
        """Return if this process may act. The last look at the store decides, or with `look_now` a look now.

        Raises `TableChanged` or `ClockWrong`.
        """
        self._renew(look_now=look_now)
        if problem := self.table_problem():
            raise TableChanged(problem)
        if problem := self.clock_problem():
            raise ClockWrong(problem)

    def clock_problem(self) -> str | None:
        """Return a message about how wrong the clock is; None if it is right, or if the store told no time."""
        difference = self._times.difference()
        if not difference:
            return None
        return f"this process's clock is {difference:+d} s from the store's: correct the clock of its machine"

    def clock_error(self) -> int:
        """Return by how many seconds the clock is surely ahead of the store's (negative: behind)."""
        return self._times.error()

    def table_problem(self) -> str | None:
        """Return a message about why this process must not use the table; None if it is the right one."""
        return self._change

    def is_upgraded(self, to: Upgrade) -> bool:
        """Tell whether an upgrade is finished, so that every process keeps what it brought."""
        self._renew(look_now=False)
        return self._upgraded >= to

    @property
    def has_clock_reading(self) -> bool:
        """Whether the store told its time when it last answered."""
        return self._times.is_known

    def look(self) -> None:
        """Look at the store now. Raises the errors of the store's `ping`."""
        self._asked_at = self._clock.monotonic()
        asked_at = self._clock.now()
        try:
            state = self._store.ping()
            self._times.note(asked_at=asked_at, told=state.time)
            self._change = self._judge(state)
            self._upgraded = state.upgraded
            self._answered_at = self._clock.monotonic()
        except LayoutMismatch as error:
            self._change = error.message
            raise
        finally:
            self._was_off = self.clock_problem() is not None
            self._report()

    def _renew(self, *, look_now: bool) -> None:
        """Look again if the last look is too old, if the clock was set since then, or if `look_now`."""
        if not look_now and not self._is_due() and not self._looking.locked():
            return
        is_recent = self._clock.monotonic() - self._answered_at < _PROMISED_SEC
        wait = 0.0 if is_recent and not look_now else min(_WAIT_SEC, time_left(self._clock))
        if not self._looking.acquire(timeout=max(0.0, wait)):
            return
        try:
            if look_now or self._is_due():
                self.look()
        except BrokerError:
            return  # the last findings stay
        finally:
            self._looking.release()

    def _is_due(self) -> bool:
        if self._clock.monotonic() - self._asked_at >= MAX_AGE_SEC:
            return True
        # While a machine sleeps, its clock may go on and its monotonic clock stop. Then only the store can tell.
        return self.clock_problem() is not None and not self._was_off

    def _judge(self, state: TableState) -> str | None:
        """Compare the table with the one that this process and Redis remember. If it is right, both remember it."""
        try:
            remembered = self._memory.recall()
            can_remember = True
        except QueueUnavailable:
            remembered, can_remember = None, False
        known = self._known or remembered
        if known and remembered and remembered.accepted_at > known.accepted_at:
            known = remembered
        if known is None and state.identity is None:
            state = self._identify(state)
        change = find_change(state, known, self._store)
        if change is None and remembered not in {None, known}:
            change = find_change(state, remembered, self._store)
        if change is None and state.identity is not None:
            known = known or KnownTable(identity=state.identity)
            known = replace(known, had_records=known.had_records or state.synced_at is not None)
            if can_remember and remembered != known:
                self._remember(known)
        self._known = known
        return change

    def _identify(self, state: TableState) -> TableState:
        """Give an identity to a table of an older release. If another process does so first, the next look sees it."""
        identity = new_id(self._rng)
        try:
            self._store.identify(identity, instead_of=None)
        except Conflict:
            return state
        return replace(state, identity=identity)

    def _remember(self, known: KnownTable) -> None:
        try:
            self._memory.remember(known)
        except QueueUnavailable:
            return  # the next look tries again

    def _report(self) -> None:
        for reason, problem in ((StopReason.CLOCK, self.clock_problem()), (StopReason.TABLE, self.table_problem())):
            if problem is not None:
                self._recorder.record(ActionsStopped(reason=reason, error=problem))
