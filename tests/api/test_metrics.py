"""Counts and times of HTTP requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.harness import Api, make_api, refusing
from tests.fakes import make_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

BOUNDS = {"0.01", "0.025", "0.05", "0.075", "0.1", "0.15", "0.25", "0.5", "0.75", "1.0", "+Inf"}


def samples(api: Api, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    text = api.call("GET", "/metrics").text
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def counted(api: Api, method: str, endpoint: str, status: str) -> float:
    labels = {"method": method, "endpoint": endpoint, "status": status}
    return samples(api, "http_requests_total").get(tuple(sorted(labels.items())), 0)


def test_requests_are_counted_by_the_routes_template(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"))
    api.allocate()
    for sandbox_id in ("1", "2", "3"):
        api.track("GET", f"/v1/sandboxes/{sandbox_id}", "nobody")
    assert counted(api, "POST", "/v1/allocate", "201") == 1
    assert (
        counted(api, "GET", "/v1/sandboxes/<sandbox_id>", "403")
        + counted(api, "GET", "/v1/sandboxes/<sandbox_id>", "404")
        == 3
    )


def test_refused_and_unknown_requests_are_counted_too(api: Api) -> None:
    api.call("POST", "/v1/allocate")
    api.call("GET", "/no/such/path")
    api.call("GET", "/no/other/path")
    api.call("BREW", "/v1/allocate")
    assert counted(api, "POST", "/v1/allocate", "401") == 1
    assert counted(api, "GET", "other", "404") == 2
    assert counted(api, "other", "other", "405") == 1


def test_requests_are_timed_in_the_contracts_buckets(api: Api) -> None:
    api.call("GET", "/healthz")
    buckets = samples(api, "broker_request_latency_seconds_bucket")
    of_healthz = {
        dict(labels)["le"]: value for labels, value in buckets.items() if dict(labels)["endpoint"] == "/healthz"
    }
    assert set(of_healthz) == BOUNDS
    assert of_healthz["+Inf"] == 1
    assert {name for labels in buckets for name, _ in labels} == {"method", "endpoint", "le"}


def names(api: Api, path: str = "/metrics", **options: Any) -> set[str]:
    answer = api.call("GET", path, **options)
    assert answer.status_code == 200
    return {sample.name for family in text_string_to_metric_families(answer.text) for sample in family.samples}


def test_the_pools_gauges_are_shown_beside_what_was_counted(api: Api) -> None:
    api.store.seed(make_sandbox("1"), make_sandbox("2"), make_sandbox("3"))
    api.allocate()
    assert samples(api, "broker_pool_available") == {(): 2}
    assert samples(api, "broker_pool_allocated") == {(): 1}
    assert samples(api, "broker_pool_total") == {(): 3}
    assert samples(api, "broker_allocate_total")[(("outcome", "success"),)] == 1


def test_the_pools_gauges_are_no_older_than_is_set() -> None:
    api = make_api(POOL_GAUGE_CACHE_SEC="10")
    api.store.seed(make_sandbox("1"))
    assert samples(api, "broker_pool_total") == {(): 1}
    api.store.seed(make_sandbox("2"))
    api.clock.advance(9)
    assert samples(api, "broker_pool_total") == {(): 1}
    api.clock.advance(1)
    assert samples(api, "broker_pool_total") == {(): 2}


def test_a_scrape_without_the_pools_gauges_answers_while_the_store_is_away() -> None:
    api = make_api(around=refusing("count"))
    shown = names(api)
    assert "broker_allocate_total" in shown
    assert not {name for name in shown if name.startswith("broker_pool")}


@pytest.mark.parametrize("name", ["broker_allocate_total", "broker_pool_available", "broker_pool_total"])
def test_a_scrape_may_ask_for_one_series(api: Api, name: str) -> None:
    assert names(api, f"/metrics?name[]={name}") == {name}


def test_a_scrape_may_ask_for_several_series_and_for_none_that_is_known(api: Api) -> None:
    both = {"broker_pool_total", "broker_allocate_total"}
    assert names(api, "/metrics?" + "&".join(f"name[]={name}" for name in both)) == both
    assert names(api, "/metrics?name[]=unknown") == set()
    assert names(api, "/metrics?name[]=") >= both


def test_a_scraper_that_prefers_open_metrics_gets_them(api: Api) -> None:
    answer = api.call("GET", "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.mimetype == "application/openmetrics-text"
    assert answer.text.endswith("# EOF\n")


@pytest.mark.slow
def test_what_callers_make_up_adds_no_series(api: Api) -> None:
    api.store.seed(make_sandbox("1"))
    shapes: list[Callable[[str], Any]] = [
        lambda made_up: api.call("GET", f"/{made_up}"),
        lambda made_up: api.call(made_up.upper(), "/v1/allocate"),
        lambda made_up: api.track("POST", "/v1/allocate", made_up, headers={"Idempotency-Key": made_up}),
        lambda made_up: api.track("GET", f"/v1/sandboxes/{made_up}", made_up, headers={"X-Instruqt-Track-ID": made_up}),
        lambda made_up: api.track("POST", f"/v1/sandboxes/{made_up}/mark-for-deletion", made_up),
        lambda made_up: api.track("POST", "/v1/allocate", made_up, headers={"X-Sandbox-Name-Prefix": made_up}),
        lambda made_up: api.call("GET", f"/v1/docs/{made_up}", headers={"Host": made_up, "User-Agent": made_up}),
        lambda made_up: api.admin("GET", f"/v1/admin/jobs/{made_up}", headers={"X-Request-ID": made_up}),
        lambda made_up: api.admin("GET", f"/v1/admin/sandboxes?track_id={made_up}"),
        lambda made_up: api.call("GET", "/healthz", headers={made_up: made_up, "Authorization": made_up}),
    ]

    def series() -> int:
        return sum(not line.startswith("#") for line in api.call("GET", "/metrics").text.splitlines())

    api.call("GET", "/metrics")
    for shape in shapes:
        shape("the-first")
        shape("the-second")
    before = series()
    for number in range(10_000):
        shapes[number % len(shapes)](f"made-up-{number}")
    assert series() == before


def test_two_applications_do_not_share_their_counts(api: Api) -> None:
    api.call("GET", "/healthz")
    assert counted(api, "GET", "/healthz", "200") == 1
