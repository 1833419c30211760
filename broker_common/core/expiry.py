"""Expire: end the leases whose time is over, because their tracks did not give the sandboxes back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from broker_common.core.errors import BrokerError, UnsafeToAct
from broker_common.core.job_names import Job
from broker_common.core.leases import expire
from broker_common.core.parallel import for_each
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import ItemFailed

if TYPE_CHECKING:
    from broker_common.core.guard import Guard
    from broker_common.core.policy import Policy
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiryResult:
    """How many leases one run ended, and for how many sandboxes it failed."""

    expired: int
    failed: int

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Marked {self.expired} sandboxes for auto-expiry"


class Expirer:
    """Ends the leases that are past their expiry and buffer. It reads no other sandboxes."""

    def __init__(
        self, *, store: SandboxStore, guard: Guard, recorder: Recorder, clock: Clock, policy: Policy, threads: int
    ) -> None:
        self._store = store
        self._guard = guard
        self._recorder = recorder
        self._clock = clock
        self._policy = policy
        self._threads = threads

    def run(self, *, by: Actor) -> ExpiryResult:
        """End all leases that are overdue. If one fails, the next run tries it again. Raises `UnsafeToAct`."""
        self._guard.check()
        until = self._clock.now() - self._policy.expiry_buffer_sec
        due = list(self._store.read_due(Status.ALLOCATED, until=until))
        outcomes = for_each(partial(self._expire, by), due, threads=self._threads)
        return ExpiryResult(expired=outcomes.count(True), failed=outcomes.count(None))

    def _expire(self, by: Actor, sandbox_id: str) -> bool | None:
        try:
            return expire(
                sandbox_id,
                by=by,
                store=self._store,
                guard=self._guard,
                recorder=self._recorder,
                clock=self._clock,
                policy=self._policy,
            )
        except UnsafeToAct:
            raise
        except BrokerError as error:
            self._recorder.record(ItemFailed(job=Job.EXPIRE, sandbox_id=sandbox_id, error=error.message))
            return None
