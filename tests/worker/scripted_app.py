"""A Celery application like the worker's own, whose use cases do what the test says in Redis.

`script:<name>` says how the call of that name behaves, where name is a job's or a sandbox's id; `calls` lists the calls
that were made, with the process that made them.
"""

from __future__ import annotations

import functools
import json
import os
import time
from dataclasses import fields
from random import Random
from typing import TYPE_CHECKING, Any, cast

from celery import signals
from redis import Redis
from redis.exceptions import RedisError

from broker_common.adapters.celery_queue import CeleryWebhookQueue
from broker_common.adapters.log_recorder import LogRecorder
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.adapters.redis_lock import RedisJobLocks
from broker_common.adapters.redis_table_memory import RedisTableMemory
from broker_common.adapters.system_clock import SystemClock
from broker_common.core.counts import Counts
from broker_common.core.deliveries import Deliverer
from broker_common.core.errors import ProviderBusy, SyncBraked
from broker_common.core.expiry import Expirer
from broker_common.core.guard import Guard
from broker_common.core.pauses import PauseCache
from broker_common.core.purge import Purger
from broker_common.core.reserving import Reserver
from broker_common.core.runs import Runs
from broker_common.core.sending import DrainResult
from broker_common.core.store import Pause, Pauses
from broker_common.core.sync import SyncResult
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome
from broker_common.core.watch import Watcher
from broker_common.logs import configure_logging
from broker_common.services import WorkerServices
from broker_common.settings import Process, Settings
from broker_worker.app import create_celery
from tests.fakes import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker_common.core.cleanup import Cleaner
    from broker_common.core.principals import Actor
    from broker_common.core.sending import Sender
    from broker_common.core.sync import Syncer

_COUNTS = [each.name for each in fields(SyncResult) if each.name != "synced"]


class ScriptedStore(MemoryStore):
    """A store whose pauses the test sets."""

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        self._redis = redis

    def read_pauses(self) -> Pauses:
        paused = json.loads(cast("bytes", self._redis.get("pauses")) or "{}")
        return Pauses(**{name: Pause() for name, is_paused in paused.items() if is_paused})


class Script:
    """Stands in for sync, for the deletes of cleanup, and for the sender of webhooks."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def run(self, *, by: Actor, force: bool) -> SyncResult:
        behaviour = self._call("sync", force=force, principal=by.principal)
        if behaviour == "brake":
            raise SyncBraked("too many are missing")
        if behaviour == "crash":
            raise ValueError("a bug")
        return SyncResult(synced=3, **dict.fromkeys(_COUNTS, 0))

    def find_due(self) -> Iterator[str]:
        yield from json.loads(cast("bytes", self._redis.get("due")) or "[]")

    def delete_sandbox(self, sandbox_id: str, *, by: Actor) -> DeleteEnded:
        behaviour = self._call(sandbox_id, principal=by.principal)
        if behaviour == "busy":
            raise ProviderBusy("no slot")
        if behaviour == "crash":
            raise ValueError("a bug")
        outcome = DeleteOutcome(behaviour or "deleted")
        ended = DeleteEnded(outcome=outcome, sandbox_id=sandbox_id, error=None if behaviour is None else "as scripted")
        LogRecorder().record(ended)
        return ended

    def drain(self, endpoint_id: str, *, by: Actor) -> DrainResult:
        self._call(endpoint_id, principal=by.principal)
        return DrainResult(delivered=1, failed=0)

    def _call(self, name: str, **arguments: Any) -> str | None:
        """Note the call, and return how it is to end, once the test no longer holds it, or Redis refuses to say."""
        self._redis.rpush("calls", json.dumps({"name": name, "pid": os.getpid(), **arguments}))
        try:
            while (behaviour := self._redis.get(f"script:{name}")) == b"hold":
                time.sleep(0.02)
        except RedisError:
            return None
        return None if behaviour is None else cast("bytes", behaviour).decode()


@functools.cache
def _services() -> WorkerServices:
    clock, recorder, policy = SystemClock(), LogRecorder(), settings.policy
    redis = Redis.from_url(settings.redis_url)
    store, script = ScriptedStore(redis), Script(redis)
    guard = Guard(store=store, memory=RedisTableMemory(redis, clock), recorder=recorder, clock=clock, rng=Random())
    return WorkerServices(
        clock=clock,
        recorder=recorder,
        store=store,
        guard=guard,
        pauses=PauseCache(store, clock, Random(1)),
        syncer=cast("Syncer", script),
        cleaner=cast("Cleaner", script),
        expirer=Expirer(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy, threads=1),
        purger=Purger(store=store, guard=guard, recorder=recorder, clock=clock, policy=policy, threads=1),
        reserver=Reserver(store=store, guard=guard, recorder=recorder, clock=clock, rng=Random(1), threads=1),
        watcher=Watcher(
            store=store,
            counts=Counts(store, clock, Random(1), max_age=2.0, policy=policy),
            guard=guard,
            recorder=recorder,
            clock=clock,
            rng=Random(1),
            policy=policy,
            threads=1,
        ),
        deliverer=Deliverer(
            store=store,
            queue=CeleryWebhookQueue(settings.redis_url, redis),
            guard=guard,
            recorder=recorder,
            clock=clock,
            threads=1,
        ),
        sender=cast("Sender", script),
        runs=Runs(RedisJobRuns(redis), stall_limit_sec=0.2),
        locks=RedisJobLocks(redis),
    )


settings = Settings.from_env(os.environ, process=Process.BEAT)
signals.setup_logging.connect(lambda **_: configure_logging(level="INFO", fmt="json"), weak=False)
app = create_celery(settings, _services)
