"""Detect that the table is not the known one, and let an operator accept another table.

Only the table says which track holds a sandbox. In a new table, or in an old state of it, every sandbox looks free. So
the broker does not act on a table that is not the known one, until an operator says that it is the right one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.core.ports import KnownTable, TableMemory
    from broker_common.core.store import PoolState, TableState

INDEX_LAG_SEC = 2
"""How long the index may take to show the records of a first sync."""
_REMEDY = "if this table is the right one, run `broker table accept`"


def find_change(state: TableState, known: KnownTable | None, store: PoolState) -> str | None:
    """Say why the table is not the known one; None if it is, or if no table is known yet.

    If a sync has succeeded on it, the table must have a record of a sandbox. Only then this reads more of the store.
    """
    if state.is_restored:
        return f"the table was restored: its layout record was written for another table; {_REMEDY}"
    if known is not None and state.identity != known.identity:
        return f"the table was replaced: its identity is {state.identity}, but {known.identity} is known; {_REMEDY}"
    had_records = state.synced_at is not None or (known is not None and known.had_records)
    if had_records and not _is_just_filled(state) and not store.has_sandboxes():
        return f"the table has no record of a sandbox, although a sync had succeeded; {_REMEDY}"
    return None


def accept_table(store: PoolState, memory: TableMemory, *, identity: str) -> None:
    """Make all processes accept the current table. May be repeated, also after any failure.

    A changed table gets `identity`, so that a process that still uses the previous table stops. Raises
    `LayoutMismatch`, `StoreUnavailable`, `QueueUnavailable`, or `Conflict` if another operator did the same.
    """
    state, known = store.ping(), memory.recall()
    if known is not None and find_change(state, known, store) is None:
        # The shared memory knows this table, but a single process may remember another one.
        memory.replace(known.identity)
        return
    store.identify(identity, instead_of=state.identity, last_foreign_sync=state.synced_at)
    memory.replace(identity)


def _is_just_filled(state: TableState) -> bool:
    if state.synced_at is None or state.time is None:
        return False
    return state.time - state.synced_at <= INDEX_LAG_SEC
