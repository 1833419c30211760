"""Compare the clock of a worker or beat with DynamoDB's every few seconds, for its health."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from broker_common.core.clock_check import ClockCheck

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

_EVERY_SEC = 5.0


class ClockWatch:
    """Compares two clocks in its own thread until the process ends, so that nothing else waits for DynamoDB."""

    def __init__(self, ask: Callable[[], int | None], clock: Clock) -> None:
        """Compare `clock` with the Unix seconds that `ask` returns, or None if it cannot ask now."""
        self._ask = ask
        self._clock = clock
        self._check = ClockCheck(clock)

    def start(self) -> None:
        """Compare once now, and then in the background."""
        self.compare()
        threading.Thread(target=self._keep_comparing, name="clock-watch", daemon=True).start()

    def compare(self) -> None:
        """Ask for the time and compare. If there is no answer, the last comparison still counts."""
        asked_at = self._clock.now()
        answer = self._ask()
        if answer is not None:
            self._check.note(asked_at=asked_at, told=answer)

    def problem(self) -> str | None:
        """Say by how much the clock is wrong; None if it is right, or was not compared yet."""
        difference = self._check.difference()
        return f"its clock is {difference:+d} s from DynamoDB's" if difference else None

    def _keep_comparing(self) -> None:
        while True:
            self._clock.sleep(_EVERY_SEC)
            self.compare()
