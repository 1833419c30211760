"""The names of the jobs that other code refers to. `job_registry.py` declares each job."""

from __future__ import annotations

from enum import StrEnum


class Job(StrEnum):
    """A job that only the registry refers to needs no name here."""

    SYNC = "sync"
    CLEANUP = "cleanup"
    EXPIRE = "expire"
    PURGE_STALE = "purge_stale"
    RESERVE = "reserve"
    DELIVER = "deliver"
    WATCH = "watch"
