"""The names of the jobs that other code speaks of. What is declared of a job stands in `jobs`."""

from __future__ import annotations

from enum import StrEnum


class Job(StrEnum):
    """The names of the jobs that other code speaks of. A job that only the registry names needs none here."""

    SYNC = "sync"
    CLEANUP = "cleanup"
    EXPIRE = "expire"
    PURGE_STALE = "purge_stale"
