"""What an operator can do to a sandbox: in which states, and by which call of the API.

The page of one sandbox and the list share it. The API has the last word: a state may change while a form is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker_api.console.many_calls import Call
from broker_common.adapters.broker_http import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

_QUARANTINED_BEFORE_WIPE = frozenset({"allocated", "pending_deletion"})
_QUARANTINED_AT_ONCE = frozenset({"available", "reserved", "stale"})


def possible(sandbox: Mapping[str, Any]) -> list[str]:
    """Return the names of the acts that the state of `sandbox` allows."""
    status, is_flagged = sandbox["status"], sandbox["quarantine_reason"] is not None
    allowed = {
        "release": status == "allocated",
        "extend": status == "allocated",
        "retry": status == "deletion_failed",
        "quarantine": status in _QUARANTINED_AT_ONCE or (status in _QUARANTINED_BEFORE_WIPE and not is_flagged),
        "lift": status in _QUARANTINED_BEFORE_WIPE and is_flagged,
    }
    return [name for name, is_allowed in allowed.items() if is_allowed]


def release(sandbox_id: str, *, lease_id: str) -> Call:
    """Return the call that ends the lease `lease_id`, and no other one."""
    return _call(sandbox_id, "POST", "release", {"lease_id": lease_id})


def extend(sandbox_id: str, *, lease_id: str, expires_at: int) -> Call:
    """Return the call that has the lease `lease_id` last until `expires_at`."""
    return _call(sandbox_id, "POST", "extend", {"lease_id": lease_id, "expires_at": expires_at})


def quarantine(sandbox_id: str, *, reason: str) -> Call:
    """Return the call that sets a sandbox aside."""
    return _call(sandbox_id, "POST", "quarantine", {"reason": reason})


def lift(sandbox_id: str) -> Call:
    """Return the call that cancels a quarantine which waits for the wipe."""
    return _call(sandbox_id, "DELETE", "quarantine")


def retry(sandbox_id: str) -> Call:
    """Return the call that sends a sandbox to be wiped again."""
    return _call(sandbox_id, "POST", "retry-deletion")


def _call(sandbox_id: str, method: str, what: str, json: Mapping[str, Any] | None = None) -> Call:
    return Call(name=sandbox_id, method=method, path=f"/sandboxes/{quoted(sandbox_id)}/{what}", json=json)
