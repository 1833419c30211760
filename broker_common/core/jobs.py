"""The jobs' names, and what is known of one run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Job(StrEnum):
    """The periodic jobs; the value is the name in `/v1/admin/jobs`, metrics and the name of its task."""

    SYNC = "sync"
    CLEANUP = "cleanup"
    EXPIRE = "expire"
    PURGE_STALE = "purge_stale"


class JobState(StrEnum):
    """How far a run is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"

    @property
    def is_final(self) -> bool:
        """Tell whether the run has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """One run of a job, as operators see it."""

    job_id: str
    job: Job
    state: JobState
    result: Mapping[str, Any] | None = None
    error: str | None = None
