"""What attackers find: every route, page and file, and requests that no browser of ours makes."""

from __future__ import annotations

import html
import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker_api.console.session import LONGEST_TOKEN
from tests.api.harness import ADMIN_TOKEN
from tests.console.filled import TOKENS, addresses_of, values_of
from tests.console.harness import Console, make_console

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
"""What a browser sends for a link on another site."""
FILES = ("static", "files.dark", "bootstrap.static")
NOT_HERE = ("bootstrap.static", "signin.begin", "signin.arrive")
"""The library has no such file, and there is no issuer."""


def addresses(console: Console, method: str) -> list[tuple[str, str]]:
    """Return the endpoint and an address of every route that takes this method. What they name is there."""
    return list(addresses_of(console.app, values_of(console.api), method))


def text_of(page: TestResponse) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def assert_protected(answer: TestResponse) -> None:
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


# -- forged requests


def test_every_form_is_refused_without_its_token_and_the_api_is_not_called(filled: Console) -> None:
    filled.sign_in(TOKENS["adam"])
    routes = addresses(filled, "POST")
    assert len(routes) > 20
    sent = len(filled.to_api.sent)
    for endpoint, address in routes:
        for form in ({}, {"csrf_token": ""}, {"csrf_token": "forged"}):
            answer = filled.browser.post(address, data=form | {"typed": "held", "paused": "yes"})
            assert (answer.status_code, "This form is too old" in text_of(answer)) == (400, True), endpoint
            assert "Nothing was changed." in text_of(answer)
    assert len(filled.to_api.sent) == sent
    assert filled.open("/").status_code == 200


def test_a_method_in_small_letters_is_no_way_around(console: Console) -> None:
    assert console.browser.open("/signout", method="post").status_code == 400
    assert console.open("/").status_code == 200


def test_the_token_of_another_persons_form_is_refused(console: Console) -> None:
    other = make_console(console.api)
    other.sign_in()
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', other.open("/").text)
    assert found
    assert console.browser.post("/signout", data={"csrf_token": found.group(1)}).status_code == 400
    assert console.open("/").status_code == 200


def test_nobody_can_sign_another_person_in_as_themselves(stranger: Console) -> None:
    """The form to sign in has a token, too: another site cannot send it."""
    answer = stranger.browser.post("/signin", data={"token": ADMIN_TOKEN}, headers=LINK)
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (400, False)
    assert "You are not signed in." in text_of(answer)


def test_only_get_and_post_reach_a_page(console: Console) -> None:
    for rule in console.app.url_map.iter_rules():
        # Flask answers OPTIONS for files by a list of methods.
        assert (rule.methods or set()) <= {"GET", "HEAD", "OPTIONS" if rule.endpoint in FILES else "POST"}, rule


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND"])
def test_other_methods_are_refused(console: Console, method: str) -> None:
    answer = console.browser.open("/signin", method=method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD, POST"
    assert_protected(answer)


def test_a_form_s_address_that_is_opened_as_a_page_says_so(console: Console) -> None:
    answer = console.open("/signout")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert "This address takes forms only." in text_of(answer)


def test_head_is_answered_like_get_without_a_body(console: Console) -> None:
    answer = console.browser.head("/jobs")
    assert (answer.status_code, answer.data) == (200, b"")
    assert_protected(answer)


# -- headers


@pytest.mark.parametrize("is_signed_in", [True, False])
def test_every_answer_has_the_headers_that_protect_it(filled: Console, is_signed_in: bool) -> None:
    if is_signed_in:
        filled.sign_in(TOKENS["adam"])
    for endpoint, address in addresses(filled, "GET"):
        answer = filled.open(address, buffered=True)
        assert answer.status_code < 400 or endpoint in NOT_HERE, endpoint
        assert_protected(answer)
        assert "Strict-Transport-Security" not in answer.headers
        is_file = endpoint in FILES and answer.status_code == 200
        expected = "public, max-age=31536000, immutable" if is_file else "no-store"
        assert answer.headers["Cache-Control"] == expected, endpoint


@pytest.mark.parametrize(
    "address", ["/nothing", "/static/v/nothing.js", "/static/v/../../app.py", "/%2e%2e/%00", "/signout"]
)
def test_errors_have_them_too_and_are_not_kept(console: Console, address: str) -> None:
    answer = console.open(address)
    assert answer.status_code in {404, 405}
    assert_protected(answer)
    assert answer.headers["Cache-Control"] == "no-store"


def test_in_production_browsers_keep_to_tls() -> None:
    console = make_console(None, {"BROKER_ENV": "production"})
    for address in ("/signin", "/static/v/console.css", "/nothing"):
        answer = console.open(address, buffered=True)
        assert answer.headers["Strict-Transport-Security"] == "max-age=63072000; includeSubDomains"


def test_no_page_has_a_script_or_style_of_its_own_or_a_file_of_another_host(filled: Console) -> None:
    filled.sign_in(TOKENS["adam"])
    looked_at = 0
    for endpoint, address in addresses(filled, "GET"):
        page = filled.open(address, buffered=True)
        if page.mimetype != "text/html" or page.status_code != 200:
            continue
        looked_at += 1
        assert not re.search(r"<script(?![^>]* src=\"/)", page.text), endpoint
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", page.text), endpoint
        assert not re.search(r'(src|href|action)="(https?:)?//', page.text), endpoint
    assert looked_at > 15


# -- the token


def test_the_token_is_in_no_page_no_address_and_no_line_of_the_log(
    filled: Console, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    token, wrong = TOKENS["adam"], "wrong-token-of-a-person"
    caplog.set_level(logging.DEBUG)
    filled.sign_in(token)
    routes = addresses(filled, "GET")
    for away in (False, True):
        filled.to_api.away = away
        for endpoint, address in routes:
            answer = filled.open(address, buffered=True)
            assert token.encode() not in answer.data, endpoint
            assert token not in str(answer.headers), endpoint
    filled.to_api.away = False
    page = filled.send("/signin", {"token": wrong}, page="/jobs")
    assert page.status_code == 401
    assert wrong not in page.text
    written = caplog.text + "".join(capfd.readouterr())
    assert "Request answered" in written
    assert token not in written
    assert wrong not in written


# -- addresses to go to


@pytest.mark.parametrize(
    "address",
    [
        *("//evil.example.com", "/\\evil.example.com", "\\\\evil.example.com", "https://evil.example.com", "evil"),
        *("/\t/evil.example.com", "/\n/evil.example.com", "javascript:alert(1)", " //evil.example.com", ""),
        *("///evil.example.com", "/\x00", "/" + "x" * 1001, "http:evil.example.com", "/%0d%0aSet-Cookie:x=1\r\n"),
    ],
)
def test_nobody_is_sent_to_another_site(stranger: Console, address: str) -> None:
    answer = stranger.send("/signin", {"token": ADMIN_TOKEN, "next": address}, page="/signin")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert stranger.open("/signin", query_string={"next": address}).headers["Location"] == "/"


@pytest.mark.parametrize("address", ["/", "/jobs", "/sandboxes?status=stale&name=a%20b#x", "/sandboxes/é", "/.//x"])
def test_a_page_of_ours_is_one_to_go_to(stranger: Console, address: str) -> None:
    answer = stranger.send("/signin", {"token": ADMIN_TOKEN, "next": address}, page="/signin")
    assert answer.headers["Location"].startswith("/")
    assert not answer.headers["Location"].startswith("//")
    assert address == "/" or answer.headers["Location"] != "/"


# -- links from other sites


def test_a_link_on_another_site_is_led_on_and_the_session_is_not_touched(stranger: Console) -> None:
    """The browser sends the cookie only with the second request, which comes from a page of the console."""
    answer = stranger.open('/sandboxes?name="><script>alert(1)</script>', headers=LINK)
    assert answer.status_code == 200
    assert "Set-Cookie" not in answer.headers
    assert '<meta http-equiv="refresh" content="0; url=/sandboxes?name=' in answer.text
    assert "<script>alert" not in answer.text
    assert_protected(answer)
    assert stranger.to_api.sent == []


@pytest.fixture
def old(stranger: Console) -> FlaskClient:
    """Return a browser that does not say where its requests come from, as Safari before 16.4."""
    return stranger.app.test_client()


def leads_to(page: TestResponse) -> str:
    found = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', page.text)
    assert found, page.text
    return html.unescape(found.group(1))


def test_a_link_in_a_browser_that_does_not_say_where_it_was_comes_in_signed_in(
    stranger: Console, old: FlaskClient
) -> None:
    stranger.sign_in()
    first = old.get("/sandboxes?name=a%20b&status=stale")
    assert (first.status_code, "Set-Cookie" in first.headers) == (200, False)
    assert_protected(first)
    cookie = stranger.browser.get_cookie("broker-console")
    assert cookie is not None
    old.set_cookie(cookie.key, cookie.value)
    second = old.get(leads_to(first))
    assert (second.status_code, second.location) == (302, "/sandboxes?name=a%20b&status=stale")
    assert "Set-Cookie" not in second.headers
    assert "refresh" not in old.get(second.location).text


def test_a_person_who_is_not_signed_in_is_led_to_sign_in_and_then_to_the_page(old: FlaskClient) -> None:
    page = old.get(leads_to(old.get("/line")))
    assert page.status_code == 200
    assert 'name="next" value="/line"' in page.text
    assert "refresh" not in page.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/static/v/console.css", "/signin", "/nothing"])
def test_only_pages_are_led_on(old: FlaskClient, path: str) -> None:
    assert "refresh" not in old.get(path, buffered=True).text


@pytest.mark.parametrize("address", ["//evil.example.com/", "/\\evil.example.com", "/?next=//evil.example.com"])
def test_a_link_that_is_led_on_leads_to_no_other_site(old: FlaskClient, address: str) -> None:
    page = old.get(address, base_url="http://localhost")
    if page.status_code == 200:
        assert leads_to(page).startswith("/signin")
        assert not parse_qs(urlsplit(leads_to(page)).query).get("next", ["/"])[0].startswith(("//", "/\\"))


def test_a_region_that_renews_itself_is_not_led_on(old: FlaskClient) -> None:
    assert "refresh" not in old.get("/jobs", headers={"X-Renew": "1"}).text


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_other_requests_are_not_led_on(console: Console, headers: dict[str, str]) -> None:
    assert "refresh" not in console.open("/jobs", headers=headers).text


# -- requests that no browser makes


@pytest.mark.parametrize("host", ["evil.example.com", "evil.example.com:80:80", "a b", "<script>", ""])
def test_the_header_host_is_in_no_page_and_leads_nowhere(console: Console, host: str) -> None:
    for address in ("/", "/signin", "/nothing"):
        answer = console.open(address, headers={"Host": host})
        assert answer.status_code < 500
        assert not host or host not in answer.text
        assert answer.headers.get("Location", "/").startswith("/")
    refused = console.new_browser().get("/jobs", headers={"Host": host})
    assert refused.headers["Location"] == "/signin?next=/jobs"


@pytest.mark.parametrize("host", ["x" * 300, "a..b", "x" * 64 + ".example.com"])
def test_a_host_that_can_be_none_gets_a_short_answer(console: Console, host: str) -> None:
    for method in ("GET", "POST"):
        answer = console.browser.open("/", method=method, headers={"Host": host})
        assert answer.status_code in {200, 400}
        assert host not in answer.text
        assert_protected(answer)


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Original-URL", "Forwarded"],
)
def test_headers_of_proxies_change_nothing(stranger: Console, name: str) -> None:
    answer = stranger.open("/jobs", headers={name: "evil.example.com"})
    assert answer.headers["Location"] == "/signin?next=/jobs"


def test_a_huge_form_is_refused_before_it_is_read(console: Console) -> None:
    sent = len(console.to_api.sent)
    for options in (
        {"data": {"csrf_token": "x" * 70_000}},
        {"data": b"x" * 70_000, "content_type": "application/octet-stream"},
        {
            "data": "&".join(f"a{number}=" for number in range(9000)),
            "content_type": "application/x-www-form-urlencoded",
        },
        {"data": {"file": (__import__("io").BytesIO(b"x" * 70_000), "x")}, "content_type": "multipart/form-data"},
    ):
        answer = console.browser.post("/signin", **options)
        assert answer.status_code in {400, 413}
        assert_protected(answer)
    assert len(console.to_api.sent) == sent


def test_a_hostile_request_id_is_replaced(console: Console) -> None:
    answer = console.open("/", headers={"X-Request-ID": "<script>alert(1)</script>"})
    assert "<script>alert" not in answer.text
    assert re.fullmatch("[0-9a-f-]{36}", answer.headers["X-Request-ID"])


def test_a_page_that_fails_says_nothing_of_why_and_the_log_does(
    console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> str:
        raise RuntimeError("the secret of the exception")

    console.app.view_functions["overview.show"] = fail
    answer = console.open("/")
    assert (answer.status_code, "the secret" in answer.text) == (500, False)
    assert "Something is wrong with the console" in text_of(answer)
    assert_protected(answer)
    assert "the secret of the exception" in caplog.text


def test_what_an_attacker_wrote_into_an_address_is_shown_as_text(filled: Console) -> None:
    filled.sign_in(TOKENS["adam"])
    name = '"><img src=x onerror=alert(1)>'
    query = dict.fromkeys(("name", "next", "status", "by", "track_id", "track_name", "since", "prefix", "from"), name)
    for endpoint, address in addresses(filled, "GET"):
        page = filled.open(address, query_string=query)
        assert "<img src=x" not in page.text, endpoint
        page.close()


def test_the_longest_token_of_the_form_is_that_of_the_session() -> None:
    """Otherwise a token could pass the form, and no cookie would have room for it."""
    console = make_console()
    page: Any = console.open("/signin").text
    assert f'maxlength="{LONGEST_TOKEN}"' in page


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
def test_probes_and_prometheus_are_answered_also_through_a_sidecar_that_adds_a_header(
    stranger: Console, path: str, header: str
) -> None:
    """The process cannot tell who is behind a proxy. The proxy of people keeps these paths inside."""
    assert stranger.open(path, headers={header: "203.0.113.7"}).status_code == 200
