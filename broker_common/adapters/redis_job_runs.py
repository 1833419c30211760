"""The records of job runs in Redis, kept for a day, and the sum over the deletes of a cleanup.

Each change is one transaction on what was read, so that a run ends once, however often its tasks are delivered. Redis'
own clock times the runs: they begin and end on different machines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
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
from broker_common.core.jobs import Job, JobRun, JobState
from broker_common.core.runs import CleanupTally, Conclusion
from broker_common.core.telemetry import DeleteOutcome, JobEnded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis import Redis
    from redis.client import Pipeline

Value = TypeVar("Value")

KEPT_SEC = 24 * 3600
_PROBE_SEC = 60
# A closed set of words, because Redis' own may name the user. The first that fits holds.
_REFUSALS: tuple[tuple[type[RedisError], str], ...] = (
    (OutOfMemoryError, "is out of memory"),
    (ReadOnlyError, "is a replica, which takes no writes"),
    (AuthenticationError, "refuses the password"),
    (NoPermissionError, "does not permit its user to do this"),
    (BusyLoadingError, "is still loading its data"),
    (ResponseError, "refuses a command"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is recorded of one run. Times are Redis' own, in Unix seconds."""

    job_id: str
    job: Job
    state: JobState
    requested_by: str | None = None
    """The request id of the call that asked for it; None if it was scheduled."""
    request_id: str | None = None
    """The run's own, for its log lines; None until it starts."""
    started_at: float | None = None
    progressed_at: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    tally: CleanupTally = field(default_factory=CleanupTally)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A run that has just ended, and the event that says so."""

    run: Run
    event: JobEnded


class RedisJobRuns:
    """Records of runs. Every method raises `QueueUnavailable` if Redis does not answer, or refuses; it says why.

    A cleanup whose deletes have made no progress for `stall_limit_sec`, with none left in their queue, has lost some.
    """

    def __init__(self, redis: Redis, *, stall_limit_sec: float, prefix: str = "sandbox-broker:runs") -> None:
        self._redis = redis
        self._stall_limit_sec = stall_limit_sec
        self._prefix = prefix

    def ping(self) -> None:
        """Make sure that Redis takes a write, which a full one or a replica does not."""
        self._call(lambda: self._redis.set(f"{self._prefix}-probe", "", ex=_PROBE_SEC))

    def create(self, job_id: str, job: Job, *, requested_by: str) -> None:
        """Record a run that is about to be queued."""
        run = Run(job_id=job_id, job=job, state=JobState.QUEUED, requested_by=requested_by)
        self._call(lambda: self._redis.set(self._key(job_id), _dump(run), ex=KEPT_SEC))

    def discard(self, job_id: str) -> None:
        """Forget a run that could not be queued."""
        self._call(lambda: self._redis.delete(self._key(job_id)))

    def find(self, job_id: str) -> JobRun | None:
        """Return a run as operators see it."""
        run = self._call(lambda: self._read(self._redis, job_id))
        if run is None:
            return None
        return JobRun(job_id=job_id, job=run.job, state=run.state, result=run.result, error=run.error)

    def start(self, job_id: str, job: Job, *, request_id: str) -> Run:
        """Record that a run starts, and return it; one that was started or even ended before is returned as it is."""

        def change(pipe: Pipeline) -> Run:
            known = self._read(pipe, job_id)
            if known is not None and known.state is not JobState.QUEUED:
                return known
            started_at = _now(pipe)
            run = replace(
                known or Run(job_id=job_id, job=job, state=JobState.QUEUED),
                state=JobState.RUNNING,
                request_id=request_id,
                started_at=started_at,
                progressed_at=started_at,
            )
            self._write(pipe, run)
            return run

        return self._transact(change, self._key(job_id))

    def finish(self, job_id: str, conclusion: Conclusion) -> Ended | None:
        """Record how a run ended; None if it has ended before, or is not known any more."""

        def change(pipe: Pipeline) -> Ended | None:
            run = self._read(pipe, job_id)
            if run is None or run.state.is_final:
                return None
            return self._end(pipe, run, conclusion)

        return self._transact(change, self._key(job_id))

    def hand_out(self, job_id: str, sandbox_ids: Iterable[str]) -> list[str]:
        """Record whose deletes a cleanup waits for, and return those that have not reported.

        For a run that has handed out before (its task is delivered again) that is what is still out of the first time.
        """
        ids = list(dict.fromkeys(sandbox_ids))

        def change(pipe: Pipeline) -> list[str]:
            out = sorted(_text(each) for each in pipe.smembers(self._out_key(job_id)))
            if out:
                return out
            run = self._read(pipe, job_id)
            if run is None or run.state.is_final or not ids:
                return []
            run = replace(run, progressed_at=_now(pipe))
            self._write(pipe, run)
            pipe.sadd(self._out_key(job_id), *ids)
            pipe.expire(self._out_key(job_id), KEPT_SEC)
            pipe.set(self._open_key, job_id, ex=KEPT_SEC)
            return ids

        return self._transact(change, self._key(job_id), self._out_key(job_id))

    def settle(self, job_id: str, sandbox_id: str, outcome: DeleteOutcome, error: str | None) -> Ended | None:
        """Add one delete's outcome to its cleanup; the last one ends the run, and only that call returns it.

        A delete that reports twice counts once, and one that reports after its run was ended counts no more.
        """

        def change(pipe: Pipeline) -> Ended | None:
            run = self._read(pipe, job_id)
            if not pipe.sismember(self._out_key(job_id), sandbox_id) or run is None or run.state.is_final:
                return None
            is_last = pipe.scard(self._out_key(job_id)) == 1
            run = replace(run, progressed_at=_now(pipe), tally=run.tally.add(outcome, error))
            if is_last:
                return self._end(pipe, run, run.tally.conclude())
            self._write(pipe, run)
            pipe.srem(self._out_key(job_id), sandbox_id)
            return None

        return self._transact(change, self._key(job_id), self._out_key(job_id))

    def find_open_cleanup(self) -> str | None:
        """Return the id of the cleanup whose deletes have not all reported."""

        def find() -> str | None:
            job_id = self._redis.get(self._open_key)
            if job_id is None:
                return None
            run = self._read(self._redis, _text(job_id))
            return None if run is None or run.state.is_final else run.job_id

        return self._call(find)

    def end_stalled_cleanup(self, job_id: str) -> Ended | None:
        """End a cleanup, as partial, if deletes of it were lost; None if it goes on, or has ended."""

        def change(pipe: Pipeline) -> Ended | None:
            run = self._read(pipe, job_id)
            if run is None or run.state.is_final or pipe.llen(DELETIONS_QUEUE):
                return None
            if _now(pipe) - (run.progressed_at or 0) <= self._stall_limit_sec:
                return None
            return self._end(pipe, run, run.tally.conclude(partial=True))

        return self._transact(change, self._key(job_id), self._out_key(job_id), DELETIONS_QUEUE)

    def _end(self, pipe: Pipeline, run: Run, conclusion: Conclusion) -> Ended:
        now = _now(pipe)
        result = None if conclusion.result is None else dict(conclusion.result)
        run = replace(run, state=conclusion.state, result=result, error=conclusion.error, progressed_at=now)
        self._write(pipe, run)
        pipe.delete(self._out_key(run.job_id))
        return Ended(
            run=run,
            event=JobEnded(
                job=run.job,
                outcome=conclusion.outcome,
                seconds=max(0.0, now - (run.started_at or now)),
                message=conclusion.message,
                error=conclusion.error,
            ),
        )

    def _read(self, redis: Redis | Pipeline, job_id: str) -> Run | None:
        document = redis.get(self._key(job_id))
        try:
            return None if document is None else _load(job_id, document)
        except (AttributeError, KeyError, TypeError, ValueError):
            # It may be another release's record. Here the run then counts as unknown.
            return None

    def _write(self, pipe: Pipeline, run: Run) -> None:
        """Begin the transaction's writes with the run's own."""
        pipe.multi()
        pipe.set(self._key(run.job_id), _dump(run), ex=KEPT_SEC)

    def _transact(self, change: Callable[[Pipeline], Value], *keys: str) -> Value:
        """Call `change` and apply its writes, again and again until nobody else has written `keys` meanwhile."""
        run: Callable[..., Any] = self._redis.transaction
        value: Value = self._call(lambda: run(change, *keys, value_from_callable=True))
        return value

    def _call(self, call: Callable[[], Value]) -> Value:
        try:
            return call()
        except RedisError as error:
            what = next((words for kind, words in _REFUSALS if isinstance(error, kind)), "does not answer")
            raise QueueUnavailable(f"Redis, which holds the queue and the jobs' records, {what}") from error

    def _key(self, job_id: str) -> str:
        return f"{self._prefix}:{job_id}"

    def _out_key(self, job_id: str) -> str:
        return f"{self._prefix}:{job_id}:out"

    @property
    def _open_key(self) -> str:
        return f"{self._prefix}-open-cleanup"


def _now(redis: Redis | Pipeline) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + float(microseconds) / 1e6


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _dump(run: Run) -> str:
    return json.dumps(
        {
            "job": run.job,
            "state": run.state,
            "requested_by": run.requested_by,
            "request_id": run.request_id,
            "started_at": run.started_at,
            "progressed_at": run.progressed_at,
            "result": run.result,
            "error": run.error,
            "counts": run.tally.counts,
            "errors": run.tally.errors,
        }
    )


def _load(job_id: str, document: str | bytes) -> Run:
    values: dict[str, Any] = json.loads(document)
    tally = CleanupTally(
        counts={DeleteOutcome(outcome): count for outcome, count in values.pop("counts").items()},
        errors={DeleteOutcome(outcome): error for outcome, error in values.pop("errors").items()},
    )
    job, state = Job(values.pop("job")), JobState(values.pop("state"))
    return Run(job_id=job_id, job=job, state=state, tally=tally, **values)
