"""The records and locks of runs in memory, for tests of the core: the shortest example of both ports."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker_common.core.runs import JobRun, RunChange, RunView

Value = TypeVar("Value")


class MemoryJobRuns:
    """Implements `JobRuns` without expiry. A test sets the time and the number of queued deletes."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.queued_deletes = 0
        self._runs: dict[str, JobRun] = {}
        self._out: dict[str, set[str]] = {}
        self._last_dispatch: str | None = None
        self._lock = threading.Lock()

    def change(self, job_id: str, decide: Callable[[RunView], tuple[RunChange | None, Value]]) -> Value:
        with self._lock:
            change, value = decide(_View(self, job_id))
            if change is not None:
                self._make(change)
        return value

    def read(self, job_id: str) -> JobRun | None:
        return self._runs.get(job_id)

    def read_last(self, jobs: Sequence[str], *, limit: int) -> list[JobRun]:
        return [run for run in reversed(self._runs.values()) if run.job in jobs][:limit]

    def read_last_dispatch(self) -> str | None:
        return self._last_dispatch

    def forget(self, job_id: str, job: str) -> None:
        self._runs.pop(job_id, None)
        self._out.pop(job_id, None)

    def ping(self) -> None:
        pass

    def out_of(self, job_id: str) -> set[str]:
        return self._out.get(job_id, set())

    def _make(self, change: RunChange) -> None:
        job_id = change.run.job_id
        self._runs[job_id] = change.run
        if change.run.state.is_final:
            self._out.pop(job_id, None)
        elif change.settle is not None:
            self._out[job_id].discard(change.settle)
        elif change.dispatch:
            self._out[job_id] = set(change.dispatch)
            self._last_dispatch = job_id


class _View:
    def __init__(self, runs: MemoryJobRuns, job_id: str) -> None:
        self.run = runs.read(job_id)
        self.now = runs.now
        self._runs = runs
        self._out = runs.out_of(job_id)

    def is_open_delete(self, sandbox_id: str) -> bool:
        return sandbox_id in self._out

    def count_open_deletes(self) -> int:
        return len(self._out)

    def read_open_deletes(self) -> list[str]:
        return list(self._out)

    def count_queued_deletes(self) -> int:
        return self._runs.queued_deletes


class MemoryJobLocks:
    """Implements `JobLocks`."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}

    @contextmanager
    def hold(self, job: str, *, owner: str) -> Iterator[bool]:
        if self._owners.setdefault(job, owner) != owner:
            yield False
            return
        try:
            yield True
        finally:
            self._owners.pop(job, None)
