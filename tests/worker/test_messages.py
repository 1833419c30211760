"""No message of another kind harms a real worker or reaches a task."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery as CeleryApp
from hypothesis import given
from hypothesis import strategies as st

from broker_common.adapters.celery_names import ARGUMENTS
from broker_common.core.job_names import Job
from broker_common.core.jobs import JobState
from broker_worker.messages import Unreadable, read
from broker_worker.tasks import add_tasks
from tests.worker.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.worker.conftest import Celery, Desk

SECRET = "a-secret-of-somebody"
VALUES: tuple[Any, ...] = (
    None,
    True,
    7,
    float("inf"),
    "",
    SECRET,
    "2999-01-01T00:00:00",
    [],
    ["a", "b"],
    [1, -1],
    {},
    {SECRET: [SECRET]},
    {"__type__": "decimal", "__value__": SECRET},
)
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SIGNATURE: dict[str, Any] = {
    "task": "broker.expire",
    "args": [],
    "kwargs": {},
    "options": {},
    "subtask_type": None,
    "immutable": True,
}
DEEP = "[" * 100_000


def encoded(payload: object) -> str:
    return base64.b64encode(json.dumps(payload).encode()).decode()


def message(**headers: Any) -> dict[str, Any]:
    """Return a message as the API sends it."""
    return {
        "body": encoded([[], {}, EMBED]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **dict.fromkeys(("eta", "expires", "group", "group_index", "parent_id", "shadow", "stamps")),
            "lang": "py",
            "task": "broker.sync",
            "id": "0a72d6a5-4f9c-4b3c-a0a8-9d9d1c2b4d6e",
            "root_id": "0a72d6a5-4f9c-4b3c-a0a8-9d9d1c2b4d6e",
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "gen1@here",
            "ignore_result": True,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            **headers,
        },
        "properties": {
            "correlation_id": "0a72d6a5-4f9c-4b3c-a0a8-9d9d1c2b4d6e",
            "reply_to": "e2e7a1a4-1f7c-3c3d-9df3-8b5d9c1a3a3e",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "jobs"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": "5f3a5c2e-0a59-4cf1-a4a4-6d1b7f3f1f52",
        },
    }


def with_body(*payload: Any, **headers: Any) -> dict[str, Any]:
    return {**message(**headers), "body": encoded(list(payload))}


def changed(original: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the message with each field, at each level, left out, and of each value that it should not have."""
    places: list[tuple[str, ...]] = [(name,) for name in original]
    places += [(part, name) for part in ("headers", "properties") for name in original[part]]
    places += [("properties", "delivery_info", name) for name in ("exchange", "routing_key")]
    extra = ("compression", "chord", "called_directly", "delivery_info", "redelivered", "is_eager", "run_request_id")
    places += [("headers", name) for name in extra]
    for *parents, name in places:
        for value in (..., *VALUES):
            changed = copy.deepcopy(original)
            part = changed
            for parent in parents:
                part = part[parent]
            part.pop(name, None)
            if value is not ...:
                part[name] = value
            yield changed


REFUSED: dict[str, dict[str, Any] | Any] = {
    "it is not a JSON object": [message()],
    "headers is missing or not of the type dict": {"body": "x"},
    "content-type is not application/json": {**message(), "content-type": "application/x-python-serialize"},
    "content-encoding is not utf-8": {**message(), "content-encoding": "rot13"},
    "body_encoding is not base64": {**message(), "properties": {"body_encoding": "utf-8"}},
    "task is unknown": message(task="celery.map"),
    "id must be 1 to 255 printable ASCII characters": message(id="a\nb"),
    "timelimit is not a list of numbers": message(timelimit=["a", "b"]),
    "eta is set, and this broker never sets it": message(eta="2999-01-01T00:00:00"),
    "compression is set, and this broker never sets it": message(compression="application/x-gzip"),
    "body is not base64": {**message(), "body": "not base64!"},
    "body is not JSON": {**message(), "body": base64.b64encode(DEEP.encode()).decode()},
    "body is not a task's arguments by name": with_body([1, 2, 3], {}, EMBED),
    "an option of the body is set, and this broker never sets it": with_body([], {}, {**EMBED, "chain": [SIGNATURE]}),
    "body has an argument that the task does not take": with_body([], {SECRET: 1}, EMBED),
    "force is not of the type bool": with_body([], {"force": "no"}, EMBED),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_message_of_another_kind_is_refused_by_the_name_of_its_field(reason: str) -> None:
    with pytest.raises(Unreadable) as refusal:
        read(REFUSED[reason], "jobs")

    assert str(refusal.value) == reason


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.sampled_from(sorted(message())),
    st.dictionaries(st.sampled_from(sorted(message()["headers"])), json_values),
    json_values,
    st.lists(json_values, max_size=4),
)
def test_every_other_message_is_either_refused_or_read_as_one_of_ours(
    field: str, headers: dict[str, Any], value: Any, payload: list[Any]
) -> None:
    for found in (value, {**message(), field: value}, message(**headers), with_body(*payload, **headers)):
        with contextlib.suppress(Unreadable):
            taken = read(found, "jobs")
            args, kwargs, embed = json.loads(base64.b64decode(taken["body"]))
            assert (args, embed) == ([], EMBED)
            assert kwargs.keys() <= ARGUMENTS[taken["headers"]["task"]].keys()
            assert all(isinstance(text, str) for text in taken["headers"].values())
            assert read(taken, "jobs")["headers"] == taken["headers"]


def test_every_task_is_one_whose_arguments_are_known() -> None:
    app = CeleryApp(set_as_current=False)
    add_tasks(app, pytest.fail, delete_limit_sec=1)

    assert {name for name in app.tasks if name.startswith("broker.")} == set(ARGUMENTS)
    assert ARGUMENTS["broker.sync"] == {"force": bool}
    assert ARGUMENTS["broker.delete_sandbox"] == {"sandbox_id": str, "run_id": str}


def test_no_message_stops_a_worker_or_takes_one_of_its_slots(worker: Celery, desk: Desk) -> None:
    desk.set_due("1", "2", "3")
    entries: list[str | bytes] = ["no message", b"\xff\xfe", "5", "[]", "{}", "null", "", DEEP, SECRET]
    entries += [json.dumps(found) for found in (*REFUSED.values(), *changed(message()))]
    bodies: tuple[tuple[Any, ...], ...] = ((), ([], {}), ([], {}, 7), (VALUES, VALUES, VALUES))
    entries += [json.dumps(with_body(*body)) for body in bodies]
    # In the queue of the deletes, too, and with a priority: kombu keeps a list for each step of them.
    for queue in ("jobs", "deletions", "jobs\x06\x163"):
        desk.redis.lpush(queue, *entries)
    for entry in ("{}", "7", DEEP, json.dumps(message()), json.dumps({**message(), "body": "not base64!"})):
        desk.redis.publish("/9.celery.pidbox", entry)

    assert desk.run(Job.CLEANUP).state is JobState.SUCCEEDED
    until(lambda: not any(desk.redis.llen(name) for name in ("jobs", "deletions", "jobs\x06\x163")), "empty queues")
    until(lambda: not desk.redis.hlen("unacked") and not desk.redis.zcard("unacked_index"), "all to be settled")
    assert {job: desk.run(job).state for job in Job} == dict.fromkeys(Job, JobState.SUCCEEDED)
    assert worker.is_running()
    assert not [line for line in worker.lines if line["level"] not in {"debug", "info"} and SECRET in str(line)]
    dropped = [line for line in worker.lines if line["message"].endswith("and was dropped")]
    assert {line["error"] for line in dropped} >= REFUSED.keys()
    assert all("exception" not in line for line in dropped)


def test_messages_that_are_no_base64_do_not_use_a_worker_up(worker: Celery, desk: Desk) -> None:
    desk.redis.lpush("jobs", *[json.dumps({**message(), "body": "not base64!"})] * 8)

    assert desk.run(Job.SYNC).state is JobState.SUCCEEDED
    until(lambda: not desk.redis.hlen("unacked"), "all to be settled")


def test_what_celery_itself_would_send_otherwise_starts_nothing(worker: Celery, desk: Desk) -> None:
    producer = CeleryApp(broker=desk.url, set_as_current=False)
    follower = producer.signature("broker.sync", queue="jobs", immutable=True)
    options: dict[str, Any]
    for name, options in (
        ("broker.unknown", {}),
        ("celery.map", {"args": [follower, [1, 2]]}),
        ("broker.sync", {"kwargs": {"nonsense": 1}}),
        ("broker.sync", {"serializer": "pickle"}),
        ("broker.sync", {"compression": "zlib"}),
        ("broker.sync", {"countdown": 0.1}),
        ("broker.delete_sandbox", {"args": [1, 2, 3]}),
        ("broker.expire", {"link": follower}),
        ("broker.expire", {"link_error": follower}),
        ("broker.expire", {"chain": [follower]}),
        ("broker.expire", {"chord": follower}),
    ):
        producer.send_task(name, queue="jobs", ignore_result=True, **options)
    producer.close()

    assert desk.run(Job.PURGE_STALE).state is JobState.SUCCEEDED
    until(lambda: not desk.redis.llen("jobs") and not desk.redis.hlen("unacked"), "all to be settled")
    assert sum(message.endswith("and was dropped") for message in worker.messages) == 11
    assert desk.calls("sync") == []
