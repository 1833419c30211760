"""Sandboxes as they are found in each status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.core.policy import Policy, RecyclePolicy
from tests.fakes import START, changed, make_claim, make_sandbox
from tests.lifecycle import D, F, L, P

if TYPE_CHECKING:
    from broker_common.core.sandbox import Sandbox, Status

NOW = START + 100
REUSE, CONFIRM, RETIRE = (Policy(recycle=each) for each in RecyclePolicy)
COOLING = Policy(cool_down_sec=600)
ENDED = {"last_lease_id": "lease-1", "last_track_id": "track-1"}


def in_status(status: Status, **changes: object) -> Sandbox:
    """Make a record as it would be found in a status, used by a track where it can be, given its fields' flat names."""
    used = status in {L, P, F, D}
    held = make_claim(make_sandbox()).lease
    if status is L:
        changes = {"lease_id": held.lease_id, **changes}
    elif used:
        changes = {**ENDED, **changes}
    due = NOW if status is P else None
    return changed(make_sandbox(status=status, dirty=used, next_attempt_at=due), **changes)


def taken(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox for which a delete attempt is open."""
    return changed(sandbox, attempt_id="a")


def used(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox that is dirty, where it can be."""
    return sandbox if sandbox.is_free else changed(sandbox, dirty=True)


def rested(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox that is wiped and has rested, where it can be."""
    return sandbox if sandbox.status is L else changed(sandbox, dirty=False, ready_at=NOW, next_attempt_at=None)


def flagged(sandbox: Sandbox) -> Sandbox:
    """Return a sandbox that an operator wants set aside once it is wiped."""
    return changed(sandbox, quarantine_reason="smells")
