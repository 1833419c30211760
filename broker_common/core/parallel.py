"""Call one function for many items, in several threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def for_each(work: Callable[[Item], Outcome], items: Iterable[Item], *, threads: int) -> list[Outcome]:
    """Call `work` on every item, in `threads` threads, and return the outcomes in the order of the items.

    `work` sees the caller's context variables. If `work` raises, the first error is raised after all items have run.
    With one thread, everything runs in the caller's thread, and the first error ends it. If the caller itself is
    interrupted, for example by a time limit, only calls that have begun are finished.
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
