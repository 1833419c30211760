"""Signing in, by a token and at an issuer, and out."""

from __future__ import annotations

import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import request

from broker_common.adapters import oidc_sign_in
from broker_common.core.ports import Allowance
from tests.api.harness import ADMIN_TOKEN, TRACK_TOKEN, make_api, named_token
from tests.authorization_server import (
    AUTHORIZE,
    CLIENT_ID,
    LOGOUT,
    TOKEN,
    AuthorizationServer,
    challenge_of,
    settings_of,
)
from tests.console.harness import Console, make_console
from tests.issuer import AUDIENCE, DISCOVERY, JWKS, Key, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from werkzeug.test import TestResponse

    from tests.http_server import Handler

RETURN = "/signin/return"
COOKIE, PENDING, KNOWN = "broker-console", "broker-console-sign-in", "broker-console-known"


@pytest.fixture
def issuer() -> Iterator[AuthorizationServer]:
    with running(AuthorizationServer()) as server:
        yield server


def console_of(issuer: AuthorizationServer, environ: dict[str, str] | None = None) -> Console:
    """Return a console and an API that both know the issuer."""
    given = settings_of(issuer) | (environ or {})
    api = make_api(**{name: value for name, value in given.items() if name in settings_of(issuer)})
    issuer.change.now = api.clock.now
    return make_console(api, {"OIDC_CLIENT_ID": CLIENT_ID} | given)


@pytest.fixture
def at_issuer(issuer: AuthorizationServer) -> Console:
    return console_of(issuer)


def begin(console: Console, came_from: str = "/sandboxes?status=stale") -> str:
    """Follow the link to the issuer, and return the issuer's address."""
    answer = console.open("/signin/issuer", query_string={"next": came_from})
    assert answer.status_code == 303, answer.text
    return answer.headers["Location"]


def go(console: Console, issuer: AuthorizationServer, person: str = "anna", **options: Any) -> TestResponse:
    """Sign in at the issuer, and come back."""
    back = urlsplit(issuer.come_back(begin(console), person))
    return console.open(f"{back.path}?{back.query}", **options)


def is_signed_in(console: Console) -> bool:
    return console.open("/").status_code == 200


def text_of(page: TestResponse) -> str:
    """Return what a person reads."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page.text)))


def leads_to(page: TestResponse) -> str:
    """Return the address that a page leads on to by itself."""
    found = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', page.text)
    assert found, page.text
    return html.unescape(found.group(1))


# -- by a token


def test_a_token_of_an_operator_signs_in_and_the_page_names_the_person(stranger: Console) -> None:
    answer = stranger.sign_in()
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    assert "admin (admin)" in text_of(stranger.open("/"))
    assert stranger.open("/signin").headers["Location"] == "/"


def test_after_signing_in_a_person_is_on_the_page_that_they_wanted(stranger: Console) -> None:
    refused = stranger.open("/events?kind=pool.low")
    assert (refused.status_code, refused.headers["Location"]) == (303, "/signin?next=/events?kind%3Dpool.low")
    page = stranger.open(refused.headers["Location"])
    assert "Sign in to see this page." in text_of(page)
    assert 'name="next" value="/events?kind=pool.low"' in page.text
    answer = stranger.send("/signin", {"token": ADMIN_TOKEN, "next": "/events?kind=pool.low"}, page="/signin")
    assert answer.headers["Location"] == "/events?kind=pool.low"


@pytest.mark.parametrize(
    ("token", "status", "words"),
    [
        ("no-such-token", 401, "The token is unknown."),
        (
            TRACK_TOKEN,
            403,
            "has no role of an operator: this call needs the role viewer, and the token has only track.",
        ),
        ("", 400, "Paste your token."),
        ("two words", 400, "only printable ASCII characters, and no spaces."),
        ("x" * 4097, 400, "This is too long for a token."),
    ],
)
def test_a_token_that_does_not_sign_in_is_not_shown_again_and_the_page_says_why(
    stranger: Console, token: str, status: int, words: str
) -> None:
    page = stranger.sign_in(token)
    assert (page.status_code, words in text_of(page)) == (status, True), page.text
    assert not token or token not in page.text
    assert not is_signed_in(stranger)


def test_while_the_api_is_away_nobody_signs_in_and_the_page_says_so(stranger: Console) -> None:
    stranger.to_api.away = True
    page = stranger.sign_in()
    assert (page.status_code, "The broker's API does not answer." in text_of(page)) == (503, True)


def test_a_person_who_guesses_tokens_cannot_lock_others_out(stranger: Console) -> None:
    """All attempts come from the console's address. Only those with wrong tokens count for it."""
    stranger.sign_in("wrong-token")
    assert stranger.api.rate_limit.keys[-1] == "address:127.0.0.1"
    stranger.sign_in()
    assert stranger.api.rate_limit.keys[-1] == "principal:admin"
    stranger.api.rate_limit.answer = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=1)
    stranger.send("/signout")
    page = stranger.sign_in("wrong-token")
    assert (page.status_code, "Too many requests." in text_of(page)) == (429, True)


def test_signing_out_ends_the_session_and_forgets_what_the_api_told(console: Console) -> None:
    assert is_signed_in(console)
    answer = console.send("/signout")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/signin")
    assert "You are signed out." in text_of(console.open("/signin"))
    assert not is_signed_in(console)
    console.sign_in()
    console.to_api.away = True
    assert console.open("/").status_code == 503


def test_without_an_issuer_there_is_no_way_to_one(stranger: Console) -> None:
    assert "Sign in at" not in stranger.open("/signin").text
    assert stranger.open("/signin/issuer").status_code == 404
    assert stranger.open(RETURN).status_code == 400


# -- at an issuer


def test_a_person_signs_in_at_the_issuer_and_is_led_to_the_page_that_they_wanted(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    page = at_issuer.open("/signin?next=/sandboxes?status=stale")
    assert f"Sign in at {urlsplit(issuer.url).netloc}" in text_of(page)
    assert 'href="/signin/issuer?next=/sandboxes?status%3Dstale"' in page.text

    arrived = go(at_issuer, issuer)

    assert arrived.status_code == 200
    assert leads_to(arrived) == "/sandboxes?status=stale"
    assert "You are signed in." in text_of(arrived)
    assert "oidc:anna-1 (operator)" in text_of(at_issuer.open("/"))


def test_the_issuer_is_asked_with_pkce_a_state_a_nonce_and_for_the_api(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    address = begin(at_issuer)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert asked.pop("state") != asked.pop("nonce")
    challenge = asked.pop("code_challenge")
    assert asked == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": f"http://localhost{RETURN}",
        "scope": "openid",
        "code_challenge_method": "S256",
        "audience": AUDIENCE,
        "resource": AUDIENCE,
    }
    back = urlsplit(issuer.come_back(address))
    at_issuer.open(f"{back.path}?{back.query}")
    (sent,) = issuer.exchanges
    assert challenge_of(sent["code_verifier"]) == challenge
    assert (sent["resource"], sent["redirect_uri"]) == (AUDIENCE, f"http://localhost{RETURN}")


def test_an_audience_that_is_no_address_is_no_resource(issuer: AuthorizationServer) -> None:
    console = console_of(issuer, {"OIDC_AUDIENCE": "1f2e-33", "OIDC_SCOPES": "openid api://1f2e-33/.default"})
    asked = parse_qs(urlsplit(begin(console)).query)
    assert (asked["audience"], asked["scope"]) == (["1f2e-33"], ["openid api://1f2e-33/.default"])
    assert "resource" not in asked
    go(console, issuer)
    assert is_signed_in(console)
    assert "resource" not in issuer.exchanges[0]


@pytest.mark.parametrize("methods", [None, ["client_secret_basic", "client_secret_post"], ["client_secret_post"]])
def test_a_client_with_a_secret_sends_it_as_the_issuer_takes_it(
    issuer: AuthorizationServer, methods: list[str] | None
) -> None:
    issuer.change.secret = "the-secret"
    issuer.change.metadata = {"token_endpoint_auth_methods_supported": methods}
    console = console_of(issuer, {"OIDC_CLIENT_SECRET": "the-secret"})
    go(console, issuer)
    assert is_signed_in(console)
    assert ("by" in issuer.exchanges[0]) == (methods != ["client_secret_post"])


def test_the_issuer_is_asked_nothing_before_somebody_signs_in_and_not_each_time(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    at_issuer.open("/signin")
    assert issuer.asked == []
    begin(at_issuer)
    begin(at_issuer)
    assert issuer.asked == [DISCOVERY, JWKS]
    at_issuer.api.clock.advance(oidc_sign_in.KEPT_SEC)
    begin(at_issuer)
    assert issuer.asked == [DISCOVERY, JWKS] * 2


def test_in_production_the_issuer_sends_people_back_by_https_to_the_host_that_they_use(
    issuer: AuthorizationServer,
) -> None:
    console = make_console(
        None,
        {
            "BROKER_ENV": "production",
            "OIDC_ISSUER": "https://issuer.invalid",
            "OIDC_AUDIENCE": AUDIENCE,
            "OIDC_CLIENT_ID": CLIENT_ID,
        },
    )
    console.app.extensions["broker_console"].sign_in.issuer = issuer.url
    for host in ("console.example.com", "other.example.com:8443"):
        answer = console.open("/signin/issuer", headers={"Host": host})
        asked = parse_qs(urlsplit(answer.headers["Location"]).query)
        assert asked["redirect_uri"] == [f"https://{host}{RETURN}"]
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-broker-console-sign-in=")
        assert cookie.endswith("; Secure; HttpOnly; Path=/; SameSite=Lax")
        assert "Max-Age=600" in cookie


def test_who_is_signed_in_already_is_not_sent_to_the_issuer(at_issuer: Console, issuer: AuthorizationServer) -> None:
    go(at_issuer, issuer)
    assert at_issuer.open("/signin/issuer?next=/events").headers["Location"] == "/events"
    assert at_issuer.open("/signin?next=/events").headers["Location"] == "/events"


def test_when_the_token_ends_the_person_signs_in_again_and_comes_back_to_the_page(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    issuer.change.lasts_sec = 600
    go(at_issuer, issuer)
    at_issuer.api.clock.advance(599)
    assert is_signed_in(at_issuer)
    at_issuer.api.clock.advance(1)
    ended = at_issuer.open("/line?open=1")
    assert ended.headers["Location"] == "/signin?next=/line?open%3D1"
    page = at_issuer.open(ended.headers["Location"])
    assert "Your sign-in has ended. Sign in again." in text_of(page)
    assert 'href="/signin/issuer?next=/line?open%3D1"' in page.text


@pytest.mark.parametrize("told", [None, 10**9, "1000000"])
def test_a_token_without_a_clear_end_lasts_a_working_day_at_most(
    at_issuer: Console, issuer: AuthorizationServer, told: Any
) -> None:
    issuer.change.lasts_sec = told
    issuer.change.access_claims = {"exp": at_issuer.api.clock.now() + 10**6}
    go(at_issuer, issuer)
    at_issuer.api.clock.advance(12 * 3600 - 1)
    assert is_signed_in(at_issuer)
    at_issuer.api.clock.advance(1)
    assert not is_signed_in(at_issuer)


# -- what goes wrong at an issuer


def refused(console: Console, answer: TestResponse) -> str:
    """Return what the page says to a person who was not signed in. Nothing may be in the session."""
    assert answer.status_code >= 400, answer.text
    assert COOKIE not in [cookie.split("=")[0] for cookie in answer.headers.getlist("Set-Cookie")]
    assert not is_signed_in(console)
    assert "Sign in again" in answer.text
    return text_of(answer)


def test_a_refusal_of_the_issuer_is_said(at_issuer: Console, issuer: AuthorizationServer) -> None:
    said = refused(at_issuer, go(at_issuer, issuer, "mallory"))
    assert "The issuer did not sign you in: mallory may not use this application." in said


def test_a_person_without_a_role_is_told_so(at_issuer: Console, issuer: AuthorizationServer) -> None:
    said = refused(at_issuer, go(at_issuer, issuer, "nobody"))
    assert "Your token is valid, but it has no role of an operator" in said
    assert "'broker_roles' names no role of the broker" in said


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"aud": "https://other.example.com"}, "The token is for another audience."),
        ({"exp": 1}, "The token has expired."),
    ],
)
def test_a_token_that_the_api_refuses_signs_nobody_in(
    at_issuer: Console, issuer: AuthorizationServer, claims: dict[str, Any], words: str
) -> None:
    issuer.change.access_claims = claims
    assert words in refused(at_issuer, go(at_issuer, issuer))


def test_a_token_that_is_no_jwt_signs_nobody_in(at_issuer: Console, issuer: AuthorizationServer) -> None:
    issuer.change.answer = {"access_token": "opaque"}
    assert "The token is unknown." in refused(at_issuer, go(at_issuer, issuer))


def test_a_token_that_no_cookie_has_room_for_is_said(at_issuer: Console, issuer: AuthorizationServer) -> None:
    issuer.change.access_claims = {"groups": ["x" * 40] * 80}
    assert "Your token has more than 4096 bytes" in refused(at_issuer, go(at_issuer, issuer))


def test_while_the_api_is_away_the_page_says_so(at_issuer: Console, issuer: AuthorizationServer) -> None:
    back = urlsplit(issuer.come_back(begin(at_issuer)))
    at_issuer.to_api.away = True
    answer = at_issuer.open(f"{back.path}?{back.query}")
    assert (answer.status_code, "The broker's API does not answer." in text_of(answer)) == (503, True)


def test_of_two_sign_ins_in_one_browser_the_first_one_is_refused(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    old = urlsplit(issuer.come_back(begin(at_issuer, "/line")))
    new = urlsplit(issuer.come_back(begin(at_issuer, "/events")))
    said = refused(at_issuer, at_issuer.open(f"{old.path}?{old.query}"))
    assert "not the one that was begun last in this browser" in said
    assert leads_to(at_issuer.open(f"{new.path}?{new.query}")) == "/events"


def test_an_answer_of_the_issuer_counts_once_and_only_in_the_browser_that_asked(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    back = urlsplit(issuer.come_back(begin(at_issuer)))
    victim = at_issuer.new_browser()
    assert victim.get(f"{back.path}?{back.query}").status_code == 400
    assert at_issuer.open(f"{back.path}?{back.query}").status_code == 200
    at_issuer.send("/signout")
    said = refused(at_issuer, at_issuer.open(f"{back.path}?{back.query}"))
    assert "This sign-in was used already" in said


def test_a_link_to_the_page_of_return_signs_nobody_out(at_issuer: Console, issuer: AuthorizationServer) -> None:
    go(at_issuer, issuer)
    for query in ("", "?code=x&state=y", "?error=access_denied&error_description=Call+0800", "?code=x&code=y"):
        # From another site, the browser sends the session not at all, and takes what the answer sets.
        page = at_issuer.new_browser().get(f"{RETURN}{query}", headers={"Sec-Fetch-Site": "cross-site"})
        assert page.status_code == 400
        assert "Set-Cookie" not in page.headers
        assert "0800" not in page.text
    assert is_signed_in(at_issuer)


def test_a_sign_in_that_took_too_long_begins_again(at_issuer: Console, issuer: AuthorizationServer) -> None:
    back = urlsplit(issuer.come_back(begin(at_issuer)))
    at_issuer.api.clock.advance(600)
    assert "took longer than 10 minutes" in refused(at_issuer, at_issuer.open(f"{back.path}?{back.query}"))


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "of another sign-in"},
        {"nonce": None},
        {"aud": "another-client"},
        {"iss": "https://other.example.com"},
        {"azp": "another-client"},
        {"exp": 1},
        {"exp": "soon"},
        {"sub": None},
    ],
)
def test_an_id_token_of_another_sign_in_signs_nobody_in(
    at_issuer: Console, issuer: AuthorizationServer, claims: dict[str, Any]
) -> None:
    issuer.change.id_claims = claims
    said = refused(at_issuer, go(at_issuer, issuer))
    assert "The issuer's answer is not for this sign-in. Sign in again." in said


@pytest.mark.parametrize("token", [None, "no.jwt.", "", "a.b.c"])
def test_an_answer_without_a_right_id_token_signs_nobody_in(
    at_issuer: Console, issuer: AuthorizationServer, token: str | None
) -> None:
    issuer.change.answer = {"id_token": token}
    assert "The issuer's answer is not for this sign-in." in refused(at_issuer, go(at_issuer, issuer))


def test_an_id_token_of_a_key_that_the_issuer_does_not_publish_signs_nobody_in(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    begin(at_issuer)
    issuer.key = Key("stolen")
    assert "The issuer's answer is not for this sign-in." in refused(at_issuer, go(at_issuer, issuer))


def test_a_new_key_of_the_issuer_is_asked_for(issuer: AuthorizationServer, at_issuer: Console) -> None:
    begin(at_issuer)
    issuer.key = Key("new")
    issuer.keys.append(issuer.key.public())
    assert go(at_issuer, issuer).status_code == 200
    assert is_signed_in(at_issuer)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"token_type": "DPoP"}, "The issuer gave no token for the broker."),
        ({"access_token": None}, "The issuer gave no token for the broker."),
        ({"error": "invalid_scope"}, "The issuer gave no token (invalid_scope)."),
    ],
)
def test_an_answer_without_a_token_for_the_api_is_said(
    at_issuer: Console, issuer: AuthorizationServer, answer: dict[str, Any], words: str
) -> None:
    issuer.change.answer = answer
    assert words in refused(at_issuer, go(at_issuer, issuer))


def test_a_wrong_secret_is_said(issuer: AuthorizationServer) -> None:
    issuer.change.secret = "the-secret"
    console = console_of(issuer, {"OIDC_CLIENT_SECRET": "another"})
    assert "The issuer gave no token (invalid_client)." in refused(console, go(console, issuer))


def test_an_answer_that_names_another_issuer_is_refused(at_issuer: Console, issuer: AuthorizationServer) -> None:
    back = urlsplit(issuer.come_back(begin(at_issuer)))
    answer = at_issuer.open(f"{back.path}?{back.query.replace('iss=', 'iss=x')}")
    assert "The answer is not that of the issuer." in refused(at_issuer, answer)
    assert issuer.exchanges == []


@pytest.mark.parametrize("fault", ["nothing", "a page", "a redirect"])
def test_an_issuer_that_gives_no_answer_for_a_code_is_said(
    at_issuer: Console, issuer: AuthorizationServer, fault: str
) -> None:
    issuer.faults[TOKEN] = {
        "nothing": lambda _: None,
        "a page": lambda handler: handler.answer(200, b"<p>Welcome", Content_Type="text/html"),
        "a redirect": lambda handler: handler.answer(302, Location="/elsewhere"),
    }[fault]
    assert "The issuer does not answer. Try again in a moment" in refused(at_issuer, go(at_issuer, issuer))
    assert "/elsewhere" not in issuer.asked


def test_an_answer_that_never_ends_is_given_up(
    at_issuer: Console, issuer: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(at_issuer)
    monkeypatch.setattr(oidc_sign_in, "ANSWER_SEC", 0.3)
    issuer.faults[TOKEN] = issuer.drip
    assert "The issuer does not answer." in refused(at_issuer, go(at_issuer, issuer))


def test_while_the_issuer_is_away_the_page_says_so_and_it_is_not_asked_again_at_once(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    issuer.faults[DISCOVERY] = lambda handler: handler.answer(502)
    for _ in range(3):
        page = at_issuer.open("/signin/issuer?next=/line")
        assert (page.status_code, "The issuer does not answer." in text_of(page)) == (503, True)
        assert 'href="/signin?next=/line"' in page.text
    assert issuer.asked == [DISCOVERY]
    issuer.faults.clear()
    at_issuer.api.clock.advance(5)
    go(at_issuer, issuer)
    assert is_signed_in(at_issuer)


def test_what_was_known_of_the_issuer_serves_on_while_it_is_not_renewed(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    begin(at_issuer)
    at_issuer.api.clock.advance(oidc_sign_in.KEPT_SEC)
    issuer.faults[DISCOVERY] = lambda handler: handler.answer(502)
    assert begin(at_issuer).startswith(f"{issuer.url}{AUTHORIZE}?")


@pytest.mark.parametrize("address", [None, "http://elsewhere.example.com/authorize", "javascript:alert(1)", 5])
def test_an_issuer_without_a_safe_address_is_said(
    at_issuer: Console, issuer: AuthorizationServer, address: Any
) -> None:
    issuer.change.metadata = {"authorization_endpoint": address}
    page = at_issuer.open("/signin/issuer")
    assert (page.status_code, "The issuer is not set up for this console." in text_of(page)) == (503, True)


@contextmanager
def many_strangers(console: Console, issuer: AuthorizationServer) -> Iterator[None]:
    """Let strangers come back with codes that are none, to an issuer that does not answer, until no place is left."""
    asked, hold_on = threading.Semaphore(0), threading.Event()

    def hang(_: Handler) -> None:
        asked.release()
        hold_on.wait(60)

    def come_back() -> int:
        browser = console.new_browser()
        state = parse_qs(urlsplit(browser.get("/signin/issuer").headers["Location"]).query)["state"][0]
        return browser.get(RETURN, query_string={"code": "bogus", "state": state}).status_code

    issuer.faults[TOKEN] = hang
    with ThreadPoolExecutor(2 * oidc_sign_in._AT_ONCE) as pool:
        came = [pool.submit(come_back) for _ in range(2 * oidc_sign_in._AT_ONCE)]
        try:
            for _ in range(oidc_sign_in._AT_ONCE):
                assert asked.acquire(timeout=60)
            del issuer.faults[TOKEN]
            yield
            assert not asked.acquire(blocking=False), "more strangers than places wait for the issuer"
        finally:
            hold_on.set()
    assert {each.result() for each in came} == {400}


def test_strangers_with_codes_that_are_none_keep_nobody_out_who_has_signed_in_before(
    at_issuer: Console, issuer: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_sign_in, "ANSWER_SEC", 60)
    go(at_issuer, issuer)
    at_issuer.send("/signout")
    with many_strangers(at_issuer, issuer):
        assert begin(at_issuer).startswith(issuer.url), "nobody waits for what is known of the issuer"
        assert go(at_issuer, issuer).status_code == 200
        assert is_signed_in(at_issuer)
        first_time = Console(at_issuer.app, at_issuer.api, at_issuer.to_api)
        assert "The issuer is slow, and others wait for it." in refused(first_time, go(first_time, issuer))
    assert go(first_time, issuer).status_code == 200


def test_a_browser_is_known_for_ninety_days_by_a_cookie_that_says_nothing_of_the_person(
    at_issuer: Console, issuer: AuthorizationServer
) -> None:
    answer = go(at_issuer, issuer)
    (cookie,) = [each for each in answer.headers.getlist("Set-Cookie") if each.startswith(f"{KNOWN}=")]
    assert cookie.split("; ")[1:][-3:] == ["HttpOnly", "Path=/", "SameSite=Lax"]
    assert "Max-Age=7776000" in cookie
    value = cookie.split(";")[0].removeprefix(f"{KNOWN}=")
    known = at_issuer.app.extensions["broker_console"].known_browsers
    for changed, days, is_known in ((value, 90, True), (value, 1, False), (value[:-4], 0, False), ("", 0, False)):
        with at_issuer.app.test_request_context(headers={"Cookie": f"{KNOWN}={changed}"}):
            at_issuer.api.clock.advance(days * 86400 - (1 if is_known else 0))
            assert known.has(request) is is_known


def test_who_only_came_back_without_a_right_code_is_not_known(at_issuer: Console, issuer: AuthorizationServer) -> None:
    answer = go(at_issuer, issuer, "mallory")
    assert KNOWN not in str(answer.headers)


def test_a_request_without_a_host_is_refused(at_issuer: Console) -> None:
    assert at_issuer.open("/signin/issuer", headers={"Host": "console example<>"}).status_code == 400


# -- signing out at an issuer


def test_signing_out_leads_on_to_the_issuer(at_issuer: Console, issuer: AuthorizationServer) -> None:
    go(at_issuer, issuer)
    page = at_issuer.send("/signout")
    parts = urlsplit(leads_to(page))
    assert (page.status_code, f"{parts.scheme}://{parts.netloc}{parts.path}") == (200, f"{issuer.url}{LOGOUT}")
    assert parse_qs(parts.query) == {"client_id": [CLIENT_ID], "post_logout_redirect_uri": ["http://localhost/signin"]}
    assert "You are signed out of the console." in text_of(page)
    assert not is_signed_in(at_issuer)


@pytest.mark.parametrize("address", [None, "javascript:alert(1)"])
def test_without_a_page_of_the_issuer_signing_out_ends_the_session_alone(
    at_issuer: Console, issuer: AuthorizationServer, address: str | None
) -> None:
    issuer.change.metadata = {"end_session_endpoint": address}
    go(at_issuer, issuer)
    assert at_issuer.send("/signout").headers["Location"] == "/signin"
    assert not is_signed_in(at_issuer)


def test_an_address_of_the_issuer_may_have_a_query(at_issuer: Console, issuer: AuthorizationServer) -> None:
    issuer.change.metadata = {"end_session_endpoint": f"{issuer.url}{LOGOUT}?flow=1"}
    go(at_issuer, issuer)
    assert leads_to(at_issuer.send("/signout")).startswith(f"{issuer.url}{LOGOUT}?flow=1&client_id=")


def test_who_came_by_a_token_is_not_sent_to_the_issuer_to_sign_out(at_issuer: Console) -> None:
    at_issuer.sign_in()
    assert at_issuer.send("/signout").headers["Location"] == "/signin"


# -- roles and tokens that change


def tokens(path: Path, *roles: str, name: str = "maria") -> None:
    others = named_token("keeper", "keeper-token", "admin")
    path.write_text(others + (named_token(name, "maria-token", *roles) if roles else ""))


@pytest.fixture
def of_maria(tmp_path: Path) -> tuple[Console, Path]:
    """Return a console in which an operator is signed in, and the file that has her token."""
    file = tmp_path / "tokens.toml"
    tokens(file, "operator")
    console = make_console(make_api(BROKER_TOKENS_FILE=str(file)))
    console.sign_in("maria-token")
    assert "maria (operator)" in text_of(console.open("/"))
    return console, file


def send_after(console: Console, change: Callable[[], None], **options: Any) -> TestResponse:
    """Open a page, let `change` happen, and send a form of the page."""
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', console.open("/line").text)
    assert found
    change()
    form = {"typed": "track-1", "track_id": "track-1", "csrf_token": found.group(1)}
    return console.browser.post("/line/1/remove", data=form, **options)


def test_a_token_that_is_revoked_signs_its_owner_out_and_the_page_says_why(of_maria: tuple[Console, Path]) -> None:
    console, file = of_maria
    tokens(file)
    answer = console.open("/line")
    assert answer.headers["Location"] == "/signin?next=/line"
    said = text_of(console.open(answer.headers["Location"]))
    assert "You are signed out, because the broker does not accept your token: the token is unknown." in said
    console.to_api.away = True
    assert console.open("/line").headers["Location"] == "/signin?next=/line"


def test_a_role_that_is_lost_is_not_offered_any_more(of_maria: tuple[Console, Path]) -> None:
    console, file = of_maria
    answer = send_after(console, lambda: tokens(file, "viewer"), follow_redirects=True)
    assert "This call needs the role operator, and the token has only viewer. (request " in text_of(answer)
    assert "maria (viewer)" in text_of(answer)


def test_who_has_lost_every_role_is_signed_out(of_maria: tuple[Console, Path]) -> None:
    console, file = of_maria
    tokens(file, "track")
    answer = console.open("/line")
    said = text_of(console.open(answer.headers["Location"]))
    assert "You are signed out, because your token has no role of an operator any more." in said


def test_a_role_that_cannot_be_asked_for_stays_as_it_was(of_maria: tuple[Console, Path]) -> None:
    console, file = of_maria
    tokens(file, "track")
    console.to_api.answers_left = 1
    page = console.open("/line")
    assert (page.status_code, "maria (operator)" in text_of(page)) == (403, True)


def test_a_busy_api_leaves_the_roles_as_they_were(of_maria: tuple[Console, Path]) -> None:
    console, file = of_maria
    tokens(file, "track")
    allowed = console.api.rate_limit.answer
    refused = Allowance(is_exceeded=True, limit=200, remaining=0, reset_after=4, retry_after=1)
    answers = iter([allowed, refused])
    console.api.rate_limit.take = lambda _: next(answers)  # type: ignore[assignment] # for this test alone
    page = console.open("/line")
    assert (page.status_code, "maria (operator)" in text_of(page)) == (403, True)
