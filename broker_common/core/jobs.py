"""What the declaration of a job holds. `job_registry.py` declares the jobs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from broker_common.core.cleanup import Cleaner
    from broker_common.core.deliveries import Deliverer
    from broker_common.core.expiry import Expirer
    from broker_common.core.guard import Guard
    from broker_common.core.pauses import PauseCache
    from broker_common.core.ports import Clock, Recorder
    from broker_common.core.principals import Actor
    from broker_common.core.purge import Purger
    from broker_common.core.reserving import Reserver
    from broker_common.core.store import Pauses, SandboxStore
    from broker_common.core.sync import Syncer
    from broker_common.core.watch import Watcher

_DAILY_OVERDUE_SEC = 26 * 3600
"""One day, and two hours more for a run that starts late or is repeated."""


class JobState(StrEnum):
    """The state of a run."""

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
    """One run every `seconds`, or every so many seconds as the setting named `setting` says."""

    seconds: int
    setting: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Daily:
    """One run a day, at this full hour in UTC."""

    hour: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option of a run, which is off unless an operator turns it on.

    `help` describes it on the command line, `description` in the API.
    """

    name: str
    help: str
    description: str


class JobResult(Protocol):
    """The result of a run: a frozen dataclass of counts, and a sentence."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def message(self) -> str:
        """The run in one sentence."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The run continues as one delete for each sandbox id that `find` returns. The last delete ends it."""

    find: Callable[[], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The use cases that jobs call, and the parts from which a new job can be built."""

    clock: Clock
    recorder: Recorder
    store: SandboxStore
    guard: Guard
    pauses: PauseCache
    syncer: Syncer
    cleaner: Cleaner
    expirer: Expirer
    purger: Purger
    reserver: Reserver
    deliverer: Deliverer
    watcher: Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """The declaration of one job. Its task, schedule, API calls, log lines, metrics and alert are made from it."""

    name: str
    """Its name in API calls, metrics and the name of its task: letters, digits and underscores."""
    title: str
    """Its name at the start of a sentence, as in `Sync failed`."""
    summary: str
    """One sentence about what its API call does. `description` says more."""
    description: str
    schedule: Every | Daily
    work: Callable[[Work, Actor, Mapping[str, bool]], JobResult | Dispatch]
    """Does one run, for this actor, with these flags."""
    example: Mapping[str, Any]
    """The result of a run that the API's description shows as an example."""
    log_action: str
    """The `action` of its log lines."""
    log_word: str
    """The word in the request ids of its runs: `job-<word>-<time>`."""
    pause: str | None = None
    """The field of `Pauses` that stops it, if it can be paused."""
    flags: tuple[Flag, ...] = ()
    counter: str | None = None
    """A metric of its own that counts its runs by outcome, besides the metrics that all jobs have."""
    time_limit_sec: int = 600
    overdue_intervals: int = 3
    """The number of intervals without a successful run after which an alert fires."""
    is_frequent: bool = False
    """It runs every few seconds. So runs that do nothing are logged at debug level only, and forgotten soon."""

    @property
    def path(self) -> str:
        """The name in the API's paths and on the command line, with hyphens."""
        return self.name.replace("_", "-")

    @property
    def overdue_sec(self) -> int:
        """The time without a successful run after which it is overdue, at the default interval."""
        if isinstance(self.schedule, Daily):
            return _DAILY_OVERDUE_SEC
        return self.schedule.seconds * self.overdue_intervals

    def request_id(self, now: int) -> str:
        """Return the request id of a run that starts now."""
        return f"job-{self.log_word}-{now}"

    def is_paused(self, pauses: Pauses) -> bool:
        """Tell whether an operator has paused it."""
        return self.pause is not None and bool(getattr(pauses, self.pause))


Jobs = MappingProxyType[str, JobSpec]
"""Jobs by name."""


def declare(*specs: JobSpec) -> Jobs:
    """Return `specs` by name; raises `ValueError` if two have the same name."""
    jobs = {spec.name: spec for spec in specs}
    if len(jobs) < len(specs):
        raise ValueError("two jobs have the same name")
    return MappingProxyType(jobs)
