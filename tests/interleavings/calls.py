"""The calls of the store and the provider that count as steps: what each touches, and which only read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.scheduler.schedule import Step

RECORDS, LINE = "sandboxes and claims", "the line"
UNTOLD, DELIVERIES, ENDPOINTS = "untold facts", "deliveries", "endpoints"
TOUCHED = {
    "list_accounts": {"the provider's list"},
    "read_pauses": {"pauses"},
    "read_watermark": {"watermark"},
    "write_watermark": {"watermark"},
    "read_counts": {"counts"},
    "write_counts": {"counts"},
    "write_sample": {"samples"},
    "read_level": {"level"},
    "write_level": {"level"},
    "read_line": {LINE},
    "read_place": {LINE},
    "renew": {LINE},
    "leave": {LINE},
    "join": {LINE, RECORDS},
    "allocate": {LINE, RECORDS},
    "find_untold": {UNTOLD},
    "told": {UNTOLD},
    "add_delivery": {DELIVERIES},
    "read_due_deliveries": {DELIVERIES},
    "read_pending": {DELIVERIES},
    "write_delivery": {DELIVERIES},
    "read_endpoints": {ENDPOINTS},
}
"""The things that a call reads or writes, if they are not just sandboxes and claims."""
READS = {
    "get",
    "get_claim",
    "read_candidates",
    "read_removed",
    "read_all",
    "read_due",
    "read_ending",
    "read_level",
    "read_watermark",
    "read_pauses",
    "read_counts",
    "read_line",
    "read_next_due",
    "read_place",
    "read_reservations",
    "read_booked",
    "read_reservation",
    "count",
    "oldest_pending_deletion",
    "list_accounts",
    "find_untold",
    "read_endpoints",
    "read_due_deliveries",
    "read_pending",
}
LOOKS = {"ping", "has_sandboxes"}
"""Calls of the guard. No case changes what they read, so their place does not matter and they are no steps."""
LOOKS_AT_NOBODY = {*LOOKS, "read_line"}
"""Where nobody waits, a look at the line finds nothing, at any place."""


def commute(one: Step, other: Step) -> bool:
    """Tell whether two steps lead to the same state in either order.

    Two processes share nothing but the store and the provider. So two of their calls commute if both only read, or
    touch different things. (No case changes the provider's list or the pauses.)
    """
    if one.by is None or other.by is None or one.by == other.by:
        return False
    if {one.what, other.what} <= READS:
        return True
    return not TOUCHED.get(one.what, {RECORDS}) & TOUCHED.get(other.what, {RECORDS})
