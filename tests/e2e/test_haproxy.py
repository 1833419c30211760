"""What `deploy/haproxy.cfg` does when the API's instances are not ready, or are gone. Behind it small servers stand in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from broker_api.tracing import PATTERN
from deploy.dev.processes import free_ports, wait_until
from tests.backends import installed, running
from tests.haproxy import CONFIGURATION, NO_INSTANCE, Balanced
from tests.http_server import Handler, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class NotReady(Handler):
    """An instance that is not ready, and says to a track why."""

    def reply(self) -> None:
        self.answer(503, b"the instance says why", Retry_After="30")


@contextmanager
def haproxy_before(ports: list[int], scratch: Path) -> Iterator[Balanced]:
    balanced = Balanced(installed("haproxy", package="haproxy"), scratch, ports)
    with running(balanced.program):
        # Until its first checks it takes each instance for ready.
        assert wait_until(lambda: {row["status"] for row in balanced.servers().values()} == {"DOWN"}, 30)
        yield balanced


def allocate(balanced: Balanced, **headers: str) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{balanced.port}/v1/allocate", headers=headers, timeout=30)


def test_an_instance_that_is_not_ready_is_asked_if_no_other_is_ready(tmp_path: Path) -> None:
    (gone,) = free_ports(1)
    with serving(NotReady) as server, haproxy_before([gone, server.server_port], tmp_path) as balanced:
        answer = allocate(balanced)
    assert (answer.status_code, answer.text, answer.headers["Retry-After"]) == (503, "the instance says why", "30")


@pytest.mark.parametrize(("given", "is_kept"), [("lab-7.setup_1", True), ('a"b', False)])
def test_without_any_instance_haproxy_answers_in_the_shape_of_the_contract(
    given: str, *, is_kept: bool, tmp_path: Path
) -> None:
    with haproxy_before(free_ports(2), tmp_path) as balanced:
        answer = allocate(balanced, **{"X-Request-ID": given})
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/json")
    assert answer.headers["Retry-After"] == str(error["retry_after"])
    assert answer.headers["X-Request-ID"] == error["request_id"]
    assert (error["code"], error["message"]) == ("SERVICE_UNAVAILABLE", NO_INSTANCE)
    assert (error["request_id"] == given) == is_kept
    assert error["request_id"]


def test_haproxy_takes_the_ids_that_the_api_takes() -> None:
    assert f" -m reg ^{PATTERN}$ }}" in CONFIGURATION.read_text()
