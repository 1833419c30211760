"""What pages made of answers that do not change for a while. A page that renews itself need not ask again."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from broker_api.console.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock

KEPT_SEC = 60
_MOST = 50
"""What is kept, of all people together. One is some tens of kilobytes."""
Made = TypeVar("Made")


class Kept:
    """Keeps what `make` returned for less than `KEPT_SEC`, for each token alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._memory: Memory[object] = Memory(clock, longest_sec=KEPT_SEC - 1, most_size=_MOST)

    def get(
        self, token: str, name: str, make: Callable[[], Made | None], *, may_keep: Callable[[], bool] = lambda: True
    ) -> Made | None:
        """Return what is kept under `name`, or what `make` returns now.

        None is not kept, and nothing unless `may_keep` returns true afterwards.
        """
        found, now = self._memory.get(token, name), self._clock.now()
        if found is not None:
            return cast("Made", found[1])
        # Two requests at the same time may both do it, because it calls the API.
        made = make()
        if made is not None and may_keep():
            self._memory.put(token, name, made, at=now)
        return made

    def forget(self, token: str) -> None:
        """Drop what was made for this token."""
        self._memory.forget(token)
