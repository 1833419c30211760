"""Says how long a request may keep its thread while its track waits in line."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from broker_api.current import current
from broker_api.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IS_CLIENT_THERE = "broker.is_client_there"
"""In the WSGI environment: tells whether the client is still connected. No header has such a name."""


@contextmanager
def may_hold() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether the current request may be held now.

    It may while its client is connected, the process need not stop, and, from the first such question until the block
    ends, one of the threads that may wait is its own.
    """
    shared = runtime()
    is_client_there: Callable[[], bool] = current().environ.get(IS_CLIENT_THERE, lambda: True)
    has_thread = False
    with ExitStack() as at_end:

        def ask() -> bool:
            nonlocal has_thread
            if shared.draining.is_set() or not is_client_there():
                return False
            if not has_thread and shared.line_waits.acquire(blocking=False):
                has_thread = True
                at_end.callback(shared.line_waits.release)
            return has_thread

        yield ask
