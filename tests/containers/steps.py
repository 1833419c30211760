"""The steps of a run, with their seconds: what `make containers` prints."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Steps:
    """Prints each step when it has ended. `say` prints one line, past the capture of pytest."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure and print one step; also one that fails."""
        began = time.monotonic()
        result = "FAILED"
        try:
            yield
            result = "ok"
        finally:
            self.say(f"{time.monotonic() - began:7.1f} s  {result:6}  {name}")
