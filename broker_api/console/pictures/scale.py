"""The axes of the pictures: their marks, and the round number at their end."""

from __future__ import annotations

from dataclasses import dataclass

_ROUND = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80)
"""Round numbers of two digits. Ten times each of them is round, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark of an axis: its place in the measure of its picture, and the count or time (Unix seconds) there.

    `text` is what is written there, where the template does not write the value.
    """

    place: float
    value: int
    text: str = ""


def round_up(count: int, *, parts: int) -> int:
    """Return a round number of at least `count`, for the end of an axis that marks divide into `parts` (2 or 4).

    The marks stand for whole numbers. 0 stays 0.
    """
    size = 1
    while count:
        for each in _ROUND:
            top, rest = divmod(each * size, 10)
            if not rest and top >= count and top % parts == 0:
                return top
        size *= 10
    return 0
