"""The calls of the store and the provider that count as steps: what each touches, and which only read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scheduler.schedule import Step

TOUCHED = {
    "list_accounts": "the provider's list",
    "read_pauses": "pauses",
    "read_watermark": "watermark",
    "write_watermark": "watermark",
    "read_counts": "counts",
    "write_counts": "counts",
}
"""The thing that a call reads or writes, if that is not sandboxes and claims."""
READS = {
    "get",
    "get_claim",
    "read_candidates",
    "read_removed",
    "read_all",
    "read_due",
    "read_watermark",
    "read_pauses",
    "read_counts",
    "read_reservations",
    "read_reservation",
    "count",
    "oldest_pending_deletion",
    "list_accounts",
}
LOOKS = {"ping", "has_sandboxes"}
"""Calls of the guard. No case changes what they read, so their place does not matter and they are no steps."""


def commute(one: Step, other: Step) -> bool:
    """Tell whether two steps lead to the same state in either order.

    Two processes share nothing but the store and the provider. So two of their calls commute if both only read, or
    touch different things. (No case changes the provider's list or the pauses.)
    """
    if one.by is None or other.by is None or one.by == other.by:
        return False
    return {one.what, other.what} <= READS or TOUCHED.get(one.what) != TOUCHED.get(other.what)
