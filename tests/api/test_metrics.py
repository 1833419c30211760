"""What is counted and timed about HTTP requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.fakes import make_sandbox

if TYPE_CHECKING:
    from tests.api.harness import Api

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


def test_two_applications_do_not_share_their_counts(api: Api) -> None:
    api.call("GET", "/healthz")
    assert counted(api, "GET", "/healthz", "200") == 1
