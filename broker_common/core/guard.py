"""Whether this process may act: its clock agrees with the store's, and the table is the one that it knew.

One look at the store every few seconds answers both. What begins or ends an allocation, or destroys, asks here first.
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
    from broker_common.core.store import PoolState, TableState

MAX_AGE_SEC = 3.0
"""Callers rely on five seconds; a look at the store may take up the rest."""
_PROMISED_SEC = 5.0
_PATIENCE_SEC = 1.0
"""How long a thread waits for the look of another one, where what is known is older than promised."""


class Guard:
    """Looks at the store at most every few seconds, by one thread at a time; safe to use from many threads.

    What was wrong stays wrong while the store cannot be asked. What is not known yet counts as right: a store that does
    not answer refuses everything by itself.
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
        self._is_upgraded = False
        self._looking = threading.Lock()
        self._asked_at = float("-inf")
        self._answered_at = float("-inf")
        self._was_off = False

    def check(self, *, afresh: bool = False) -> None:
        """Return if this process may act, by what it learnt within the last seconds, or `afresh` by a look now.

        Raises `TableChanged`, or else `ClockWrong`.
        """
        self._renew(afresh=afresh)
        if problem := self.table_problem():
            raise TableChanged(problem)
        if problem := self.clock_problem():
            raise ClockWrong(problem)

    def clock_problem(self) -> str | None:
        """Say by how much the clock is wrong; None if it is right, or if the store told no time."""
        difference = self._times.difference()
        return f"this process's clock is {difference:+d} s from the store's" if difference else None

    def table_problem(self) -> str | None:
        """Say why nothing may be done on the table; None if it is the right one."""
        return self._change

    def is_upgraded(self) -> bool:
        """Tell whether no process of a release before this one runs, so that facts are complete and flags heeded."""
        self._renew(afresh=False)
        return self._is_upgraded

    @property
    def has_clock_reading(self) -> bool:
        """Whether the store told its time at the last look."""
        return self._times.is_known

    def look(self) -> None:
        """Look at the store now. Raises what the store's `ping` raises."""
        self._asked_at = self._clock.monotonic()
        asked_at = self._clock.now()
        try:
            state = self._store.ping()
            self._times.note(asked_at=asked_at, told=state.time)
            self._change = self._judge(state)
            self._is_upgraded = state.is_upgraded
            self._answered_at = self._clock.monotonic()
        except LayoutMismatch as error:
            self._change = error.message
            raise
        finally:
            self._was_off = self.clock_problem() is not None
            self._report()

    def _renew(self, *, afresh: bool) -> None:
        """Look again if the last look is too long ago, or if the clock was set since then."""
        if not afresh and not self._is_due() and not self._looking.locked():
            return
        is_young = self._clock.monotonic() - self._answered_at < _PROMISED_SEC
        patience = 0.0 if is_young and not afresh else min(_PATIENCE_SEC, time_left(self._clock))
        if not self._looking.acquire(timeout=max(0.0, patience)):
            return
        try:
            if afresh or self._is_due():
                self.look()
        except BrokerError:
            return  # what was known before holds
        finally:
            self._looking.release()

    def _is_due(self) -> bool:
        if self._clock.monotonic() - self._asked_at >= MAX_AGE_SEC:
            return True
        # On a machine that slept the clock went on and the monotonic one did not: only the store can tell.
        return self.clock_problem() is not None and not self._was_off

    def _judge(self, state: TableState) -> str | None:
        """Compare the table with what this process and Redis remember; have both remember one that is right."""
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
        """Give a table of an older release an identity; if another process does it first, the next look sees it."""
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
