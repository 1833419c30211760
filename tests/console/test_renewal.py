"""A token of the issuer that ends is renewed, so that a console that is left open all day goes on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from broker_api.console.session import LONGEST_TOKEN
from broker_common.adapters import oidc_sign_in
from broker_common.adapters.oidc_sign_in import KEPT_SEC
from tests.api.harness import ADMIN_TOKEN
from tests.authorization_server import CLIENT_ID, REVOKE, TOKEN, AuthorizationServer, settings_of
from tests.console.harness import Console, make_console
from tests.console.test_session import held
from tests.console.test_signin import COOKIE, console_of, go, is_signed_in, text_of
from tests.console.test_unsent import csrf_of, send_again
from tests.issuer import AUDIENCE, DISCOVERY, running, send_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from tests.http_server import Handler

LASTS_SEC = 3600
EARLY_SEC = 60


@pytest.fixture
def issuer() -> Iterator[AuthorizationServer]:
    with running(AuthorizationServer()) as server:
        server.change.refresh_tokens = "once"
        yield server


@pytest.fixture
def console(issuer: AuthorizationServer) -> Console:
    """Return a console in which anna is signed in at the issuer, by a token that lasts for an hour."""
    made = console_of(issuer)
    assert go(made, issuer).status_code == 200
    # The first page puts the token for forms into the session.
    assert is_signed_in(made)
    return made


def tab(console: Console) -> FlaskClient:
    """Return another tab whose request has the cookies of now."""
    made = console.new_browser()
    for name in (COOKIE, f"{COOKIE}-1"):
        made.set_cookie(name, held(console, name))
    return made


@contextmanager
def answering_late(issuer: AuthorizationServer) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Have the issuer keep the next renewal waiting; yields when that has come, and what lets it be answered.

    It is let go on at the end of the context in any case.
    """
    asked, go_on = threading.Event(), threading.Event()

    def answer(handler: Handler) -> None:
        asked.set()
        go_on.wait(60)
        del issuer.faults[TOKEN]
        issuer.reply(handler)

    issuer.faults[TOKEN] = answer
    try:
        yield asked, go_on
    finally:
        go_on.set()


def token_of(console: Console) -> str:
    """Return the token of the console's last call to the API."""
    return str(console.to_api.sent[-1].headers["Authorization"]).removeprefix("Bearer ")


# -- while the issuer renews it


def test_a_page_that_renews_itself_goes_on_for_a_working_day_and_no_longer(
    console: Console, issuer: AuthorizationServer
) -> None:
    seen = set()
    for _ in range(12 * 60 - 1):
        console.api.clock.advance(60)
        if console.open("/line", headers={"X-Renew": "1"}).status_code != 200:
            break
        seen.add(token_of(console))
    assert is_signed_in(console)
    assert len(issuer.renewals) == len(seen) - 1 == 12
    console.api.clock.advance(60)
    ended = console.open("/line")
    assert ended.headers["Location"] == "/signin?next=/line"
    assert "Your sign-in has ended." in text_of(console.open(ended.headers["Location"]))


def test_it_is_renewed_a_minute_before_its_end_and_each_refresh_token_is_used_once(
    console: Console, issuer: AuthorizationServer
) -> None:
    console.api.clock.advance(LASTS_SEC - EARLY_SEC - 1)
    console.open("/line")
    first = token_of(console)
    assert issuer.renewals == []
    console.api.clock.advance(1)
    console.open("/line")
    assert token_of(console) != first
    console.open("/line")
    (sent,) = issuer.renewals
    assert (sent["grant_type"], sent["resource"]) == ("refresh_token", AUDIENCE)
    assert "scope" not in sent, "an issuer may have granted less than was asked for, and refuses more"
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    console.open("/line")
    assert issuer.renewals[1]["refresh_token"] != sent["refresh_token"]
    assert is_signed_in(console)


def test_an_issuer_that_takes_the_same_refresh_token_again_need_not_give_another(
    console: Console, issuer: AuthorizationServer
) -> None:
    issuer.change.refresh_tokens = "kept"
    for _ in range(3):
        console.api.clock.advance(LASTS_SEC)
        assert is_signed_in(console)
    assert len({each["refresh_token"] for each in issuer.renewals}) == 1
    assert len(issuer.renewals) == 3


@pytest.mark.parametrize("secret", [None, "the-secret"])
def test_a_client_with_a_secret_sends_it(issuer: AuthorizationServer, secret: str | None) -> None:
    issuer.change.secret = secret
    console = console_of(issuer, {"OIDC_CLIENT_SECRET": secret} if secret else {})
    go(console, issuer)
    console.api.clock.advance(LASTS_SEC)
    assert is_signed_in(console)
    assert issuer.renewals[0].get("client_secret") == secret


def test_a_tab_that_comes_a_little_later_with_the_cookie_of_before_gets_the_same_token(
    console: Console, issuer: AuthorizationServer
) -> None:
    late = tab(console)
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    console.open("/line")
    renewed = token_of(console)
    console.api.clock.advance(59)
    answer = late.get("/line")
    assert (answer.status_code, token_of(console)) == (200, renewed)
    assert COOKIE in answer.headers["Set-Cookie"]
    assert len(issuer.renewals) == 1


def test_tabs_at_the_same_time_ask_the_issuer_once_and_none_waits_while_the_token_serves(
    console: Console, issuer: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_sign_in, "ANSWER_SEC", 60)
    tabs = [tab(console) for _ in range(4)]
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    with answering_late(issuer) as (asked, go_on), ThreadPoolExecutor(1) as pool:
        first = pool.submit(console.open, "/line")
        try:
            assert asked.wait(60)
            assert [each.get("/line").status_code for each in tabs] == [200] * 4
            assert not first.done(), "they did not wait for it"
        finally:
            go_on.set()
        assert first.result().status_code == 200
    assert (len(issuer.exchanges), len(issuer.renewals)) == (1, 1), "once to sign in, once to renew"


def test_after_the_end_tabs_at_the_same_time_wait_for_one_answer(
    console: Console, issuer: AuthorizationServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc_sign_in, "ANSWER_SEC", 60)
    tabs = [tab(console) for _ in range(7)]
    console.api.clock.advance(LASTS_SEC)
    refused = threading.Semaphore(0)

    def open_line(browser: FlaskClient) -> int:
        status = browser.get("/line").status_code
        if status != 200:
            refused.release()
        return status

    with answering_late(issuer) as (asked, go_on), ThreadPoolExecutor(len(tabs)) as pool:
        answers = [pool.submit(open_line, each) for each in tabs]
        try:
            assert asked.wait(60)
            # One asks and three wait for it. The others do not take up the threads that serve other people.
            assert all(refused.acquire(timeout=60) for _ in range(3))
        finally:
            go_on.set()
        assert sorted(each.result() for each in answers) == [200] * 4 + [503] * 3
    assert len(issuer.renewals) == 1


def test_what_the_api_could_not_say_of_the_new_token_is_asked_as_soon_as_it_answers(
    console: Console, issuer: AuthorizationServer
) -> None:
    console.open("/line")
    issuer.change.people["anna"]["broker_roles"] = ["viewer"]
    console.to_api.away = True
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    assert "oidc:anna-1 (operator)" in text_of(console.open("/line"))
    console.to_api.away = False
    assert "oidc:anna-1 (viewer)" in text_of(console.open("/line"))


def test_a_token_of_another_person_that_the_api_could_not_look_at_ends_the_session_as_soon_as_it_can(
    console: Console, issuer: AuthorizationServer
) -> None:
    console.open("/line")
    issuer.change.people["anna"]["sub"] = "somebody-else"
    console.to_api.away = True
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    console.open("/line")
    console.to_api.away = False
    assert not is_signed_in(console)


def test_roles_are_those_of_the_new_token(console: Console, issuer: AuthorizationServer) -> None:
    issuer.change.people["anna"]["broker_roles"] = ["viewer"]
    assert "oidc:anna-1 (operator)" in text_of(console.open("/line"))
    console.api.clock.advance(LASTS_SEC)
    assert "oidc:anna-1 (viewer)" in text_of(console.open("/line"))


def test_what_was_known_before_is_shown_while_the_api_is_away(console: Console, issuer: AuthorizationServer) -> None:
    console.open("/line")
    console.to_api.away = True
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    page = console.open("/line")
    assert (page.status_code, "This is the last known state" in page.text) == (200, True)
    assert len(issuer.renewals) == 1
    console.to_api.away = False
    assert is_signed_in(console)


def test_a_form_that_was_opened_before_is_sent_with_the_new_token(console: Console) -> None:
    form = {"csrf_token": csrf_of(console), "paused": "yes"}
    console.api.clock.advance(LASTS_SEC)
    assert console.browser.post("/jobs/pauses/cleanup", data=form).status_code == 303
    assert console.api.admin("GET", "/v1/admin/pause").get_json()["cleanup"] is True


def test_files_and_health_renew_nothing(console: Console, issuer: AuthorizationServer) -> None:
    console.api.clock.advance(LASTS_SEC)
    for path in ("/healthz", "/static/v/console.css", "/signin"):
        console.open(path, buffered=True)
    assert issuer.renewals == []


def test_no_token_is_in_a_page_or_a_line_of_the_log(
    console: Console, issuer: AuthorizationServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    console.api.clock.advance(LASTS_SEC)
    page = console.open("/line").text
    issuer.revoke_refresh_tokens()
    console.api.clock.advance(LASTS_SEC)
    page += console.open("/line", follow_redirects=True).text
    written = caplog.text + "".join(capfd.readouterr())
    assert "the issuer does not renew a token: invalid_grant" in written
    for secret in (*issuer.given, *(each["refresh_token"] for each in issuer.renewals)):
        assert secret not in written + page


# -- what is too long, too short or absent


def test_without_a_refresh_token_the_session_ends_with_the_token(issuer: AuthorizationServer) -> None:
    issuer.change.refresh_tokens = ""
    console = console_of(issuer)
    go(console, issuer)
    console.api.clock.advance(LASTS_SEC - 1)
    assert is_signed_in(console)
    console.api.clock.advance(1)
    assert not is_signed_in(console)


@pytest.mark.parametrize(("lasts_sec", "is_renewed"), [(119, False), (120, True), (None, False)])
def test_a_token_of_less_than_two_minutes_or_without_an_end_is_not_renewed(
    issuer: AuthorizationServer, lasts_sec: int | None, is_renewed: bool
) -> None:
    issuer.change.lasts_sec = lasts_sec
    console = console_of(issuer)
    go(console, issuer)
    console.api.clock.advance(lasts_sec or LASTS_SEC)
    console.open("/line")
    assert bool(issuer.renewals) is is_renewed


def test_tokens_for_which_the_cookies_have_no_room_together_are_not_renewed(issuer: AuthorizationServer) -> None:
    """Nearly 4,096 bytes of both fit, and are kept in the same cookies as one long token."""
    console = console_of(issuer)
    issuer.change.access_claims = {"groups": ["x" * 40] * 50}
    issuer.change.answer = {"refresh_token": "r" * 600}
    go(console, issuer)
    access = issuer.given[-2]
    room = LONGEST_TOKEN - len(access)
    for length, is_renewed in ((room, True), (room + 1, False)):
        issuer.renewals.clear()
        issuer.change.answer = {"refresh_token": "r" * length}
        console.send("/signout")
        assert go(console, issuer).status_code == 200
        assert max(len(held(console, name)) for name in (COOKIE, f"{COOKIE}-1")) < 4000
        assert is_signed_in(console)
        console.api.clock.advance(LASTS_SEC)
        console.open("/line")
        assert bool(issuer.renewals) is is_renewed


def test_a_renewed_token_for_which_a_cookie_has_no_room_ends_the_session(
    console: Console, issuer: AuthorizationServer
) -> None:
    issuer.change.access_claims = {"groups": ["x" * 40] * 80}
    console.api.clock.advance(LASTS_SEC)
    assert not is_signed_in(console)


# -- when the issuer refuses, or is away


def test_when_the_issuer_refuses_the_token_still_serves_and_the_session_ends_with_it(
    console: Console, issuer: AuthorizationServer
) -> None:
    issuer.revoke_refresh_tokens()
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    for _ in range(5):
        assert is_signed_in(console)
        console.api.clock.advance(10)
    assert len(issuer.renewals) == 1, "it is not asked again at once"
    console.api.clock.advance(10)
    renewed = console.open("/line", headers={"X-Renew": "1"})
    assert (renewed.status_code, "Set-Cookie" in renewed.headers) == (401, False)
    ended = console.open("/line")
    assert ended.headers["Location"] == "/signin?next=/line"
    assert "Your sign-in has ended. Sign in again." in text_of(console.open(ended.headers["Location"]))


def test_a_tab_that_is_refused_by_another_instance_leaves_the_renewed_cookie_alone(
    console: Console, issuer: AuthorizationServer
) -> None:
    """Each instance remembers only what it exchanged itself."""
    other = make_console(console.api, {"OIDC_CLIENT_ID": CLIENT_ID} | settings_of(issuer))
    other.browser.set_cookie(COOKIE, held(console))
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    console.open("/line")
    late = other.open("/line")
    assert (late.status_code, "Set-Cookie" in late.headers) == (200, False)
    assert is_signed_in(console)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_after_the_end_a_tab_that_is_refused_by_another_instance_leaves_the_renewed_cookie_alone(
    console: Console, issuer: AuthorizationServer, method: str
) -> None:
    other = make_console(console.api, {"OIDC_CLIENT_ID": CLIENT_ID} | settings_of(issuer))
    other.browser.set_cookie(COOKIE, held(console))
    console.api.clock.advance(LASTS_SEC)
    assert is_signed_in(console)
    late = other.browser.open("/jobs/pauses/cleanup" if method == "POST" else "/line", method=method, data={})
    assert (late.status_code, "Set-Cookie" in late.headers) == (400 if method == "POST" else 303, False)
    assert is_signed_in(console)


def test_a_token_of_another_person_ends_the_session(console: Console, issuer: AuthorizationServer) -> None:
    issuer.change.people["anna"]["sub"] = "somebody-else"
    console.api.clock.advance(LASTS_SEC)
    assert not is_signed_in(console)


@pytest.mark.parametrize("fault", ["502", "closes", "html", "busy", "limit", "no error", "no token"])
def test_while_the_issuer_is_away_the_token_serves_and_then_the_session_waits_for_it(
    console: Console, issuer: AuthorizationServer, fault: str
) -> None:
    issuer.faults[TOKEN] = {
        "502": lambda handler: handler.answer(502),
        "closes": lambda handler: handler.connection.close(),
        "html": lambda handler: handler.answer(200, b"<html>", Content_Type="text/html"),
        "busy": lambda handler: handler.answer(
            400, b'{"error": "temporarily_unavailable"}', Content_Type="application/json"
        ),
        "limit": lambda handler: handler.answer(
            429, b'{"error": "too_many_requests"}', Content_Type="application/json"
        ),
        "no error": lambda handler: handler.answer(400, b'{"error": ["x"]}', Content_Type="application/json"),
        "no token": lambda handler: send_json(handler, {}),
    }[fault]
    console.api.clock.advance(LASTS_SEC - 1)
    assert is_signed_in(console)
    console.api.clock.advance(5)
    page = console.open("/line")
    assert page.status_code == 503
    assert "Your sign-in must be renewed, which does not work now. The issuer" in text_of(page)
    assert "data-reload" in page.text
    banner = console.open("/line", headers={"X-Renew": "1"}).text.split('data-live="trouble">')[1].split("</div>")[0]
    assert "This is the last known state, of" in banner
    assert "Your sign-in must be renewed" in banner
    assert issuer.asked.count(TOKEN) == 3, "to sign in, and after each five seconds"
    issuer.faults.clear()
    console.api.clock.advance(5)
    assert is_signed_in(console)


def test_a_form_that_is_sent_while_the_issuer_is_away_is_kept(console: Console, issuer: AuthorizationServer) -> None:
    form = {"csrf_token": csrf_of(console), "paused": "yes"}
    issuer.faults[DISCOVERY] = issuer.faults[TOKEN] = lambda handler: handler.answer(502)
    console.api.clock.advance(LASTS_SEC)
    kept = console.browser.post("/jobs/pauses/cleanup", data=form)
    assert kept.status_code == 503
    assert "which does not work now. The issuer does not answer." in text_of(kept)
    assert "Nothing was changed. What you typed is kept on this page." in text_of(kept)
    assert console.api.admin("GET", "/v1/admin/pause").get_json()["cleanup"] is False
    issuer.faults.clear()
    console.api.clock.advance(5)
    assert send_again(console, kept).status_code == 303
    assert console.api.admin("GET", "/v1/admin/pause").get_json()["cleanup"] is True


def test_who_cannot_wait_for_the_issuer_can_sign_out(console: Console, issuer: AuthorizationServer) -> None:
    token = csrf_of(console)
    issuer.faults[DISCOVERY] = issuer.faults[TOKEN] = lambda handler: handler.answer(502)
    console.api.clock.advance(LASTS_SEC)
    assert console.open("/line").status_code == 503
    console.browser.post("/signout", data={"csrf_token": token})
    assert "Sign in" in text_of(console.open("/signin"))


def test_who_cannot_wait_for_the_issuer_can_sign_in_by_a_token(console: Console, issuer: AuthorizationServer) -> None:
    issuer.faults[DISCOVERY] = issuer.faults[TOKEN] = lambda handler: handler.answer(502)
    console.api.clock.advance(LASTS_SEC)
    assert "or sign in by a token" in text_of(console.open("/line"))
    page = console.open("/signin")
    assert (page.status_code, "Your sign-in has ended. Sign in again." in text_of(page)) == (200, True)
    console.sign_in()
    assert console.open("/line").status_code == 200


def test_a_renewal_that_ends_after_another_sign_in_does_not_replace_it(
    console: Console, issuer: AuthorizationServer
) -> None:
    late, form = tab(console), {"csrf_token": csrf_of(console), "token": ADMIN_TOKEN}
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    assert console.browser.post("/signin", data=form).status_code == 303
    assert "Set-Cookie" not in late.get("/line", headers={"X-Renew": "1"}).headers


# -- signing out


def test_signing_out_revokes_what_renews_the_token_at_an_issuer_that_can_do_so(
    console: Console, issuer: AuthorizationServer
) -> None:
    stolen = tab(console)
    issuer.change.metadata = {"revocation_endpoint": f"{issuer.url}{REVOKE}"}
    console.api.clock.advance(KEPT_SEC)  # what is known of the issuer
    console.send("/signout")
    (sent,) = issuer.revocations
    assert (sent["client_id"], sent["token_type_hint"]) == (CLIENT_ID, "refresh_token")
    console.api.clock.advance(LASTS_SEC)
    assert stolen.get("/line").status_code == 303


@pytest.mark.parametrize("metadata", [{}, {"revocation_endpoint": "http://127.0.0.1:1/revoke"}])
def test_an_issuer_that_revokes_nothing_does_not_keep_a_person_from_signing_out(
    console: Console, issuer: AuthorizationServer, metadata: dict[str, str]
) -> None:
    issuer.change.metadata = metadata
    console.api.clock.advance(KEPT_SEC)
    assert console.send("/signout").status_code == 200
    assert not is_signed_in(console)


def test_a_renewal_that_ends_after_signing_out_does_not_sign_in_again(
    console: Console, issuer: AuthorizationServer
) -> None:
    late, form = tab(console), {"csrf_token": csrf_of(console)}
    console.api.clock.advance(LASTS_SEC - EARLY_SEC)
    with answering_late(issuer) as (asked, go_on), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(late.get, "/line", headers={"X-Renew": "1"})
        try:
            assert asked.wait(60)
            console.browser.post("/signout", data=form)
        finally:
            go_on.set()
        assert "Set-Cookie" not in answer.result().headers
    assert len(issuer.renewals) == 1


def test_a_tab_that_is_late_does_not_sign_in_again_who_signed_out_after_a_renewal(
    console: Console, issuer: AuthorizationServer
) -> None:
    late = tab(console)
    console.api.clock.advance(LASTS_SEC)
    assert is_signed_in(console)
    console.send("/signout")
    answer = late.get("/line", headers={"X-Renew": "1"})
    assert (answer.status_code, "Set-Cookie" in answer.headers) == (401, False)
    assert len(issuer.renewals) == 1
