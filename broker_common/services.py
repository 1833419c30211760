"""The one place where rules and technologies are put together, once per process and never at import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker_common.adapters.redis_job_runs import RedisJobRuns
    from broker_common.core.allocation import Allocator
    from broker_common.core.cleanup import Cleaner
    from broker_common.core.ending import Custody
    from broker_common.core.expiry import Expirer
    from broker_common.core.jobs import JobQueue
    from broker_common.core.operations import Operations
    from broker_common.core.pauses import PauseBoard
    from broker_common.core.ports import Clock, Recorder, SandboxStore
    from broker_common.core.purge import Purger
    from broker_common.core.sync import Syncer


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServices:
    """What the API's routes call."""

    clock: Clock
    recorder: Recorder
    store: SandboxStore
    pauses: PauseBoard
    allocator: Allocator
    custody: Custody
    operations: Operations
    purger: Purger
    queue: JobQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerServices:
    """What the worker's tasks call."""

    clock: Clock
    recorder: Recorder
    store: SandboxStore
    pauses: PauseBoard
    syncer: Syncer
    cleaner: Cleaner
    expirer: Expirer
    purger: Purger
    runs: RedisJobRuns
