"""Whether this process's clock agrees with the store's, told between two reads of the store, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

MAX_DIFFERENCE_SEC = 60


class ClockCheck:
    """Compares a clock with the time that the store told last; safe to use from many threads.

    The store told its time at some moment between question and answer. So a clock counts as wrong only if it is wrong
    for each of these moments: an answer that came late accuses no clock. Between two answers the monotonic clock, which
    nobody sets, tells how far the store's time went on: a clock that is set wrong is noticed at once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._compared: tuple[int, int, int, float] | None = None

    def note(self, *, asked_at: int, told: int | None) -> None:
        """Compare with the time that the store has just `told`, and that it was asked for at `asked_at` (our clock).

        A store that told no time leaves nothing to compare with: then the clock counts as right.
        """
        now = self._clock.now()
        self._compared = None if told is None else (asked_at - told, now - told, now, self._clock.monotonic())

    @property
    def is_known(self) -> bool:
        """Whether the store has told its time."""
        return self._compared is not None

    def difference(self) -> int:
        """Return by how many seconds the clock is ahead (or, negative, behind); 0 within `MAX_DIFFERENCE_SEC`."""
        if self._compared is None:
            return 0
        least, most, then, at = self._compared
        was_set_by = int(self._clock.now() - then - (self._clock.monotonic() - at))
        if least + was_set_by > MAX_DIFFERENCE_SEC:
            return least + was_set_by
        if most + was_set_by < -MAX_DIFFERENCE_SEC:
            return most + was_set_by
        return 0
