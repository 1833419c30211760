"""Compare this process's clock with the store's, also in the time between two reads of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.ports import Clock

MAX_DIFFERENCE_SEC = 60


class ClockCheck:
    """Compares a clock with the last time that the store told; safe to use from many threads.

    The store reads its time at some moment between our question and its answer. So a clock counts as wrong only if it
    is wrong for each of these moments: a late answer never makes a right clock wrong. After an answer, the monotonic
    clock shows how much time has passed. Nobody sets the monotonic clock, so a clock that is set wrong is noticed at
    once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._compared: tuple[int, int, int, float] | None = None

    def note(self, *, asked_at: int, told: int | None) -> None:
        """Compare the clock with the time that the store `told`; `asked_at` is our clock's time before the question.

        If the store told no time, the clock counts as right.
        """
        now = self._clock.now()
        self._compared = None if told is None else (asked_at - told, now - told, now, self._clock.monotonic())

    @property
    def is_known(self) -> bool:
        """Whether the store told its time when it was last asked."""
        return self._compared is not None

    def error(self) -> int:
        """Return by how many seconds the clock is surely ahead of the store's (negative: behind); 0 if it may be right.

        The store tells whole seconds, so a difference of one proves nothing.
        """
        if self._compared is None:
            return 0
        least, most, compared_at, compared_monotonic = self._compared
        was_set_by = int(self._clock.now() - compared_at - (self._clock.monotonic() - compared_monotonic))
        return max(0, least + was_set_by - 1) + min(0, most + was_set_by + 1)

    def difference(self) -> int:
        """Return how many seconds the clock is ahead (negative: behind); 0 if within `MAX_DIFFERENCE_SEC`."""
        if self._compared is None:
            return 0
        least, most, compared_at, compared_monotonic = self._compared
        was_set_by = int(self._clock.now() - compared_at - (self._clock.monotonic() - compared_monotonic))
        if least + was_set_by > MAX_DIFFERENCE_SEC:
            return least + was_set_by
        if most + was_set_by < -MAX_DIFFERENCE_SEC:
            return most + was_set_by
        return 0
