"""What a real worker does whose pool has threads: wipes at once, their log lines, their messages, and its end."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest
from kombu import Connection

from broker_common.core.job_names import Job
from broker_common.settings import Settings
from broker_worker.app import create_celery
from broker_worker.messages import CheckedTransport
from deploy.dev.processes import free_ports
from tests.worker.conftest import ASKING, DEADLINE_SEC, OUT_OF_REACH, Celery, Desk, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploy.dev.processes import Process

THREADS = 60
SANDBOXES = [str(number) for number in range(THREADS)]
OPTIONS = ("-P", "threads", "--without-mingle", "--without-gossip")


def start_worker(url: str) -> Celery:
    return Celery(url, "worker", "-c", str(THREADS), *OPTIONS)


@pytest.fixture
def worker(database_url: str) -> Iterator[Celery]:
    with start_worker(database_url) as worker:
        until(lambda: worker.has_said(" ready."), "the worker")
        yield worker


def begin(desk: Desk) -> str:
    """Have every thread wipe a sandbox, which ends only after `release`; returns the run."""
    desk.script(**dict.fromkeys(SANDBOXES, "hold"))
    desk.set_due(*SANDBOXES)
    job_id = desk.ask(Job.CLEANUP)
    until(lambda: desk.redis.llen("calls") == THREADS, "all wipes to be under way")
    return job_id


def test_as_many_wipes_as_threads_run_at_once_in_the_worker_s_only_process(worker: Celery, desk: Desk) -> None:
    job_id = begin(desk)
    desk.release(*SANDBOXES)

    run = desk.await_end(job_id)
    assert run.result is not None
    assert run.result["deleted"] == THREADS
    assert {call["pid"] for name in SANDBOXES for call in desk.calls(name)} == {worker.pid}


def test_threads_that_end_at_once_acknowledge_their_messages_at_once(desk: Desk) -> None:
    options = create_celery(Settings(redis_url=desk.url), lambda: pytest.fail("no task runs")).conf
    with (
        Connection(
            desk.url, transport=CheckedTransport, transport_options=options.broker_transport_options
        ) as connection,
        connection.SimpleQueue("jobs") as queue,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        channel: Any = queue.channel
        channel.qos.prefetch_count = THREADS
        for _ in range(THREADS):
            desk.ask(Job.SYNC)
        messages = [queue.get(timeout=5) for _ in range(THREADS)]
        desk.redis.client_pause(1500, all=False)  # each acknowledgement keeps its connection for so long
        acknowledged = [threads.submit(message.ack) for message in messages]
        for each in acknowledged:
            each.result()
        assert desk.redis.hlen("unacked") == 0


def test_a_thread_acknowledges_later_what_a_silent_redis_does_not_take(own_redis: Process) -> None:
    desk = Desk(own_redis.program.ready_url.replace("tcp:", "redis:") + "/0")
    options = create_celery(Settings(redis_url=desk.url), lambda: pytest.fail("no task runs")).conf
    with (
        Connection(
            desk.url, transport=CheckedTransport, transport_options=options.broker_transport_options
        ) as connection,
        connection.SimpleQueue("jobs") as queue,
        ThreadPoolExecutor(1) as thread,
    ):
        desk.ask(Job.SYNC)
        message = queue.get(timeout=5)
        own_redis.kill(signal.SIGSTOP)
        acknowledged = thread.submit(message.ack)
        try:
            acknowledged.result(timeout=DEADLINE_SEC)
        finally:
            own_redis.kill(signal.SIGCONT)
        channel: Any = queue.channel
        channel.qos.restore_visible()
        assert desk.redis.hlen("unacked") == 0


def test_a_line_names_the_sandbox_and_the_principal_of_its_own_wipe_alone(worker: Celery, desk: Desk) -> None:
    def outside() -> list[dict[str, Any]]:
        return [line for line in worker.lines if " succeeded in " in line["message"]]

    job_id = begin(desk)
    desk.release(*SANDBOXES)
    desk.await_end(job_id)
    desk.set_due("by-schedule")
    desk.await_end(desk.send("broker.cleanup", queue="jobs"))
    until(lambda: len(outside()) == THREADS + 3, "the tasks' own lines")

    deletes = [line for line in worker.lines if line.get("action") == "delete"]
    asked, scheduled = deletes[:-1], deletes[-1]
    assert sorted(line["sandbox_id"] for line in asked) == sorted(SANDBOXES)
    assert {line["principal"] for line in asked} == {ASKING.principal}
    assert (scheduled["sandbox_id"], scheduled["principal"]) == ("by-schedule", "job:cleanup")
    assert [line for line in outside() if {"sandbox_id", "principal"} & line.keys()] == []


def test_a_wipe_that_finds_no_call_slot_goes_back_to_the_queue(worker: Celery, desk: Desk) -> None:
    desk.set_due("1")
    desk.script(**{"1": "busy"})
    job_id = desk.ask(Job.CLEANUP)
    desk.await_calls("1", 3)
    desk.release("1")

    run = desk.await_end(job_id)
    assert run.result is not None
    assert run.result["deleted"] == 1


def test_on_sigterm_all_wipes_under_way_are_finished_and_nothing_is_lost(database_url: str, desk: Desk) -> None:
    with start_worker(database_url) as worker:
        job_id = begin(desk)
        desk.send("broker.delete_sandbox", queue="deletions", kwargs={"sandbox_id": "not-begun", "run_id": "another"})
        worker.signal(signal.SIGTERM)
        until(lambda: worker.has_said("[Scheduler] Received shutdown signal, stopping jobs..."), "the first line")
        desk.release(*SANDBOXES)

        assert worker.exit_code() == 0
    run = desk.await_end(job_id)
    assert run.result is not None
    assert run.result["deleted"] == THREADS
    assert desk.redis.llen("calls") == THREADS, "each wipe ran once"
    assert (desk.redis.llen("deletions"), desk.redis.hlen("unacked")) == (1, 0)


@pytest.mark.parametrize(
    ("options", "built"), [(("-c", "2"), {"1"}), ((*OPTIONS[:2], "-c", "20"), {"20"})], ids=["processes", "threads"]
)
def test_services_are_built_once_in_each_process_that_runs_tasks_for_as_many_as_it_runs_at_once(
    database_url: str, desk: Desk, options: tuple[str, ...], built: set[str]
) -> None:
    (port,) = free_ports(1)
    env = {**OUT_OF_REACH, "REQUEST_DEADLINE_SEC": "0.3", "METRICS_PORT": str(port)}
    words = ("worker", *options, *OPTIONS[2:])
    with Celery(database_url, *words, application="tests.worker.counting_app", **env) as worker:
        until(lambda: worker.has_said(" ready."), "the worker")
        runs = [desk.ask(Job.SYNC) for _ in range(20)]
        for job_id in runs:
            desk.await_end(job_id)
        noted = [each.decode().split() for each in cast("list[bytes]", desk.redis.lrange("built", 0, -1))]

    assert {tasks for _, tasks in noted} == built
    pids = [pid for pid, _ in noted]
    assert len(pids) == len(set(pids))
    assert (str(worker.pid) in pids) == ("threads" in options)
