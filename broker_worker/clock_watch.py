"""A process's clock against DynamoDB's, compared every few seconds: for the health of workers and beat."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker_common.core.clock_check import ClockCheck

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

_EVERY_SEC = 5.0


class ClockWatch:
    """Compares until the process ends, in a thread of its own: nobody waits for DynamoDB."""

    def __init__(self, ask: Callable[[], int | None], clock: Clock) -> None:
        """Compare `clock` with what `ask` returns in Unix seconds, or None where it cannot tell now."""
        self._ask = ask
        self._clock = clock
        self._check = ClockCheck(clock)

    def start(self) -> None:
        """Compare once, and from then on in the background."""
        self.compare()
        threading.Thread(target=self._keep_comparing, name="clock-watch", daemon=True).start()

    def compare(self) -> None:
        """Ask for the time; what was known before holds where it is not told."""
        asked_at = self._clock.now()
        told = self._ask()
        if told is not None:
            self._check.note(asked_at=asked_at, told=told)

    def problem(self) -> str | None:
        """Say by how much the clock is wrong; None if it is right, or if nothing is known."""
        difference = self._check.difference()
        return f"its clock is {difference:+d} s from DynamoDB's" if difference else None

    def _keep_comparing(self) -> None:
        while True:
            self._clock.sleep(_EVERY_SEC)
            self.compare()
