"""What is declared of each job fits together."""

from __future__ import annotations

import re
from dataclasses import asdict, fields

import pytest

from broker_common.core.errors import SyncBraked
from broker_common.core.job_names import Job
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Daily, Dispatch, Every, JobSpec, Work, declare
from broker_common.core.principals import Actor
from broker_common.core.runs import CleanupTally
from broker_common.core.sandbox import Status
from broker_common.core.store import Pause, Pauses
from broker_common.core.telemetry import DeleteOutcome
from broker_common.settings import Process, Settings
from tests.world import World

BY = Actor(principal="alice")
EACH = pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)


def work_of(world: World) -> Work:
    return Work(**{field.name: getattr(world, field.name) for field in fields(Work)})


def test_every_job_that_code_speaks_of_is_declared() -> None:
    assert set(Job) <= set(JOBS)


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        declare(JOBS[Job.SYNC], JOBS[Job.SYNC])


@EACH
def test_a_name_is_fit_for_paths_and_tasks_and_a_path_for_the_command_line(job: JobSpec) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", job.name)
    assert re.fullmatch(r"[a-z][a-z0-9-]*", job.path)


@EACH
def test_a_summary_is_one_sentence_and_a_description_says_more(job: JobSpec) -> None:
    assert re.fullmatch(r"[A-Z][^\n]+\.", job.summary)
    assert job.description


@EACH
def test_the_words_of_a_job_are_its_own(job: JobSpec) -> None:
    for other in JOBS.values():
        if other is not job:
            assert job.title != other.title
            assert job.log_action != other.log_action
            assert job.log_word != other.log_word
            assert job.counter is None or job.counter != other.counter


@EACH
def test_a_job_is_paused_by_its_own_pause_alone(job: JobSpec) -> None:
    names = [field.name for field in fields(Pauses)]
    assert job.pause is None or job.pause in names
    assert {name for name in names if job.is_paused(Pauses(**{name: Pause()}))} == ({job.pause} - {None})


@EACH
def test_an_interval_is_the_setting_s_default(job: JobSpec) -> None:
    settings = Settings.from_env({"BROKER_ENV": "development"}, process=Process.BEAT)
    if isinstance(job.schedule, Every) and job.schedule.setting is not None:
        assert getattr(settings, job.schedule.setting) == job.schedule.seconds


@EACH
def test_a_job_is_overdue_after_some_intervals_or_a_day_and_two_hours(job: JobSpec) -> None:
    if isinstance(job.schedule, Daily):
        assert job.overdue_sec == 26 * 3600
    else:
        assert job.overdue_sec >= 3 * job.schedule.seconds


@pytest.mark.parametrize(
    ("job", "request_id"),
    [
        (Job.SYNC, "job-sync-7"),
        (Job.CLEANUP, "job-cleanup-7"),
        (Job.EXPIRE, "job-expiry-7"),
        (Job.PURGE_STALE, "job-purge-stale-7"),
    ],
)
def test_a_run_has_the_request_id_that_the_contract_promises(job: Job, request_id: str) -> None:
    assert JOBS[job].request_id(7) == request_id


@EACH
def test_a_job_runs_its_use_case_and_its_example_is_of_that_result_s_shape(job: JobSpec) -> None:
    world = World()
    world.pool(1)
    world.pending("sbx-9")
    did = job.work(work_of(world), BY, {})

    if isinstance(did, Dispatch):
        assert list(did.find()) == ["sbx-9"]
        assert (
            dict(job.example)
            == CleanupTally(counts={DeleteOutcome(each): job.example[each] for each in DeleteOutcome}).result
        )
    else:
        assert did.message
        assert set(job.example) == set(asdict(did))


def test_a_sync_is_forced_only_if_that_was_asked_for() -> None:
    world = World()
    world.pool(10)
    world.provider.accounts = world.accounts(1)

    with pytest.raises(SyncBraked):
        JOBS[Job.SYNC].work(work_of(world), BY, {"force": False})
    JOBS[Job.SYNC].work(work_of(world), BY, {"force": True})
    assert world.memory.count()[Status.STALE] == 9
