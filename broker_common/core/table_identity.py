"""Whether the table is the one that the broker knew, and what an operator does who means another one.

Who holds a sandbox is written in the table alone. On a new table, or on an old state of it, every sandbox looks free.
So the broker does not act on a table that is not the one it knew, until an operator says that it is the right one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.ports import Clock, KnownTable, TableMemory
    from broker_common.core.store import PoolState, TableState

INDEX_LAG_SEC = 2
"""How long the index may take to show the records of a first sync."""
_REMEDY = "if it is right all the same, run `broker table accept`"


def find_change(state: TableState, known: KnownTable | None, store: PoolState) -> str | None:
    """Say why the table is not the one that is known; None if it is, or if nothing is known of it yet.

    Asks the store for more only where a sync had succeeded: then the table must have a record of a sandbox.
    """
    if state.is_restored:
        return f"the table is not the one that its layout record was written for: it was restored; {_REMEDY}"
    if known is not None and state.identity != known.identity:
        return f"the table was replaced: its identity is {state.identity}, and {known.identity} was known; {_REMEDY}"
    had_records = state.synced_at is not None or (known is not None and known.had_records)
    if had_records and not _is_just_filled(state) and not store.has_sandboxes():
        return f"the table has no record of a sandbox, although a sync had succeeded; {_REMEDY}"
    return None


def accept_table(store: PoolState, memory: TableMemory, clock: Clock, *, identity: str) -> None:
    """Have all processes take the table as it is now for the right one. May be repeated, also after any failure.

    A table that has changed gets `identity`, so that a process that still uses the one before it stops.
    Raises `LayoutMismatch`, `StoreUnavailable`, `QueueUnavailable`, or `Conflict` if somebody else did the same.
    """
    state, known = store.ping(), memory.recall()
    if known is not None and find_change(state, known, store) is None:
        # Right by what is remembered for all; one process may remember another table.
        memory.replace(known.identity)
        return
    now = clock.now() if state.time is None else state.time
    store.identify(identity, instead_of=state.identity, accepted_at=now)
    memory.replace(identity)


def _is_just_filled(state: TableState) -> bool:
    if state.synced_at is None or state.time is None:
        return False
    return state.time - state.synced_at <= INDEX_LAG_SEC
