"""The calls of the store and the provider that are steps, by their names: which touch what, and which only read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scheduler.schedule import Step

TOUCHED = {
    "list_accounts": "the provider's list",
    "read_pauses": "pauses",
    "read_watermark": "watermark",
    "write_watermark": "watermark",
}
"""What a call reads or writes, where that is not sandboxes and claims."""
READS = {
    "get",
    "get_claim",
    "read_candidates",
    "read_removed",
    "read_all",
    "read_due",
    "read_watermark",
    "read_pauses",
    "list_accounts",
}
LOOKS = {"ping", "has_sandboxes"}
"""What the guard reads, which no case changes: these are no steps, for they lead to the same wherever they come."""


def commute(one: Step, other: Step) -> bool:
    """Tell whether two steps lead to the same, whichever comes first.

    Two processes share nothing but the store and the provider. So two of their calls commute if both only read, or
    touch different things. (No case changes the provider's list or the pauses.)
    """
    if one.by is None or other.by is None or one.by == other.by:
        return False
    return {one.what, other.what} <= READS or TOUCHED.get(one.what) != TOUCHED.get(other.what)
