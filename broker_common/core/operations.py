"""What an operator does with single sandboxes that nobody holds: put aside, and send back to be wiped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker_common.core.domain import ORDER_LIMIT, Sandbox, Status, quarantine, retry_deletion
from broker_common.core.errors import Conflict, InvalidTransition, SandboxNotFound, UnreadableRecord
from broker_common.core.parallel import for_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker_common.core.ports import Clock, SandboxStore


class Operations:
    """An operator's changes to the pool."""

    def __init__(self, *, store: SandboxStore, clock: Clock, threads: int) -> None:
        self._store = store
        self._clock = clock
        self._threads = threads

    def quarantine(self, sandbox_id: str, *, reason: str) -> Sandbox:
        """Put an available or stale sandbox aside, with the reason kept.

        Raises `SandboxNotFound`, and `InvalidTransition` from any other status.
        """
        return self._change(sandbox_id, lambda each: quarantine(each, reason=reason, now=self._clock.now()))

    def retry_deletion(self, sandbox_id: str) -> Sandbox:
        """Send a sandbox whose deletion failed back to be wiped, with a fresh count of attempts.

        Raises `SandboxNotFound`, and `InvalidTransition` from any other status.
        """
        return self._change(sandbox_id, lambda each: retry_deletion(each, now=self._clock.now()))

    def bulk_retry(self) -> int:
        """Send all sandboxes whose deletion failed back to be wiped, and return how many."""
        failed = list(self._store.read_due(Status.DELETION_FAILED, until=ORDER_LIMIT))
        return for_each(self._retried, failed, threads=self._threads).count(True)

    def _retried(self, sandbox_id: str) -> bool:
        try:
            self.retry_deletion(sandbox_id)
        except (InvalidTransition, SandboxNotFound, UnreadableRecord):
            return False
        return True

    def _change(self, sandbox_id: str, transition: Callable[[Sandbox], Sandbox]) -> Sandbox:
        sandbox = self._store.get(sandbox_id)
        while sandbox is not None:
            changed = transition(sandbox)
            try:
                self._store.update(sandbox, changed)
            except Conflict as conflict:
                sandbox = conflict.current
            else:
                return changed
        raise SandboxNotFound(f"there is no sandbox {sandbox_id!r}")
