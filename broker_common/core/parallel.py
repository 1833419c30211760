"""Running the same small piece of work over many items."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def for_each(work: Callable[[Item], Outcome], items: Iterable[Item], *, threads: int) -> list[Outcome]:
    """Call `work` on every item, `threads` at once, and return the outcomes in order.

    `work` sees the caller's context variables. The first error that `work` lets out is raised, after all others have
    run; with one thread everything runs in the caller's. When the caller itself is interrupted, by a time limit say,
    only what has begun is finished.
    """
    if threads == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(max_workers=threads) as pool:
        try:
            futures = [pool.submit(copy_context().run, work, item) for item in items]
            for future in futures:
                future.exception()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
