"""Set sandboxes aside for an operator, undo that, and send sandboxes to be wiped again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.errors import InvalidTransition, SandboxNotFound, UnreadableRecord, UpgradeUnfinished
from broker_common.core.parallel import for_each
from broker_common.core.pool import lift_quarantine, quarantine
from broker_common.core.sandbox import ORDER_LIMIT, Sandbox, Status
from broker_common.core.schema import Upgrade
from broker_common.core.store import Conflict
from broker_common.core.wipe import retry_deletion

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.facts import Change
    from broker_common.core.guard import Guard
    from broker_common.core.ports import Clock
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore


class Operations:
    """Makes an operator's changes to sandboxes."""

    def __init__(self, *, store: SandboxStore, guard: Guard, clock: Clock, threads: int) -> None:
        self._store = store
        self._guard = guard
        self._clock = clock
        self._threads = threads

    def quarantine(self, sandbox_id: str, *, reason: str, by: Actor) -> Sandbox:
        """Set a sandbox aside and store `reason`: at once, or after the wipe if it is held or waits to be wiped.

        Raises `SandboxNotFound`; `InvalidTransition` if it is set aside or removed already; `UpgradeUnfinished` if it
        must wait for the wipe while processes of an earlier release may run, because they would ignore the order.
        """

        def transition(sandbox: Sandbox) -> Change:
            change = quarantine(sandbox, reason=reason, by=by, now=self._clock.now())
            if change.result.status is sandbox.status and not self._guard.is_upgraded(Upgrade.FACTS):
                raise UpgradeUnfinished("set aside a sandbox that is held")
            return change

        return self._change(sandbox_id, transition)

    def lift_quarantine(self, sandbox_id: str, *, by: Actor) -> Sandbox:
        """Cancel a quarantine that waits for the wipe. The sandbox then goes the usual way. May be repeated.

        Raises `SandboxNotFound`, and `InvalidTransition` unless it is held or waits to be wiped.
        """
        return self._change(sandbox_id, lambda each: lift_quarantine(each, by=by, now=self._clock.now()))

    def retry_deletion(self, sandbox_id: str, *, by: Actor) -> Sandbox:
        """Send a sandbox in `deletion_failed` to be wiped again, with a new count of attempts.

        Raises `SandboxNotFound`, and `InvalidTransition` from any other status.
        """
        return self._change(sandbox_id, lambda each: retry_deletion(each, by=by, now=self._clock.now()))

    def bulk_retry(self, *, by: Actor) -> int:
        """Send all sandboxes in `deletion_failed` to be wiped again, and return how many were sent."""
        failed = list(self._store.read_due(Status.DELETION_FAILED, until=ORDER_LIMIT))
        return for_each(partial(self._retry_one, by), failed, threads=self._threads).count(True)

    def _retry_one(self, by: Actor, sandbox_id: str) -> bool:
        try:
            self.retry_deletion(sandbox_id, by=by)
        except (InvalidTransition, SandboxNotFound, UnreadableRecord):
            return False
        return True

    def _change(self, sandbox_id: str, transition: Callable[[Sandbox], Change | None]) -> Sandbox:
        sandbox = self._store.get(sandbox_id)
        while sandbox is not None:
            change = transition(sandbox)
            if change is None:
                return sandbox
            try:
                self._store.commit(change)
            except Conflict as conflict:
                sandbox = conflict.current
            else:
                return change.result
        raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
