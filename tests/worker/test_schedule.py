"""What worker and beat must know of every job."""

from __future__ import annotations

from broker_common.core.jobs import Job
from broker_common.settings import Process, Settings
from broker_worker.schedule import beat_config
from broker_worker.tasks import TITLES


def test_every_job_has_a_title_for_when_it_fails() -> None:
    assert set(TITLES) == set(Job)


def test_every_job_is_in_the_schedule() -> None:
    settings = Settings.from_env({"BROKER_ENV": "development"}, process=Process.BEAT)
    assert set(beat_config(settings)["beat_schedule"]) == set(Job)
