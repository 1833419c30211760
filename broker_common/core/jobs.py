"""What is declared of a job. Which jobs there are is said in `job_registry.py`, and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker_common.core.cleanup import Cleaner
    from broker_common.core.expiry import Expirer
    from broker_common.core.guard import Guard
    from broker_common.core.pauses import PauseCache
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.purge import Purger
    from broker_common.core.store import Pauses, SandboxStore
    from broker_common.core.sync import Syncer

_DAILY_OVERDUE_SEC = 26 * 3600
"""A day, and two hours for a run that starts late or is repeated."""


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
class Every:
    """A run each `seconds`, unless the setting of the name `setting` says another time."""

    seconds: int
    setting: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """A run a day, at this full hour in UTC."""

    hour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """What an operator may ask of a run; off, if it is not asked for.

    `help` is what the command line says of it, `description` what the API does.
    """

    name: str
    help: str
    description: str


class JobResult(Protocol):
    """What a run did: a frozen dataclass of counts, and the run in one sentence."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def message(self) -> str:
        """The run in one sentence."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The run goes on as one delete for each sandbox that `find` returns; the last of them ends it."""

    find: Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The use cases that jobs run, and the parts to make others of."""

    clock: Clock
    recorder: Recorder
    store: SandboxStore
    guard: Guard
    pauses: PauseCache
    syncer: Syncer
    cleaner: Cleaner
    expirer: Expirer
    purger: Purger


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """All that is declared of one job. Its task, schedule, calls, log lines, metrics and alert are made of it."""

    name: str
    """In calls, metrics and the name of its task: letters, digits and underscores."""
    title: str
    """How sentences begin that speak of it: `Sync failed`."""
    summary: str
    """One sentence: what its API call does. `description` says more."""
    description: str
    schedule: Every | Daily
    work: Callable[[Work, Actor, Mapping[str, bool]], JobResult | Dispatch]
    """Does one run, for this actor, with these flags on."""
    example: Mapping[str, Any]
    """A run's result, as the API's description shows it."""
    log_action: str
    """What its log lines have as `action`."""
    log_word: str
    """What its runs' own request ids have: `job-<word>-<time>`."""
    pause: str | None = None
    """The field of `Pauses` that keeps it from running, if one does."""
    flags: tuple[Flag, ...] = ()
    counter: str | None = None
    """The metric that counts its runs by outcome, beside the metrics that all jobs have."""
    time_limit_sec: int = 600
    overdue_intervals: int = 3
    """For how many intervals it may go without success before somebody is told."""

    @property
    def path(self) -> str:
        """The name as paths and the command line spell it."""
        return self.name.replace("_", "-")

    @property
    def overdue_sec(self) -> int:
        """After how long without success it is overdue, at the default interval."""
        if isinstance(self.schedule, Daily):
            return _DAILY_OVERDUE_SEC
        return self.schedule.seconds * self.overdue_intervals

    def request_id(self, now: int) -> str:
        """Return the request id of a run that starts now."""
        return f"job-{self.log_word}-{now}"

    def is_paused(self, pauses: Pauses) -> bool:
        """Tell whether an operator keeps it from running."""
        return self.pause is not None and bool(getattr(pauses, self.pause))


Jobs = MappingProxyType[str, JobSpec]
"""Jobs by name."""


def declare(*specs: JobSpec) -> Jobs:
    """Return these jobs by name; raises `ValueError` if two have the same name."""
    jobs = {spec.name: spec for spec in specs}
    if len(jobs) < len(specs):
        raise ValueError("two jobs have the same name")
    return MappingProxyType(jobs)
