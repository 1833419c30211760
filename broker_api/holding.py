"""Says how long a request may keep its thread while its track waits in line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from broker_api.current import current
from broker_api.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

IS_CLIENT_THERE = "broker.is_client_there"
"""In the WSGI environment: tells whether the client is still connected. No header has such a name."""


class Holding:
    """Tells whether the current request may be held now; use it in a `with` statement.

    It may while its client is connected, the process need not stop, and, from the first such question until the block
    ends, one of the threads that may wait is its own.
    """

    def __init__(self) -> None:
        self._shared = runtime()
        self._is_client_there: Callable[[], bool] = current().environ.get(IS_CLIENT_THERE, lambda: True)
        self._has_thread = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_thread:
            self._shared.line_waits.release()

    def may_hold(self) -> bool:
        """Tell whether the request may be held now."""
        if self._shared.draining or not self._is_client_there():
            return False
        self._has_thread = self._has_thread or self._shared.line_waits.acquire(blocking=False)
        return self._has_thread
