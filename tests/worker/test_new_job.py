"""The recipe "A job" of CONTRIBUTING.md, followed: a use case with its result, and its line in the registry. No more.

The job is then a task, in the schedule, a call of the API, a name of the command line, a metric and a log line.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import responses
import structlog
from celery import Celery as CeleryApp
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from broker_api.jobs import make_blueprint
from broker_common.adapters.celery_names import arguments_of
from broker_common.adapters.celery_queue import CeleryJobQueue
from broker_common.adapters.log_recorder import LogRecorder
from broker_common.adapters.prometheus_recorder import PrometheusJobRecorder
from broker_common.adapters.recorders import Recorders
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.adapters.redis_lock import RedisJobLocks
from broker_common.cli.jobs import job_commands
from broker_common.core.job_registry import JOBS
from broker_common.core.jobs import Every, Flag, JobSpec, JobState, Work, declare
from broker_common.core.runs import Runs
from broker_common.core.sandbox import Status
from broker_common.settings import Process, Settings
from broker_worker.schedule import beat_config
from broker_worker.tasks import add_tasks
from tests.api.harness import body_of, make_api
from tests.worker.conftest import ASKING
from tests.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis

    from broker_common.core.principals import Actor
    from broker_common.core.store import SandboxStore

# Step 1: the use case, and its result.


@dataclass(frozen=True, slots=True, kw_only=True)
class CensusResult:
    """What one run counted."""

    available: int
    by: str

    @property
    def message(self) -> str:
        """The run in one sentence."""
        return f"Counted {self.available} sandboxes"


class Census:
    """Counts what may be allocated."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    def run(self, *, by: Actor, twice: bool) -> CensusResult:
        """Count once, or twice."""
        available = self._store.count()[Status.AVAILABLE]
        return CensusResult(available=2 * available if twice else available, by=by.principal)


# Step 2: its line in the registry.


def _count(work: Work, by: Actor, flags: Mapping[str, bool]) -> CensusResult:
    return Census(work.store).run(by=by, twice=flags.get("twice", False))


CENSUS = JobSpec(
    name="pool_census",
    title="Census",
    summary="Count the sandboxes that may be allocated.",
    description="They are counted by the index.",
    schedule=Every(seconds=15),
    work=_count,
    flags=(Flag(name="twice", help="count each twice", description="Count each sandbox twice"),),
    example={"available": 3, "by": "alice"},
    log_action="census",
    log_word="census",
    counter="broker_census_total",
)
WITH_CENSUS = declare(*JOBS.values(), CENSUS)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def runs(redis: Redis) -> Runs:
    return Runs(RedisJobRuns(redis, jobs=WITH_CENSUS), stall_limit_sec=60)


@pytest.fixture
def app(redis: Redis, runs: Runs, registry: CollectorRegistry) -> CeleryApp:
    """Return a worker's application over a pool of three."""
    world = World()
    world.pool(3)
    parts = {field.name: getattr(world, field.name) for field in fields(Work)}
    parts["recorder"] = Recorders([LogRecorder(WITH_CENSUS), PrometheusJobRecorder(registry, WITH_CENSUS)])
    services: Any = SimpleNamespace(**parts, runs=runs, locks=RedisJobLocks(redis))
    app = CeleryApp(set_as_current=False)
    add_tasks(app, lambda: services, delete_limit_sec=1, jobs=WITH_CENSUS)
    return app


def test_its_task_runs_it_for_who_asked_with_what_was_asked_for(
    app: CeleryApp, runs: Runs, database_url: str, redis: Redis
) -> None:
    queue = CeleryJobQueue(database_url, runs, WITH_CENSUS)
    job_id = queue.enqueue("pool_census", by=ASKING, flags={"twice": True})
    assert redis.llen("jobs") == 1
    done = app.tasks["broker.pool_census"].apply(task_id=job_id, kwargs={"twice": True})

    assert done.result == {"state": "succeeded", "available": 6, "by": "alice"}
    (run,) = queue.read_last(None, limit=5)
    assert (run.job_id, run.state, run.result) == (job_id, JobState.SUCCEEDED, {"available": 6, "by": "alice"})


def test_its_line_names_its_action_its_run_and_the_schedule_as_the_one_who_asked(app: CeleryApp) -> None:
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        app.tasks["broker.pool_census"].apply(task_id="run")

    (line,) = lines
    assert (line["event"], line["action"], line["outcome"]) == ("Counted 3 sandboxes", "census", "success")
    assert (line["principal"], line["request_id"][:11]) == ("job:pool_census", "job-census-")


def test_its_runs_are_counted_and_timed(app: CeleryApp, registry: CollectorRegistry) -> None:
    app.tasks["broker.pool_census"].apply(task_id="run")

    assert registry.get_sample_value("broker_census_total", {"outcome": "success"}) == 1
    assert registry.get_sample_value("broker_job_duration_seconds_count", {"job": "pool_census"}) == 1
    assert registry.get_sample_value("broker_job_last_success_timestamp_seconds", {"job": "pool_census"})


def test_workers_take_its_messages() -> None:
    assert arguments_of(WITH_CENSUS)["broker.pool_census"] == {"twice": bool}


def test_beat_sends_it_at_its_interval() -> None:
    settings = Settings.from_env({"BROKER_ENV": "development"}, process=Process.BEAT)
    entry = beat_config(settings, WITH_CENSUS)["beat_schedule"]["pool_census"]

    assert (entry["task"], entry["schedule"]) == ("broker.pool_census", timedelta(seconds=15))


def test_a_call_of_the_api_starts_it_and_is_described() -> None:
    api = make_api(job_calls=make_blueprint(WITH_CENSUS))
    answer = api.admin("POST", "/v1/admin/pool-census", json={"twice": True})
    described = body_of(api.call("GET", "/v1/openapi.json"))["paths"]["/v1/admin/pool-census"]["post"]

    assert answer.status_code == 202
    assert [(job, flags) for job, _, flags in api.queue.enqueued] == [("pool_census", {"twice": True})]
    assert api.admin("GET", "/v1/admin/jobs?job=pool_census").status_code == 200
    assert (described["summary"], described["operationId"]) == (CENSUS.summary, "adminPoolCensus")
    assert described["responses"]["200"]["content"]["application/json"]["example"]["result"] == CENSUS.example


@responses.activate
def test_the_command_line_runs_it() -> None:
    started = responses.post("http://127.0.0.1:8080/v1/admin/pool-census", json={"job_id": "7"}, status=202)
    job, _ = job_commands(WITH_CENSUS)
    told = CliRunner().invoke(job, ["run", "pool-census", "--twice"], env={"BROKER_ADMIN_TOKEN": "a-token"})

    assert (told.exit_code, told.stdout) == (0, "7\n")
    assert started.calls[0].request.body == b'{"twice": true}'
