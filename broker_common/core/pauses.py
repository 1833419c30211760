"""Pause and resume operations. Every process knows of a change within seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker_common.core.errors import UnreadableRecord
from broker_common.core.facts import PoolFact, PoolFactKind
from broker_common.core.ids import new_id
from broker_common.core.shared_read import KeptRead
from broker_common.core.store import Conflict, Pause, Pauses

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

    from broker_common.core.ports import Clock
    from broker_common.core.principals import Actor
    from broker_common.core.store import PoolState

MAX_AGE_SEC = 3.0
"""Callers rely on 5 seconds. The rest is for a read of the store."""


class PauseCache:
    """The stored pauses, which one thread at a time reads at most every few seconds."""

    def __init__(self, store: PoolState, clock: Clock, rng: Random) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._kept = KeptRead(self._read, clock, max_age=MAX_AGE_SEC, what="the pauses")

    def _read(self) -> Pauses:
        return self._store.read_pauses()

    def current(self) -> Pauses:
        """Return the pauses, at most a few seconds old. If they cannot be read now, return the last known ones.

        Raises `StoreUnavailable` or `UnreadableRecord` if no pauses are known yet.
        """
        return self._kept.current()

    def set(self, wanted: Mapping[str, bool], *, by: Actor) -> Pauses:
        """Pause or resume the named operations, and return all pauses. An existing pause is left unchanged."""
        while True:
            before, unreadable = self._before(wanted)
            changed = {name: pause for name, pause in wanted.items() if pause != (getattr(before, name) is not None)}
            try:
                pauses = self._set(before, changed, by) if changed else before
            except Conflict:
                if unreadable is not None:
                    raise unreadable from None
                continue
            self._kept.note(pauses)
            return pauses

    def _before(self, wanted: Mapping[str, bool]) -> tuple[Pauses, UnreadableRecord | None]:
        """Return the stored pauses. If they cannot be read, return the opposite of `wanted`, and the error.

        So setting a single pause repairs its record, if somebody has damaged it by hand.
        """
        try:
            return self._store.read_pauses(), None
        except UnreadableRecord as error:
            return Pauses(**{name: None if pause else Pause() for name, pause in wanted.items()}), error

    def _set(self, before: Pauses, changed: Mapping[str, bool], by: Actor) -> Pauses:
        now = self._clock.now()
        after = replace(
            before, **{name: Pause(by=by.principal, since=now) if pause else None for name, pause in changed.items()}
        )
        facts = [
            PoolFact(
                kind=PoolFactKind.PAUSED if pause else PoolFactKind.RESUMED,
                fact_id=new_id(self._rng),
                at=now,
                principal=by.principal,
                request_id=by.request_id,
                details={"operation": name},
            )
            for name, pause in changed.items()
        ]
        return self._store.set_pauses(before, after, *facts)
