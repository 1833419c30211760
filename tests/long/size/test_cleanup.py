"""Cleanup of 1,000 pending deletions by real workers: the provider always has the allowed number of calls.

The provider here ends its oldest call only while the allowed number of calls runs. A broker that left a slot unused for
ever would stop. So the test is independent of the machine's speed.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.adapters.celery_names import DELETIONS_QUEUE
from broker_common.adapters.celery_queue import CeleryJobQueue
from broker_common.adapters.dynamo_table import create_table
from broker_common.adapters.redis_job_runs import RedisJobRuns
from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_common.core.runs import Runs
from broker_common.core.sandbox import Sandbox, Status
from deploy.dev.processes import wait_until
from tests.backends import AWS_ENVIRONMENT
from tests.bulk_load import load_records
from tests.fakes import START, make_sandbox
from tests.provider.conftest import TOKEN, MockCsp, running_mock
from tests.worker.conftest import ASKING, Celery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_dynamodb import DynamoDBClient
    from redis import Redis

TABLE = "size-cleanup"
PENDING = 1_000
LIMIT = 10
WORKERS = 3
PROCESSES = 4
"""The processes of each worker: in total at least the allowed number of calls."""
PATIENCE_SEC = 200


@pytest.fixture
def provider() -> Iterator[MockCsp]:
    with running_mock(
        MOCK_CSP_POOL=str(PENDING),
        MOCK_CSP_OTHERS="0",
        MOCK_CSP_ON_DELETE="remove",
        MOCK_CSP_DELETE_SECONDS="0",
        MOCK_CSP_HOLD_DELETES_UNTIL=str(LIMIT),
    ) as mock:
        yield mock


@pytest.fixture
def environment(
    provider: MockCsp, client: DynamoDBClient, dynamodb_local_url: str, database_url: str
) -> dict[str, str]:
    """Store a record that waits for its wipe for every account of the provider; return the workers' settings."""
    create_table(client, TABLE)
    load_records(client, TABLE, [pending(account) for account in provider.accounts()])
    return AWS_ENVIRONMENT | {
        "REDIS_URL": database_url,
        "DDB_ENDPOINT_URL": dynamodb_local_url,
        "DDB_TABLE_NAME": TABLE,
        "CSP_BASE_URL": provider.url,
        "CSP_API_TOKEN": TOKEN,
        "CSP_MAX_CONCURRENCY": str(LIMIT),
        "CSP_TIMEOUT_READ_SEC": "60",
        "METRICS_PORT": "0",
    }


def pending(account: dict[str, Any]) -> Sandbox:
    return make_sandbox(
        str(account["csp_id"]),
        external_id=account["id"],
        status=Status.PENDING_DELETION,
        dirty=True,
        last_track_id="track-1",
        last_lease_id="lease-1",
        deletion_requested_at=START,
        next_attempt_at=START,
    )


def worker(environment: dict[str, str], queue: str, *, processes: int) -> Celery:
    words = ("worker", "-E", "-Q", queue, "-c", str(processes), "--without-mingle", "--without-gossip")
    return Celery(environment["REDIS_URL"], *words, application="broker_worker.celery_app", **environment)


def round_trips(redis: Redis) -> int:
    """Return the number of reads of the server from its clients so far."""
    return int(redis.info("stats")["total_reads_processed"])


@pytest.mark.timeout(300)
def test_while_deletions_wait_the_provider_has_as_many_calls_as_it_may_have_spread_over_all_workers(
    environment: dict[str, str], provider: MockCsp, redis: Redis
) -> None:
    runs = Runs(RedisJobRuns(redis), stall_limit_sec=60)
    with ExitStack() as running:
        planner = running.enter_context(worker(environment, "jobs", processes=1))
        assert wait_until(lambda: planner.has_said(" ready."), 60), planner.output
        before = round_trips(redis)
        job_id = CeleryJobQueue(environment["REDIS_URL"], runs).enqueue(Job.CLEANUP, by=ASKING, flags={})
        assert wait_until(lambda: redis.llen(DELETIONS_QUEUE) == PENDING, 60), planner.output
        dispatching = round_trips(redis) - before
        workers = [running.enter_context(worker(environment, "deletions", processes=PROCESSES)) for _ in range(WORKERS)]
        ended = wait_until(lambda: (run := runs.find(job_id)) is not None and run.state.is_final, PATIENCE_SEC)
        assert ended, Counter(each["held_with"] for each in provider.deletes())
        run = runs.find(job_id)

    assert dispatching < PENDING / 2, "messages go out by the hundred"
    assert run is not None
    assert run.state is JobState.SUCCEEDED
    assert run.result is not None
    assert (run.result["deleted"], sum(run.result.values())) == (PENDING, PENDING)
    deletes = provider.deletes()
    assert len({each["external_id"] for each in deletes}) == len(deletes) == PENDING
    last = dict.fromkeys(range(1, LIMIT), 1)
    assert Counter(each["held_with"] for each in deletes) == {LIMIT: PENDING - len(last), **last}
    assert provider.log()["highest_in_flight"] == LIMIT
    shares = [sum(line["message"] == "Delete ended" for line in each.lines) for each in workers]
    assert sum(shares) == PENDING
    assert min(shares) > PENDING / WORKERS / 2
