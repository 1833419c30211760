"""Which requests the rate limit counts as one caller, and the answer to a limited caller."""

from __future__ import annotations

import pytest

from broker_common.core.ports import Allowance
from broker_common.core.telemetry import RateChecked, RateOutcome
from tests.api.harness import error_of, make_api

EXCEEDED = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=2)


def test_a_track_is_counted_by_its_id() -> None:
    api = make_api()
    api.track("GET", "/v1/sandboxes", "one")
    api.track("GET", "/v1/sandboxes", "one", headers={"X-Forwarded-For": "203.0.113.9"})
    assert api.rate_limit.keys == ["track:one"] * 2


def test_an_operator_is_counted_apart_from_tracks() -> None:
    api = make_api()
    api.admin("GET", "/v1/admin/stats")
    assert api.rate_limit.keys == ["principal:admin"]


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "address:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "address:2001:db8:1:2::/64"),
        ("", "address:unknown"),  # a Unix socket has no address
    ],
)
def test_who_has_no_valid_token_is_counted_by_address(address: str, key: str) -> None:
    api = make_api()
    for headers in ({}, {"Authorization": "Bearer guessed", "X-Track-ID": "one"}):
        api.app.test_client().post("/v1/allocate", headers=headers, environ_base={"REMOTE_ADDR": address})
    assert api.rate_limit.keys == [key, key]


@pytest.mark.parametrize(
    ("proxies", "key"),
    [("0", "address:127.0.0.1"), ("1", "address:198.51.100.2"), ("2", "address:198.51.100.1")],
)
def test_the_address_is_taken_from_as_many_proxies_as_are_trusted(proxies: str, key: str) -> None:
    api = make_api(TRUSTED_PROXIES=proxies)
    api.app.test_client().get("/v1/sandboxes", headers={"X-Forwarded-For": "forged, 198.51.100.1, 198.51.100.2"})
    assert api.rate_limit.keys == [key]


def test_a_limited_caller_is_told_when_to_come_back_before_anything_else() -> None:
    api = make_api()
    api.rate_limit.answer = EXCEEDED
    answer = api.app.test_client().post("/v1/allocate")
    assert answer.status_code == 429
    error = error_of(answer)
    assert (error["code"], error["retry_after"]) == ("RATE_LIMIT_EXCEEDED", 2)
    assert answer.headers["X-RateLimit-Remaining"] == "0"
    assert RateChecked(outcome=RateOutcome.LIMITED) in api.recorder.events


def test_every_answer_says_what_is_left() -> None:
    api = make_api()
    for answer in (api.track("POST", "/v1/allocate"), api.admin("GET", "/v1/admin/stats"), api.admin("GET", "/v1/no")):
        assert answer.headers["X-RateLimit-Limit"] == "200"
        assert answer.headers["X-RateLimit-Remaining"] == "199"
        assert answer.headers["X-RateLimit-Reset"] == "1"
        assert answer.headers["RateLimit-Policy"] == '"default";q=200;w=4'
        assert answer.headers["RateLimit"] == '"default";r=199;t=1'


@pytest.mark.parametrize(
    ("allowance", "told"),
    [
        (Allowance(is_exceeded=False, limit=5, remaining=5, reset_after=0, retry_after=0), '"default";r=5;t=0'),
        (Allowance(is_exceeded=False, limit=5, remaining=0, reset_after=3, retry_after=0), '"default";r=0;t=1'),
        (Allowance(is_exceeded=True, limit=5, remaining=0, reset_after=3, retry_after=2), '"default";r=0;t=2'),
    ],
)
def test_a_caller_is_told_when_it_may_make_more_requests_and_never_later_than_when_to_repeat(
    allowance: Allowance, told: str
) -> None:
    api = make_api(RATE_LIMIT_RPS="2", RATE_LIMIT_BURST="5")
    api.rate_limit.answer = allowance
    answer = api.admin("GET", "/v1/admin/stats")
    assert answer.headers["RateLimit"] == told
    assert answer.headers["RateLimit-Policy"] == '"default";q=5;w=3'


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_who_watches_the_broker_is_never_limited(path: str) -> None:
    api = make_api()
    api.rate_limit.answer = EXCEEDED
    assert api.app.test_client().get(path).status_code == 200
    assert api.rate_limit.keys == []


def test_a_request_that_cannot_be_counted_passes_and_is_recorded() -> None:
    api = make_api()
    api.rate_limit.answer = None
    answer = api.admin("GET", "/v1/admin/stats")
    assert answer.status_code == 200
    assert "X-RateLimit-Limit" not in answer.headers
    assert "RateLimit" not in answer.headers
    assert "RateLimit-Policy" not in answer.headers
    assert RateChecked(outcome=RateOutcome.UNCHECKED) in api.recorder.events
