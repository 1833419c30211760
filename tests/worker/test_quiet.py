"""Celery's own lines about tasks that run every few seconds are not logged; those about others, and about faults, are."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from broker_common.logs import configure_logging
from broker_worker.quiet import leave_out_frequent_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVED = ("celery.worker.strategy", "Task %(name)s[%(id)s] received")
SUCCEEDED = ("celery.app.trace", "Task %(name)s[%(id)s] succeeded in %(runtime)ss: %(return_value)s")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    configure_logging(level="WARNING", fmt="json")
    logging.getLogger().handlers.clear()
    leave_out_frequent_tasks()


def say(line: tuple[str, str], task: str, level: int = logging.INFO) -> None:
    logger, message = line
    logging.getLogger(logger).log(level, message, {"name": task, "id": "1", "runtime": 1, "return_value": None})


def messages(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("line", [RECEIVED, SUCCEEDED])
def test_lines_about_frequent_tasks_are_left_out(line: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="json")
    leave_out_frequent_tasks()
    for task in ("broker.deliver", "broker.send_webhook", "broker.sync", "broker.delete_sandbox"):
        say(line, task)
    said = messages(capsys)
    assert [each.partition("[")[0] for each in said] == ["Task broker.sync", "Task broker.delete_sandbox"]


def test_what_beat_sends_every_few_seconds_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="json")
    leave_out_frequent_tasks()
    beat = logging.getLogger("celery.beat")
    beat.info("beat: Starting...")
    for name in ("deliver", "sync"):
        beat.info("Scheduler: Sending due task %s (%s)", name, f"broker.{name}")
    assert messages(capsys) == ["beat: Starting...", "Scheduler: Sending due task sync (broker.sync)"]


def test_a_fault_of_a_frequent_task_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="json")
    leave_out_frequent_tasks()
    say(SUCCEEDED, "broker.deliver", logging.ERROR)
    assert len(messages(capsys)) == 1


def test_at_the_level_debug_all_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="INFO", fmt="json")
    leave_out_frequent_tasks()
    configure_logging(level="DEBUG", fmt="json")
    leave_out_frequent_tasks()
    say(RECEIVED, "broker.deliver")
    assert len(messages(capsys)) == 1
