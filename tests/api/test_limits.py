"""Deadlines of requests, and the time that they may wait for a thread."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest

from broker_api.bounds import BULK_DEADLINE_SEC
from broker_api.limits import ARRIVED_AT
from broker_common.core.deadline import time_left
from tests.api.harness import assert_error, make_api
from tests.fakes import MemoryStore, StoreWrapper


class Watching(StoreWrapper):
    """Notes how much time a view has left when it calls the store."""

    left: ClassVar[list[float]] = []

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        assert inner._clock
        self._inner_clock = inner._clock
        self.left.clear()

    def read_due(self, *args: Any, **options: Any) -> Any:
        self.left.append(time_left(self._inner_clock))
        return super().read_due(*args, **options)

    def read_claims(self, track_id: str) -> Any:
        self.left.append(time_left(self._inner_clock))
        return super().read_claims(track_id)


@pytest.mark.parametrize(
    ("path", "seconds"), [("/v1/admin/bulk-retry", 30), ("/v1/admin/bulk-delete?status=stale", 30)]
)
def test_a_bulk_call_has_longer_than_others(path: str, seconds: float) -> None:
    api = make_api(around=Watching)
    assert api.admin("POST", path).status_code == 200
    assert Watching.left == [seconds]


def test_a_request_has_the_time_that_is_set() -> None:
    api = make_api(around=Watching, REQUEST_DEADLINE_SEC="1.25")
    api.track("GET", "/v1/sandboxes")
    assert Watching.left == [1.25]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/v1/sandboxes", 3), ("POST", "/v1/admin/bulk-retry", BULK_DEADLINE_SEC)]
)
def test_a_request_that_waited_past_its_deadline_is_answered_503_and_not_worked_on(
    method: str, path: str, allowed: float
) -> None:
    api = make_api(around=Watching)
    api.clock.advance(100)
    call = partial(api.admin if "admin" in path else api.track, method, path)
    late = call(environ_overrides={ARRIVED_AT: api.clock.monotonic() - allowed})
    assert assert_error(late, 503, "SERVICE_UNAVAILABLE")["retry_after"] > 0
    assert Watching.left == []
    in_time = call(environ_overrides={ARRIVED_AT: api.clock.monotonic() - allowed + 0.5})
    assert in_time.status_code == 200
    assert Watching.left == [allowed], "the deadline counts work, not waiting"


def test_no_client_can_say_when_its_request_arrived() -> None:
    api = make_api(around=Watching)
    for name in (ARRIVED_AT, ARRIVED_AT.upper(), ARRIVED_AT.replace(".", "-")):
        assert api.track("GET", "/v1/sandboxes", headers={name: "-1000"}).status_code == 200
    assert Watching.left == [3, 3, 3]
