"""The records of job runs in Redis, kept for a day. `core/runs.py` decides how a run may change.

A record is a JSON document. The previous release refuses documents with members that it does not know. So newer members
(who requested a run, and when) have a key of their own; a record without that key comes from that release. The times
come from Redis' clock, because a run may begin and end on different machines.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from broker_common.adapters.celery_names import DELETIONS_QUEUE
from broker_common.core.errors import QueueUnavailable
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState
from broker_common.core.runs import KEPT_SEC, CleanupTally, JobRun, principal_of_earlier_release
from broker_common.core.telemetry import DeleteOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis import Redis
    from redis.client import Pipeline

    from broker_common.core.jobs import Jobs
    from broker_common.core.runs import RunChange, RunView

Value = TypeVar("Value")

_PROBE_SEC = 60
_MOST_INDEXED = 1_000
"""Of each job; a page shows a hundred at most."""
# Fixed texts, because Redis' own message may name the user. The first that fits is used.
_REFUSALS: tuple[tuple[type[RedisError], str], ...] = (
    (OutOfMemoryError, "is out of memory"),
    (ReadOnlyError, "is a replica, which takes no writes"),
    (AuthenticationError, "refuses the password"),
    (NoPermissionError, "does not permit its user to do this"),
    (BusyLoadingError, "is still loading its data"),
    (ResponseError, "refuses a command"),
)


class RedisJobRuns:
    """Implements the `JobRuns` port. If Redis refuses a command, the error says why."""

    def __init__(self, redis: Redis, *, jobs: Jobs = JOBS, prefix: str = "sandbox-broker:runs") -> None:
        """Keep runs of `jobs`; a record of another job counts as unknown."""
        self._redis: Any = redis  # its stubs cannot tell its answers from those of the asynchronous one
        self._jobs = jobs
        self._prefix = prefix

    def ping(self) -> None:
        """Check that Redis accepts a write: a full Redis or a replica does not."""
        _call(lambda: self._redis.set(f"{self._prefix}-probe", "", ex=_PROBE_SEC))

    def change(self, job_id: str, decide: Callable[[RunView], tuple[RunChange | None, Value]]) -> Value:
        """Make the change that `decide` returns, and return its value; see the port."""

        def transact(pipe: Pipeline) -> Value:
            view = _View(pipe, self._read(pipe, job_id), self._out_key(job_id))
            change, value = decide(view)
            if change is not None:
                now = view.now
                pipe.multi()
                self._write(pipe, change, is_new=view.run is None or view.run.state is JobState.QUEUED, now=now)
            return value

        keys = self._key(job_id), self._out_key(job_id)
        value: Value = _call(lambda: self._redis.transaction(transact, *keys, value_from_callable=True))
        return value

    def read(self, job_id: str) -> JobRun | None:
        """Return a run."""
        return _call(lambda: self._read(self._redis, job_id))

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        """Return the last runs of these jobs, newest first; fewer where records cannot be read."""

        def read() -> list[JobRun]:
            with self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    pipe.zrange(self._index_key(job), 0, limit - 1, desc=True, withscores=True)
                entries = sorted(((at, _text(each)) for found in pipe.execute() for each, at in found), reverse=True)
            ids = [job_id for _, job_id in entries[:limit]]
            if not ids:
                return []
            documents = self._redis.mget(key for each in ids for key in (self._key(each), self._asked_key(each)))
            found = (self._load(*each) for each in zip(ids, documents[::2], documents[1::2], strict=True))
            return [run for run in found if run is not None]

        return _call(read)

    def read_last_dispatch(self) -> str | None:
        """Return the id of the last run that dispatched deletes, if it is known."""
        job_id = _call(lambda: self._redis.get(self._open_key))
        return None if job_id is None else _text(job_id)

    def forget(self, job_id: str, job: str) -> None:
        """Forget a run."""

        def forget() -> None:
            with self._redis.pipeline() as pipe:
                pipe.delete(self._key(job_id), self._asked_key(job_id), self._out_key(job_id))
                pipe.zrem(self._index_key(job), job_id)
                pipe.execute()

        _call(forget)

    def _read(self, redis: Any, job_id: str) -> JobRun | None:  # noqa: ANN401 - Redis or a pipeline
        return self._load(job_id, *redis.mget(self._key(job_id), self._asked_key(job_id)))

    def _write(self, pipe: Pipeline, change: RunChange, *, is_new: bool, now: float) -> None:
        run = change.run
        out_key, index_key = self._out_key(run.job_id), self._index_key(run.job)
        pipe.set(self._key(run.job_id), _dump(run), ex=change.kept_sec)
        if run.state.is_final:
            pipe.delete(out_key)
        elif change.settle is not None:
            pipe.srem(out_key, change.settle)
        elif change.dispatch:
            pipe.sadd(out_key, *change.dispatch)
            pipe.expire(out_key, KEPT_SEC)
            pipe.set(self._open_key, run.job_id, ex=KEPT_SEC)
        if is_new or run.state.is_final:
            asked = {"principal": run.principal, "queued_at": run.queued_at}
            pipe.set(self._asked_key(run.job_id), json.dumps(asked), ex=change.kept_sec)
            # A run that was queued before keeps its place.
            pipe.zadd(index_key, {run.job_id: now}, nx=True)
            pipe.zremrangebyscore(index_key, "-inf", now - 2 * KEPT_SEC)
            pipe.zremrangebyrank(index_key, 0, -_MOST_INDEXED - 1)
            pipe.expire(index_key, KEPT_SEC)

    def _load(self, job_id: str, document: bytes | None, asked: bytes | None) -> JobRun | None:
        try:
            return None if document is None else self._parse(job_id, json.loads(document), asked)
        except (AttributeError, KeyError, TypeError, ValueError):
            # Another release may have written the record. The run then counts as unknown.
            return None

    def _parse(self, job_id: str, values: dict[str, Any], asked: bytes | None) -> JobRun:
        tally = CleanupTally(
            counts={DeleteOutcome(outcome): count for outcome, count in values.pop("counts").items()},
            errors={DeleteOutcome(outcome): error for outcome, error in values.pop("errors").items()},
        )
        job, state = self._jobs[values.pop("job")].name, JobState(values.pop("state"))
        newer: dict[str, Any] = {"principal": principal_of_earlier_release(job, values.get("requested_by"))}
        if asked is not None:
            newer = json.loads(asked)
        return JobRun(
            job_id=job_id,
            job=job,
            state=state,
            tally=tally,
            principal=newer["principal"],
            queued_at=newer.get("queued_at"),
            **values,
        )

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}:{job_id}"

    def _out_key(self, job_id: str) -> str:
        return f"{self._prefix}:{job_id}:out"

    def _asked_key(self, job_id: str) -> str:
        return f"{self._prefix}-asked:{job_id}"

    def _index_key(self, job: str) -> str:
        return f"{self._prefix}-last:{job}"

    @property
    def _open_key(self) -> str:
        return f"{self._prefix}-open-cleanup"


class _View:
    """A run inside a transaction; reads each part when it is needed."""

    def __init__(self, pipe: Pipeline, run: JobRun | None, out_key: str) -> None:
        self.run = run
        self._pipe: Any = pipe
        self._out_key = out_key
        self._now: float | None = None

    @property
    def now(self) -> float:
        if self._now is None:
            seconds, microseconds = self._pipe.time()
            self._now = float(seconds) + float(microseconds) / 1e6
        return self._now

    def is_open_delete(self, sandbox_id: str) -> bool:
        return bool(self._pipe.sismember(self._out_key, sandbox_id))

    def count_open_deletes(self) -> int:
        return int(self._pipe.scard(self._out_key))

    def read_open_deletes(self) -> list[str]:
        return [_text(each) for each in self._pipe.smembers(self._out_key)]

    def count_queued_deletes(self) -> int:
        self._pipe.watch(DELETIONS_QUEUE)
        return int(self._pipe.llen(DELETIONS_QUEUE))


def _call(call: Callable[[], Value]) -> Value:
    try:
        return call()
    except RedisError as error:
        what = next((words for kind, words in _REFUSALS if isinstance(error, kind)), "does not answer")
        raise QueueUnavailable(f"Redis, which holds the queue and the jobs' records, {what}") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _dump(run: JobRun) -> str:
    return json.dumps(
        {
            "job": run.job,
            "state": run.state,
            "requested_by": run.requested_by,
            "request_id": run.request_id,
            "started_at": run.started_at,
            "progressed_at": run.progressed_at,
            "result": None if run.result is None else dict(run.result),
            "error": run.error,
            "counts": run.tally.counts,
            "errors": run.tally.errors,
        }
    )
