"""What a run of a job may do: paused, running already, stalled, delivered again, failed; and for whom it is done."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from broker_common.core.errors import ProviderBusy, SyncBraked
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import JobState, Work, declare
from broker_common.core.principals import Actor
from broker_common.core.runner import JobFailed, JobRunner, Report
from broker_common.core.runs import Runs
from broker_common.core.store import Pause, Pauses
from broker_common.core.telemetry import DeleteEnded, DeleteOutcome, JobEnded, JobOutcome
from tests.fakes import START
from tests.memory_runs import MemoryJobLocks, MemoryJobRuns
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from broker_common.core.runs import JobRun

ALICE = Actor(principal="alice", request_id="req-1")
STALL_LIMIT_SEC = 60


@dataclass(frozen=True)
class Counted:
    done: int

    @property
    def message(self) -> str:
        return f"Did {self.done}"


class Lines:
    """A log that keeps, for each event, what its line would say of whose it is."""

    def __init__(self) -> None:
        self.context: dict[str, str | None] = {}

    @contextmanager
    def _add(self, **details: str | None) -> Iterator[None]:
        before, self.context = self.context, self.context | details
        yield
        self.context = before

    def of_run(self, run: JobRun) -> Any:
        return self._add(run=run.job_id, principal=run.principal)

    def of_sandbox(self, sandbox_id: str) -> Any:
        return self._add(sandbox_id=sandbox_id)


class Bench:
    """A runner whose use cases a test scripts."""

    def __init__(self, *, is_frequent: bool = False) -> None:
        self.world = World()
        self.kept, self.locks, self.log = MemoryJobRuns(), MemoryJobLocks(), Lines()
        self.runs = Runs(self.kept, stall_limit_sec=STALL_LIMIT_SEC)
        self.due: list[str] = []
        self.sent: list[tuple[str, list[str]]] = []
        self.done: list[tuple[Actor, Mapping[str, bool]]] = []
        self.lines: list[dict[str, str | None]] = []
        self.deleted_by: list[Actor] = []
        self.does: Callable[[], Counted] = lambda: Counted(3)
        self.deletes: Callable[[str], DeleteOutcome] = lambda _: DeleteOutcome.DELETED
        sync = replace(JOBS[Job.SYNC], work=self._sync, is_frequent=is_frequent)
        others = [job for job in JOBS.values() if job.name != Job.SYNC]
        self.runner = JobRunner(
            declare(sync, *others), work=self._work(), runs=self.runs, locks=self.locks, log=self.log
        )

    def run(self, job: Job = Job.SYNC, job_id: str = "run", **flags: bool) -> Report:
        return self.runner.run(job, job_id, flags, send=lambda run, ids: self.sent.append((run.job_id, ids)))

    def delete(self, sandbox_id: str, run_id: str = "run") -> DeleteEnded:
        return self.runner.delete(sandbox_id, run_id, ALICE)

    def state(self, job_id: str = "run") -> tuple[JobState, str | None]:
        run = self.runs.find(job_id)
        assert run is not None
        return run.state, run.error

    @property
    def ended(self) -> list[JobEnded]:
        return self.world.recorder.of(JobEnded)

    # As the cleaner and the recorder, whose place it takes.

    def find_due(self) -> Iterator[str]:
        yield from self.due

    def delete_sandbox(self, sandbox_id: str, *, by: Actor) -> DeleteEnded:
        self.deleted_by.append(by)
        self.lines.append(self.log.context)
        outcome = self.deletes(sandbox_id)
        return DeleteEnded(outcome=outcome, sandbox_id=sandbox_id, error=None if outcome == "deleted" else "scripted")

    def record(self, event: Any) -> None:
        self.lines.append(self.log.context)
        self.world.recorder.record(event)

    def _sync(self, _work: Work, by: Actor, flags: Mapping[str, bool]) -> Counted:
        self.done.append((by, flags))
        return self.does()

    def _work(self) -> Work:
        world, scripted = self.world, self
        stand_in: Any = scripted
        return Work(
            clock=world.clock,
            recorder=stand_in,
            store=world.store,
            guard=world.guard,
            pauses=world.pauses,
            syncer=world.syncer,
            cleaner=stand_in,
            expirer=world.expirer,
            purger=world.purger,
            reserver=world.reserver,
            watcher=world.watcher,
            deliverer=world.deliverer,
        )


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Return what raises an error whenever it is called."""

    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_run_ends_with_what_its_use_case_did(bench: Bench) -> None:
    assert bench.run() == Report(state=JobState.SUCCEEDED, result={"done": 3})
    assert bench.state() == (JobState.SUCCEEDED, None)
    (ended,) = bench.ended
    assert (ended.job, ended.outcome, ended.message) == (Job.SYNC, JobOutcome.SUCCESS, "Did 3")


def test_every_job_runs(bench: Bench) -> None:
    assert [bench.run(job, job).state for job in Job] == [JobState.SUCCEEDED] * len(Job)


def test_what_an_operator_asked_for_is_done_in_the_operator_s_name(bench: Bench) -> None:
    bench.runs.create("run", Job.SYNC, by=ALICE)
    bench.run(force=True)

    assert bench.done == [(Actor(principal="alice", request_id=f"job-sync-{START}"), {"force": True})]
    assert bench.lines == [{"run": "run", "principal": "alice"}]


def test_what_the_schedule_started_is_done_in_the_job_s_name(bench: Bench) -> None:
    bench.run()

    assert bench.done == [(Actor(principal="job:sync", request_id=f"job-sync-{START}"), {})]


def test_a_run_that_has_ended_is_not_done_again(bench: Bench) -> None:
    first = bench.run()

    assert bench.run() == first
    assert len(bench.done) == len(bench.ended) == 1


def test_a_run_that_was_cut_off_goes_on_as_the_same_run(bench: Bench) -> None:
    bench.does = raising(SystemExit())
    with pytest.raises(SystemExit):
        bench.run()
    bench.does = lambda: Counted(3)
    bench.world.clock.advance(60)

    assert bench.run().state is JobState.SUCCEEDED
    assert {by.request_id for by, _ in bench.done} == {f"job-sync-{START}"}


def test_a_run_that_fails_is_recorded_with_its_reason(bench: Bench) -> None:
    bench.does = raising(SyncBraked("too many are missing"))
    with pytest.raises(JobFailed, match="too many are missing"):
        bench.run()

    assert bench.state() == (JobState.FAILED, "too many are missing")
    assert [(each.outcome, each.message, each.error) for each in bench.ended] == [
        (JobOutcome.ERROR, "Sync failed", "too many are missing")
    ]
    assert bench.run() == Report(state=JobState.FAILED, error="too many are missing")


def test_an_error_that_nobody_foresaw_fails_the_run_and_shows_nothing_of_itself(bench: Bench) -> None:
    bench.does = raising(ValueError("a secret"))
    with pytest.raises(ValueError, match="a secret"):
        bench.run()

    state, error = bench.state()
    assert state is JobState.FAILED
    assert error == "an internal error; see the log of the worker"


def test_a_run_that_another_delivery_ends_meanwhile_ends_once(bench: Bench) -> None:
    def overtaken() -> Counted:
        bench.does = lambda: Counted(1)
        bench.run()
        return Counted(2)

    bench.does = overtaken
    bench.run()

    assert [each.message for each in bench.ended] == ["Did 1"]


@pytest.mark.parametrize("job", [Job.SYNC, Job.CLEANUP, Job.EXPIRE])
def test_a_paused_job_is_skipped_and_says_so(bench: Bench, job: Job) -> None:
    bench.world.memory.set_pauses(Pauses(), Pauses(**{str(job): Pause()}))

    assert bench.run(job) == Report(state=JobState.SKIPPED, error="paused by an operator")
    assert [each.message for each in bench.ended] == ["Skipped: paused by an operator"]
    assert bench.run(Job.PURGE_STALE, "other").state is JobState.SUCCEEDED


def test_a_process_that_must_not_act_starts_nothing(bench: Bench) -> None:
    bench.world.memory.is_restored = True
    with pytest.raises(JobFailed, match="table"):
        bench.run()

    assert bench.done == []


def test_a_run_that_starts_while_the_same_job_runs_is_skipped(bench: Bench) -> None:
    with bench.locks.hold(Job.SYNC, owner="other"):
        assert bench.run() == Report(state=JobState.SKIPPED, error="the same job is running already")
    assert bench.run(job_id="later").state is JobState.SUCCEEDED


def test_a_run_that_does_nothing_is_idle_only_if_its_job_runs_every_few_seconds(bench: Bench) -> None:
    frequent = Bench(is_frequent=True)
    for each, number in ((bench, 0), (frequent, 0), (frequent, 3)):
        each.does = lambda number=number: Counted(number)  # type: ignore[misc] # bound in the loop
        each.run(job_id=f"run-{number}")
    with frequent.locks.hold(Job.SYNC, owner="another"):
        frequent.run(job_id="skipped")
    assert [event.is_idle for event in bench.ended] == [False]
    assert [event.is_idle for event in frequent.ended] == [True, False, True]


def test_a_cleanup_dispatches_what_is_due_and_is_closed_by_its_last_delete(bench: Bench) -> None:
    bench.due = ["1", "2"]
    report = bench.run(Job.CLEANUP)
    bench.delete("1")
    before = bench.state()
    bench.delete("2")
    assert bench.deleted_by == [ALICE, ALICE]

    assert report == Report(state=JobState.RUNNING, dispatched=2)
    assert bench.sent == [("run", ["1", "2"])]
    assert (before, bench.state()) == ((JobState.RUNNING, None), (JobState.SUCCEEDED, None))
    assert [each.message for each in bench.ended] == ["Deleted 2 sandboxes, 0 failed"]


def test_the_line_that_ends_a_cleanup_is_its_run_s_and_of_no_one_sandbox(bench: Bench) -> None:
    bench.due = ["1"]
    bench.run(Job.CLEANUP)
    bench.delete("1")

    assert bench.lines == [{"sandbox_id": "1"}, {"run": "run", "principal": "job:cleanup"}]


def test_a_cleanup_that_finds_nothing_ends_at_once(bench: Bench) -> None:
    assert bench.run(Job.CLEANUP).state is JobState.SUCCEEDED
    assert bench.sent == []


def test_a_cleanup_that_is_delivered_again_sends_what_has_not_reported(bench: Bench) -> None:
    bench.due = ["1", "2"]
    bench.run(Job.CLEANUP)
    bench.delete("1")

    assert bench.run(Job.CLEANUP) == Report(state=JobState.RUNNING, dispatched=1)
    assert bench.sent[-1] == ("run", ["2"])


def test_a_cleanup_is_skipped_while_deletes_of_the_one_before_are_under_way(bench: Bench) -> None:
    bench.due = ["1"]
    bench.run(Job.CLEANUP, "before")

    assert bench.run(Job.CLEANUP) == Report(state=JobState.SKIPPED, error="wipes of run before are still under way")


def test_a_stalled_cleanup_is_closed_as_partial_by_the_next(bench: Bench) -> None:
    bench.due = ["1", "2"]
    bench.run(Job.CLEANUP, "before")
    bench.delete("1", "before")
    bench.kept.now += STALL_LIMIT_SEC + 1

    assert bench.run(Job.CLEANUP).dispatched == 2
    before = bench.runs.find("before")
    assert before is not None
    assert before.result is not None
    assert (before.result["deleted"], before.result["partial"]) == (1, True)
    assert bench.lines[-1] == {"run": "before", "principal": "job:cleanup"}


def test_a_delete_that_finds_no_call_slot_is_not_reported(bench: Bench) -> None:
    bench.due, bench.deletes = ["1"], raising(ProviderBusy("no slot"))
    bench.run(Job.CLEANUP)
    with pytest.raises(ProviderBusy):
        bench.delete("1")

    assert bench.state() == (JobState.RUNNING, None)


def test_an_error_that_nobody_foresaw_in_a_delete_is_counted(bench: Bench) -> None:
    bench.due, bench.deletes = ["1"], raising(ValueError("a bug"))
    bench.run(Job.CLEANUP)
    with pytest.raises(ValueError, match="a bug"):
        bench.delete("1")

    run = bench.runs.find("run")
    assert run is not None
    assert run.result is not None
    assert (run.result["will_retry"], run.result["failed"]) == (1, 1)


def test_a_cleanup_whose_deletes_say_that_the_provider_is_misconfigured_fails_with_that_reason(bench: Bench) -> None:
    bench.due, bench.deletes = ["1"], lambda _: DeleteOutcome.MISCONFIGURED
    bench.run(Job.CLEANUP)
    bench.delete("1")

    assert bench.state() == (JobState.FAILED, "scripted")
