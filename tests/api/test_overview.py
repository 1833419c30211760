"""The calls that show the pool at a glance."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest

from broker_api.runtime import runtime_of
from broker_common.core.jobs import JobState
from broker_common.core.overview import Breaker
from broker_common.core.samples import KEPT_SEC, MOST_SAMPLES, Sample, minute_of
from broker_common.core.sandbox import Status
from broker_common.core.telemetry import AllocateOutcome
from tests.api.harness import Api, assert_error, body_of, make_api
from tests.contract.line import make_place
from tests.contract.webhooks import make_endpoint
from tests.fakes import START, Fault, FlakyStore, make_reservation, make_sandbox

if TYPE_CHECKING:
    from typing import Any

DAY_SEC = 24 * 3600
NOW = minute_of(START)


def overview(api: Api) -> dict[str, Any]:
    return body_of(api.admin("GET", "/v1/admin/overview"), 200)


def samples(api: Api, query: str = "") -> dict[str, Any]:
    return body_of(api.admin("GET", f"/v1/admin/samples{query}"), 200)


def add(api: Api, at: int, available: int = 5, success: int = 0) -> None:
    counts = {**dict.fromkeys(Status, 0), Status.AVAILABLE: available, Status.DELETED: 9}
    api.store.write_sample(Sample(at=at, by_status=counts, waiting=2))
    if success:
        api.store.add_allocates(at, {AllocateOutcome.SUCCESS: success})


def test_the_overview_shows_the_line_the_allocates_and_the_open_reservations(api: Api) -> None:
    api.store.reservations["res-1"] = make_reservation(count=3, set_aside=1, name="Intro")
    api.store.add_allocates(NOW, {AllocateOutcome.SUCCESS: 4})
    api.store.join(make_place(joined_at=START))
    found = overview(api)
    assert found["line"] == {"waiting": 1, "longest_waiting_since": START}
    assert found["allocates"] == {**{outcome.value: 0 for outcome in AllocateOutcome}, "success": 4}
    (shown,) = found["reservations"]
    assert (shown["name"], shown["state"], shown["short_by"], shown["set_aside"]) == ("Intro", "open", 2, 1)
    assert found["counted_at"] == START


def test_the_overview_says_how_many_webhooks_fail_or_are_disabled(api: Api) -> None:
    assert overview(api)["webhooks"] == {"endpoints": 0, "failing": 0, "disabled": 0}
    states: dict[str, dict[str, Any]] = {
        "sound": {},
        "failing": {"failing_since": START - 60},
        "given up": {"failing_since": START - 5 * DAY_SEC, "disabled_at": START, "disabled_reason": "it failed"},
        "turned off": {"disabled_at": START, "disabled_reason": "an operator disabled it"},
    }
    for name, state in states.items():
        api.store.endpoints[name] = make_endpoint(name, **state)
    assert overview(api)["webhooks"] == {"endpoints": 4, "failing": 1, "disabled": 2}


def test_the_overview_shows_the_last_run_of_each_job_with_its_result_and_the_breaker(api: Api) -> None:
    for job in ("sync", "expire", "sync"):
        api.admin("POST", f"/v1/admin/{job}")
    api.queue.states, api.queue.result = deque([JobState.SUCCEEDED]), {"synced": 3}
    api.breaker.now = Breaker(state="open", failures=5, reason="it answered 500", open_until=START + 60)
    found = overview(api)
    assert [(run["job_id"], run["job"], run["result"]) for run in found["jobs"]] == [
        ("job-3", "sync", {"synced": 3}),
        ("job-2", "expire", {"synced": 3}),
    ]
    assert found["breaker"] == {
        "state": "open",
        "failures": 5,
        "reason": "it answered 500",
        "open_until": START + 60,
    }
    assert (found["jobs_error"], found["breaker_error"]) == (None, None)


def test_with_redis_away_the_overview_shows_the_rest_and_says_why_jobs_and_breaker_are_missing(api: Api) -> None:
    api.store.seed(make_sandbox("7"))
    api.queue.down = True
    found = overview(api)
    assert (found["jobs"], found["breaker"], found["counts"]["available"]) == (None, None, 1)
    assert found["jobs_error"] == found["breaker_error"] == "the job queue cannot be reached"


def test_the_overview_answers_503_while_nobody_can_count_the_pool() -> None:
    def never_counts(store: Any) -> FlakyStore:
        flaky = FlakyStore(store)
        flaky.fail("count", *[Fault.REFUSED] * 50)
        return flaky

    answer = make_api(around=never_counts).admin("GET", "/v1/admin/overview")
    assert "could not be counted" in assert_error(answer, 503, "SERVICE_UNAVAILABLE")["message"]


def test_the_samples_of_the_last_day_are_shown_by_the_minute_and_absent_minutes_are_absent(api: Api) -> None:
    for at in (NOW - DAY_SEC - 60, NOW - DAY_SEC + 120, NOW - 60, NOW):
        add(api, at, success=3)
    api.clock.advance(30)
    found = samples(api)
    assert [each["at"] for each in found["samples"]] == [NOW - DAY_SEC + 120, NOW - 60, NOW]
    assert (found["count"], found["step"]) == (3, 60)
    shown = found["samples"][0]
    assert shown["counts"]["available"] == shown["counts"]["total"] == 5
    assert "deleted" not in shown["counts"]
    assert (shown["waiting"], shown["allocates"]["success"], shown["allocates"]["error"]) == (2, 3, 0)


def test_a_minute_that_nobody_counted_has_no_counts_but_its_allocates(api: Api) -> None:
    api.store.add_allocates(NOW, {AllocateOutcome.SUCCESS: 1})
    (shown,) = samples(api, f"?from={NOW}&to={NOW + 60}")["samples"]
    assert (shown["counts"], shown["waiting"], shown["allocates"]["success"]) == (None, None, 1)


@pytest.mark.parametrize(
    ("length", "step"),
    [(60 * MOST_SAMPLES, 60), (60 * MOST_SAMPLES + 1, 300), (6 * DAY_SEC, 900), (KEPT_SEC, 3600)],
)
def test_a_longer_time_is_shown_in_longer_steps(api: Api, length: int, step: int) -> None:
    since = NOW - NOW % 3600
    add(api, since, available=5, success=1)
    add(api, since + step - 60, available=1, success=2)
    found = samples(api, f"?from={since}&to={since + length}")
    assert found["step"] == step
    assert found["samples"][-1]["counts"]["available"] == 1
    assert sum(each["allocates"]["success"] for each in found["samples"]) == 3


def test_a_step_may_be_asked_for(api: Api) -> None:
    since = NOW - NOW % 3600
    add(api, since)
    add(api, since + 60)
    assert samples(api, f"?from={since}&to={since + 3600}&step=300")["count"] == 1


def test_thirty_days_may_be_asked_for_without_an_end(api: Api) -> None:
    add(api, NOW)
    for length in (KEPT_SEC, KEPT_SEC + 5):
        found = samples(api, f"?from={START - length}")
        assert found["step"] == 3600
    assert samples(api, f"?to={START + 60}")["count"] == 1
    assert samples(api, "?to=5")["count"] == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=x", "from"),
        ("from=-1", "from"),
        ("to=1.5", "to"),
        (f"from={START}&to={START}", "to"),
        (f"from={START}&to={START + KEPT_SEC + 1}", "to"),
        (f"from={START + 1}", "from"),
        (f"from={10**12 + 1}", "from"),
        ("step=61", "step"),
        ("step=0", "step"),
        (f"from={START - KEPT_SEC}&to={START}&step=60", "step"),
        ("by=day", "by"),
    ],
)
def test_a_malformed_look_at_the_samples_is_refused(shared_api: Api, query: str, field: str) -> None:
    error = assert_error(shared_api.admin("GET", f"/v1/admin/samples?{query}"), 400, "VALIDATION_ERROR")
    assert field in error["details"] or field in str(error)


def test_a_step_that_gives_too_many_samples_is_refused_with_one_that_does_not(api: Api) -> None:
    answer = api.admin("GET", f"/v1/admin/samples?from={START - 2 * DAY_SEC}&to={START}&step=60")
    assert "use 300 or more" in str(assert_error(answer, 400, "VALIDATION_ERROR"))


def test_an_allocate_is_counted_in_the_sample_of_its_minute() -> None:
    api = make_api(counts_minutes=True)
    api.store.seed(make_sandbox("7"))
    api.allocate()
    api.track("POST", "/v1/allocate", "track-2")
    runtime_of(api.app).services.minute_counts.close()
    (shown,) = samples(api, f"?from={NOW}&to={NOW + 60}")["samples"]
    assert (shown["allocates"]["success"], shown["allocates"]["no_sandboxes"]) == (1, 1)
