"""The headers for browsers: of every answer, of the page of the description, and for other sites."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.api.harness import make_api

LAB = "https://lab.example.com"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-track-id"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/allocate"),
        ("GET", "/v1/admin/stats"),
        ("GET", "/no/such/path"),
        ("GET", "/healthz"),
        ("GET", "/metrics"),
    ],
)
def test_every_answer_carries_the_headers_that_owasp_names(method: str, path: str) -> None:
    headers = make_api().call(method, path).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_the_page_may_run_its_own_scripts_and_no_others() -> None:
    answer = make_api().call("GET", "/v1/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_a_header_that_a_page_has_of_its_own_is_sent_once() -> None:
    api = make_api()
    assert len(api.call("GET", "/v1/docs").headers.getlist("Content-Security-Policy")) == 1
    script = api.call("GET", "/v1/docs/swagger-ui.css").headers
    assert script.getlist("Cache-Control") == ["no-cache"], "browsers may keep it, and ask whether it has changed"
    assert script["X-Content-Type-Options"] == "nosniff"


def test_https_is_insisted_on_only_where_it_was_used() -> None:
    api = make_api(TRUSTED_PROXIES="1")
    secure = api.call("GET", "/healthz", headers={"X-Forwarded-Proto": "https"})
    assert secure.headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains"
    assert "Strict-Transport-Security" not in api.call("GET", "/healthz").headers
    forged = make_api().call("GET", "/healthz", headers={"X-Forwarded-Proto": "https"})
    assert "Strict-Transport-Security" not in forged.headers


def test_without_origins_no_other_site_is_let_in() -> None:
    api = make_api()
    for answer in (
        api.track("POST", "/v1/allocate", headers={"Origin": LAB}),
        api.call("OPTIONS", "/v1/allocate", headers={"Origin": LAB} | PREFLIGHT),
    ):
        assert not [name for name in answer.headers.keys() if name.startswith("Access-Control-")]  # noqa: SIM118 - werkzeug's Headers iterate as pairs
    assert answer.status_code == 405


def test_an_origin_that_is_configured_may_read_answers_and_their_headers() -> None:
    answer = make_api(CORS_ALLOWED_ORIGINS=f"{LAB},http://[::1]:3000").track(
        "POST", "/v1/allocate", headers={"Origin": LAB}
    )
    assert answer.headers["Access-Control-Allow-Origin"] == LAB
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers.getlist("Vary")
    exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert {
        *("X-Request-ID", "Retry-After", "Idempotent-Replayed", "X-RateLimit-Remaining", "RateLimit"),
        "RateLimit-Policy",
    } <= exposed


@pytest.mark.parametrize(
    "origin",
    ["https://lab.example.com.evil.example", "https://labXexample.com", "http://lab.example.com", f"{LAB}:444", "null"],
)
@pytest.mark.parametrize("others", ["", ",https://second.example"])
def test_no_other_origin_is_let_in(origin: str, others: str) -> None:
    api = make_api(CORS_ALLOWED_ORIGINS=LAB + others)
    for answer in (
        api.track("POST", "/v1/allocate", headers={"Origin": origin}),
        api.call("OPTIONS", "/v1/allocate", headers={"Origin": origin} | PREFLIGHT),
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_preflight_is_answered_without_a_token_and_may_be_remembered() -> None:
    api = make_api(CORS_ALLOWED_ORIGINS=LAB)
    answer = api.call("OPTIONS", "/v1/allocate", headers={"Origin": LAB} | PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == LAB
    assert answer.headers["Access-Control-Max-Age"] == "600"
    assert {"GET", "POST"} == {name.strip() for name in answer.headers["Access-Control-Allow-Methods"].split(",")}
    allowed = {name.strip().lower() for name in answer.headers["Access-Control-Allow-Headers"].split(",")}
    assert {"authorization", "x-track-id"} <= allowed
    assert api.rate_limit.keys == []
