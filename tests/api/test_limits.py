"""Deadlines, and the threads that stay free."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from broker_api import threads
from broker_api.threads import ThreadBudget
from broker_common.core.deadline import time_left
from broker_common.core.errors import StoreUnavailable
from deploy.dev.processes import wait_until
from tests.api.harness import assert_error, make_api
from tests.fakes import FakeClock, StoreWrapper


@pytest.mark.parametrize(
    ("path", "seconds"), [("/v1/admin/bulk-retry", 30), ("/v1/admin/bulk-delete?status=stale", 30)]
)
def test_a_bulk_call_has_longer_than_others(path: str, seconds: float) -> None:
    left: list[float] = []

    class Watching(StoreWrapper):
        def read_due(self, *args: object, **options: object) -> object:  # type: ignore[override] # passed on as it comes
            left.append(time_left(api.clock))
            return super().read_due(*args, **options)  # type: ignore[arg-type] # the same

    api = make_api(around=Watching)
    assert api.admin("POST", path).status_code == 200
    assert left == [seconds]


def test_a_request_has_the_time_that_is_set() -> None:
    left: list[float] = []

    class Watching(StoreWrapper):
        def read_claims(self, track_id: str) -> list[object]:  # type: ignore[override] # it returns the inner store's
            left.append(time_left(api.clock))
            return list(super().read_claims(track_id))

    api = make_api(around=Watching, REQUEST_DEADLINE_SEC="1.25")
    api.track("GET", "/v1/sandboxes")
    assert left == [1.25]


def test_health_is_told_and_more_requests_are_refused_while_the_store_hangs() -> None:
    inside, go_on = threading.Semaphore(0), threading.Event()

    class Hanging(StoreWrapper):
        def read_claims(self, track_id: str) -> list[object]:  # type: ignore[override] # it returns the inner store's
            inside.release()
            assert go_on.wait(30)
            return list(super().read_claims(track_id))

    api = make_api(around=Hanging, API_THREADS="4")
    with ThreadPoolExecutor(2) as clients:
        hanging = [clients.submit(api.track, "GET", "/v1/sandboxes") for _ in range(2)]
        try:
            for _ in hanging:
                assert inside.acquire(timeout=30)
            refused = api.track("GET", "/v1/sandboxes")
            healthy = api.call("GET", "/healthz")
            ready = api.call("GET", "/readyz")
        finally:
            go_on.set()
        assert [answer.result(30).status_code for answer in hanging] == [200, 200]
    assert_error(refused, 503, "SERVICE_UNAVAILABLE")
    assert int(refused.headers["Retry-After"]) > 0
    assert (healthy.status_code, ready.status_code) == (200, 200)
    assert api.track("GET", "/v1/sandboxes").status_code == 200


def test_a_request_waits_for_one_that_is_about_to_end() -> None:
    budget = ThreadBudget(3, FakeClock())
    entered, ended = threading.Event(), threading.Event()

    def hold() -> None:
        with budget.store_call(3):
            entered.set()
            assert ended.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    # Ends the other request while this thread waits for the permit. The wait itself has a limit.
    threading.Timer(0.01, ended.set).start()
    with budget.store_call(3):
        assert ended.is_set()
    holder.join(30)


def test_permits_go_to_requests_in_the_order_in_which_they_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_LONGEST_QUEUE_SEC", 30)
    budget = ThreadBudget(3, FakeClock())
    order: list[str] = []
    go_on = threading.Event()

    def ask(name: str) -> None:
        with budget.store_call(30):
            order.append(name)
            assert go_on.wait(30)

    asking = [threading.Thread(target=ask, args=[name]) for name in ("first", "second")]
    with budget.store_call(30):
        for each in asking:
            each.start()
            assert wait_until(partial(_is_waiting, each), 30)
    try:
        # This thread runs, and the one whose turn it is may not have woken up.
        with pytest.raises(StoreUnavailable), budget.store_call(0):
            pass
    finally:
        go_on.set()
        for each in asking:
            each.join(30)
    assert order == ["first", "second"]


def _is_waiting(thread: threading.Thread) -> bool:
    """Tell whether a thread waits for another one."""
    frame = sys._current_frames()[thread.ident or 0]
    return (frame.f_code.co_filename, frame.f_code.co_name) == (threading.__file__, "wait")


def test_a_request_without_time_left_does_not_wait_for_a_permit() -> None:
    budget = ThreadBudget(3, FakeClock())
    with budget.store_call(3), pytest.raises(StoreUnavailable), budget.store_call(0):
        pass


def test_after_a_wait_in_vain_nobody_waits_until_a_request_has_ended() -> None:
    clock = FakeClock()
    budget = ThreadBudget(3, clock)
    with budget.store_call(3):
        with pytest.raises(StoreUnavailable), budget.store_call(3):
            pass
        looks = clock.count_looks()
        with pytest.raises(StoreUnavailable), budget.store_call(3):
            pass
        assert looks.acquire(blocking=False)  # the look that sets the deadline
        assert not looks.acquire(blocking=False), "it asked how long it may wait"
    with budget.store_call(3):
        pass


def test_permits_come_back_after_errors() -> None:
    budget = ThreadBudget(3, FakeClock())
    for _ in range(3):
        with pytest.raises(KeyError), budget.store_call(3):
            raise KeyError
    with budget.store_call(3):
        pass


def test_a_caller_who_waits_leaves_no_permit_behind_and_needs_one() -> None:
    budget = ThreadBudget(4, FakeClock())
    for _ in range(3):
        with budget.waiting() as may_wait, budget.waiting() as another:
            assert (may_wait, another) == (True, False)
    with budget.store_call(3), budget.store_call(3), budget.waiting() as may_wait:
        assert not may_wait


def test_nobody_may_wait_where_that_would_leave_no_permit_for_the_store() -> None:
    with ThreadBudget(3, FakeClock()).waiting() as may_wait:
        assert not may_wait
