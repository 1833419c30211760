"""The queue of the webhooks: a task for each endpoint that has something due, and never more than the workers take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest
from redis import Redis

from broker_common.adapters.celery_queue import CeleryWebhookQueue
from broker_common.core.errors import QueueUnavailable

if TYPE_CHECKING:
    from tests.worker.conftest import Celery, Desk

NOWHERE = "redis://127.0.0.1:1/0"


def waiting(desk: Desk) -> list[str]:
    messages = [json.loads(each) for each in cast("list[bytes]", desk.redis.lrange("webhooks", 0, -1))]
    assert {each["headers"]["task"] for each in messages} <= {"broker.send_webhook"}
    return sorted(each["headers"]["kwargsrepr"] for each in messages)


def test_no_more_is_queued_while_tasks_wait(desk: Desk, database_url: str) -> None:
    queue = CeleryWebhookQueue(database_url, desk.redis)
    queue.send(["a", "b"])
    assert waiting(desk) == ["{'endpoint_id': 'a'}", "{'endpoint_id': 'b'}"]
    queue.send(["c"])
    assert len(waiting(desk)) == 2
    desk.redis.delete("webhooks")
    queue.send(["c"])
    assert waiting(desk) == ["{'endpoint_id': 'c'}"]


def test_a_queue_that_does_not_answer_says_so(desk: Desk) -> None:
    for queue in (CeleryWebhookQueue(NOWHERE, desk.redis), CeleryWebhookQueue(NOWHERE, Redis.from_url(NOWHERE))):
        with pytest.raises(QueueUnavailable):
            queue.send(["a"])


def test_a_worker_drains_the_endpoint_in_the_name_of_the_job(worker: Celery, desk: Desk) -> None:
    desk.send("broker.send_webhook", queue="webhooks", kwargs={"endpoint_id": "hook"})
    desk.await_calls("hook")
    assert worker is not None
