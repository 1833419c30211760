"""Remove records from the pool: sandboxes that are stale for too long, or all of a status that an operator names.

Nothing here calls the provider.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError, InvalidInput, UnsafeToAct
from broker_common.core.job_names import Job
from broker_common.core.parallel import for_each
from broker_common.core.pool import remove
from broker_common.core.sandbox import ORDER_LIMIT, Status
from broker_common.core.store import Conflict
from broker_common.core.telemetry import ItemFailed

if TYPE_CHECKING:
    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore

BULK_DELETABLE = (Status.STALE, Status.DELETION_FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeResult:
    """How many records a run removed, and how many it failed to remove."""

    removed: int
    failed: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Removed {self.removed} stale sandboxes"


class Purger:
    """Removes records. A dirty sandbox, or any under `retire`, becomes a tombstone."""

    def __init__(
        self, *, store: SandboxStore, guard: Guard, recorder: Recorder, clock: Clock, policy: Policy, threads: int
    ) -> None:
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._policy = policy
        self._threads = threads

    def run(self, *, by: Actor) -> PurgeResult:
        """Remove sandboxes that are stale for longer than the grace. The next run tries failed ones again.

        Raises `UnsafeToAct`.
        """
        return self._remove(Status.STALE, by, until=self._clock.now() - self._policy.stale_grace_sec)

    def bulk_delete(self, status: Status, *, by: Actor) -> PurgeResult:
        """Remove all records of `status`.

        Raises `InvalidInput` unless `status` is stale or deletion_failed. Raises `UnsafeToAct`.
        """
        if status not in BULK_DELETABLE:
            raise InvalidInput(f"status: must be one of {', '.join(BULK_DELETABLE)}")
        return self._remove(status, by, until=ORDER_LIMIT)

    def _remove(self, status: Status, by: Actor, *, until: int) -> PurgeResult:
        self._guard.check()
        due = list(self._store.read_due(status, until=until))
        outcomes = for_each(partial(self._remove_one, status, by, until), due, threads=self._threads)
        return PurgeResult(removed=outcomes.count(True), failed=outcomes.count(None))

    def _remove_one(self, status: Status, by: Actor, until: int, sandbox_id: str) -> bool | None:
        try:
            self._guard.check()
            sandbox = self._store.get(sandbox_id)
            if sandbox is None or sandbox.status is not status or sandbox.status_order > until:
                return False
            self._store.commit(remove(sandbox, by=by, now=self._clock.now(), policy=self._policy))
        except Conflict:
            return False
        except UnsafeToAct:
            raise
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.PURGE_STALE, sandbox_id=sandbox_id, error=error.message))
            return None
        return True
